"""Pairs of single layers and their gradients, ours and those of PyTorch."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn
from torch.nn import functional

from benchmarks import comparison, timing, torch_networks
from benchmarks import sizes as sizes_lib
from ppcmi_jax.models import layers as layers_lib

Pair = comparison.Pair


class Layer(NamedTuple):
  """A layer twice.

  Attributes:
    name: of it.
    ours: a convolution, its bias zero, or a function of x [B, H, W, C].
    theirs: a function of x [B, C, H, W], and of the convolution's kernel.
    side, channels: of x.
  """

  name: str
  ours: nn.Module | Callable[[jax.Array], jax.Array]
  theirs: Callable[..., torch.Tensor]
  side: int
  channels: int


def layers(size: sizes_lib.Size) -> Iterator[Pair]:
  """Yields single layers, forward and with all their gradients.

  Sides and channels are those of the U-Net's first level.
  """
  side, config = size.image_size, size.config('unet')
  c = config.baseline_options.width
  batch = size.step_batch or config.baseline_batch_size
  conv = functools.partial(nn.Conv, c, (3, 3), padding=1, use_bias=False)
  up = layers_lib.ConvTranspose2x2(c)
  theirs = functools.partial(functional.conv2d, padding=1)
  their_up = functools.partial(functional.conv_transpose2d, stride=2)
  their_pool = functools.partial(functional.max_pool2d, kernel_size=2)
  halve = functools.partial(theirs, stride=2)
  depthwise = functools.partial(theirs, groups=c)
  upsample, double = layers_lib.upsample, torch_networks.double
  across = layers_lib.DepthwiseConv3x3()
  for layer in (
    Layer('conv 3x3', conv(), theirs, side, c),
    Layer('conv 3x3, stride 2', conv(strides=2), halve, side, c),
    Layer('depthwise 3x3', across, depthwise, side, c),
    Layer('transposed conv 2x2', up, their_up, side // 2, 2 * c),
    Layer('max pool', layers_lib.max_pool, their_pool, side, c),
    Layer('upsample', upsample, double, side // 2, c),
  ):
    yield from _both_ways(layer, batch)


def _both_ways(layer: Layer, batch: int) -> Iterator[Pair]:
  rng = np.random.default_rng(0)
  normal = lambda like: jnp.asarray(rng.standard_normal(like.shape, np.float32))
  shape = batch, layer.side, layer.side, layer.channels
  args = [normal(jax.ShapeDtypeStruct(shape, np.float32))]
  function = layer.ours
  turned = isinstance(layer.ours, layers_lib.ConvTranspose2x2)
  if isinstance(layer.ours, nn.Module):
    like = jax.eval_shape(layer.ours.init, jax.random.key(0), args[0])['params']
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    function = lambda x, kernel: layer.ours.apply(
      {'params': {**zeros, 'kernel': kernel}}, x
    )
    args.append(normal(like['kernel']))
  cotangent = normal(jax.eval_shape(function, *args))

  def to_theirs(x: jax.Array, *kernels: jax.Array) -> list[Any]:
    kernels = [torch_networks.kernel(k, transposed=turned) for k in kernels]
    device = torch_networks.device()
    return [torch_networks.tensors(x), *(k.to(device) for k in kernels)]

  tensors = [x.requires_grad_(True) for x in to_theirs(*args)]
  their_cotangent = torch_networks.tensors(cotangent)

  def gradients(cotangent, *args):
    return jax.vjp(function, *args)[1](cotangent)

  def their_gradients():
    y = layer.theirs(*tensors)
    return torch.autograd.grad(y, tensors, their_cotangent)

  forward = timing.wait(jax.jit(function), *args)
  theirs = torch_networks.wait(torch.no_grad()(lambda: layer.theirs(*tensors)))
  count = sum(kernel.size for kernel in args[1:])
  pair = functools.partial(Pair, batch=batch, parameters=count)
  found = comparison.error(
    layer.name, forward(), torch_networks.arrays(theirs())
  )
  yield pair(layer.name, ours=forward, theirs=theirs, error=found)

  backward = timing.wait(jax.jit(gradients), cotangent, *args)
  theirs = torch_networks.wait(their_gradients)
  name = f'{layer.name}, gradients'
  found = comparison.error(
    name,
    [x.cpu().numpy() for x in to_theirs(*backward())],
    [x.cpu().numpy() for x in theirs()],
  )
  yield pair(name, ours=backward, theirs=theirs, error=found)
