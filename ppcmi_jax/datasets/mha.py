"""Reads MetaImage files (.mha), planes as well as volumes.

    image = mha.read('00042.mha')
    image.array          # [Z, H, W, components], axial slices

SimpleITK does the reading. That the pixels lie in the file itself and are all
there is tested here, so that no version of it has to be trusted with that.
"""

import os
import pathlib
import re
import zlib
from typing import NamedTuple

import numpy as np


class MetaImage(NamedTuple):
  """A plane or a volume.

  Attributes:
    array: [H, W, components] or [Z, H, W, components], dtype as stored.
    spacing_mm: as the header says, z (of volumes), row and column, in mm.
    affine: of volumes float64 [4, 4], as that of `nifti.Volume`; else None.
  """

  array: np.ndarray
  spacing_mm: tuple[float, ...]
  affine: np.ndarray | None


def read(path: str | os.PathLike, *, turn: bool = True) -> MetaImage:
  """Reads a .mha file.

  Args:
    path: of the file.
    turn: turns volumes to the closest axial grid as `nifti.read` does (feet to
      head, front to back, right to left); else they stay as they are stored.

  Raises:
    ValueError: truncated or damaged, pixels in another file, not two or
      three axes, or SimpleITK is not installed.
    OSError: the file cannot be opened.
  """
  try:
    import SimpleITK as sitk
  except ImportError:
    raise ValueError(
      "MHA: reading needs SimpleITK: pip install 'ppcmi_jax[data]'"
    ) from None

  content = pathlib.Path(path).read_bytes()
  head, key, rest = content.partition(b'ElementDataFile')
  place, end, pixels = rest.partition(b'\n')
  if not (key and end):
    raise ValueError('MHA: truncated or damaged: its header has no end')
  if place.strip(b' =\t\r') != b'LOCAL':  # it could name any file
    raise ValueError(
      'MHA: expected the pixels in the file itself, found ElementDataFile '
      f'{place.strip(b" =").decode(errors="replace")}'
    )
  try:
    image = sitk.ReadImage(os.fspath(path), imageIO='MetaImageIO')
    if re.search(rb'CompressedData\s*=\s*[tT1]', head):
      pixels = zlib.decompress(pixels)
  except (RuntimeError, zlib.error) as error:
    raise ValueError(
      'MHA: truncated or damaged: its pixels cannot be read'
    ) from error
  array, axes = sitk.GetArrayFromImage(image), image.GetDimension()
  if len(pixels) < array.nbytes:
    raise ValueError(
      f'MHA: truncated: expected {array.nbytes} bytes of pixels, found '
      f'{len(pixels)}'
    )
  if axes not in (2, 3):
    raise ValueError(
      f'MHA: expected [H, W] or [Z, H, W], found {list(array.shape)}'
    )
  affine = None
  if axes == 3:
    if turn:  # x, y, z towards the left, the back and the head
      image = sitk.DICOMOrient(image, 'LPS')
      array = sitk.GetArrayFromImage(image)
    sides = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = sides[:, ::-1], image.GetOrigin()
    affine[:2] *= -1  # ITK's left and back -> right and front
  return MetaImage(
    array=array.reshape(*image.GetSize()[::-1], -1),
    spacing_mm=image.GetSpacing()[::-1],
    affine=affine,
  )
