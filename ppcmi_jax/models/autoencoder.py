"""The autoencoder of images and of masks, with three latents
(arXiv 2603.05541).

Each stage of an encoder halves the input; its last three are the latents of
the method, a dict of names to arrays. With n stages, as they come or narrowed:

            place                 of 5 stages, as published   of 4
    's3'    [B, H/2^(n-2), ...]   [B, H/8, W/8, C]            [B, H/4, W/4, C]
    's4'    [B, H/2^(n-1), ...]   [B, H/16, W/16, C]          [B, H/8, W/8, C]
    'b'     [B, H/2^n, ...]       [B, H/32, W/32, C]          [B, H/16, W/16, C]

Latents of four stages in half of their channels have as many numbers as those
of five, on a grid twice as fine: small structures need places more than
channels. A decoder doubles 'b' n times and takes 's4' and 's3' in on the way.
Axes: B batch, H height, W width, C channels.

  >>> import functools, jax, jax.numpy as jnp
  >>> model = Autoencoder(channels=1, widths=(4, 4, 8, 8, 16))
  >>> x = jnp.zeros((2, 32, 32, 1))
  >>> init = functools.partial(model.init, train=False)
  >>> encode = functools.partial(model.apply, train=False, method='encode')
  >>> variables = jax.eval_shape(init, jax.random.key(0), x)
  >>> latents = jax.eval_shape(encode, variables, x)
  >>> {name: z.shape for name, z in sorted(latents.items())}
  {'b': (2, 1, 1, 16), 's3': (2, 4, 4, 8), 's4': (2, 2, 2, 8)}
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ppcmi_jax.models import layers

SCALES = ('s3', 's4', 'b')  # fine to coarse, of the last three stages


def up_conv(
  x: jax.Array,
  features: int,
  upsampling: str,
  *,
  use_bias: bool,
  name: str,
  dtype: Any = None,
) -> jax.Array:
  """Doubles the sides of [B, H, W, C] and applies a 3x3 convolution.

  Called inside a compact module, whose child `name` the convolution becomes.

  Args:
    x: [B, H, W, C].
    features: output channels.
    upsampling: 'bilinear', as published, interpolates and convolves; 'shuffle'
      convolves to four times the channels, which become the 2x2 pixels (Shi
      et al., CVPR 2016). That costs the same multiply-adds, but each of the
      four pixels has weights of its own, where interpolation makes fine
      detail of overlapping tents.
    use_bias: whether the convolution has a bias.
    name: of the convolution.
    dtype: what it computes in.

  Raises:
    ValueError: an unknown upsampling.
  """
  if upsampling not in ('bilinear', 'shuffle'):
    raise ValueError(
      f"upsampling: expected 'bilinear' or 'shuffle', found {upsampling!r}"
    )
  shuffle = upsampling == 'shuffle'
  x = layers.conv(
    4 * features if shuffle else features,
    use_bias=use_bias,
    dtype=dtype,
    name=name,
  )(x if shuffle else layers.upsample(x))
  return layers.depth_to_space(x) if shuffle else x


class Stage(nn.Module):
  """3x3 convolution without bias, BatchNorm, ReLU; halves or doubles the sides.

  Attributes:
    features: output channels.
    upsampling: None to divide the sides by the stride, or how to double them
      (`up_conv`).
    stride: of the convolution, where nothing is doubled.
    axis_name: pmap axis over which batch statistics are averaged, or None.
    dtype: what is computed in, such as bfloat16; None for that of the inputs.
  """

  features: int
  upsampling: str | None = None
  stride: int = 2
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    if self.upsampling is None:
      x = layers.conv(
        self.features,
        strides=self.stride,
        use_bias=False,
        dtype=self.dtype,
        name='conv',
      )(x)
    else:
      x = up_conv(
        x,
        self.features,
        self.upsampling,
        use_bias=False,
        dtype=self.dtype,
        name='conv',
      )
    return nn.relu(layers.batch_norm(self, x, train=train, name='norm'))


class Residual(nn.Module):
  """Adds a 3x3 convolution without bias and its BatchNorm to x, then ReLU."""

  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    y = layers.conv(x.shape[-1], use_bias=False, dtype=self.dtype, name='conv')(
      x
    )
    y = layers.batch_norm(self, y, train=train, name='norm')
    return nn.relu(x + y)


class Encoder(nn.Module):
  """Maps [B, H, W, C] to latents; H and W divisible by 2 to the stages.

  Attributes:
    widths: channels of the stages.
    blocks: residual convolutions behind each stage; none as published.
    latent_widths: channels of s3, s4 and b, by a 1x1 convolution without bias,
      BatchNorm and ReLU each; those of the stages as they are where empty.
    full_size: whether a stage at full size comes first, as wide as the first.
    axis_name: pmap axis over which batch statistics are averaged, or None.
    dtype: what is computed in, such as bfloat16; None for that of the inputs.
  """

  widths: Sequence[int] = (16, 32, 64, 128, 256)
  blocks: int = 0
  latent_widths: Sequence[int] = ()
  full_size: bool = False
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    side = 2 ** len(self.widths)
    if x.ndim != 4 or x.shape[1] % side or x.shape[2] % side:
      raise ValueError(
        f'image: expected [B, H, W, C] with H and W divisible by {side}, '
        f'found shape {x.shape}; resize or pad the images first'
      )
    stages = [(1, self.widths[0])] if self.full_size else []
    stages += [(2, width) for width in self.widths]
    found = []
    for i, (stride, width) in enumerate(stages, start=not self.full_size):
      x = Stage(
        width,
        stride=stride,
        axis_name=self.axis_name,
        dtype=self.dtype,
        name=f'stage{i}',
      )(x, train=train)
      for j in range(self.blocks):
        x = Residual(self.axis_name, self.dtype, name=f'block{i}_{j + 1}')(
          x, train=train
        )
      found.append(x)
    latents = dict(zip(SCALES, found[-3:], strict=True))
    for name, width in zip(SCALES, self.latent_widths):
      z = nn.Conv(
        width, (1, 1), use_bias=False, dtype=self.dtype, name=f'narrow_{name}'
      )(latents[name])
      z = layers.batch_norm(self, z, train=train, name=f'narrow_{name}_norm')
      latents[name] = nn.relu(z)
    return layers.as_float32(latents, self.dtype)


class Decoder(nn.Module):
  """Maps the latents s3, s4 and b to logits [B, H, W, channels].

  Attributes:
    channels: output channels (of the image, or the number of classes).
    widths: the encoder's stage widths, mirrored here.
    skips: whether s4 and s3 are concatenated on the way up.
    upsampling: 'bilinear' as published, or 'shuffle'; see `up_conv`.
    full_size: whether the last stage is at full size, and each as wide as the
      encoder's of half of its sides; else logits come from half of the size.
    axis_name: pmap axis over which batch statistics are averaged, or None.
    dtype: what is computed in, such as bfloat16; None for that of the inputs.
  """

  channels: int
  widths: Sequence[int] = (16, 32, 64, 128, 256)
  skips: bool = True
  upsampling: str = 'bilinear'
  full_size: bool = False
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(
    self, latents: Mapping[str, jax.Array], *, train: bool
  ) -> jax.Array:
    skips = {1: latents['s4'], 2: latents['s3']} if self.skips else {}
    x, widths = latents['b'], self.widths[::-1]
    for i, width in enumerate(widths[not self.full_size :], start=1):
      x = Stage(
        width,
        self.upsampling,
        axis_name=self.axis_name,
        dtype=self.dtype,
        name=f'up{i}',
      )(x, train=train)
      if i in skips:
        x = jnp.concatenate([x, skips[i]], axis=-1)
    if self.full_size:
      logits = layers.conv(self.channels, dtype=self.dtype, name='out')(x)
    else:
      logits = up_conv(
        x,
        self.channels,
        self.upsampling,
        use_bias=True,
        dtype=self.dtype,
        name='out',
      )
    return layers.as_float32(logits, self.dtype)


class Autoencoder(nn.Module):
  """Encoder and decoder of one client and one modality.

  Official sizes are the defaults: 877,859 parameters with 3 channels, 877,281
  with 1.

  Attributes:
    channels: channels in and out (1 or 3 for images, classes for masks).
    widths: channels of the encoder's stages, five as published.
    skips: whether the decoder takes s4 and s3 in.
    upsampling: of the decoder: 'bilinear' as published, or 'shuffle'.
    blocks: residual convolutions behind each stage of the encoder.
    num_classes: K classes that the decoder tells, too; 0 as published.
    latent_widths: channels of s3, s4 and b; those of the stages where empty,
      as published.
    full_size: whether the encoder begins and the decoder ends with a stage at
      full size; not so as published.
    axis_name: pmap axis over which batch statistics are averaged, or None.
    dtype: what is computed in, such as bfloat16; None for that of the inputs.
  """

  channels: int = 3
  widths: Sequence[int] = (16, 32, 64, 128, 256)
  skips: bool = True
  upsampling: str = 'bilinear'
  blocks: int = 0
  num_classes: int = 0
  latent_widths: Sequence[int] = ()
  full_size: bool = False
  axis_name: str | None = None
  dtype: Any = None

  def setup(self):
    self.encoder = Encoder(
      self.widths,
      self.blocks,
      self.latent_widths,
      self.full_size,
      self.axis_name,
      self.dtype,
    )
    self.decoder = Decoder(
      self.channels + self.num_classes,
      self.widths,
      self.skips,
      self.upsampling,
      self.full_size,
      self.axis_name,
      self.dtype,
    )

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns the logits [B, H, W, channels] of the input's reconstruction."""
    return self.decode(self.encode(x, train=train), train=train)

  def encode(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    """Returns the latents of x [B, H, W, channels], scaled to [0, 1]."""
    return self.encoder(x, train=train)

  def decode(
    self, latents: Mapping[str, jax.Array], *, train: bool
  ) -> jax.Array:
    """Returns logits [B, H, W, channels] of latents."""
    return self.decode_all(latents, train=train)[..., : self.channels]

  def decode_all(
    self, latents: Mapping[str, jax.Array], *, train: bool
  ) -> jax.Array:
    """Returns logits [B, H, W, channels + num_classes] of latents."""
    return self.decoder(latents, train=train)

  def segment(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns the logits [B, H, W, num_classes] for x [B, H, W, channels]."""
    logits = self.decode_all(self.encode(x, train=train), train=train)
    return logits[..., self.channels :]

  def reconstruct_and_segment(
    self, x: jax.Array, *, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Returns what a call and `segment` do."""
    logits = self.decode_all(self.encode(x, train=train), train=train)
    return logits[..., : self.channels], logits[..., self.channels :]
