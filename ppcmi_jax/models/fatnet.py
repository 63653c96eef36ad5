"""FAT-Net, a baseline of two encoders: convolutions and a transformer.

"FAT-Net: Feature adaptive transformers for automated skin lesion segmentation",
Wu et al., Medical Image Analysis 76, 2022. A ResNet-34 without its max pool (He
et al., CVPR 2016) and, beside it, the blocks of a DeiT-tiny (Touvron et al.,
ICML 2021) see the image; their coarsest features are weighed channel by channel
and decoded with the ResNet's finer ones, which feature adaptation modules (FAM)
have gone over.

The published networks start from ImageNet weights. Here all weights are
random: none are shipped or downloaded, so scores are lower than published ones
are where data are few.

Axes: B batch, H height, W width, C channels, T tokens, D features of a token.

  >>> import jax, jax.numpy as jnp
  >>> model = FATNet(3, width=4, blocks=(1, 1, 1, 1), transformer_layers=1)
  >>> x = jnp.zeros((2, 32, 48, 1))
  >>> init = lambda key: model.init_with_output(key, x, train=False)
  >>> logits, variables = jax.eval_shape(init, jax.random.key(0))
  >>> logits.shape
  (2, 32, 48, 3)
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ppcmi_jax.models import layers

STRIDE = 16  # of both encoders: four halvings, and patches of 16 x 16


class ResidualBlock(nn.Module):
  """The basic block of ResNet-34: two 3x3 convolutions and a shortcut.

  Attributes:
    features: output channels.
    stride: 2 to halve the sides, or 1.
    axis_name: pmap axis over which batch statistics are averaged, or None.
    dtype: what is computed in, such as bfloat16; None for that of the inputs.
  """

  features: int
  stride: int = 1
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    def conv_norm(x, size, stride, name):
      x = layers.conv(
        self.features,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        dtype=self.dtype,
        name=f'{name}_conv',
      )(x)
      return layers.batch_norm(self, x, train=train, name=f'{name}_norm')

    y = nn.relu(conv_norm(x, 3, self.stride, 'first'))
    y = conv_norm(y, 3, 1, 'second')
    if self.stride > 1 or x.shape[-1] != self.features:
      x = conv_norm(x, 1, self.stride, 'shortcut')
    return nn.relu(x + y)


class TransformerBlock(nn.Module):
  """Maps tokens [B, T, D] to [B, T, D] (Dosovitskiy et al., ICLR 2021).

    x = x + attention(norm(x))                       (their equation 2)
    x = x + dense(gelu(dense(norm(x))))              (their equation 3)

  with self-attention softmax(q k^T / sqrt(D / heads)) v in every head and 4 D
  hidden features. Tokens carry no position: permuting them permutes the output.
  """

  heads: int = 3
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtype = self.dtype
    norm = lambda x, name: nn.LayerNorm(1e-6, dtype, name=name)(x)
    x = x + nn.MultiHeadDotProductAttention(
      self.heads, dtype, force_fp32_for_softmax=True, name='attention'
    )(norm(x, 'attention_norm'))
    y = nn.Dense(4 * x.shape[-1], dtype=dtype, name='expand')(
      norm(x, 'dense_norm')
    )
    return x + nn.Dense(x.shape[-1], dtype=dtype, name='contract')(
      nn.gelu(y, approximate=False)
    )


class SqueezeExcitation(nn.Module):
  """Weighs the channels of [B, H, W, C] by their means over the image.

  Hu et al., CVPR 2018, equations 2 to 4, with C / 16 hidden features.
  """

  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    y = jnp.mean(x, axis=(1, 2), keepdims=True)
    dense = lambda features, name: nn.Dense(
      features, use_bias=False, dtype=self.dtype, name=name
    )
    y = dense(channels // 16, 'squeeze')(y)
    y = dense(channels, 'excite')(nn.relu(y))
    return x * nn.sigmoid(y)


class FeatureAdaptation(nn.Module):
  """FAM: relu(conv3x3(x)) + relu(conv1x1(x)), [B, H, W, C] to the same."""

  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    conv = lambda size: layers.conv(
      x.shape[-1],
      (size, size),
      padding=size // 2,
      dtype=self.dtype,
      name=f'conv{size}',
    )
    return nn.relu(conv(3)(x)) + nn.relu(conv(1)(x))


class DecoderBlock(nn.Module):
  """Maps [B, H, W, C] to [B, 2H, 2W, features] through C / 4 channels."""

  features: int
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    def norm_relu(x, name):
      return nn.relu(layers.batch_norm(self, x, train=train, name=name))

    inner = x.shape[-1] // 4
    conv = lambda features, name: nn.Conv(
      features, (1, 1), dtype=self.dtype, name=name
    )
    x = norm_relu(conv(inner, 'reduce')(x), 'reduce_norm')
    # PyTorch's padding=1, output_padding=1: twice the size.
    x = nn.ConvTranspose(
      inner,
      (3, 3),
      strides=(2, 2),
      padding=((1, 2), (1, 2)),
      dtype=self.dtype,
      name='up',
    )(x)
    x = norm_relu(x, 'up_norm')
    return norm_relu(conv(self.features, 'expand')(x), 'expand_norm')


class FATNet(nn.Module):
  """Maps images [B, H, W, C] to logits [B, H, W, num_classes].

  H and W must be divisible by 16; the tokens are the H/16 x W/16 patches.
  At the published size it has 28,754,595 parameters with 3 channels in and
  out: ResNet-34 21,284,672, patch embedding 147,648, transformer 5,338,368,
  their fusion 754,688, FAM 861,056, decoder 325,248 and head 42,915. The
  published code has 4,640 more (28,759,235, "28.76 M") for a fourth decoder
  block that it makes and never calls; it is left out here.

  Attributes:
    num_classes: output channels.
    width: channels of the first ResNet stage, an even number; a stage doubles
      them. All layers but the transformer's follow it.
    blocks: residual blocks of the four ResNet stages.
    transformer_layers: blocks of the transformer.
    transformer_dim: features D of a token, divisible by the heads.
    transformer_heads: of the attention.
    fam_repeats: how often the module FAM of the skips at H/2, H/4 and H/8 is
      applied, each time with the same weights.
    axis_name: pmap axis over which batch statistics are averaged, or None.
    dtype: what is computed in, such as bfloat16; None for that of the inputs.
  """

  num_classes: int
  width: int = 64
  blocks: Sequence[int] = (3, 4, 6, 3)
  transformer_layers: int = 12
  transformer_dim: int = 192
  transformer_heads: int = 3
  fam_repeats: Sequence[int] = (6, 4, 2)
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    self._check(x)
    *fine, coarse = self._convolutions(x, train)
    coarse = jnp.concatenate([coarse, self._transformer(x)], axis=-1)
    coarse = SqueezeExcitation(self.dtype, name='se')(coarse)
    x = nn.Conv(8 * self.width, (1, 1), dtype=self.dtype, name='fuse')(coarse)
    for i in (2, 1, 0):
      adapt = FeatureAdaptation(self.dtype, name=f'fam{i + 1}')
      skip = fine[i]
      for _ in range(self.fam_repeats[i]):  # with the same weights
        skip = adapt(skip)
      x = DecoderBlock(
        self.width * 2**i, self.axis_name, self.dtype, name=f'decoder{i + 1}'
      )(x, train=train)
      x = x + skip
    features = self.width // 2
    up = nn.ConvTranspose(
      features, (4, 4), strides=(2, 2), dtype=self.dtype, name='head_up'
    )
    conv = lambda features, name: layers.conv(
      features, dtype=self.dtype, name=name
    )
    x = nn.relu(conv(features, 'head')(nn.relu(up(x))))
    return layers.as_float32(conv(self.num_classes, 'out')(x), self.dtype)

  def _check(self, x):
    if x.ndim != 4 or x.shape[1] % STRIDE or x.shape[2] % STRIDE:
      raise ValueError(
        f'image: expected [B, H, W, C] with H and W divisible by {STRIDE}, '
        f'found shape {x.shape}; resize or pad the images first'
      )
    if self.width < 2 or self.width % 2:
      raise ValueError(
        f'width: expected an even number, found {self.width}; the head has '
        'half as many channels'
      )
    if len(self.blocks) != 4 or min(self.blocks) < 1:
      raise ValueError(
        'blocks: expected four numbers of at least 1, one a stage, found '
        f'{tuple(self.blocks)}'
      )
    if len(self.fam_repeats) != 3:
      raise ValueError(
        'fam_repeats: expected three numbers, one a skip, found '
        f'{tuple(self.fam_repeats)}'
      )
    if self.transformer_dim % self.transformer_heads:
      raise ValueError(
        'transformer_dim: expected a multiple of transformer_heads = '
        f'{self.transformer_heads}, found {self.transformer_dim}'
      )

  def _convolutions(self, x, train):
    """Returns features at H/2, H/4, H/8 and H/16; a stage doubles channels."""
    x = nn.Conv(
      self.width,
      (7, 7),
      strides=2,
      padding=3,
      use_bias=False,
      dtype=self.dtype,
      name='stem_conv',
    )(x)
    x = nn.relu(layers.batch_norm(self, x, train=train, name='stem_norm'))
    stages = []
    for i, blocks in enumerate(self.blocks):
      for j in range(blocks):
        x = ResidualBlock(
          self.width * 2**i,
          stride=2 if i and not j else 1,
          axis_name=self.axis_name,
          dtype=self.dtype,
          name=f'stage{i + 1}_{j}',
        )(x, train=train)
      stages.append(x)
    return stages

  def _transformer(self, x):
    """Returns [B, H/16, W/16, 8 width] of tokens that have seen each other."""
    x = nn.Conv(
      self.transformer_dim,
      (STRIDE, STRIDE),
      strides=STRIDE,
      padding='VALID',
      dtype=self.dtype,
      name='patch',
    )(x)
    batch, height, width, dim = x.shape
    x = x.reshape(batch, height * width, dim)
    for i in range(self.transformer_layers):
      x = TransformerBlock(
        self.transformer_heads, self.dtype, name=f'transformer{i}'
      )(x)
    x = x.reshape(batch, height, width, dim)
    return nn.Conv(8 * self.width, (1, 1), dtype=self.dtype, name='tokens')(x)
