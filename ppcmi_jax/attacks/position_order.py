"""Recovers a constant order of positions from many messages.

`keyed.permutation` gathers the positions of all of a client's messages in one
order. What varies from message to message gives it away: the channels at a
position form a Gram matrix over N messages, which neither a rotation nor a
shift of channels changes, and it is alike (CKA, Kornblith et al., ICML 2019)
to that of whatever is at the same place in the N images (`recover`). A linear
assignment takes the most alike. From that order one linear map from places of
the images to positions is learnt, as encoders are alike at all places, and each
position goes where it is foretold best, in turn. Without any image
(`recover_unpaired`), what each position varies by and which positions vary
together is matched with the same of latents of another encoder and other
images: a quadratic assignment, by Frank and Wolfe's algorithm (Vogelstein et
al., PLOS ONE 2015).

Axes: N messages, P positions (h w), H, h height, W, w width, C channels.

  >>> rng = np.random.default_rng(0)
  >>> images = rng.random([30, 32, 32, 1])
  >>> z = cells(images, (4, 4)).reshape(30, 16, 64)[:, rng.permutation(16)]
  >>> order = recover(z.reshape(30, 4, 4, 64), images)
  >>> np.array_equal(z[:, order].reshape(30, 4, 4, 64), cells(images, (4, 4)))
  True
"""

import numpy as np
from scipy import linalg, optimize

from ppcmi_jax.attacks import alignment, places

_MESSAGES = 100  # compared; more gave no better order
_FORETOLD = 200  # messages of the linear map, to bound memory
_ROUNDS = 10
_RIDGE = 1e-3  # times the mean eigenvalue
_SETTLED = 0.02  # of the positions may still move
_ITERATIONS = 40
_UNARY = 0.1  # weight of single positions against pairs of them


def recover(z: np.ndarray, images: np.ndarray) -> np.ndarray:
  """Finds which observed position belongs to which place of the images.

  Args:
    z: [N, h, w, C], observed with one order of positions for all N.
    images: [N, H, W, C'], what those messages carry: images, or latents of a
      finer scale, in order, which tell more.

  Returns:
    int32 [P]: place i of the image is seen at position order[i]. On phantoms
    with a trained encoder's s3 (32 x 32) 62 % exact from 20 pairs and 74 % from
    200 (by likeness alone 19 and 49). From one pair nothing is found. Where an
    encoder's windows lie half a cell off, all of it may come out a row off,
    which a decoder that sees neighbours learns.
  """
  likeness = _likeness(z[:_MESSAGES], images[:_MESSAGES])
  order = optimize.linear_sum_assignment(-likeness)[1]
  sides, z, images = z.shape[1:3], z[:_FORETOLD], images[:_FORETOLD]
  seen, foretell = alignment.flatten(z), _map_from(images, sides)
  for _ in range(_ROUNDS):
    expected, white = foretell(seen[:, order])
    score = places.likelihood(seen @ white, expected)
    again = np.argsort(alignment.assign(score))
    moved, order = np.mean(again != order), again
    if moved <= _SETTLED:
      break
  return order.astype(np.int32)


def is_scrambled(z: np.ndarray, images: np.ndarray, order: np.ndarray) -> bool:
  """Says whether an order explains other pairs much better than none does.

  Much: by half of what it has over positions paired at random. Neighbours are
  alike, so that a slightly wrong order is recovered where there is none.

  Args:
    z: [N, h, w, C], other messages than `order` was recovered from.
    images: [N, H, W, C'].
    order: [P], from `recover`.
  """
  likeness = _likeness(z, images)
  found = np.mean(likeness[np.arange(len(order)), order])
  as_it_is = np.mean(np.diag(likeness))
  return bool(found - as_it_is > 0.5 * (found - np.mean(likeness)))


def recover_unpaired(z: np.ndarray, reference: np.ndarray) -> np.ndarray:
  """Finds the order of positions by statistics, without any known image.

  Args:
    z: [N, h, w, C], observed with one order of positions for all N.
    reference: [N', h, w, C'], latents with known positions, of other images of
      the same field of view; of any encoder.

  Returns:
    int32 [P], as `recover`. On phantoms, another random encoder, 200 messages:
    at most a neighbour for 38 % of s3's 256 positions, 53 % of s4's 64 and 75 %
    of b's 16; from one message hardly more than by chance.
  """
  one, another = _statistics(reference), _statistics(z)
  squares = [np.sum(np.square(a[0]), axis=1) for a in (one, another)]
  cost = squares[0][:, None] + squares[1] - 2 * one[0] @ another[0].T
  cost /= one[0].shape[1]
  count = len(cost)
  place = optimize.linear_sum_assignment(cost)[1]
  share = np.full(cost.shape, 0.5 / count)
  share[np.arange(count), place] += 0.5
  for _ in range(_ITERATIONS):
    slope = -_UNARY * cost
    for a, b in zip(one[1:], another[1:]):
      slope += 2 / count * (a @ share @ b)
    move = -share
    place = optimize.linear_sum_assignment(-slope)[1]
    move[np.arange(count), place] += 1
    gain = np.sum(slope * move)
    if gain < 1e-9:
      break
    curve = 0.0
    for a, b in zip(one[1:], another[1:]):
      curve += np.sum((a @ move @ b) * move) / count
    share += (1.0 if curve >= 0 else min(1.0, -gain / (2 * curve))) * move
  return optimize.linear_sum_assignment(-share)[1].astype(np.int32)


def neighbour_ratio(z: np.ndarray) -> float:
  """Returns how far neighbours of [N, h, w, C] are apart, over any positions.

  Near 1 where positions are scrambled (or have nothing to tell), far below in
  latents as an encoder makes them.
  """
  squares = lambda a, b: np.mean(np.square(a - b))
  beside = [
    squares(z[:, 1:], z[:, :-1]) if z.shape[1] > 1 else np.nan,
    squares(z[:, :, 1:], z[:, :, :-1]) if z.shape[2] > 1 else np.nan,
  ]
  variance = np.mean(np.var(z, axis=(1, 2)))
  if np.all(np.isnan(beside)) or variance == 0:
    return 1.0
  return float(np.nanmean(beside) / (2 * variance))


def apply(z: np.ndarray, order: np.ndarray) -> np.ndarray:
  """Puts the positions of [N, h, w, C] into an order."""
  return z.reshape(len(z), -1, z.shape[-1])[:, order].reshape(z.shape)


def cells(images: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
  """Returns [N, h, w, pixels]: the pixels under each of h x w positions."""
  count, height, width, channels = images.shape
  cell = height // sides[0], width // sides[1]
  x = images.reshape(count, sides[0], cell[0], sides[1], cell[1], channels)
  return x.swapaxes(2, 3).reshape(count, *sides, -1)


def join_cells(
  rows: np.ndarray, sides: tuple[int, int], shape: tuple[int, int, int]
) -> np.ndarray:
  """Undoes `cells`: [N, h, w, pixels] to images [N, H, W, C] of a shape."""
  cell = shape[0] // sides[0], shape[1] // sides[1]
  x = rows.reshape(-1, *sides, *cell, shape[2])
  return x.swapaxes(2, 3).reshape(-1, *shape)


def _statistics(z):
  """Returns what rotation and shift leave of positions over messages.

  Unary features [P, F], and two matrices [P, P]: mean distances, and how
  positions vary together; all as ranks, or standardised.
  """
  z = z.reshape(len(z), -1, z.shape[-1])
  z = z - z.mean((0, 1))
  squares = np.sum(np.square(z), axis=-1)
  distance = 0.0
  for one, square in zip(z, squares):
    distance = distance + np.sqrt(
      np.maximum(square[:, None] + square - 2 * one @ one.T, 0)
    )
  if len(z) > 1:
    flat = (z - z.mean(0)).transpose(1, 0, 2).reshape(z.shape[1], -1)
    together = flat @ flat.T
    spread = np.sqrt(np.diag(together)) + 1e-9
    together /= spread[:, None] * spread
  else:
    together = -distance
  ranks = [
    np.argsort(np.argsort(a, axis=None)).reshape(a.shape) / a.size - 0.5
    for a in (distance, together)
  ]
  norms = np.sqrt(squares / (squares.mean() + 1e-12))
  levels = [0.1, 0.3, 0.5, 0.7, 0.9]
  unary = np.concatenate(
    [
      np.quantile(norms, levels[::2], axis=0),
      [norms.std(0), np.linalg.norm(z - z.mean(0), axis=-1).mean(0)],
      np.quantile(ranks[0], levels, axis=0),
      np.quantile(ranks[1], levels[::2], axis=0),
    ]
  ).T
  unary = (unary - unary.mean(0)) / (unary.std(0) + 1e-9)
  return unary, *ranks


def _map_from(images, sides):
  """Returns what fits one linear map from what is around places to latents.

  That takes latents [N, P, C] at their places, and returns what the map expects
  of them, in units that make its errors independent, of deviation one, and the
  matrix [C, C] that turns latents into these.
  """
  x = _surroundings(images, sides).astype(np.float64)
  x = x.reshape(-1, x.shape[-1])
  x = x - x.mean(0)
  gram = x.T @ x
  gram += (_RIDGE * np.trace(gram) / len(gram) + 1e-12) * np.eye(len(gram))
  factor = linalg.cho_factor(gram)

  def fit(placed):
    y = placed.reshape(-1, placed.shape[-1])
    mean = y.mean(0)
    told = x @ linalg.cho_solve(factor, x.T @ (y - mean)) + mean
    errors = np.cov((y - told).T).reshape(y.shape[1], -1)
    errors += (1e-6 * np.trace(errors) + 1e-12) * np.eye(len(errors))
    white = np.linalg.inv(np.linalg.cholesky(errors)).T
    expected = (told @ white).reshape(placed.shape)
    return places.Places(expected, np.ones(placed.shape[1:])), white

  return fit


def _likeness(z, images):
  """Returns CKA [P places, P positions]."""
  seen = z.reshape(len(z), -1, z.shape[-1])
  return _grams(_surroundings(images, z.shape[1:3])) @ _grams(seen).T


def _grams(x):
  """Returns centred Gram matrices of unit norm of [N, P, C] as [P, N N]."""
  x = (x - x.mean(0)).transpose(1, 0, 2)
  grams = (x @ x.transpose(0, 2, 1)).reshape(len(x), -1)
  return grams / (np.linalg.norm(grams, axis=1, keepdims=True) + 1e-12)


def _surroundings(images, sides):
  """Returns [N, P, pixels]: `cells` and half a cell more at each side."""
  cell = images.shape[1] // sides[0], images.shape[2] // sides[1]
  margin = cell[0] // 2, cell[1] // 2
  pad = ((0, 0), (margin[0],) * 2, (margin[1],) * 2, (0, 0))
  window = cell[0] + 2 * margin[0], cell[1] + 2 * margin[1]
  around = np.lib.stride_tricks.sliding_window_view(
    np.pad(images, pad, mode='edge'), window, axis=(1, 2)
  )[:, :: cell[0], :: cell[1]]
  # Eight samples a side of a cell tell as much as all.
  step = max(1, cell[0] // 8), max(1, cell[1] // 8)
  around = around[..., :: step[0], :: step[1]]
  return around.reshape(len(images), sides[0] * sides[1], -1)
