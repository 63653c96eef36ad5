"""Layers that a processor runs faster than the linen ones which they equal.

XLA's CPU backend has no quick kernel for some convolutions and gradients. Here
the same functions, of the same parameters, are written as what it has: matrix
products, shifts and selections.
Axes: B batch, H height, W width, C channels.

  >>> import jax.numpy as jnp
  >>> depth_to_space(jnp.arange(4.0).reshape(1, 1, 1, 4))[0, :, :, 0].tolist()
  [[0.0, 1.0], [2.0, 3.0]]
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes


def maybe_remat(call: Callable[..., Any], remat: bool) -> Callable[..., Any]:
  """Returns (module, *arrays) -> arrays, or what computes it twice.

  With `remat` a gradient keeps the arguments alone and computes what is inside
  once more. Parameters keep their names and places.
  """
  return nn.remat(call) if remat else call


def as_float32(tree: Any, dtype: Any) -> Any:
  """Returns what leaves a model that computes in `dtype`, if that is set."""
  if dtype is None:
    return tree
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def batch_norm(
  module: nn.Module, x: jax.Array, *, train: bool, name: str
) -> jax.Array:
  """Normalises [B, H, W, C] inside a module's compact method, as its child.

  Args:
    module: whose `axis_name` and `dtype` count.
    x: to normalise.
    train: whether by its own statistics, or by the running ones.
    name: of the child.
  """
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    axis_name=module.axis_name,
    dtype=module.dtype,
    name=name,
  )(x)


def _convolve(x, kernel, strides, padding, **kwargs):
  """Equals `lax.conv_general_dilated`, quickly on images below the kernel.

  For these XLA's CPU backend has loops that take twenty times as long as the
  product of all patches [B, h, w, kh kw C] with the kernel.
  """
  height, width = kernel.shape[:2]
  if x.shape[1] >= height and x.shape[2] >= width:
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  patches = [
    x[:, i : x.shape[1] - height + 1 + i : strides[0],
      j : x.shape[2] - width + 1 + j : strides[1]]
    for i in range(height)
    for j in range(width)
  ]  # fmt: skip
  kernel = kernel.reshape(-1, kernel.shape[-1])
  return jnp.concatenate(patches, -1) @ kernel


def conv(
  features: int,
  kernel_size: tuple[int, int] = (3, 3),
  *,
  padding: int = 1,
  **options: Any,
) -> nn.Conv:
  """Returns `nn.Conv` of the same arguments, quick on the smallest images.

  Args:
    features: output channels.
    kernel_size: height and width.
    padding: zeros around the input.
    **options: of `nn.Conv`, but for dilations and groups.
  """
  return nn.Conv(
    features,
    kernel_size,
    padding=padding,
    conv_general_dilated=_convolve,
    **options,
  )


def depth_to_space(x: jax.Array) -> jax.Array:
  """Turns [B, H, W, 4C] into [B, 2H, 2W, C]: 4 channels become 2x2 pixels."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height, width, 2, 2, channels // 4)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, 2 * height, 2 * width, channels // 4)


class ConvTranspose2x2(nn.Module):
  """Maps [B, H, W, C] to [B, 2H, 2W, features], as one matrix product.

  Equals `nn.ConvTranspose(features, (2, 2), strides=(2, 2))`, parameters and
  their initial values included: windows do not overlap, so that a pixel makes
  2x2 pixels of its own.

  Attributes:
    features: output channels.
    dtype: what is computed in; None for that of the inputs.
  """

  features: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    kernel = self.param(
      'kernel',
      nn.initializers.lecun_normal(),
      (2, 2, channels, self.features),
    )
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x, kernel, bias = dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    # A correlation with the dilated input meets its kernel backwards.
    kernel = kernel[::-1, ::-1].transpose(2, 0, 1, 3)
    return depth_to_space(x @ kernel.reshape(channels, -1)) + bias


def max_pool(x: jax.Array) -> jax.Array:
  """Halves the sides of [B, H, W, C]: the maxima of windows of 2x2.

  Equals `nn.max_pool(x, (2, 2), strides=(2, 2))` to the bit, ties included:
  the gradient goes to the first maximum of a window, row by row. An odd last
  row or column is left out. Has reverse-mode derivatives only.
  """
  height, width = x.shape[1] // 2, x.shape[2] // 2
  return _max_pool_even(x[:, : 2 * height, : 2 * width])


@jax.custom_vjp
def _max_pool_even(x):
  return nn.max_pool(x, (2, 2), strides=(2, 2))


def _max_pool_forward(x):
  return _max_pool_even(x), x


def _max_pool_backward(x, gradient):
  batch, height, width, channels = gradient.shape
  windows = x.reshape(batch, height, 2, width, 2, channels)
  parts = [[windows[:, :, i, :, j] for j in (0, 1)] for i in (0, 1)]
  # Not what went forward: XLA may have computed that to other last bits.
  y = functools.reduce(jnp.maximum, parts[0] + parts[1])
  rows, free = [], jnp.ones(y.shape, bool)
  for part in parts:
    row = []
    for z in part:
      first = free & (z == y)
      row.append(jnp.where(first, gradient, 0))
      free = free & ~first
    rows.append(jnp.stack(row, 3))
  return (jnp.stack(rows, 2).reshape(x.shape),)


_max_pool_even.defvjp(_max_pool_forward, _max_pool_backward)


class DepthwiseConv3x3(nn.Module):
  """Maps [B, H, W, C] to the same shape: a 3x3 kernel a channel, no bias.

  Equals `nn.Conv(C, (3, 3), padding=1, feature_group_count=C, use_bias=False)`,
  the parameter and its initial value included.

  Attributes:
    dtype: what is computed in; None for that of the inputs.
  """

  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    height, width, channels = x.shape[1:]
    kernel = self.param(
      'kernel', nn.initializers.lecun_normal(), (3, 3, 1, channels)
    )
    x, kernel = dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    # The padded input is held for the gradient: time is bought with memory.
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
      padded[:, i : i + height, j : j + width] * kernel[i, j, 0]
      for i in range(3)
      for j in range(3)
    )


def upsample(x: jax.Array) -> jax.Array:
  """Doubles the sides of [B, H, W, C] bilinearly (half-pixel centres).

  Equals `jax.image.resize(..., method='bilinear')` up to rounding: a new pixel
  is 3/4 of the nearest one and 1/4 of the next, which the border repeats.
  """

  def double(x, axis):
    length = x.shape[axis]

    def moved(*parts):
      parts = [jax.lax.slice_in_dim(x, *part, axis=axis) for part in parts]
      return 0.75 * x + 0.25 * jnp.concatenate(parts, axis)

    low = moved((0, 1), (0, length - 1))
    high = moved((1, length), (length - 1, length))
    shape = (*x.shape[:axis], 2 * length, *x.shape[axis + 1 :])
    return jnp.stack([low, high], axis + 1).reshape(shape)

  return double(double(x, 1), 2)
