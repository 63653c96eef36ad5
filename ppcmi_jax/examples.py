"""Cases of one size: what the pipeline makes of every data set.

Axes: N examples, H height, W width, C channels, K classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

SPLITS = ('train', 'valid', 'test')
UNUSED = 'gap'  # in no split


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


def take(arrays: Any, rows: np.ndarray | slice) -> Any:
  """Returns the given rows of every array of a tree.

  Grey images that are repeated over the channels without being copied stay so.
  """

  def one(array):
    repeated = (
      isinstance(array, np.ndarray)
      and array.ndim > 1
      and array.shape[-1] > 1
      and array.strides[-1] == 0
    )
    if repeated:
      plane = array[..., :1][rows]
      return np.broadcast_to(plane, (*plane.shape[:-1], array.shape[-1]))
    return array[rows]

  return jax.tree.map(one, arrays)


def map_batches(
  function: Callable[[Any], Any], arrays: Any, batch_size: int
) -> Any:
  """Applies a function to a tree of arrays in batches of one size.

  So a jitted function compiles once: past the end the last example repeats, and
  what it gives is cut off.

  Args:
    function: a tree of arrays [B, ...] -> a tree of arrays [B, ...].
    arrays: a tree of arrays [N, ...], N at least 1.
    batch_size: B, less where there are fewer examples.

  Returns:
    A tree of NumPy arrays [N, ...].
  """
  count = len(jax.tree.leaves(arrays)[0])
  size = min(batch_size, count)
  parts = []
  for start in range(0, count, size):
    rows = np.minimum(np.arange(start, start + size), count - 1)
    parts.append(jax.device_get(function(take(arrays, rows))))
  return jax.tree.map(lambda *a: np.concatenate(a)[:count], *parts)


def class_pixels(mask: np.ndarray) -> np.ndarray:
  """Returns the pixels of each class in each case, int64 [N, K].

  Args:
    mask: uint8 [N, H, W]; K is one more than its largest index.
  """
  count = int(mask.max(initial=0)) + 1
  pixels = np.zeros((len(mask), count), np.int64)
  for row, one in zip(pixels, mask):
    row[:] = np.bincount(one.ravel(), minlength=count)
  return pixels
