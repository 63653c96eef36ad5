"""Serves the images and masks of any folder.

Three layouts, told apart by what is there; README*, LICENSE* and hidden files
are ignored, any other file that is no picture is refused.

* `images/NAME.ext` and `masks/NAME.ext`, of any suffix each (what lies beside
  the two folders is not read).
* `NAME.ext` and `NAME_mask.ext` in one folder.
* A list of images, masks and, if wanted, subjects and sites: see `folder_csv`
  and the option `csv`.

`readers` lists the formats. A volume gives one example an axial slice, with its
name as subject; planes and slices of a subject are counted in their order
(`position`). Without a list each file is a subject of its own, at the site '1'.
"""

import collections
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppcmi_jax.datasets import folder_csv, manual, nifti, pairing, readers

DTYPES = ('uint8', 'int16', 'float32')


@dataclasses.dataclass(eq=False, kw_only=True)
class FolderConfig(manual.ManualConfig):
  """Says how a folder is read.

  Attributes:
    classes: names, background first.
    labels: the number in the masks of each class; () is 0, 1, ..., and for two
      classes also 0 and 255 in masks that hold nothing else.
    dtype: 'uint8' (0..255) or 'int16' (such as Hounsfield units) of images with
      whole numbers in that range, or 'float32' in [0, 1].
    window: for 'float32', the two values that become 0 and 1, linearly; what
      lies outside is clipped. () takes floating point images as they are.
    csv: path of the list inside the folder; '' if there is none.
  """

  classes: Sequence[str] = ('background', 'foreground')
  labels: Sequence[int] = ()
  dtype: str = 'uint8'
  window: Sequence[float] = ()
  csv: str = ''

  def __post_init__(self):
    # Lists and tuples, 0 and 0.0 are the same, and so prepared once.
    self.classes = tuple(_listed('classes', self.classes, str))
    self.labels = tuple(_listed('labels', self.labels, int))
    self.window = tuple(
      float(end) for end in _listed('window', self.window, (int, float))
    )
    self.csv = os.fspath(self.csv)
    if len(set(self.classes)) < max(2, len(self.classes)) or (
      len(self.classes) > 256 or '' in self.classes
    ):
      raise ValueError(
        'classes: expected 2 to 256 different names, background first, found '
        f'{list(self.classes)}'
      )
    if self.labels and (
      len(set(self.labels)) != len(self.labels)
      or len(self.labels) != len(self.classes)
    ):
      raise ValueError(
        f'labels: expected {len(self.classes)} different numbers, one a class, '
        f'found {list(self.labels)}'
      )
    if self.dtype not in DTYPES:
      raise ValueError(
        f'dtype: expected one of {", ".join(DTYPES)}, found {self.dtype!r}'
      )
    if self.window and not (
      len(self.window) == 2
      and all(map(math.isfinite, self.window))
      and self.window[0] < self.window[1]
    ):
      raise ValueError(
        'window: expected the values that become 0 and 1, in this order, '
        f'found {list(self.window)}'
      )
    if self.window and self.dtype != 'float32':
      raise ValueError(
        f"window: expected dtype='float32' with it, found {self.dtype!r}"
      )
    super().__post_init__()


class Folder(manual.ManualBuilder, skip_registration=True):
  """Builds the pictures of a folder by name, or in the order of its list.

  Example: image [H, W, 1] of the dtype chosen, mask uint8 [H, W] (indices into
  the classes), spacing_mm as the file says ((1, 1) for PNG, TIFF and NumPy),
  subject, site, case (the name without suffix, '-0007' added for slice 7 of a
  volume) and position.
  """

  DESCRIPTION = 'Images and masks of a folder of the user.'

  @property
  def DTYPE(self) -> np.dtype:
    """Returns the dtype that was chosen."""
    return np.dtype(self.builder_config.dtype)

  @property
  def classes(self) -> tuple[str, ...]:
    """Returns the names that were chosen."""
    return self.builder_config.classes

  def records(self, folder: pathlib.Path) -> list[manual.Record]:
    """Lists one record a picture or volume; see the base class.

    Raises:
      ValueError: none of the three layouts, or a CSV that cannot be read.
    """
    config = self.builder_config
    counts: dict[str, int] = collections.Counter()

    def read_examples(row):
      examples = list(
        to_examples(
          row,
          *pairing.read_pair(row.image, row.mask),
          labels=config.labels,
          num_classes=len(config.classes),
          dtype=config.dtype,
          window=config.window,
          start=counts[row.subject],
        )
      )
      counts[row.subject] += len(examples)
      return examples

    def read_pair_examples(pair):
      return read_examples(
        folder_csv.Row(pair.key, pair.image, pair.mask, pair.key, '1')
      )

    if config.csv:
      return [
        row
        if isinstance(row, manual.Record)
        else manual.Record(
          row.image.relative_to(folder).as_posix(),
          functools.partial(read_examples, row),
        )
        for row in folder_csv.read(folder, config.csv)
      ]
    return pairing.to_records(find_pairs(folder), folder, read_pair_examples)


def find_pairs(folder: pathlib.Path) -> list[pairing.Pair]:
  """Pairs the files of a folder that has no CSV.

  Raises:
    ValueError: none of the two layouts.
  """
  images, masks = folder / 'images', folder / 'masks'
  if images.is_dir() != masks.is_dir():
    raise ValueError(
      f'{folder}: expected the folders images and masks, found no '
      f'{masks.name if images.is_dir() else images.name}'
    )
  if images.is_dir():
    homes = 'images/NAME.png (or another suffix)', 'masks/NAME.png'
    return pairing.pair(
      *(pairing.list_folder(place) for place in (images, masks)), homes=homes
    )
  paths = pairing.list_folder(folder)
  if not any(readers.suffix_of(path) in readers.SUFFIXES for path in paths):
    raise ValueError(
      f'{folder}: expected the folders images and masks, or files NAME.png and '
      'NAME_mask.png (or another suffix), or a list named with '
      '--config.dataset_options.csv, found no picture'
    )
  is_mask = lambda path: readers.stem_of(path).endswith('_mask')
  return pairing.pair(
    [path for path in paths if not is_mask(path)],
    [path for path in paths if is_mask(path)],
    homes=('NAME.png (or another suffix)', 'NAME_mask.png'),
    mask_key=lambda name: readers.stem_of(name).removesuffix('_mask'),
  )


def to_examples(
  row: folder_csv.Row,
  image: readers.Picture,
  mask: readers.Picture,
  *,
  labels: Sequence[int],
  num_classes: int,
  dtype: str,
  window: Sequence[float],
  start: int,
) -> list[dict[str, Any]]:
  """Makes the examples of a picture, or of the slices of a volume.

  Args:
    row: whose they are.
    image: a plane or a volume.
    mask: likewise, in the same place.
    labels: as `FolderConfig`.
    num_classes: number of classes.
    dtype: as `FolderConfig`.
    window: as `FolderConfig`.
    start: position of the first.

  Raises:
    ValueError: they do not lie on each other, or hold unknown values.
  """
  if image.array.shape != mask.array.shape:
    raise ValueError(
      'image and mask: expected the same size, found '
      f'{list(image.array.shape)} and {list(mask.array.shape)}'
    )
  if image.affine is not None and mask.affine is not None:
    difference = nifti.difference(image, mask)
    if difference:
      raise ValueError(
        f'image and mask: expected the same place in space, found {difference}'
      )
  images = to_dtype(image.array, dtype, window)
  values = labels or range(num_classes)
  black_or_white = np.all((mask.array == 0) | (mask.array == 255))
  if not labels and num_classes == 2 and black_or_white:
    values = (0, 255)
  masks = readers.index_labels(mask.array, values)
  is_volume = images.ndim == 3
  if not is_volume:
    images, masks = images[None], masks[None]
  return [
    {
      'image': plane,
      'mask': masks[z],
      'spacing_mm': image.spacing_mm[-2:],
      'subject': row.subject,
      'site': row.site,
      'case': f'{row.case}-{z:04d}' if is_volume else row.case,
      'position': start + z,
    }
    for z, plane in enumerate(images)
  ]


def to_dtype(
  image: np.ndarray, dtype: str, window: Sequence[float] = ()
) -> np.ndarray:
  """Returns an image in a dtype that can hold it; nothing wraps or is rounded.

  Args:
    image: real numbers of any shape.
    dtype: one of `DTYPES`.
    window: for 'float32', the values that become 0 and 1, or ().

  Raises:
    ValueError: it does not fit; says what to do.
  """
  if not np.all(np.isfinite(image)):
    raise ValueError('image: expected finite numbers, found NaN or infinity')
  if not image.size:
    raise ValueError(f'image: expected pixels, found {list(image.shape)}')
  low, high = image.min(), image.max()
  found = f'{image.dtype} {low:g} to {high:g}'
  if dtype == 'float32':
    if window:
      scaled = (image.astype(np.float64) - window[0]) / (window[1] - window[0])
      return np.clip(scaled, 0, 1).astype(np.float32)
    # Whole numbers 0 and 1 may be a mask-like picture or one almost black.
    if image.dtype.kind != 'f' or low < 0 or high > 1:
      raise ValueError(
        f'image: expected floating point numbers in [0, 1], found {found}; '
        'set dataset_options.window to the values that become 0 and 1'
      )
    return image.astype(np.float32)
  bounds = np.iinfo(dtype)
  if low < bounds.min or high > bounds.max:
    raise ValueError(
      f'image: expected {dtype}, {bounds.min} to {bounds.max}, found {found}; '
      "use dataset_options.dtype='int16', or 'float32' with a window"
    )
  if image.dtype.kind == 'f' and np.any(image != np.rint(image)):
    raise ValueError(
      f'image: expected whole numbers for {dtype}, found {found} with '
      "fractions; use dataset_options.dtype='float32'"
    )
  return image.astype(dtype)


def _listed(name: str, values: Any, kind: Any) -> list[Any]:
  """Returns the values of an option as a list."""
  if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
    raise ValueError(f'{name}: expected a list, found {values!r}')
  for value in values:
    if isinstance(value, bool) or not isinstance(value, kind):
      raise ValueError(f'{name}: unexpected value {value!r} in {list(values)}')
  return list(values)
