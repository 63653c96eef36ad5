"""A mapping network whose scales exchange information.

The published network (`mapping.MappingNetwork`) maps each scale blindly. Here
the three latents enter one encoder-decoder at their own resolutions: the
finest goes down and meets the coarser ones (bottom-up), the coarsest sees
context by pyramid pooling, and each level's answer goes up into the next
finer one (top-down). Every level answers its own scale.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from ppcmi_jax.models import mapping

SCALES = ('s3', 's4', 'b')  # fine to coarse


class ResidualBlock(nn.Module):
  """Two 3x3 convolutions with BatchNorm and ReLU, and a shortcut."""

  features: int
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    def norm(x, name):
      return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        axis_name=self.axis_name,
        name=name,
      )(x)

    def conv(x, name):
      return nn.Conv(
        self.features, (3, 3), padding=1, use_bias=False, name=name
      )(x)

    y = nn.relu(norm(conv(x, 'conv1'), 'norm1'))
    y = norm(conv(y, 'conv2'), 'norm2')
    if x.shape[-1] != self.features:
      x = nn.Conv(self.features, (1, 1), use_bias=False, name='shortcut')(x)
    return nn.relu(x + y)


class FusedMapping(nn.Module):
  """Maps image latents {'s3', 's4', 'b'} to mask latents of the same shapes.

  Attributes:
    widths: channels of the levels s3, s4 and b.
    blocks: residual blocks of a level, on the way down and on the way up.
    dropout: rate of whole channels dropped at the coarsest level.
    relu: whether outputs end in a ReLU; off where latents are standardised.
    axis_name: pmap axis over which batch statistics are averaged, or None.
  """

  widths: Sequence[int] = (96, 160, 256)
  blocks: int = 1
  dropout: float = 0.2
  relu: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self, latents: Mapping[str, jax.Array], *, train: bool
  ) -> dict[str, jax.Array]:
    def level(x, features, name):
      for i in range(self.blocks):
        x = ResidualBlock(features, self.axis_name, name=f'{name}_{i}')(
          x, train=train
        )
      return x

    skips, x = {}, None
    for scale, features in zip(SCALES, self.widths, strict=True):
      z = latents[scale]
      if x is not None:
        z = jnp.concatenate([nn.max_pool(x, (2, 2), strides=(2, 2)), z], -1)
      x = skips[scale] = level(z, features, f'down_{scale}')
    x = mapping.PyramidPooling(
      self.widths[-1], axis_name=self.axis_name, name='context'
    )(x, train=train)
    x = nn.Dropout(
      self.dropout, broadcast_dims=(1, 2), deterministic=not train
    )(x)

    outputs = {}
    for scale, features in zip(SCALES[::-1], self.widths[::-1], strict=True):
      skip = skips[scale]
      if x.shape[1:3] != skip.shape[1:3]:
        shape = (*skip.shape[:3], x.shape[-1])
        x = jax.image.resize(x, shape, method='bilinear')
      x = level(jnp.concatenate([x, skip], -1), features, f'up_{scale}')
      out = nn.Conv(latents[scale].shape[-1], (1, 1), name=f'out_{scale}')(x)
      outputs[scale] = nn.relu(out) if self.relu else out
    return outputs
