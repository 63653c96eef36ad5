"""Reads pictures and volumes of many formats, and refuses damaged ones.

    picture = readers.read('images/007.png')
    picture.array        # uint8 [H, W], the grey values as they are stored

One file is one grey picture [H, W] or one volume of axial slices [Z, H, W]. A
file that is cut short or damaged is refused: the libraries below leave some of
that unsaid, so checksums and lengths are tested here.

| suffix        | gives                                                        |
|---------------|--------------------------------------------------------------|
| .png, .tif(f) | [H, W]: uint8 (fewer bits are spread over 0..255), uint16    |
|               | kept, int32, uint32 or float32. Colour, palettes and frames  |
|               | count as grey where all planes are the same                  |
| .npy, .npz    | the one array, [H, W] or [Z, H, W]; booleans as 0 and 1      |
| .mha          | [H, W] as stored, or [Z, H, W] turned as `nifti` turns them  |
| .nii, .nii.gz | [Z, H, W], see `nifti`                                       |

What a data set's contract does not allow, such as uint16, is not converted
here: the builder says how (`folder`: its option dtype).
"""

import io
import os
import pathlib
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from ppcmi_jax.datasets import mha, nifti

SUFFIXES = ('.png', '.tif', '.tiff', '.npy', '.npz', '.mha', '.nii', '.nii.gz')
_PILLOW = {'.png': 'PNG', '.tif': 'TIFF', '.tiff': 'TIFF'}
_MODES = {'1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA',
          'I;16', 'I;16L', 'I;16B', 'I', 'F'}  # fmt: skip


class Picture(NamedTuple):
  """A grey picture or a volume.

  Attributes:
    array: [H, W] or [Z, H, W], real numbers.
    spacing_mm: distance of neighbours along each axis in mm; 1 where the format
      does not say it (PNG, TIFF, NumPy).
    affine: of a volume with a place in space, float64 [4, 4], (z, row, column,
      1) to millimetres towards the right, front and head; else None.
  """

  array: np.ndarray
  spacing_mm: tuple[float, ...]
  affine: np.ndarray | None = None


def suffix_of(path: str | os.PathLike) -> str:
  """Returns the suffix of a name in lower case.

  >>> suffix_of('a/la_003.NII.gz'), suffix_of('notes')
  ('.nii.gz', '')
  """
  name = os.path.basename(path).lower()
  return '.nii.gz' if name.endswith('.nii.gz') else os.path.splitext(name)[1]


def stem_of(path: str | os.PathLike) -> str:
  """Returns the name of a file without its suffix.

  >>> stem_of('a/la_003.NII.gz')
  'la_003'
  """
  name = os.path.basename(path)
  return name[: len(name) - len(suffix_of(name))]


def read(path: str | os.PathLike) -> Picture:
  """Reads a picture or a volume by its suffix; see the module docstring.

  Raises:
    ValueError: an unknown suffix, a truncated or damaged file, colour, frames
      that differ, transparency, or no real numbers. It does not name the file.
    OSError: the file cannot be opened.
  """
  suffix = suffix_of(path)
  if suffix in _PILLOW:
    array = _read_pillow(path, _PILLOW[suffix])
    return Picture(array, (1.0, 1.0))
  if suffix in ('.npy', '.npz'):
    array = _read_numpy(path)
    return Picture(array, (1.0,) * array.ndim)
  if suffix == '.mha':
    image = mha.read(path)
    return Picture(grey(image.array), *image[1:])
  if suffix in ('.nii', '.nii.gz'):
    return Picture(*nifti.read(path))
  raise ValueError(not_a_picture())


def not_a_picture(suffixes: Sequence[str] = SUFFIXES) -> str:
  """Says that a file has none of some suffixes."""
  return f'not a picture that is read here; expected {", ".join(suffixes)}'


def read_frame(path: str | os.PathLike) -> np.ndarray:
  """Reads one grey frame as it is stored, [H, W].

  Unlike with `read`, the planes of a .mha are not slices but have to be the
  same, and its orientation is ignored: for files whose headers mean nothing.

  Raises:
    ValueError: as `read`, or planes that differ.
  """
  if suffix_of(path) == '.mha':
    array = grey(mha.read(path, turn=False).array)
  else:
    array = read(path).array
  while array.ndim > 2:
    array = grey(np.moveaxis(array, 0, -1))
  return array


def grey(array: np.ndarray) -> np.ndarray:
  """Returns the one plane of [..., planes] that are all the same.

  Raises:
    ValueError: they differ.
  """
  if array.ndim < 3:
    return array
  planes = array.shape[-1]
  if planes > 1 and not np.all(array == array[..., :1]):
    raise ValueError(
      f'expected one grey picture, found {planes} planes (colours or frames) '
      'that differ; convert it to grey'
    )
  return array[..., 0]


def index_labels(mask: np.ndarray, values: Sequence[int]) -> np.ndarray:
  """Returns uint8 indices into `values`, of the shape of the mask.

  >>> index_labels(np.array([[0, 255]]), (0, 255))
  array([[0, 1]], dtype=uint8)

  Raises:
    ValueError: the mask holds another number.
  """
  result, known = np.zeros(mask.shape, np.uint8), np.zeros(mask.shape, bool)
  for index, value in enumerate(values):
    here = mask == value
    result[here] = index
    known |= here
  if not known.all():
    raise ValueError(
      f'mask: unknown label {mask[~known][0]:g}; expected '
      f'{", ".join(map(str, values))}'
    )
  return result


def _read_pillow(path: str | os.PathLike, kind: str) -> np.ndarray:
  content = pathlib.Path(path).read_bytes()
  if kind == 'PNG':
    _check_png(content)
  with warnings.catch_warnings():
    # Pillow only warns where the directory of a TIFF is cut.
    warnings.filterwarnings('error', message='(?i).*(corrupt|truncated)')
    try:
      with Image.open(io.BytesIO(content), formats=[kind]) as image:
        frames = []
        for number in range(getattr(image, 'n_frames', 1)):
          image.seek(number)
          if kind == 'TIFF':
            _check_tiff(image)
          frame = _grey_frame(image)
          if frames and not np.array_equal(frame, frames[0]):
            raise ValueError(
              f'expected one grey picture, found {image.n_frames} frames that '
              'differ; save one frame a file'
            )
          frames = [frame]
        return frames[0]
    except Image.UnidentifiedImageError:
      raise ValueError(
        f'{kind}: truncated, damaged, or of another format or kind'
      ) from None
    except (ValueError, MemoryError):
      raise
    except Exception as error:  # a damaged file gives errors of many kinds
      raise ValueError(f'{kind}: truncated or damaged: {error}') from error


def _grey_frame(image: Image.Image) -> np.ndarray:
  """Returns the frame that a pillow image stands at, [H, W]."""
  mode = image.mode
  if mode not in _MODES or (mode[0] != 'P' and 'transparency' in image.info):
    raise ValueError(
      f'expected a grey picture, found pillow mode {mode!r}'
      f'{" with transparency" if mode in _MODES else ""}; convert it to grey'
    )
  image.load()
  if mode[0] == 'P':
    clear = mode == 'PA' or 'transparency' in image.info
    image = image.convert('RGBA' if clear else 'RGB')
  array = np.array(image)
  if image.mode.endswith('A'):
    if np.any(array[..., -1] != 255):
      raise ValueError('expected opaque pixels, found transparent ones')
    array = array[..., :-1]
  if mode == '1':
    array = array.astype(np.uint8) * 255
  tags = getattr(image, 'tag_v2', {339: (2,)})
  if mode == 'I' and tags.get(339, (1,))[0] == 1:
    array = array.view(np.uint32)  # pillow calls these bits signed
  return grey(array.astype(array.dtype.newbyteorder('='), copy=False))


def _check_png(content: bytes) -> None:
  """Walks the chunks; pillow stops at the last pixel and skips their sums."""
  at, kind, depth, colour = 8, b'', 8, 0
  if content[:8] != b'\x89PNG\r\n\x1a\n':
    raise ValueError('PNG: truncated, damaged, or of another format')
  while kind != b'IEND':
    length = int.from_bytes(content[at : at + 4], 'big')
    body = content[at + 4 : at + 8 + length]
    checksum = content[at + 8 + length : at + 12 + length]
    kind = body[:4]
    if len(checksum) < 4:
      raise ValueError(f'PNG: truncated at {len(content)} bytes')
    if zlib.crc32(body) != int.from_bytes(checksum, 'big'):
      raise ValueError(f'PNG: damaged: wrong checksum behind byte {at}')
    if kind == b'IHDR' and length == 13:
      depth, colour = body[12], body[13]
    at += 12 + length
  if depth > 8 and colour != 0:
    raise ValueError(
      'PNG: 16 bit is read of grey pictures only; convert it to grey'
    )


def _check_tiff(image: Image.Image) -> None:
  """Refuses what pillow reads as other numbers than are stored."""
  tags = image.tag_v2
  bits = tags.get(258, (1,))
  kind = tags.get(339, (1,))[0]  # 1 unsigned, 2 signed, 3 floating point
  what = ''
  if max(bits) > 8 and len(bits) > 1:
    what = f'{max(bits)} bit of {len(bits)} colours'
  elif tags.get(262) == 0 and max(bits) > 8:
    what = f'{max(bits)} bit with white as zero'
  elif kind == 2 and max(bits) == 8:
    what = 'signed 8 bit'
  if what:
    raise ValueError(
      f'TIFF: {what} is not read; save it as grey, unsigned, black as zero'
    )


def _read_numpy(path: str | os.PathLike) -> np.ndarray:
  with open(path, 'rb') as file:
    try:
      if suffix_of(path) == '.npy':  # mapped, so that its length is tested
        array = np.array(np.load(path, mmap_mode='r', allow_pickle=False))
      else:
        with zipfile.ZipFile(file) as members:
          names = members.namelist()
        if len(names) != 1:
          raise ValueError(
            f'expected one array, found {", ".join(names) or "none"}'
          )
        file.seek(0)
        array = np.load(file, allow_pickle=False)[names[0]]
    except MemoryError:
      raise
    except Exception as error:  # a damaged file gives errors of many kinds
      raise ValueError(f'NumPy: truncated or damaged: {error}') from error
  if array.ndim not in (2, 3) or array.dtype.kind not in 'biuf':
    raise ValueError(
      'expected real numbers [H, W] or [Z, H, W], found '
      f'{array.dtype} {list(array.shape)}'
    )
  if array.dtype.kind == 'b':
    return array.astype(np.uint8)
  return array.astype(array.dtype.newbyteorder('='), copy=False)
