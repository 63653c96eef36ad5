"""A mapping network whose scales exchange information.

The published network (`mapping.MappingNetwork`) maps each scale blindly. Here
the three latents enter one encoder-decoder at their own resolutions: the
finest goes down and meets the coarser ones (bottom-up), the coarsest sees
context by pyramid pooling, and each level's answer goes up into the next
finer one (top-down). Every level answers its own scale.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ppcmi_jax.models import autoencoder, layers, mapping


class ResidualBlock(nn.Module):
  """Two 3x3 convolutions with a normalisation and ReLU, and a shortcut."""

  features: int
  axis_name: str | None = None
  norm: str = 'batch'
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    def norm(x, name):
      if self.norm == 'group':
        # Groups of one channel at one position would be zero.
        groups = [n for n in (8, 4, 2) if self.features % (2 * n) == 0]
        return nn.GroupNorm(
          num_groups=[*groups, 1][0], dtype=self.dtype, name=name
        )(x)
      return layers.batch_norm(self, x, train=train, name=name)

    def conv(x, name):
      return layers.conv(
        self.features, use_bias=False, dtype=self.dtype, name=name
      )(x)

    y = nn.relu(norm(conv(x, 'conv1'), 'norm1'))
    y = norm(conv(y, 'conv2'), 'norm2')
    if x.shape[-1] != self.features:
      x = nn.Conv(
        self.features,
        (1, 1),
        use_bias=False,
        dtype=self.dtype,
        name='shortcut',
      )(x)
    return nn.relu(x + y)


class FusedMapping(nn.Module):
  """Maps image latents {'s3', 's4', 'b'} to mask latents of the same shapes.

  Both are at least 0, as encoders end in a ReLU.

  Attributes:
    widths: channels of the levels s3, s4 and b.
    blocks: residual blocks of a level, on the way down and on the way up.
    dropout: rate of whole channels dropped at the coarsest level.
    axis_name: pmap axis over which batch statistics are averaged, or None.
    dtype: what is computed in, such as bfloat16; None for that of the inputs.
    norm: 'batch', or 'group', with which no example's answer depends on the
      batch's others, so that a gradient of one example exists (DP-SGD); the
      pyramid pooling, whose normalisation is BatchNorm, is left out then.
    remat: whether a gradient computes each residual block once more instead of
      keeping what is inside: less memory, more time, the same numbers.
  """

  widths: Sequence[int] = (96, 160, 256)
  blocks: int = 1
  dropout: float = 0.2
  axis_name: str | None = None
  norm: str = 'batch'
  remat: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(
    self, latents: Mapping[str, jax.Array], *, train: bool
  ) -> dict[str, jax.Array]:
    if self.norm not in ('batch', 'group'):
      raise ValueError(
        f"norm: expected 'batch' or 'group', found {self.norm!r}"
      )

    def level(x, features, name):
      def block(number, x):
        return ResidualBlock(
          features,
          self.axis_name,
          self.norm,
          self.dtype,
          name=f'{name}_{number}',
        )(x, train=train)

      for i in range(self.blocks):
        of_one = lambda _, x, i=i: block(i, x)
        x = layers.maybe_remat(of_one, self.remat)(self, x)
      return x

    skips, x = {}, None
    for scale, features in zip(autoencoder.SCALES, self.widths, strict=True):
      z = latents[scale]
      if x is not None:
        z = jnp.concatenate([layers.max_pool(x), z], -1)
      x = skips[scale] = level(z, features, f'down_{scale}')
    x = mapping.PyramidPooling(
      self.widths[-1],
      pooling='pyramid' if self.norm == 'batch' else 'none',
      axis_name=self.axis_name,
      dtype=self.dtype,
      name='context',
    )(x, train=train)
    x = nn.Dropout(
      self.dropout, broadcast_dims=(1, 2), deterministic=not train
    )(x)

    outputs = {}
    for scale, features in zip(
      autoencoder.SCALES[::-1], self.widths[::-1], strict=True
    ):
      skip = skips[scale]
      shape = (*skip.shape[:3], x.shape[-1])
      x = jax.image.resize(x, shape, method='bilinear')
      x = level(jnp.concatenate([x, skip], -1), features, f'up_{scale}')
      out = nn.Conv(
        latents[scale].shape[-1],
        (1, 1),
        dtype=self.dtype,
        name=f'out_{scale}',
      )(x)
      outputs[scale] = nn.relu(layers.as_float32(out, self.dtype))
    return outputs
