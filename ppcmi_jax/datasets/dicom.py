"""Reads a folder of DICOM files, one CT series, as slices in HU.

    series = dicom.read_headers(folder)
    volume = dicom.read_hu(series)          # int16 [N, H, W], by file names

Slices stay in the order of their file names and as they lie in the files; what
orders them otherwise (instance numbers, heights in the body) is beside them.
Files that do not belong together are refused. Axes: N files, H rows, W columns.
"""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ppcmi_jax.datasets import manual

# Slices of a series may differ by rounding, in mm or in cosines.
_TOLERANCE = 1e-3
_AXIAL = np.array([1.0, 0, 0, 0, 1, 0])
_EXPECTED = {
  'Modality': 'CT',
  'SamplesPerPixel': 1,
  'PhotometricInterpretation': 'MONOCHROME2',
  'NumberOfFrames': 1,
}
_HEADER = [
  *_EXPECTED,
  'Columns',
  'ImageOrientationPatient',
  'ImagePositionPatient',
  'InstanceNumber',
  'PixelSpacing',
  'RescaleIntercept',
  'RescaleSlope',
  'Rows',
  'SOPInstanceUID',
  'SeriesInstanceUID',
]


class Slice(NamedTuple):
  """What the header of one file says; None where it is silent.

  Attributes:
    path: of the file.
    size: rows and columns.
    spacing_mm: float64 [2], of rows and columns.
    slope, intercept: stored numbers -> HU.
    instance_number: of the slice.
    place_mm: float64 [3], of its first pixel in the patient.
    orientation: float64 [6], directions of its columns and rows.
    series, instance: SeriesInstanceUID and SOPInstanceUID.
  """

  path: pathlib.Path
  size: tuple[int, int]
  spacing_mm: np.ndarray
  slope: float | None
  intercept: float | None
  instance_number: float | None
  place_mm: np.ndarray | None
  orientation: np.ndarray | None
  series: str | None
  instance: str | None


def read_headers(folder: pathlib.Path) -> list[Slice]:
  """Reads the headers of the files *.dcm, sorted by the numbers in their names.

  Raises:
    ValueError: there is none, one is no CT slice of grey values, or they are
      not of one series: two sizes, spacings, directions or series, or
      one slice twice.
  """
  paths = [
    path
    for path in folder.iterdir()
    if path.suffix.lower() == '.dcm' and not path.name.startswith('.')
  ]
  if not paths:
    raise ValueError('expected files *.dcm, found none')
  slices = [
    _read_header(path)
    for path in sorted(paths, key=lambda path: manual.natural_key(path.name))
  ]
  first = slices[0]
  for other in slices[1:]:
    for what in ('size', 'spacing_mm', 'orientation'):
      a, b = getattr(first, what), getattr(other, what)
      if (a is None) != (b is None) or (
        a is not None and not np.allclose(a, b, rtol=0, atol=_TOLERANCE)
      ):
        raise ValueError(
          f'expected slices of one series, found {what} {_text(a)} in '
          f'{first.path.name} and {_text(b)} in {other.path.name}'
        )
    for what in ('place_mm', 'slope', 'intercept'):
      if (getattr(first, what) is None) != (getattr(other, what) is None):
        raise ValueError(
          f'expected slices of one series, found {what} in one only of '
          f'{first.path.name} and {other.path.name}'
        )
  series = {s.series for s in slices}
  if 1 < len(series) < len(slices):  # else no two slices share one: no series
    raise ValueError(
      f'expected slices of one series, found {len(series)} SeriesInstanceUIDs'
    )
  seen = {}
  for one in slices:
    if one.instance and one.instance in seen:
      raise ValueError(
        f'{seen[one.instance]} and {one.path.name} have the same '
        'SOPInstanceUID; remove one'
      )
    seen[one.instance] = one.path.name
  return slices


def heights(slices: Sequence[Slice]) -> np.ndarray | None:
  """Returns mm [N] along the normal of the slices, towards the head.

  None where the headers have no ImagePositionPatient; slices without an
  ImageOrientationPatient are taken as axial.

  Raises:
    ValueError: the slices are not axial, or two are at one place.
  """
  if slices[0].place_mm is None:
    return None
  orientation = slices[0].orientation
  if orientation is None:
    orientation = _AXIAL
  normal = np.cross(orientation[:3], orientation[3:])
  if np.argmax(np.abs(normal)) != 2:
    raise ValueError(
      'ImageOrientationPatient: expected axial slices, found '
      f'{_text(orientation)}'
    )
  normal *= np.sign(normal[2])
  heights_mm = np.array([normal @ s.place_mm for s in slices])
  bottom_up = np.argsort(heights_mm)
  for a, b in itertools.pairwise(bottom_up):
    if heights_mm[b] - heights_mm[a] < _TOLERANCE:
      raise ValueError(
        f'{slices[a].path.name} and {slices[b].path.name} are at the same '
        'ImagePositionPatient; remove one'
      )
  return heights_mm


def read_hu(slices: Sequence[Slice]) -> np.ndarray:
  """Reads the pixels of a series as int16 [N, H, W] in HU, rounded.

  A slope or an intercept that the headers do not give is 1 or 0.

  Raises:
    ValueError: a file is truncated, cannot be decoded, or does not fit.
  """
  volume = np.empty((len(slices), *slices[0].size), np.int16)
  limits = np.iinfo(np.int16)
  for plane, one in zip(volume, slices):
    try:
      pixels = _read_dicom(one.path).pixel_array
    except (RuntimeError, NotImplementedError) as error:
      raise ValueError(
        f'{one.path.name}: its compressed pixels cannot be decoded here '
        f'({manual.one_line(error)}); save the series uncompressed'
      ) from error
    except MemoryError:
      raise
    except Exception as error:
      raise ValueError(
        f'{one.path.name}: truncated or damaged: {manual.one_line(error)}'
      ) from error
    slope = 1.0 if one.slope is None else one.slope
    intercept = 0.0 if one.intercept is None else one.intercept
    hu = np.rint(pixels.astype(np.float64) * slope + intercept)
    if hu.shape != plane.shape:
      raise ValueError(
        f'{one.path.name}: expected {list(plane.shape)} pixels, found '
        f'{list(hu.shape)}'
      )
    if hu.min() < limits.min or hu.max() > limits.max:
      raise ValueError(
        f'{one.path.name}: expected HU that fit int16, found {hu.min():g} to '
        f'{hu.max():g}'
      )
    plane[:] = hu
  return volume


def _read_header(path: pathlib.Path) -> Slice:
  header = _read_dicom(path, stop_before_pixels=True, specific_tags=_HEADER)

  def numbers(name, count):
    """Returns finite numbers, or None where the header has none."""
    value = header.get(name)
    if value is None or value == '':
      return None
    array = np.atleast_1d(np.asarray(value, np.float64))
    if array.shape != (count,) or not np.all(np.isfinite(array)):
      raise ValueError(f'{name}: expected {count} numbers, found {value}')
    return array if count > 1 else array[0]

  try:
    for name, value in _EXPECTED.items():
      if header.get(name) not in (value, None, ''):
        raise ValueError(f'{name}: expected {value}, found {header.get(name)}')
    if not header.get('Rows') or not header.get('Columns'):
      raise ValueError('expected an image, found no Rows and Columns')
    spacing_mm = numbers('PixelSpacing', 2)
    if spacing_mm is None or not np.all(spacing_mm > 0):
      raise ValueError(
        f'PixelSpacing: expected two positive numbers, found {spacing_mm}'
      )
    slope, intercept, number = (
      numbers(name, 1)
      for name in ('RescaleSlope', 'RescaleIntercept', 'InstanceNumber')
    )
    if slope == 0:
      raise ValueError('RescaleSlope: expected another number than 0')
    return Slice(
      path=path,
      size=(header.Rows, header.Columns),
      spacing_mm=spacing_mm,
      slope=slope,
      intercept=intercept,
      instance_number=number,
      place_mm=numbers('ImagePositionPatient', 3),
      orientation=numbers('ImageOrientationPatient', 6),
      series=header.get('SeriesInstanceUID') or None,
      instance=header.get('SOPInstanceUID') or None,
    )
  except Exception as error:  # values are parsed when they are looked at
    raise ValueError(f'{path.name}: {manual.one_line(error)}') from error


def _read_dicom(path: pathlib.Path, **options: Any) -> Any:
  try:
    import pydicom
  except ImportError:
    raise ValueError(
      "DICOM: reading needs pydicom: pip install 'ppcmi_jax[data]'"
    ) from None
  try:
    return pydicom.dcmread(path, **options)
  except pydicom.errors.InvalidDicomError as error:
    raise ValueError(f'{path.name}: not a DICOM file') from error
  except OSError:
    raise
  except Exception as error:
    raise ValueError(
      f'{path.name}: truncated or damaged: {manual.one_line(error)}'
    ) from error


def _text(value: Any) -> str:
  return 'none' if value is None else str(np.asarray(value).tolist())
