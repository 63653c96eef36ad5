"""FAT-Net in PyTorch, written by us, for times side by side.

Layers and their names are those of `models.fatnet`, for `torch_networks.copy`.
Channels come second, but for the transformer's tokens [B, T, D]; outputs are
logits.
"""

import functools

import torch
from torch import nn
from torch.nn import functional


class ResidualBlock(nn.Module):
  def __init__(self, inputs, outputs, stride):
    super().__init__()
    conv = functools.partial(nn.Conv2d, bias=False)
    self.first_conv = conv(inputs, outputs, 3, stride, padding=1)
    self.first_norm = nn.BatchNorm2d(outputs)
    self.second_conv = conv(outputs, outputs, 3, padding=1)
    self.second_norm = nn.BatchNorm2d(outputs)
    self.reshapes = stride > 1 or inputs != outputs
    if self.reshapes:
      self.shortcut_conv = conv(inputs, outputs, 1, stride)
      self.shortcut_norm = nn.BatchNorm2d(outputs)

  def forward(self, x):
    y = torch.relu(self.first_norm(self.first_conv(x)))
    y = self.second_norm(self.second_conv(y))
    if self.reshapes:
      x = self.shortcut_norm(self.shortcut_conv(x))
    return torch.relu(x + y)


class Attention(nn.Module):
  def __init__(self, dim, heads):
    super().__init__()
    self.heads = heads
    for name in ('query', 'key', 'value', 'out'):
      self.add_module(name, nn.Linear(dim, dim))

  def forward(self, x):
    q, k, v = (
      layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
      for layer in (self.query, self.key, self.value)
    )
    x = functional.scaled_dot_product_attention(q, k, v)
    return self.out(x.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
  def __init__(self, dim, heads):
    super().__init__()
    self.attention_norm = nn.LayerNorm(dim, eps=1e-6)
    self.attention = Attention(dim, heads)
    self.dense_norm = nn.LayerNorm(dim, eps=1e-6)
    self.expand = nn.Linear(dim, 4 * dim)
    self.contract = nn.Linear(4 * dim, dim)

  def forward(self, x):
    x = x + self.attention(self.attention_norm(x))
    y = functional.gelu(self.expand(self.dense_norm(x)))
    return x + self.contract(y)


class SqueezeExcitation(nn.Module):
  def __init__(self, channels):
    super().__init__()
    self.squeeze = nn.Linear(channels, channels // 16, bias=False)
    self.excite = nn.Linear(channels // 16, channels, bias=False)

  def forward(self, x):
    y = self.excite(torch.relu(self.squeeze(x.mean((2, 3)))))
    return x * torch.sigmoid(y)[:, :, None, None]


class FeatureAdaptation(nn.Module):
  def __init__(self, channels):
    super().__init__()
    self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)
    self.conv1 = nn.Conv2d(channels, channels, 1)

  def forward(self, x):
    return torch.relu(self.conv3(x)) + torch.relu(self.conv1(x))


class DecoderBlock(nn.Module):
  def __init__(self, inputs, outputs):
    super().__init__()
    inner = inputs // 4
    self.reduce = nn.Conv2d(inputs, inner, 1)
    self.reduce_norm = nn.BatchNorm2d(inner)
    self.up = nn.ConvTranspose2d(
      inner, inner, 3, 2, padding=1, output_padding=1
    )
    self.up_norm = nn.BatchNorm2d(inner)
    self.expand = nn.Conv2d(inner, outputs, 1)
    self.expand_norm = nn.BatchNorm2d(outputs)

  def forward(self, x):
    x = torch.relu(self.reduce_norm(self.reduce(x)))
    x = torch.relu(self.up_norm(self.up(x)))
    return torch.relu(self.expand_norm(self.expand(x)))


class FATNet(nn.Module):
  """The FAT-Net of `models.fatnet`, with its attributes and defaults."""

  def __init__(
    self,
    channels,
    num_classes,
    width=64,
    blocks=(3, 4, 6, 3),
    transformer_layers=12,
    transformer_dim=192,
    transformer_heads=3,
    fam_repeats=(6, 4, 2),
  ):
    super().__init__()
    self.blocks, self.fam_repeats = blocks, fam_repeats
    self.transformer_layers = transformer_layers
    self.stem_conv = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
    self.stem_norm = nn.BatchNorm2d(width)
    inputs = width
    for i, count in enumerate(blocks):
      for j in range(count):
        block = ResidualBlock(inputs, width * 2**i, 2 if i and not j else 1)
        self.add_module(f'stage{i + 1}_{j}', block)
        inputs = width * 2**i
    self.patch = nn.Conv2d(channels, transformer_dim, 16, 16)
    for i in range(transformer_layers):
      block = TransformerBlock(transformer_dim, transformer_heads)
      self.add_module(f'transformer{i}', block)
    self.tokens = nn.Conv2d(transformer_dim, 8 * width, 1)
    self.se = SqueezeExcitation(16 * width)
    self.fuse = nn.Conv2d(16 * width, 8 * width, 1)
    for i in range(3):
      fine = width * 2**i
      self.add_module(f'fam{i + 1}', FeatureAdaptation(fine))
      self.add_module(f'decoder{i + 1}', DecoderBlock(2 * fine, fine))
    self.head_up = nn.ConvTranspose2d(width, width // 2, 4, 2, padding=1)
    self.head = nn.Conv2d(width // 2, width // 2, 3, padding=1)
    self.out = nn.Conv2d(width // 2, num_classes, 3, padding=1)

  def forward(self, x):
    *fine, coarse = self._convolutions(x)
    x = self.fuse(self.se(torch.cat([coarse, self._transformer(x)], 1)))
    for i in (2, 1, 0):
      skip = fine[i]
      for _ in range(self.fam_repeats[i]):
        skip = getattr(self, f'fam{i + 1}')(skip)
      x = getattr(self, f'decoder{i + 1}')(x) + skip
    return self.out(torch.relu(self.head(torch.relu(self.head_up(x)))))

  def _convolutions(self, x):
    x = torch.relu(self.stem_norm(self.stem_conv(x)))
    stages = []
    for i, count in enumerate(self.blocks):
      for j in range(count):
        x = getattr(self, f'stage{i + 1}_{j}')(x)
      stages.append(x)
    return stages

  def _transformer(self, x):
    x = self.patch(x)
    sides = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    for i in range(self.transformer_layers):
      x = getattr(self, f'transformer{i}')(x)
    return self.tokens(x.transpose(1, 2).unflatten(2, sides))
