"""From prepared data sets to batches: load, split, partition, batch_at(step).

    examples, class_names = load('abdomen', image_size=128)
    splits = split(examples, mode='blocks')
    hospitals = partition(examples, splits)   # {client: {split: Examples}}

Axes: N examples, H height, W width, C channels, B batch.
"""

import csv
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from PIL import Image

from ppcmi_jax import datasets

SPLITS = ('train', 'valid', 'test')
UNUSED = 'gap'  # neighbours of held-out slices, in no split


class Examples(NamedTuple):
  """Cases of one size.

  Attributes:
    image: uint8 [N, H, W, C].
    mask: uint8 [N, H, W], indices of classes.
    spacing_mm: float32 [N, 2], row and column spacing at this size, in mm.
    subject, site, case: strings [N].
    position: int32 [N], slice or visit number inside the subject.
  """

  image: np.ndarray
  mask: np.ndarray
  spacing_mm: np.ndarray
  subject: np.ndarray
  site: np.ndarray
  case: np.ndarray
  position: np.ndarray

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns what training draws batches from: image and mask."""
    return {'image': self.image, 'mask': self.mask}


def load(
  dataset: str,
  *,
  image_size: int,
  data_dir: str | os.PathLike | None = None,
  options: Mapping[str, Any] | None = None,
) -> tuple[Examples, tuple[str, ...]]:
  """Prepares a data set where that was not done before, and reads it.

  Args:
    dataset: a name in `datasets.DATASETS`.
    image_size: side of the square that cases are fitted into, pixels.
    data_dir: where prepared data live; tensorflow-datasets' default if None.
    options: fields of the builder's configuration (phantom: num_subjects...).

  Returns:
    All examples, and the names of the classes, background first.

  Raises:
    ValueError: an unknown data set or a damaged file.
  """
  columns = {name: [] for name in Examples._fields}
  try:
    builder = datasets.prepare(dataset, data_dir=data_dir, options=options)
    for case in tqdm.tqdm(
      builder.as_data_source('all'), desc=f'reading {dataset}', leave=False
    ):
      for name, value in fit(case, image_size).items():
        columns[name].append(value)
  except (ValueError, OSError):
    raise
  except Exception as error:  # damaged files give errors of many kinds
    raise ValueError(
      f'data set {dataset}: what was prepared in '
      f'{data_dir or "the default folder of tensorflow-datasets"} cannot be '
      f'read ({type(error).__name__}: {error}); delete its folder {dataset} '
      'there and start again'
    ) from error
  examples = Examples(**{k: np.stack(v) for k, v in columns.items()})
  return examples, tuple(builder.info.metadata['classes'])


def fit(case: Mapping[str, Any], size: int) -> dict[str, Any]:
  """Returns a case with image and mask fitted into a size x size square.

  The aspect ratio is kept, by centred padding with 0; both get the same
  geometry: images are averaged over areas or interpolated linearly, masks take
  the nearest pixel. Text becomes str.
  """
  image, mask = case['image'], case['mask']
  scale = size / max(mask.shape)
  text = {k: case[k].decode() for k in ('subject', 'site', 'case')}
  if scale != 1:
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    resample = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    resize = lambda plane, how: np.asarray(
      Image.fromarray(plane).resize((width, height), how)
    )
    image = np.stack(
      [resize(image[..., c], resample) for c in range(image.shape[-1])], -1
    )
    mask = resize(mask, Image.Resampling.NEAREST)
  shrunk = np.divide(case['mask'].shape, mask.shape)  # sides are whole pixels
  spacing_mm = np.float32(case['spacing_mm'] * shrunk)
  top, left = ((size - side) // 2 for side in mask.shape)
  window = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
  square_image = np.zeros((size, size, image.shape[-1]), image.dtype)
  square_mask = np.zeros((size, size), np.uint8)
  square_image[window], square_mask[window] = image, mask
  return {
    'image': square_image,
    'mask': square_mask,
    'spacing_mm': spacing_mm,
    'position': np.int32(case['position']),
    **text,
  }


def split(
  examples: Examples,
  *,
  mode: str,
  test_fraction: float = 0.2,
  valid_fraction: float = 0.1,
  seed: int = 0,
) -> np.ndarray:
  """Returns the split of each example: 'train', 'valid', 'test' or 'gap'.

  Args:
    examples: of any sites and subjects.
    mode: 'subjects' draws whole subjects within each site. 'blocks' holds out
      contiguous blocks inside each subject's volume (so it measures fit within
      subjects only): each stretch of about 28 slices gives its middle to test,
      and the slices behind to validation, with a slice in no split between
      any two.
    test_fraction: share of subjects, or of slices, for testing.
    valid_fraction: likewise for validation.
    seed: of the draw; unused by 'blocks'.

  Raises:
    ValueError: an unknown mode, a subject at two sites, or too few subjects of
      a site, or slices of a subject, for each split to have one.
  """
  for subject in map(str, np.unique(examples.subject)):
    sites = np.unique(examples.site[examples.subject == subject])
    if len(sites) > 1:
      raise ValueError(
        f'split: subject {subject!r} is at the sites {", ".join(sites)}; a '
        'subject belongs to one: rename it where two share the name'
      )
  result = np.full(len(examples.case), 'train', dtype='<U5')
  if mode == 'subjects':
    for site in map(str, np.unique(examples.site)):
      subjects = np.unique(examples.subject[examples.site == site])
      np.random.default_rng([seed, len(subjects)]).shuffle(subjects)
      num_test = max(1, round(test_fraction * len(subjects)))
      num_valid = max(1, round(valid_fraction * len(subjects)))
      if num_test + num_valid >= len(subjects):
        raise ValueError(
          f'split: site {site!r} has {len(subjects)} subjects, too few for '
          "train, valid and test; use more, or split='blocks' with volumes"
        )
      test, valid = np.split(subjects, [num_test, num_test + num_valid])[:2]
      result[np.isin(examples.subject, test)] = 'test'
      result[np.isin(examples.subject, valid)] = 'valid'
  elif mode == 'blocks':
    for subject in map(str, np.unique(examples.subject)):
      rows = np.flatnonzero(examples.subject == subject)
      rows = rows[np.argsort(examples.position[rows])]
      for stretch in np.array_split(rows, max(1, round(len(rows) / 28))):
        num_test = max(1, round(test_fraction * len(stretch)))
        num_valid = max(1, round(valid_fraction * len(stretch)))
        start = len(stretch) // 2 - num_test // 2
        parts = ((1, UNUSED), (num_test, 'test'), (1, UNUSED),
                 (num_valid, 'valid'), (1, UNUSED))  # fmt: skip
        if start < 2 or start + num_test + num_valid + 3 > len(stretch):
          raise ValueError(
            f'split: subject {subject!r} has {len(rows)} slices, too few for '
            "train, valid and test blocks; use split='subjects'"
          )
        at = start - 1
        for count, name in parts:
          result[stretch[at : at + count]] = name
          at += count
  else:
    raise ValueError(f"split: expected 'subjects' or 'blocks', found {mode!r}")
  return result


def partition(
  examples: Examples, splits: np.ndarray
) -> dict[str, dict[str, Examples]]:
  """Returns {client: {split: Examples}}, one client a site, sorted by name."""
  return {
    str(site): {
      name: take(examples, (examples.site == site) & (splits == name))
      for name in SPLITS
    }
    for site in np.unique(examples.site)
  }


def write_split(
  path: pathlib.Path, examples: Examples, splits: np.ndarray
) -> None:
  """Writes a CSV of case, subject, site and split, one row an example."""
  with open(path, 'w', newline='') as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['case', 'subject', 'site', 'split'])
    writer.writerows(
      zip(examples.case, examples.subject, examples.site, splits)
    )


def take(arrays: Any, rows: np.ndarray) -> Any:
  """Returns the given rows of every array of a tree."""
  return jax.tree.map(lambda a: a[rows], arrays)


def balanced_order(groups: np.ndarray) -> np.ndarray:
  """Returns row numbers in which every group occurs (nearly) equally often.

  Args:
    groups: integer [N], the group of each row, such as its client.
  """
  rows = [np.flatnonzero(groups == g) for g in np.unique(groups)]
  longest = max(map(len, rows))
  return np.concatenate([np.resize(r, longest) for r in rows])


def batch_at(
  arrays: Any,
  step: int,
  *,
  order: np.ndarray,
  batch_size: int,
  seed: int,
) -> dict[str, Any]:
  """Returns the batch of a step, [local devices, B / devices, ...].

  A pure function: epochs are permutations of `order` drawn from (seed, epoch),
  laid end to end and cut into batches. Each process makes its own share.

  Args:
    arrays: a dict of arrays, or trees of arrays, [N, ...].
    step: from 0.
    order: rows to draw from; a row may stand there several times.
    batch_size: B, over all devices of all processes.
    seed: of the order.

  Returns:
    The rows drawn, and 'slot' int32, the place of each in the global batch.
  """
  slots = np.arange(batch_size).reshape(jax.process_count(), -1)
  slots = slots[jax.process_index()]
  stream = step * batch_size + slots
  rows = np.empty(len(slots), np.int64)
  for epoch in np.unique(stream // len(order)):
    here = stream // len(order) == epoch
    shuffled = np.random.default_rng([seed, epoch]).permutation(order)
    rows[here] = shuffled[stream[here] % len(order)]
  batch = {**take(arrays, rows), 'slot': slots.astype(np.int32)}
  devices = jax.local_device_count()
  return jax.tree.map(
    lambda a: a.reshape(devices, len(slots) // devices, *a.shape[1:]), batch
  )
