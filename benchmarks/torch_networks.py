"""The same networks in PyTorch, written by us, for times side by side.

Autoencoder and mapping network have the key names of the official code, so
that `official.state_dicts` copies weights; the U-Nets and `torch_fatnet` have
ours, for `copy`. Channels come second; outputs are logits.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch
from flax import traverse_util
from torch import nn
from torch.nn import functional


def device() -> torch.device:
  """Returns the kind of device that ours runs on."""
  return torch.device('cuda' if jax.default_backend() == 'gpu' else 'cpu')


def tensors(tree: Any) -> Any:
  """Returns arrays [B, H, W, C] of a tree as tensors [B, C, H, W]."""

  def one(x):
    x = np.array(np.moveaxis(x, -1, 1), order='C')
    return torch.from_numpy(x).to(device())

  return jax.tree.map(one, tree)


def arrays(tree: Any) -> Any:
  """Undoes `tensors`."""
  return jax.tree.map(
    lambda x: np.moveaxis(x.detach().cpu().numpy(), 1, -1), tree
  )


def wait(function: Callable[[], Any]) -> Callable[[], Any]:
  """Returns a call of a function that ends when its tensors are there."""

  def call():
    result = function()
    if device().type == 'cuda':
      torch.cuda.synchronize()
    return result

  return call


def double(x, size=None):
  """Doubles the sides bilinearly, or resizes to a size."""
  size = size or [2 * side for side in x.shape[2:]]
  if list(x.shape[2:]) == list(size):
    return x
  return functional.interpolate(x, size, mode='bilinear', align_corners=False)


def stage(inputs, outputs, stride=1):
  conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
  return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Double(nn.Module):
  """`double` as a layer."""

  def forward(self, x):
    return double(x)


class Encoder(nn.Module):
  def __init__(self, channels, widths):
    super().__init__()
    for i, name in enumerate(('e1', 'e2', 'e3', 'e4', 'b')):
      self.add_module(name, stage((channels, *widths)[i], widths[i], 2))

  def forward(self, x):
    s3 = self.e3(self.e2(self.e1(x)))
    s4 = self.e4(s3)
    return {'s3': s3, 's4': s4, 'b': self.b(s4)}


class Decoder(nn.Module):
  def __init__(self, channels, widths):
    super().__init__()
    w1, w2, w3, w4, w5 = widths
    up = lambda i, o: nn.Sequential(Double(), stage(i, o))
    self.up1, self.up2 = up(w5, w4), up(2 * w4, w3)
    self.up3, self.up4 = up(2 * w3, w2), up(w2, w1)
    self.out_conv = nn.Conv2d(w1, channels, 3, padding=1)

  def forward(self, z):
    x = torch.cat([self.up1(z['b']), z['s4']], 1)
    x = torch.cat([self.up2(x), z['s3']], 1)
    return self.out_conv(double(self.up4(self.up3(x))))


class Autoencoder(nn.Module):
  def __init__(self, channels, widths):
    super().__init__()
    self.encoderT = Encoder(channels, widths)
    self.decoder = Decoder(channels, widths)

  def forward(self, x):
    return self.decoder(self.encoderT(x))


class Pyramid(nn.Module):
  """The official pooling: the mean, in `size` squared equal cells."""

  def __init__(self, channels):
    super().__init__()
    part = lambda i, o: nn.Sequential(
      nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()
    )
    branch = max(channels // 8, 1)
    self.branches = nn.ModuleList(part(channels, branch) for _ in range(4))
    self.final = part(channels + 4 * branch, channels)

  def forward(self, x):
    mean = x.mean((2, 3), keepdim=True)
    pooled = [
      double(branch(mean.expand(-1, -1, size, size)), x.shape[2:])
      for size, branch in zip((1, 3, 5, 7), self.branches)
    ]
    return self.final(torch.cat([x, *pooled], 1))


class Block(nn.Module):
  def __init__(self, channels, scaled):
    super().__init__()
    conv = lambda i, o: nn.Sequential(
      nn.Conv2d(i, o, 3, padding=1), nn.LeakyReLU(0.1), nn.BatchNorm2d(o)
    )
    a, b, c, d, e = (scaled(n) for n in (64, 128, 256, 512, 1024))
    self.c1, self.c2, self.c3 = conv(channels, b), conv(b, c), conv(c, d)
    self.ppm1 = Pyramid(d)
    self.c4, self.c5 = conv(d, d), conv(d, e)
    self.d1, self.d2, self.d3 = conv(e, c), conv(c, b), conv(b, a)
    self.u1, self.u2 = conv(a + b, b), conv(b + c, c)
    self.u3 = conv(c + e, d)
    self.ppm2 = Pyramid(d)
    self.out = nn.Conv2d(d, channels, 1)
    self.drop = nn.Dropout2d(0.2)

  def forward(self, x):
    def pool(x):
      even = x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
      return functional.max_pool2d(x, 2) if even else x

    join = lambda x, skip: torch.cat([double(x, skip.shape[2:]), skip], 1)
    x = self.drop(self.c3(self.c2(self.c1(x))))
    x = self.drop(self.c5(self.c4(self.ppm1(x))))
    d1 = self.d1(pool(x))
    d2 = self.d2(pool(d1))
    u1 = self.drop(self.u1(join(self.d3(pool(d2)), d2)))
    u2 = self.u2(join(u1, d1))
    return torch.relu(self.out(self.ppm2(self.u3(join(u2, x)))))


class MappingNetwork(nn.Module):
  def __init__(self, width, channels):
    super().__init__()
    scaled = lambda features: max(8, round(features * width))
    for scale in ('b', 's3', 's4'):
      self.add_module(f'm{scale}', Block(channels[scale], scaled))

  def forward(self, z):
    return {scale: getattr(self, f'm{scale}')(z[scale]) for scale in z}


class Ghost(nn.Module):
  def __init__(self, inputs, outputs):
    super().__init__()
    half = outputs // 2
    self.primary_conv = nn.Conv2d(inputs, half, 3, padding=1, bias=False)
    self.primary_norm = nn.BatchNorm2d(half)
    self.ghost_conv = nn.Conv2d(
      half, half, 3, padding=1, groups=half, bias=False
    )
    self.ghost_norm = nn.BatchNorm2d(half)

  def forward(self, x):
    x = torch.relu(self.primary_norm(self.primary_conv(x)))
    return torch.cat([x, torch.relu(self.ghost_norm(self.ghost_conv(x)))], 1)


class UNet(nn.Module):
  """The U-Net, or with `ghost` the Ghost U-Net, of `models.unet`."""

  def __init__(self, channels, num_classes, width, ghost=False, depth=4):
    super().__init__()
    self.depth, self.ghost = depth, ghost
    features = [width * 2**i for i in range(depth + 1)]
    for i in range(depth):
      self._add(f'down{i}', features[i - 1] if i else channels, features[i])
      up = nn.ConvTranspose2d(features[i + 1], features[i], 2, 2)
      self.add_module(f'up{i}', up)
      self._add(f'up{i}_double', 2 * features[i], features[i])
    self._add('bottom', features[-2], features[-1])
    self.out = nn.Conv2d(width, num_classes, 1)

  def _add(self, name, inputs, outputs):
    for i in (1, 2):
      if self.ghost:
        self.add_module(f'{name}_ghost{i}', Ghost(inputs, outputs))
      else:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.add_module(f'{name}_conv{i}', conv)
        self.add_module(f'{name}_norm{i}', nn.BatchNorm2d(outputs))
      inputs = outputs

  def _block(self, x, name):
    for i in (1, 2):
      if self.ghost:
        x = getattr(self, f'{name}_ghost{i}')(x)
      else:
        x = getattr(self, f'{name}_conv{i}')(x)
        x = torch.relu(getattr(self, f'{name}_norm{i}')(x))
    return x

  def forward(self, x):
    skips = []
    for i in range(self.depth):
      x = self._block(x, f'down{i}')
      skips.append(x)
      x = functional.max_pool2d(x, 2)
    x = self._block(x, 'bottom')
    for i in reversed(range(self.depth)):
      x = torch.cat([skips[i], getattr(self, f'up{i}')(x)], 1)
      x = self._block(x, f'up{i}_double')
    return self.out(x)


_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}


def copy(module: nn.Module, variables: Mapping[str, Any]) -> None:
  """Gives a baseline the weights of ours; RuntimeError unless all fit."""
  state = {
    key: value
    for key, value in module.state_dict().items()
    if key.endswith('num_batches_tracked')
  }
  for (_, *names, leaf), x in traverse_util.flatten_dict(variables).items():
    place = module.get_submodule('.'.join(names))
    name = '.'.join((*names, _LEAVES[leaf]))
    x = np.array(x)
    if isinstance(place, nn.Linear):  # of attention, heads are an axis in ours
      x = x.reshape(place.weight.T.shape if leaf == 'kernel' else -1).T
      state[name] = torch.from_numpy(x)
    elif leaf == 'kernel':
      transposed = isinstance(place, nn.ConvTranspose2d)
      state[name] = kernel(x, transposed=transposed)
    else:
      state[name] = torch.from_numpy(x)
  module.load_state_dict(state, strict=True)


def kernel(x: Any, *, transposed: bool) -> torch.Tensor:
  """Returns a kernel [h, w, in, out] of flax as a convolution there has it."""
  # A transposed convolution there turns its kernel, and has [in, out, h, w].
  x = np.asarray(x)
  x = x[::-1, ::-1].transpose(2, 3, 0, 1) if transposed else x.T.swapaxes(2, 3)
  return torch.from_numpy(np.ascontiguousarray(x))


def load(module: nn.Module, state: Mapping[str, np.ndarray]) -> None:
  """Gives a module an official state_dict of arrays."""
  module.load_state_dict(
    {key: torch.from_numpy(np.array(x)) for key, x in state.items()},
    strict=True,
  )
