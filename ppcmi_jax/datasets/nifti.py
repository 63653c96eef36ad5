"""Reads NIfTI volumes as axial slices, whatever axes they were stored with.

    volume = nifti.read('la_003.nii.gz')
    axial = volume.array[40]   # front on top, the patient's right on the left

A file may store the same body with its axes in any order and direction; its
header says which. Here every volume is turned to the closest axial grid, never
resampled: Z slices from the feet to the head, H rows from the front to the
back, W columns from the patient's right to the left, as radiologists look at
them.
"""

import gzip
import math
import os
import pathlib
from typing import NamedTuple

import numpy as np

from ppcmi_jax.datasets import manual

# The header's unit of length -> millimetres.
_UNIT_MM = {'unknown': 1.0, 'mm': 1.0, 'meter': 1000.0, 'micron': 0.001}


class Volume(NamedTuple):
  """A volume in axial slices.

  Attributes:
    array: [Z, H, W]; float64 where the header scales the stored numbers, else
      as they are stored.
    spacing_mm: distance of neighbours along z, row and column in mm.
    affine: float64 [4, 4], (z, row, column, 1) to millimetres towards the
      patient's right, front and head (RAS+).
  """

  array: np.ndarray
  spacing_mm: tuple[float, float, float]
  affine: np.ndarray


def read(path: str | os.PathLike) -> Volume:
  """Reads a .nii or .nii.gz file (NIfTI-1 or -2, one volume).

  Orientation and spacing are those of the sform, else of the qform; a header
  with neither is taken as nibabel does, columns stored right to left. The axes
  of oblique volumes go to the body axes they are closest to.

  Raises:
    ValueError: not NIfTI, truncated or damaged, no three axes, no real
      numbers, NaN or infinity, or an affine that no body can have.
    OSError: the file cannot be opened.
  """
  try:
    import nibabel
  except ImportError:
    raise ValueError(
      "NIfTI: reading needs nibabel: pip install 'ppcmi_jax[data]'"
    ) from None

  content = pathlib.Path(path).read_bytes()
  try:
    if content.startswith(b'\x1f\x8b'):  # to the end, so that its sum is tested
      content = gzip.decompress(content)
    stored = _image_class(content).from_bytes(content)
    affine, shape = stored.affine, stored.shape
    unit = stored.header.get_xyzt_units()[0]
    dtype = stored.get_data_dtype()
    needed = stored.dataobj.offset + math.prod(shape) * dtype.itemsize
    if needed > len(content):
      raise EOFError(f'expected {needed} bytes, found {len(content)}')
  except MemoryError:
    raise
  except Exception as error:  # damaged headers give errors of many kinds
    raise ValueError(_damaged(error)) from error
  while len(shape) > 3 and shape[-1] == 1:
    shape = shape[:-1]
  if len(shape) != 3 or min(shape) < 1:
    raise ValueError(
      f'NIfTI: expected one volume of three axes, found shape {list(shape)}'
    )
  if dtype.kind not in 'iuf':
    raise ValueError(f'NIfTI: expected one real number a voxel, found {dtype}')
  sides = np.linalg.norm(affine[:3, :3], axis=0)
  if not np.all(np.isfinite(affine)) or (
    abs(np.linalg.det(affine[:3, :3])) <= 1e-3 * np.prod(sides)
  ):
    raise ValueError(
      'NIfTI: expected an affine with three independent axes, found the '
      f'singular {affine[:3, :3].tolist()}; mend its sform or qform'
    )
  canonical = nibabel.as_closest_canonical(stored)
  # X, Y, Z towards the right, the front and the head.
  array = np.asanyarray(canonical.dataobj).reshape(canonical.shape[:3])
  if array.dtype.kind == 'f' and not np.all(np.isfinite(array)):
    counts = np.isnan(array).sum(), np.isinf(array).sum()
    raise ValueError(
      f'NIfTI: expected finite numbers, found {counts[0]} NaN and {counts[1]} '
      f'infinite voxels of {array.size}'
    )
  array = array.transpose(2, 1, 0)[:, ::-1, ::-1]
  turn = np.zeros((4, 4))  # (z, row, column, 1) -> (x, y, z, 1)
  turn[[2, 1, 0, 3], [0, 1, 2, 3]] = 1, -1, -1, 1
  turn[[1, 0], 3] = np.subtract(array.shape[1:], 1)
  affine = np.diag([*[_UNIT_MM[unit]] * 3, 1]) @ canonical.affine @ turn
  return Volume(
    array=np.ascontiguousarray(array, array.dtype.newbyteorder('=')),
    spacing_mm=tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist()),
    affine=affine,
  )


def difference(a: Volume, b: Volume, *, tolerance: float = 0.1) -> str:
  """Says in words how the geometries of two volumes differ; '' if they don't.

  Args:
    a: a volume, as the image.
    b: another, as its label.
    tolerance: how far their corners may be apart, in sides of the smallest
      voxel: headers are rounded.
  """
  if a.array.shape != b.array.shape:
    return (
      f'slices, rows and columns {list(a.array.shape)} and '
      f'{list(b.array.shape)}'
    )
  ends = np.subtract(a.array.shape, 1)
  corners = [[*(np.array(i) * ends), 1] for i in np.ndindex(2, 2, 2)]
  apart = np.linalg.norm((a.affine - b.affine) @ np.transpose(corners), axis=0)
  if apart.max() > tolerance * min(a.spacing_mm):
    spacing = [' x '.join(f'{s:.4g}' for s in v.spacing_mm) for v in (a, b)]
    return (
      f'corners up to {apart.max():.3g} mm apart (voxels of {spacing[0]} and '
      f'{spacing[1]} mm)'
    )
  return ''


def _image_class(content: bytes) -> type:
  import nibabel

  for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
    header = kind.header_class
    if header.may_contain_header(content[: header.sizeof_hdr]):
      if header(content[: header.sizeof_hdr], check=False)['magic'] == b'ni1':
        raise ValueError('a header whose voxels are in another file')
      return kind
  raise ValueError('no NIfTI header')


def _damaged(error: Exception) -> str:
  what = 'truncated' if isinstance(error, EOFError) else 'damaged'
  return f'NIfTI: {what}: {manual.one_line(error)}'
