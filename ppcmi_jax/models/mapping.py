"""The unified mapping network as published: three blind blocks, one a scale.

It maps image latents to mask latents (arXiv 2603.05541). Each block sees
its own scale only; `fused.FusedMapping` lets the scales speak to each other.

Latents are a dict {'s3', 's4', 'b'} of [B, H, W, C] arrays, in and out of the
same shapes.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ppcmi_jax.models import layers

POOL_SIZES = (1, 3, 5, 7)


def pooling_matrix(size: int, length: int) -> jax.Array:
  """Returns the [size, length] matrix of adaptive average pooling.

  Row i averages positions floor(i length / size) to ceil((i+1) length / size),
  so it is defined for a size larger than the length, too.
  """
  i = jnp.arange(size)[:, None]
  j = jnp.arange(length)[None]
  start, stop = i * length // size, -(-(i + 1) * length // size)
  inside = (j >= start) & (j < stop)
  return inside / jnp.sum(inside, axis=1, keepdims=True)


class PyramidPooling(nn.Module):
  """Pyramid pooling: four branches of context beside the input.

  Attributes:
    features: output channels; a branch has an eighth of the input's.
    pooling: 'pyramid' averages adaptively to 1, 3, 5 and 7 cells a side, as
      published; 'official' takes the global mean in all four branches, as
      the official code does; 'none' returns the input
      as it is, for ablations, and needs as many features as that has.
    axis_name: pmap axis over which batch statistics are averaged, or None.
    dtype: what is computed in, such as bfloat16; None for that of the inputs.
  """

  features: int
  pooling: str = 'pyramid'
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    if self.pooling not in ('pyramid', 'official', 'none'):
      raise ValueError(
        "pooling: expected 'pyramid' or 'official' or 'none', found "
        f'{self.pooling!r}'
      )
    height, width, channels = x.shape[1:]
    if self.pooling == 'none':
      if channels != self.features:
        raise ValueError(
          f'features: expected those of the input, {channels}, as pooling is '
          f"'none', found {self.features}"
        )
      return x

    def conv_norm_relu(x, features, name):
      x = nn.Conv(
        features,
        (1, 1),
        use_bias=False,
        dtype=self.dtype,
        name=f'{name}_conv',
      )(x)
      x = layers.batch_norm(self, x, train=train, name=f'{name}_norm')
      return nn.relu(x)

    def cells(size, length):
      if self.pooling == 'pyramid':
        return pooling_matrix(size, length)
      # Equal cells, as many as the official code has: BatchNorm counts them.
      return jnp.tile(pooling_matrix(1, length), (size, 1))

    branches = [x]
    for i, size in enumerate(POOL_SIZES):
      pooled = jnp.einsum(
        'ph,bhwc,qw->bpqc', cells(size, height), x, cells(size, width)
      )
      pooled = conv_norm_relu(pooled, max(channels // 8, 1), f'branch{i}')
      shape = (*x.shape[:3], pooled.shape[-1])
      branches.append(jax.image.resize(pooled, shape, method='bilinear'))
    return conv_norm_relu(
      jnp.concatenate(branches, axis=-1), self.features, 'final'
    )


class MappingBlock(nn.Module):
  """Maps the latent of one scale [B, H, W, C] to another of the same shape.

  It pools while both sides are even, at most three times, so any size works
  (the official code needs three poolings of the smallest latent).
  """

  width: float = 1.0
  pooling: str = 'pyramid'
  dropout: float = 0.2
  axis_name: str | None = None
  remat: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    channels = x.shape[-1]
    scaled = lambda features: max(8, round(features * self.width))

    def conv(x, features, name):
      def layers_of(_, x):
        x = layers.conv(
          scaled(features), dtype=self.dtype, name=f'{name}_conv'
        )(x)
        x = nn.leaky_relu(x, 0.1)
        return layers.batch_norm(self, x, train=train, name=f'{name}_norm')

      return layers.maybe_remat(layers_of, self.remat)(self, x)

    def dropout(x):
      return nn.Dropout(
        self.dropout, broadcast_dims=(1, 2), deterministic=not train
      )(x)

    def pyramid(x, name):
      return PyramidPooling(
        scaled(512), self.pooling, self.axis_name, self.dtype, name=name
      )(x, train=train)

    def pool(x):
      even = x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0
      return layers.max_pool(x) if even else x

    def join(x, skip):
      shape = (*skip.shape[:3], x.shape[-1])
      x = jax.image.resize(x, shape, method='bilinear')
      return jnp.concatenate([x, skip], axis=-1)

    x = conv(x, 128, 'c1')
    x = conv(x, 256, 'c2')
    x = dropout(conv(x, 512, 'c3'))
    x = conv(pyramid(x, 'ppm1'), 512, 'c4')
    x = dropout(conv(x, 1024, 'c5'))
    d1 = conv(pool(x), 256, 'd1')
    d2 = conv(pool(d1), 128, 'd2')
    d3 = conv(pool(d2), 64, 'd3')
    u1 = dropout(conv(join(d3, d2), 128, 'u1'))
    u2 = dropout(conv(join(u1, d1), 256, 'u2'))
    u3 = pyramid(conv(join(u2, x), 512, 'u3'), 'ppm2')
    out = nn.Conv(channels, (1, 1), dtype=self.dtype, name='out')(u3)
    return nn.relu(layers.as_float32(out, self.dtype))


class MappingNetwork(nn.Module):
  """Maps image latents to mask latents, one independent block a scale.

  Attributes:
    width: multiplier of all inner channels; 1 is the published size (58.79 M
      parameters with the autoencoders' default widths).
    pooling: 'pyramid', 'official' or 'none' (55.63 M parameters), see
      PyramidPooling.
    dropout: rate of whole channels dropped at four places of each block.
    axis_name: pmap axis over which batch statistics are averaged, or None.
    dtype: what is computed in, such as bfloat16; None for that of the inputs.
    remat: whether a gradient computes the layers between convolutions once
      more instead of keeping them: less memory, more time, the same numbers.
  """

  width: float = 1.0
  pooling: str = 'pyramid'
  dropout: float = 0.2
  axis_name: str | None = None
  remat: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(
    self, latents: Mapping[str, jax.Array], *, train: bool
  ) -> dict[str, jax.Array]:
    return {
      name: MappingBlock(
        self.width,
        self.pooling,
        self.dropout,
        self.axis_name,
        self.remat,
        self.dtype,
        name=f'block_{name}',
      )(latents[name], train=train)
      for name in sorted(latents)
    }
