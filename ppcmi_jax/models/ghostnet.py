"""Ghost U-Net, the baseline that arXiv 2603.05541 calls GhostNet.

GhostNet (Han et al., CVPR 2020) observes that many feature maps of a network
are near copies of others, and makes half of them cheaply from the other half.
The baseline is the U-Net of `unet` with a Ghost module for each of its 3x3
convolutions: 0.55 times the parameters, and about half the multiply-adds.
Axes: B batch, H height, W width, C channels.

  >>> import jax, jax.numpy as jnp
  >>> model = GhostUNet(num_classes=3, width=4)
  >>> x = jnp.zeros((2, 32, 48, 1))
  >>> init = lambda key: model.init_with_output(key, x, train=False)
  >>> logits, variables = jax.eval_shape(init, jax.random.key(0))
  >>> logits.shape
  (2, 32, 48, 3)
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ppcmi_jax.models import layers, unet


class GhostModule(nn.Module):
  """Maps [B, H, W, C] to [B, H, W, features]; half of them are ghosts.

    primary = relu(norm(conv3x3(x)))             [B, H, W, features / 2]
    ghosts  = relu(norm(depthwise3x3(primary)))  [B, H, W, features / 2]

  and the output is [primary, ghosts]: equations 2 and 3 of the paper with
  ratio s = 2 and kernels k = d = 3. Neither convolution has a bias.

  Attributes:
    features: output channels, an even number.
    axis_name: pmap axis over which batch statistics are averaged, or None.
    dtype: what is computed in, such as bfloat16; None for that of the inputs.
  """

  features: int
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    if self.features < 2 or self.features % 2:
      raise ValueError(
        'features: expected an even number, as half of the channels are '
        f'ghosts of the others, found {self.features}; set an even width'
      )
    half = self.features // 2

    def norm_relu(x, name):
      return nn.relu(layers.batch_norm(self, x, train=train, name=name))

    x = layers.conv(
      half, use_bias=False, dtype=self.dtype, name='primary_conv'
    )(x)
    primary = norm_relu(x, 'primary_norm')
    ghosts = norm_relu(
      layers.DepthwiseConv3x3(self.dtype, name='ghost_conv')(primary),
      'ghost_norm',
    )
    return jnp.concatenate([primary, ghosts], axis=-1)


class GhostUNet(nn.Module):
  """Maps images [B, H, W, C] to logits [B, H, W, num_classes].

  Like the U-Net, it starts from random weights. At the published size it has
  16,944,483 parameters with 3 channels in and out (published: 16.94 M):
  14,119,776 of the primary convolutions, half of the U-Net's, 26,496 of the
  depthwise ones, 11,776 of BatchNorm, 2,786,240 of the transposed convolutions
  and 195 of the head, the last two as in the U-Net.

  Attributes:
    num_classes: output channels.
    width: channels of the first level, an even number; a level doubles them.
      64 is the published size.
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
    def double_ghost(x, features, name):
      for i in (1, 2):
        x = GhostModule(
          features, self.axis_name, self.dtype, name=f'{name}_ghost{i}'
        )(x, train=train)
      return x

    return unet.contract_and_expand(
      x,
      double_ghost,
      width=self.width,
      depth=self.depth,
      num_classes=self.num_classes,
      dtype=self.dtype,
    )
