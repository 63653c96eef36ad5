"""Outlines of structures from messages, without any key.

Threat. An eavesdropper sees a client's messages and has neither key, encoder
nor any image of that client. It has own images and masks of the same anatomy,
encodes them with an encoder of its own, and learns to segment from features
that no rotation, reflection or shift of the channels changes: distances between
neighbouring positions, distances from the mean, principal components with
their signs fixed (all functions of a message's Gram matrix). Whatever key the
victim has, and whether it is fresh for each message, the features are the
same.

Phantoms of 128 x 128, random encoders, 220 own cases, 200 of the victim,
foreground Dice (prior mask 0.63, everything 0.29), short training:

  the victim's encoder is            the attacker's  another
  any rotations and shifts           0.82            0.71
  one rotation, order and shift      0.78            0.59
  uniform words, fitted to such      0.63

A constant order of positions (`keyed.permutation`) leaves no neighbours. Where
messages look scrambled, `position_order.recover_unpaired` puts them in order
first, from all the messages given; it does so roughly with hundreds of
messages, and not at all where every message has an order of its own.

The network adds to the attacker's prior, the mean mask, and stops by held-out
data (`fitting`): without information it stays at the prior. To attack a
protection that is no isometry, fit to own messages under that protection. The
attack is this project's own.

Axes: N messages, H, h height, W, w width, C channels, F features.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ppcmi_jax import examples
from ppcmi_jax.attacks import fitting, position_order
from ppcmi_jax.models import layers

_OFFSETS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))
_COMPONENTS = 6


class Segmenter(nn.Module):
  """Maps features [B, h, w, F] to what is added to log-odds [B, H, W].

  Attributes:
    cell: pixels of a mask under a position, a side; a power of two.
    width: channels.
  """

  cell: int
  width: int = 48

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.relu(nn.Conv(self.width, (1, 1))(x))
    for dilation in (1, 2, 4, 1):
      y = nn.Conv(self.width, (3, 3), kernel_dilation=dilation)(x)
      x = nn.relu(x + nn.Conv(self.width, (1, 1))(nn.relu(y)))
    size = self.cell
    while size > 1:
      features = max(x.shape[-1] // 2, 8)
      x = nn.relu(layers.depth_to_space(nn.Conv(4 * features, (3, 3))(x)))
      size //= 2
    zero = nn.initializers.zeros
    return nn.Conv(1, (3, 3), kernel_init=zero)(x)[..., 0]


class Outline(NamedTuple):
  """A trained attack.

  Attributes:
    predict: {scale: [N, h, w, C]} -> bool [N, H, W]; all of one client.
    prior: bool [H, W], the mask to beat.
  """

  predict: Callable[[Mapping[str, np.ndarray]], np.ndarray]
  prior: np.ndarray


def features(observed: Mapping[str, np.ndarray]) -> np.ndarray:
  """Computes what a rotation and shift of channels leave of messages.

  Args:
    observed: {scale: float32 [N, h, w, C]}.

  Returns:
    float32 [N, h, w, F] at the finest scale's sides; the others are repeated.
  """
  sides = max(z.shape[1:3] for z in observed.values())
  parts = []
  for name in sorted(observed):
    x = _invariants(np.asarray(observed[name], np.float32))
    for axis, side in zip((1, 2), sides):
      x = x.repeat(side // x.shape[axis], axis)
    parts.append(x)
  return np.concatenate(parts, axis=-1)


def fit(
  observed: Mapping[str, np.ndarray],
  masks: np.ndarray,
  *,
  width: int = 48,
  seed: int = 0,
  **options,
) -> Outline:
  """Trains the attack on the attacker's own data.

  Args:
    observed: {scale: float32 [N, h, w, C]}, own latents, or own messages.
    masks: uint8 [N, H, W]; above 0 is foreground.
    width: of the network.
    seed: of the held-out fifth, the initialisation and the batches.
    **options: of `fitting.fit`.

  Raises:
    ValueError: shapes do not fit, or fewer than 5 examples.
  """
  sides = max(z.shape[1:3] for z in observed.values())
  truth = np.asarray(masks) > 0
  count, height, columns = truth.shape
  cell = height // sides[0]
  if count < 5 or (height, columns) != (sides[0] * cell, sides[1] * cell):
    raise ValueError(
      f'masks: expected [N, H, W] of at least 5 and with sides a multiple of '
      f'{list(sides)}, found {list(truth.shape)}'
    )
  rng = np.random.default_rng(seed)
  train, valid = _held_out(truth.any((1, 2)), rng)
  share = (truth[train].sum(0) + 0.5) / (len(train) + 1)
  log_odds = np.float32(np.log(share / (1 - share)))
  share_in_cells = share.reshape(sides[0], cell, sides[1], cell).mean((1, 3))

  x = features(observed)
  mean, std = x[train].mean((0, 1, 2)), x[train].std((0, 1, 2)) + 1e-6

  def inputs(x):
    hint = np.broadcast_to(share_in_cells, x.shape[:3])[..., None]
    return np.concatenate([(x - mean) / std, hint], -1).astype(np.float32)

  arrays = {'x': inputs(x), 'mask': truth.astype(np.float32)}
  network = Segmenter(cell, width)
  params = jax.jit(network.init)(jax.random.key(seed), arrays['x'][:1])

  def loss(params, batch):
    logits = log_odds + network.apply(params, batch['x'])
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, batch['mask']))

  params = fitting.fit(
    loss,
    params,
    examples.take(arrays, train),
    examples.take(arrays, valid),
    seed=seed,
    **options,
  )
  apply = jax.jit(network.apply)

  def logits(x):
    parts = [
      log_odds + np.asarray(apply(params, inputs(x[i : i + 16])))
      for i in range(0, len(x), 16)
    ]
    return np.concatenate(parts)

  judged = valid if truth[valid].any() else np.arange(count)
  level = _best_level(logits(x[judged]), truth[judged])
  prior = log_odds > _best_level(
    np.broadcast_to(log_odds, truth[train].shape), truth[train]
  )
  ratios = {k: position_order.neighbour_ratio(z) for k, z in observed.items()}

  def predict(messages):
    ordered = {}
    for name, z in messages.items():
      z = np.asarray(z, np.float32)
      found, own = position_order.neighbour_ratio(z), ratios[name]
      if own < 0.8 and found > (1 + own) / 2:
        order = position_order.recover_unpaired(z, observed[name])
        z = position_order.apply(z, order)
      ordered[name] = z
    return logits(features(ordered)) > level

  return Outline(predict, prior)


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
  """Returns the mean Dice of bool [N, H, W] where the truth is not empty."""
  some = truth.any((1, 2))
  both = np.sum(prediction & truth, axis=(1, 2))[some]
  total = prediction.sum((1, 2))[some] + truth.sum((1, 2))[some]
  return float(np.mean(2 * both / total))


def _held_out(filled, rng):
  """Returns rows to train on and a fifth held out, of filled masks and not."""
  train, valid = [], []
  for some in (True, False):
    rows = rng.permutation(np.flatnonzero(filled == some))
    end = len(rows) - max(len(rows) // 5, len(rows) > 1)
    train.append(rows[:end])
    valid.append(rows[end:])
  return np.concatenate(train), np.concatenate(valid)


def _best_level(logits, truth):
  """Returns the threshold of the largest mean Dice."""
  levels = np.linspace(-3, 2, 21)
  return max(levels, key=lambda level: dice(logits > level, truth))


def _invariants(z):
  """Returns [N, h, w, F] of one scale."""
  count, height, width, _ = z.shape
  z = z - z.mean((1, 2), keepdims=True)
  z = (
    z / np.sqrt(np.square(z).sum(-1).mean((1, 2)) + 1e-12)[:, None, None, None]
  )
  found = [np.linalg.norm(z, axis=-1)]
  for down, right in _OFFSETS:
    for sign in (1, -1):
      rows = np.clip(np.arange(height) + sign * down, 0, height - 1)
      columns = np.clip(np.arange(width) + sign * right, 0, width - 1)
      beside = z[:, rows][:, :, columns]
      found.append(np.linalg.norm(z - beside, axis=-1))
  flat = z.reshape(count, height * width, -1)
  # A message's largest components; the sign is that of the third moment.
  u, values, _ = np.linalg.svd(flat, full_matrices=False)
  scores = u[..., :_COMPONENTS] * values[:, None, :_COMPONENTS]
  third = np.sum(scores**3, axis=1, keepdims=True)
  scores = scores * np.where(third < 0, -1, 1)
  scores = np.concatenate([scores, np.abs(scores)], axis=-1)
  return np.concatenate(
    [np.stack(found, -1), scores.reshape(count, height, width, -1)], axis=-1
  )
