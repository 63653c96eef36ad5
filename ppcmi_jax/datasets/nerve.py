"""Serves ultrasound frames of the neck with the brachial plexus (Kaggle 2016).

5635 frames of 47 patients, https://kaggle.com/c/ultrasound-nerve-segmentation,
in the folder `manual_dir` or in its folder `train`:

    12_7.tif            patient 12, frame 7; 580 x 420 (columns x rows), uint8
    12_7_mask.tif       0 background, 255 brachial plexus; half are empty

Images and masks are stored as they are, so both have the same geometry. The
pixel size is unknown and stored as (1, 1): distances are in pixels. The site is
'1'. Split by subject: the ~120 frames of a patient come from the same videos.

Among the frames of one patient are near-identical ones, one with and the other
without a nerve outlined. `contradictions` finds such pairs: it compares means
over 20 x 20 blocks, which average the speckle out, after an affine change of
the grey values (gain). The distance of two frames is that of their vectors of
means, each centred and of length 1: 0 for the same, sqrt(2) for unrelated.
Measured on phantoms of this size: 0.01-0.04 with noise of 5 to 15 grey values,
0.03 with a shift by a pixel, 0.1 by three, 0.2 by six; 0.17-0.31 between two
visits of a patient; 0.5-1.1 between patients. Real CT slices 2-3 mm apart:
0.03-0.29. It could not be set on the real data, so the limit is an option.
"""

import collections
import dataclasses
import functools
import json
import math
import pathlib
import re

import numpy as np
from absl import logging
from PIL import Image

from ppcmi_jax.datasets import manual, pairing, readers

CLASSES = ('background', 'brachial plexus')
CONTRADICTIONS = ('keep', 'drop')
LISTING = 'contradictions.json'
_THUMBNAIL = (29, 21)  # 580 x 420 in blocks of 20 x 20


@dataclasses.dataclass(eq=False, kw_only=True)
class NerveConfig(manual.ManualConfig):
  """Says how the Kaggle nerve data are read.

  Attributes:
    contradictions: 'keep' only counts and lists them (contradictions.json
      beside the prepared data). 'drop' leaves out the frames without an outline
      of such pairs: the annotators were to outline where they were confident,
      so an outline says more than its absence. It takes them from every split,
      the test split too.
    near: distance, see the module docstring, below which two frames of a
      patient count as the same.
  """

  contradictions: str = 'keep'
  near: float = 0.1

  def __post_init__(self):
    if self.contradictions not in CONTRADICTIONS:
      raise ValueError(
        f'contradictions: expected one of {", ".join(CONTRADICTIONS)}, found '
        f'{self.contradictions!r}'
      )
    self.near = float(self.near)
    if not 0 < self.near <= math.sqrt(2):
      raise ValueError(f'near: expected 0 < near <= 1.41, found {self.near}')
    super().__post_init__()


class Nerve(manual.ManualBuilder, skip_registration=True):
  """Builds the frames by patient and number; see the module docstring.

  Example: image uint8 [420, 580, 1], mask uint8 [420, 580] (indices into
  `CLASSES`), spacing_mm (1, 1) for unknown, subject '12', site '1', case
  '12_007', position 7.
  """

  DESCRIPTION = (
    'Ultrasound frames of the neck with the brachial plexus (Kaggle '
    'ultrasound-nerve-segmentation), read from a folder of the user.'
  )

  @property
  def classes(self) -> tuple[str, ...]:
    """Returns `CLASSES`."""
    return CLASSES

  def records(self, folder: pathlib.Path) -> list[manual.Record]:
    """Lists one record a frame; see the base class.

    The first record of a patient that is read looks through all frames of the
    patient and keeps their thumbnails only.

    Raises:
      ValueError: no .tif files in the folder or its folder `train`, or in both.
    """
    pairs = find_pairs(folder)
    config = self.builder_config
    of_subject = collections.defaultdict(list)
    for pair in pairs:
      if not pair.problem:
        of_subject[_subject(pair.key)].append(pair)
    found: list[dict[str, str | float]] = []

    def read_example(pair):
      image, mask = pairing.read_pair(pair.image, pair.mask)
      subject, number = pair.key.split('_')
      return manual.checked(
        {
          'image': image.array,
          'mask': readers.index_labels(mask.array, (0, 255)),
          'spacing_mm': (1, 1),
          'subject': subject,
          'site': '1',
          'case': pair.key,
          'position': int(number),
        },
        self.classes,
        self.DTYPE,
        self.CHANNELS,
      )

    @functools.cache  # once a patient
    def find_contradicted(subject):
      keys, thumbnails, empty = [], [], []
      for pair in of_subject[subject]:
        try:
          example = read_example(pair)
        except MemoryError:
          raise
        except Exception:  # its own record says so
          continue
        keys.append(pair.key)
        thumbnails.append(thumbnail(example['image'][..., 0]))
        empty.append(not example['mask'].any())
      if not keys:
        return frozenset()
      without, with_, distance = contradictions(
        np.stack(thumbnails), np.array(empty), config.near
      )
      for i, j, apart in zip(without, with_, distance):
        found.append(
          {'empty': keys[i], 'outlined': keys[j], 'distance': float(apart)}
        )
      return frozenset(keys[i] for i in without)

    def read_examples(pair):
      contradicted = find_contradicted(_subject(pair.key))
      if config.contradictions == 'drop' and pair.key in contradicted:
        return []
      return [read_example(pair)]

    def report():
      if not found:
        return
      path = pathlib.Path(self.data_path) / LISTING
      path.write_text(json.dumps(found, indent=1))
      frames = {entry['empty'] for entry in found}
      done = {'keep': 'kept', 'drop': 'dropped'}[config.contradictions]
      logging.warning(
        'nerve: %s %d of %d frames that have no outline while a frame of the '
        'same patient that is near-identical has one (%d pairs, such as %s and '
        '%s); all of them: %s beside the prepared data',
        *(done, len(frames), len(pairs), len(found)),
        *(found[0]['empty'], found[0]['outlined'], LISTING),
      )

    return pairing.and_then(
      pairing.to_records(pairs, folder, read_examples), report
    )


def find_pairs(folder: pathlib.Path) -> list[pairing.Pair]:
  """Pairs the files of the training data; keys are like '12_007'.

  Raises:
    ValueError: no .tif files in the folder or its folder `train`, or in both.
  """
  homes = [
    place
    for place in (folder, folder / 'train')
    if place.is_dir()
    and any(
      readers.suffix_of(path) == '.tif' for path in pairing.list_folder(place)
    )
  ]
  if len(homes) != 1:
    raise ValueError(
      f'{folder}: expected .tif files there or in its folder train, found '
      f'{"them in both" if homes else "none"}'
    )
  paths = pairing.list_folder(homes[0])
  is_mask = lambda path: readers.stem_of(path).endswith('_mask')
  key = lambda end, name: (
    f'{int(match[1]):02d}_{int(match[2]):03d}'
    if (match := re.fullmatch(rf'([0-9]+)_([0-9]+){end}\.tif', name.lower()))
    else None
  )
  return pairing.pair(
    [path for path in paths if not is_mask(path)],
    [path for path in paths if is_mask(path)],
    homes=('SUBJECT_IMAGE.tif', 'SUBJECT_IMAGE_mask.tif'),
    suffixes=('.tif',),
    image_key=functools.partial(key, ''),
    mask_key=functools.partial(key, '_mask'),
  )


def thumbnail(image: np.ndarray) -> np.ndarray:
  """Returns means over 29 x 21 blocks, centred and of length 1.

  Args:
    image: [H, W].

  Returns:
    float32 [609]; zeros where the image has no contrast.
  """
  plane = Image.fromarray(np.asarray(image, np.float32))
  means = np.asarray(plane.resize(_THUMBNAIL, Image.Resampling.BOX)).ravel()
  means = means - means.mean()
  length = np.linalg.norm(means)
  return means / length if length > 1e-3 else np.zeros_like(means)


def contradictions(
  thumbnails: np.ndarray, empty: np.ndarray, near: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Finds near-identical frames of which only one has an outline.

  Args:
    thumbnails: float [N, 609], of the frames of a patient.
    empty: bool [N], whether nothing is outlined.
    near: frames closer than this are near-identical.

  Returns:
    int [M] frames without outline, int [M] with one, and float [M] distances.
  """
  without, with_ = np.flatnonzero(empty), np.flatnonzero(~empty)
  cosine = thumbnails[without] @ thumbnails[with_].T
  distance = np.sqrt(np.maximum(0, 2 - 2 * cosine))
  i, j = np.nonzero(distance < near)
  return without[i], with_[j], distance[i, j]


def _subject(key: str) -> str:
  return key.partition('_')[0]
