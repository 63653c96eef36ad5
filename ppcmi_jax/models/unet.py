"""U-Net, the privacy-agnostic baseline (Ronneberger et al., MICCAI 2015).

Its Figure 1 at four levels, with padded convolutions and BatchNorm, which later
implementations have and the paper has not.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ppcmi_jax.models import layers


class UNet(nn.Module):
  """Maps images [B, H, W, C] to logits [B, H, W, num_classes].

  Attributes:
    num_classes: output channels.
    width: channels of the first level; a level doubles them. 64 is the
      published size (31.04 M parameters with 3 channels in and out).
    depth: poolings; H and W must be divisible by 2 ** depth.
    axis_name: pmap axis over which batch statistics are averaged, or None.
    dtype: what is computed in, such as bfloat16; None for that of the inputs.
  """

  num_classes: int
  width: int = 64
  depth: int = 4
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    def double_conv(x, features, name):
      for i in (1, 2):
        x = layers.conv(features, dtype=self.dtype, name=f'{name}_conv{i}')(x)
        x = layers.batch_norm(self, x, train=train, name=f'{name}_norm{i}')
        x = nn.relu(x)
      return x

    return contract_and_expand(
      x,
      double_conv,
      width=self.width,
      depth=self.depth,
      num_classes=self.num_classes,
      dtype=self.dtype,
    )


def contract_and_expand(
  x: jax.Array,
  block: Callable[[jax.Array, int, str], jax.Array],
  *,
  width: int,
  depth: int,
  num_classes: int,
  dtype: Any = None,
) -> jax.Array:
  """Applies a U of blocks; to be called in a module's compact method.

  Args:
    x: [B, H, W, C], H and W divisible by 2 ** depth.
    block: (x, features, name) -> x, the layers of a level.
    width: features of the first level; a level doubles them.
    depth: poolings.
    num_classes: output channels.
    dtype: what is computed in; None for that of x.

  Raises:
    ValueError: H or W is not divisible.
  """
  unit = 2**depth
  if x.ndim != 4 or x.shape[1] % unit or x.shape[2] % unit:
    raise ValueError(
      f'image: expected [B, H, W, C] with H and W divisible by {unit}, '
      f'found shape {x.shape}; resize or pad the images first'
    )
  skips = []
  for i in range(depth):
    x = block(x, width * 2**i, f'down{i}')
    skips.append(x)
    x = layers.max_pool(x)
  x = block(x, width * 2**depth, 'bottom')
  for i, skip in reversed(list(enumerate(skips))):
    features = width * 2**i
    x = layers.ConvTranspose2x2(features, dtype, name=f'up{i}')(x)
    x = block(jnp.concatenate([skip, x], -1), features, f'up{i}_double')
  logits = nn.Conv(num_classes, (1, 1), dtype=dtype, name='out')(x)
  return layers.as_float32(logits, dtype)
