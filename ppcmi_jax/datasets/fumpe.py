"""Pulmonary embolism in CT angiograms: FUMPE.

35 patients, 8,792 slices (Masoudi et al., Scientific Data 2018; figshare
4107803, CC BY 4.0) that the user has, as they are published:

    CT_scans/PAT001/*.dcm       one series a patient
    GroundTruth/PAT001.mat      its masks, `Mask` [row, column, slice]

Slices are stored in HU at full size, as they lie in the files (not turned).
`position` counts them from the feet to the head by ImagePositionPatient; where
a series has none, in the order of its masks.

The masks say nothing about the files they were drawn on, and names do not
always follow the body. `fumpe_order` finds for each patient in which order the
masks lie on filling defects; the chosen order and its score are logged. Where
that is not clear, file names decide and a warning names the patient.
"""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from ppcmi_jax.datasets import dicom, fumpe_order, manual, pairing

ORDERS = ('verify', 'filename', 'strict')
SCANS, MASKS = 'CT_scans', 'GroundTruth'
MASK_KEYS = ('Mask', 'GT', 'seg', 'volume')


@dataclasses.dataclass(eq=False, kw_only=True)
class FumpeConfig(manual.ManualConfig):
  """Says how the folder is read.

  Attributes:
    order: of masks. 'verify' tests it and falls back to the file names with a
      warning, 'strict' refuses the patient instead, 'filename' trusts the
      names. A patient without any mask is none to verify.
  """

  order: str = 'verify'

  def __post_init__(self):
    if self.order not in ORDERS:
      raise ValueError(
        f'order: expected one of {", ".join(ORDERS)}, found {self.order!r}'
      )
    super().__post_init__()


class Fumpe(manual.ManualBuilder, skip_registration=True):
  """Builds axial slices in HU, int16; see the module docstring."""

  DESCRIPTION = 'CT pulmonary angiograms with masks of pulmonary embolism.'
  DTYPE = np.int16
  CHANNELS = 1

  @property
  def classes(self) -> tuple[str, ...]:
    return ('background', 'pulmonary embolism')

  def records(self, folder: pathlib.Path) -> list[manual.Record]:
    patients = collections.defaultdict(lambda: ([], []))
    for index, place in enumerate((SCANS, MASKS)):
      if not (folder / place).is_dir():
        raise ValueError(
          f'{folder}: expected the folders {SCANS} and {MASKS}, found no '
          f'{place}'
        )
      for path in pairing.list_folder(folder / place):
        patients[path.stem][index].append(path)
    return [
      manual.Record(
        (scans or masks)[0].relative_to(folder).as_posix(),
        functools.partial(
          _read_patient, name, scans, masks, self.builder_config.order
        ),
      )
      for name, (scans, masks) in sorted(
        patients.items(), key=lambda item: manual.natural_key(item[0])
      )
    ]


def _read_patient(
  subject: str,
  scans: Sequence[pathlib.Path],
  masks: Sequence[pathlib.Path],
  order: str,
) -> Iterator[dict[str, Any]]:
  if not masks:
    raise ValueError(f'has no {MASKS}/{subject}.mat')
  if not scans:
    raise ValueError(f'has no folder {SCANS}/{subject}')
  if len(scans) > 1 or len(masks) > 1 or not scans[0].is_dir():
    names = ', '.join(path.name for path in (*scans, *masks))
    raise ValueError(f'expected one folder and one .mat file, found {names}')
  slices = dicom.read_headers(scans[0])
  heights_mm = dicom.heights(slices)
  mask = _read_mask(masks[0])
  expected = (len(slices), *slices[0].size)
  if mask.shape != expected:
    raise ValueError(
      f'expected a mask of {expected[0]} slices of {list(expected[1:])} pixels '
      f'like the scan, found {mask.shape[0]} of {list(mask.shape[1:])} in '
      f'{masks[0].name}'
    )
  volume = dicom.read_hu(slices)
  if slices[0].slope is None or slices[0].intercept is None:
    logging.warning(
      'fumpe: %s: no RescaleSlope or RescaleIntercept; 1 or 0 is taken, which '
      'gives %d to %d HU',
      subject,
      volume.min(),
      volume.max(),
    )
  spacing_mm = slices[0].spacing_mm
  files = _mask_order(subject, slices, heights_mm, volume, mask, order)
  bottom_up = files if heights_mm is None else np.argsort(heights_mm)
  row_of = np.argsort(files)  # the inverse permutation: file -> row of the mask
  for position, file in enumerate(bottom_up):
    yield {
      'image': volume[file],
      'mask': mask[row_of[file]],
      'spacing_mm': spacing_mm,
      'subject': subject,
      'site': '1',
      'case': f'{subject}-{position:03d}',
      'position': position,
    }


def _mask_order(
  subject: str,
  slices: Sequence[dicom.Slice],
  heights_mm: np.ndarray | None,
  volume: np.ndarray,
  mask: np.ndarray,
  order: str,
) -> np.ndarray:
  """Returns int [N], the file of each slice of the mask, and logs how."""
  numbers = [s.instance_number for s in slices]
  orders = fumpe_order.candidates(
    [s.path.name for s in slices],
    instance_numbers=None if None in numbers else numbers,
    heights_mm=heights_mm,
  )
  if order == 'filename':
    name, files = next(iter(orders.items()))
    logging.info('fumpe: %s: masks follow %s, not verified', subject, name)
    return files
  choice = fumpe_order.choose(
    volume, mask, orders, spacing_mm=slices[0].spacing_mm
  )
  ranked = sorted(choice.scores, key=choice.scores.get, reverse=True)
  scores = ', '.join(f'{name} {choice.scores[name]:.2f}' for name in ranked)
  if choice.verified:
    logging.info(
      'fumpe: %s: masks follow %s (scores: %s)', subject, choice.name, scores
    )
  elif not choice.scores:
    logging.warning(
      'fumpe: %s: the mask is empty, so there is no order to verify', subject
    )
  elif order == 'strict':
    raise ValueError(
      f'the order of its masks cannot be verified (scores: {scores}); look at '
      "it, and use order='filename' if it is right"
    )
  else:
    logging.warning(
      'fumpe: %s: the order of the masks cannot be verified (scores: %s); '
      'taken by %s',
      subject,
      scores,
      choice.name,
    )
  return choice.order


def _read_mask(path: pathlib.Path) -> np.ndarray:
  """Reads a mask of a .mat file as bool [slice, row, column]."""
  from scipy import io

  with open(path, 'rb') as file:
    start = file.read(1024)
  if start.startswith(b'MATLAB 7.3') or b'\x89HDF' in start:
    raise ValueError(
      f'{path.name}: MATLAB v7.3 (HDF5) is not read; load it in MATLAB and '
      "save it again with '-v7'"
    )
  try:
    found = io.loadmat(path, variable_names=MASK_KEYS)
    names = [name for name, *_ in io.whosmat(path)]
  except Exception as error:
    raise ValueError(
      f'{path.name}: not a MATLAB v5 file, truncated or damaged: '
      f'{manual.one_line(error)}'
    ) from error
  array = next((found[key] for key in MASK_KEYS if key in found), None)
  if array is None:
    raise ValueError(
      f'{path.name}: expected one of {", ".join(MASK_KEYS)}, found '
      f'{", ".join(names) or "nothing"}'
    )
  if not isinstance(array, np.ndarray) or array.dtype.kind not in 'buif':
    raise ValueError(f'{path.name}: expected an array of numbers')
  if array.ndim == 2:  # MATLAB drops a last axis of 1
    array = array[..., None]
  if array.ndim != 3:
    raise ValueError(
      f'{path.name}: expected [row, column, slice], found {list(array.shape)}'
    )
  inside = array == 1
  if not np.all(inside | (array == 0)):
    values = ', '.join(f'{value:g}' for value in np.unique(array)[:5])
    raise ValueError(f'{path.name}: expected a mask of 0 and 1, found {values}')
  return np.moveaxis(inside, -1, 0)
