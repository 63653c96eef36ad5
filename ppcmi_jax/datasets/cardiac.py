"""Left atrium in MR: Task02_Heart of the Medical Segmentation Decathlon.

Twenty volumes (Antonelli et al., Nature Communications 2022; CC BY-SA 4.0) that
the user has, in one of two layouts:

    imagesTr/la_003.nii.gz            the archive as it is published; read
    labelsTr/la_003.nii.gz            volume by volume

    train_slices/NAME.png  train_labels/NAME.png      slices of it, as the
    test_slices/NAME.png   test_labels/NAME.png       official code reads them

Grey values of MR have no unit. A volume is scaled linearly so that its own 0.5
and 99.5 percentiles, over all voxels, become 0 and 1, and clipped there. A
slice that was saved as a picture has lost its volume; it is divided by 255.

Pictures say less than volumes. Their subject is known only where the name
starts with la_NNN; elsewhere each is a subject of its own, so a split by
subject cannot keep the slices of a patient together. Their spacing is unknown
and stored as 1 x 1, which makes distances pixels. `position` is the running
number. Their case starts with 'train/' or 'test/', the folder they came from.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from ppcmi_jax.datasets import manual, nifti, pairing, readers

EMPTY = ('keep', 'drop')
NIFTI = ('.nii.gz', '.nii')
JPEG = ('.jpg', '.jpeg')
PICTURES = ('.png', *JPEG, '.tif', '.tiff')
PERCENTILES = (0.5, 99.5)
VOLUMES = ('imagesTr', 'labelsTr')
SLICES = tuple(
  (part, f'{part}_slices', f'{part}_labels') for part in ('train', 'test')
)


@dataclasses.dataclass(eq=False, kw_only=True)
class CardiacConfig(manual.ManualConfig):
  """Says how the folder is read.

  Attributes:
    empty: 'keep' slices without left atrium, or 'drop' them.
  """

  empty: str = 'keep'

  def __post_init__(self):
    if self.empty not in EMPTY:
      raise ValueError(
        f'empty: expected one of {", ".join(EMPTY)}, found {self.empty!r}'
      )
    super().__post_init__()


class Cardiac(manual.ManualBuilder, skip_registration=True):
  """Builds axial slices in float32 [0, 1]; see the module docstring."""

  DESCRIPTION = (
    'Slices of cardiac MR with the left atrium, from the Medical Segmentation '
    'Decathlon (Task02_Heart).'
  )
  DTYPE = np.float32
  CHANNELS = 1

  @property
  def classes(self) -> tuple[str, ...]:
    return ('background', 'left atrium')

  def records(self, folder: pathlib.Path) -> list[manual.Record]:
    pictures = [name for _, *names in SLICES for name in names]
    found = {n for n in (*VOLUMES, *pictures) if (folder / n).is_dir()}
    if found.intersection(VOLUMES) and found.intersection(pictures):
      raise ValueError(
        f'{folder}: found volumes and slices ({", ".join(sorted(found))}); '
        'keep one of them, they show the same patients'
      )
    expected = pictures if found.intersection(pictures) else VOLUMES
    missing = [name for name in expected if name not in found]
    if missing:
      raise ValueError(
        f'{folder}: expected the folders {", ".join(VOLUMES)}, or '
        f'{", ".join(pictures)} (some may be empty); found no '
        f'{", ".join(missing)}'
      )
    drop = self.builder_config.empty == 'drop'
    if expected is VOLUMES:
      pairs = _pair(folder, *VOLUMES, NIFTI)
      return pairing.to_records(
        pairs, folder, functools.partial(_read_volume, drop=drop)
      )
    records = []
    for part, *names in SLICES:
      pairs = _pair(folder, *names, PICTURES)
      start = len(records)
      positions = {pair: start + i for i, pair in enumerate(pairs)}
      read = functools.partial(
        _read_picture, part=part, positions=positions, drop=drop
      )
      records += pairing.to_records(pairs, folder, read)
    return records


def _pair(
  folder: pathlib.Path, images: str, masks: str, suffixes: tuple[str, ...]
) -> list[pairing.Pair]:
  """Pairs the files of two folders, in the order of numbers in their names."""
  pairs = pairing.pair(
    pairing.list_folder(folder / images),
    pairing.list_folder(folder / masks),
    homes=(f'{images}/NAME{suffixes[0]}', f'{masks}/NAME{suffixes[0]}'),
    suffixes=suffixes,
  )
  return sorted(pairs, key=lambda pair: manual.natural_key(pair.key))


def _read_volume(pair: pairing.Pair, *, drop: bool) -> Iterator[dict[str, Any]]:
  image, mask = pairing.read_pair(pair.image, pair.mask, nifti.read)
  apart = nifti.difference(image, mask)
  if apart:
    raise ValueError(
      f'expected the mask on the grid of the image, found {apart}'
    )
  low, high = np.percentile(image.array, PERCENTILES)
  if not low < high:
    raise ValueError(
      f'expected a picture, found the grey value {low:g} nearly everywhere'
    )
  for position, (plane, labels) in enumerate(zip(image.array, mask.array)):
    if drop and not labels.any():
      continue
    scaled = (plane.astype(np.float64) - low) / (high - low)
    yield {
      'image': np.clip(scaled, 0, 1).astype(np.float32),
      'mask': labels,
      'spacing_mm': image.spacing_mm[1:],
      'subject': pair.key,
      'site': '1',
      'case': f'{pair.key}-{position:03d}',
      'position': position,
    }


def _read_picture(
  pair: pairing.Pair,
  *,
  part: str,
  positions: Mapping[pairing.Pair, int],
  drop: bool,
) -> Iterator[dict[str, Any]]:
  image, mask = pairing.read_pair(pair.image, pair.mask, _read_grey)
  # The official code takes 0/1 for empty and looks for another one for ever.
  mask = readers.index_labels(mask, (0, 255) if mask.max() > 1 else (0, 1))
  if drop and not mask.any():
    return
  case = f'{part}/{pair.key}'
  known = re.match(r'la_\d+', pair.key)
  yield {
    'image': image.astype(np.float32) / 255,
    'mask': mask,
    'spacing_mm': (1.0, 1.0),
    'subject': known[0] if known else case,
    'site': '1',
    'case': case,
    'position': positions[pair],
  }


def _read_grey(path: pathlib.Path) -> np.ndarray:
  """Reads a picture of 8 bits, uint8 [H, W]."""
  if readers.suffix_of(path) not in JPEG:
    pixels = readers.read(path).array
  else:
    try:
      with Image.open(path, formats=['JPEG']) as picture:
        pixels = readers.grey(np.asarray(picture))
    except OSError as error:
      raise ValueError(f'JPEG: truncated or damaged: {error}') from error
  if pixels.dtype != np.uint8 or pixels.ndim != 2:
    raise ValueError(
      f'expected 8-bit grey, found {pixels.dtype} {list(pixels.shape)}'
    )
  return pixels
