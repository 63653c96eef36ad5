"""The grey values that networks see, and how cases are fitted into a square.

Axes: H height, W width, C channels.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse


def unit_image(image: jax.Array) -> jax.Array:
  """Returns an image as float32: uint8 over 255, floats as they are.

  Raises:
    ValueError: another dtype, such as int16 Hounsfield units, which has to be
      windowed to [0, 1] first.
  """
  if image.dtype == jnp.uint8:
    return image.astype(jnp.float32) / 255
  if jnp.issubdtype(image.dtype, jnp.floating):
    return image.astype(jnp.float32)
  raise ValueError(
    f'image: expected uint8, or float in [0, 1], found {image.dtype}; window '
    'and scale it first'
  )


def grey_levels(
  image: np.ndarray, window: tuple[float, float] | None = None
) -> np.ndarray:
  """Returns an image as float32 in [0, 255], not yet rounded.

  Stored as uint8 afterwards, a grey value is off by at most 1/510 of the range
  (0.0011 root mean square, or 59 dB): far below what an autoencoder loses, and
  a quarter of the memory of float32.

  Args:
    image: any shape; uint8, int16 in the scanner's unit (HU), or float in
      [0, 1].
    window: (lowest, highest) value shown of int16 images; what is beyond is
      clipped. Others have none.

  Raises:
    ValueError: int16 without a window, a float image that leaves [0, 1], or
      another dtype.
  """
  if image.dtype == np.uint8:
    return image.astype(np.float32)
  if image.dtype == np.int16:
    if window is None:
      raise ValueError(
        'window: images of int16 (HU) need one, found none; set it to (lowest, '
        'highest), such as (-160, 240) for soft tissue'
      )
    low, high = window
    return np.clip((np.float32(image) - low) * (255 / (high - low)), 0, 255)
  if np.issubdtype(image.dtype, np.floating):
    low, high = float(np.min(image)), float(np.max(image))
    if not 0 <= low <= high <= 1:  # NaN fails, too
      raise ValueError(
        f'image: expected float in [0, 1], found {low:g} to {high:g}; scale it '
        'in the builder of the data set'
      )
    return np.float32(image) * 255
  raise ValueError(
    f'image: expected uint8, int16 or float in [0, 1], found {image.dtype}'
  )


@functools.lru_cache(maxsize=256)
def _weights(old, new):
  """Returns sparse float32 [new, old], the share of old in new pixels.

  A new pixel covers old / new old ones, begins where the last ended, and takes
  their average, in part where it covers a part: nothing is shifted.
  """
  edges = np.arange(new + 1)[:, None] * (old / new)
  covered = np.clip(edges - np.arange(old), 0, 1)
  return sparse.csr_array(np.float32(np.diff(covered, axis=0) * (new / old)))


@functools.lru_cache(maxsize=256)
def _linear(old, new):
  """Returns sparse float32 [new, old], linear between pixel centres."""
  at = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
  distance = abs(at[:, None] - np.arange(old))
  return sparse.csr_array(np.float32(np.maximum(0, 1 - distance)))


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """Returns an image of another size, float32 [height, width, C].

  Smaller sides are averages over areas (exact also where a pixel is covered in
  part), larger ones are interpolated linearly.

  Args:
    image: float32 [H, W, C].
    height, width: of the result, pixels.
  """
  rows, columns = (
    (_weights if new <= old else _linear)(old, new)
    for old, new in zip(image.shape, (height, width))
  )
  planes = [
    (columns @ (rows @ image[..., c]).T).T for c in range(image.shape[-1])
  ]
  return np.stack(planes, -1)


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
  """Returns a mask of another size, uint8 [height, width].

  A pixel takes the class that covers most of its area, the same area that
  `resize_image` averages; where two cover as much, the one that is rarer in
  the whole mask, so that small structures last. A structure that covers less
  than half of every pixel vanishes.

  Args:
    mask: uint8 [H, W], indices of classes.
    height, width: of the result, pixels.
  """
  counts = np.bincount(mask.ravel())
  classes = np.argsort(counts, kind='stable')
  classes = classes[counts[classes] > 0].astype(np.uint8)
  rows, columns = (
    _weights(old, new) for old, new in zip(mask.shape, (height, width))
  )
  share = [(columns @ (rows @ np.float32(mask == k)).T).T for k in classes]
  # Rounded, so that equal shares compare as equal.
  return classes[np.argmax(np.round(share, 4), axis=0)]


def fit(
  case: Mapping[str, Any], size: int, window: tuple[float, float] | None = None
) -> dict[str, Any]:
  """Returns a case with image and mask fitted into a size x size square.

  The aspect ratio is kept, by centred padding with 0. Image and mask share
  their geometry: pixel i of n covers the share [i / n, (i + 1) / n] of a side.
  Text becomes str.

  Args:
    case: as the data sets give it, of any height and width.
    size: of the square, pixels.
    window: of int16 images, see `grey_levels`.

  Returns:
    The case, with image uint8 [size, size, C] and mask uint8 [size, size].
  """
  mask = case['mask']
  image = grey_levels(case['image'], window)
  scale = size / max(mask.shape)
  height, width = (max(1, round(side * scale)) for side in mask.shape)
  if scale != 1:
    image = resize_image(image, height, width)
    mask = resize_mask(mask, height, width)
  shrunk = np.divide(case['mask'].shape, mask.shape)  # sides are whole pixels
  top, left = (size - height) // 2, (size - width) // 2
  inside = np.s_[top : top + height, left : left + width]
  square_image = np.zeros((size, size, image.shape[-1]), np.uint8)
  square_mask = np.zeros((size, size), np.uint8)
  square_image[inside], square_mask[inside] = np.rint(image), mask
  return {
    'image': square_image,
    'mask': square_mask,
    'spacing_mm': np.float32(case['spacing_mm'] * shrunk),
    'position': np.int32(case['position']),
    **{k: case[k].decode() for k in ('subject', 'site', 'case')},
  }
