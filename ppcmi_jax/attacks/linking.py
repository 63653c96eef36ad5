"""Linking: do two messages show the same patient? Asked without any key.

Threat. An eavesdropper, broker or storage sees messages of many patients and
visits, knows no key, encoder or image, and compares. Three assumptions, from
the strongest transform down:

  threat      secrets                                     features of a scale
  ----------  ------------------------------------------  --------------------
  'permuted'  fresh each message, positions permuted      sorted distances
  'rotated'   fresh rotation and shift each message       distances by position
  'static'    one for all messages, as the paper's        what is observed

Rotation, permutation and shift are isometries, so that distances between
positions, and what follows from them, survive (on phantoms and random encoders:
AUC 1.000 static, 0.996 with fresh keys). The features are this project's own;
the AUC is over all pairs of messages.

Axes: N messages, P positions, F features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppcmi_jax import intervals
from ppcmi_jax.attacks import alignment

THREATS = ('static', 'rotated', 'permuted')
_SIDE = 8  # positions are averaged to at most 8 x 8 for 'static' and 'rotated'
_QUANTILES = 64


class Link(NamedTuple):
  """How well messages of one patient are told from those of two.

  Attributes:
    auc: area under the ROC curve over all pairs of messages.
    interval: float64 [2], of the AUC, over patients; NaN for fewer than two.
    same, different: numbers of pairs.
  """

  auc: float
  interval: np.ndarray
  same: int
  different: int


def features(observed: alignment.Latents, *, threat: str) -> np.ndarray:
  """Returns what of messages survives the secrets of a threat.

  Args:
    observed: {name: float [N, h, w, C]}.
    threat: one of THREATS.

  Returns:
    float64 [N, F]; under its threat, the same whatever the secrets.

  Raises:
    ValueError: an unknown threat.
  """
  if threat not in THREATS:
    raise ValueError(
      f'threat: expected one of {", ".join(THREATS)}, found {threat!r}'
    )
  columns = []
  for name in sorted(observed):
    w = np.asarray(observed[name], np.float64)
    if threat != 'permuted':
      w = _pool(w)
    w = alignment.flatten(w)
    # The shift of one message tells nothing, its mean is with it.
    if threat != 'static':
      w = w - w.mean(axis=1, keepdims=True)
      parts = [_distances(one, threat == 'permuted') for one in w]
    else:
      parts = [one.ravel() for one in w]
    columns.append(np.stack(parts))
  return np.concatenate(columns, axis=1)


def similarity(messages: np.ndarray) -> np.ndarray:
  """Returns the likeness of each pair of messages, float64 [N, N].

  Args:
    messages: float [N, F], of `features`.

  Returns:
    Minus the squared distance, in units of the spread of features.
  """
  mean, spread = messages.mean(axis=0), messages.std(axis=0)
  spread = np.where(spread > 1e-9 * (np.abs(mean) + 1), spread, np.inf)
  x = (messages - mean) / spread
  norms = np.sum(x**2, axis=1)
  return 2 * x @ x.T - norms[:, None] - norms


def evaluate(
  likeness: np.ndarray,
  subject: Sequence,
  *,
  num_draws: int = 500,
  seed: int = 0,
) -> Link:
  """Returns the AUC of pairs of one subject against pairs of two.

  The interval draws subjects with replacement; a subject that is drawn k times
  lends its own pairs the weight k, and pairs with another one k times the
  other's.

  Args:
    likeness: float [N, N], symmetric.
    subject: [N], names.
    num_draws: of the bootstrap.
    seed: of the draws.

  Raises:
    ValueError: no pair of one subject, or none of two.
  """
  names, index = np.unique(np.asarray(subject), return_inverse=True)
  one, other = np.triu_indices(len(index), 1)
  scores, same = likeness[one, other], index[one] == index[other]
  if same.all() or not same.any():
    raise ValueError(
      'subject: expected pairs of messages of one and of two subjects, found '
      f'{same.sum()} and {(~same).sum()}; give several messages a subject'
    )
  order = np.argsort(scores, kind='stable')
  scores, same = scores[order], same[order]
  one, other = index[one[order]], index[other[order]]
  starts = np.flatnonzero(np.append(True, np.diff(scores) > 0))

  def auc(times):
    weights = times[one] * np.where(same, 1, times[other])
    positive = np.add.reduceat(np.where(same, weights, 0.0), starts)
    negative = np.add.reduceat(np.where(same, 0.0, weights), starts)
    below = np.cumsum(negative) - negative / 2
    total = positive.sum() * negative.sum()
    return np.sum(positive * below) / total if total else np.nan

  rng, count = np.random.default_rng(seed), len(names)
  draws = rng.multinomial(count, np.full(count, 1 / count), size=num_draws)
  return Link(
    float(auc(np.ones(count))),
    intervals.percentile_interval([auc(times) for times in draws * 1.0]),
    int(same.sum()),
    int((~same).sum()),
  )


def _pool(w):
  """Averages neighbours: a mean of positions turns as they do."""
  count, height, width, channels = w.shape
  by = [max(1, -(-side // _SIDE)) for side in (height, width)]
  height, width = height // by[0], width // by[1]
  w = w[:, : height * by[0], : width * by[1]]
  w = w.reshape(count, height, by[0], width, by[1], channels)
  return w.mean(axis=(2, 4))


def _distances(z, permuted):
  """Returns isometric features of one message [P, C], centred."""
  norms = np.sum(z**2, axis=1)
  squared = norms[:, None] + norms - 2 * z @ z.T
  pairs = squared[np.triu_indices(len(z), 1)]
  distances = np.sqrt(np.maximum(pairs, 0))
  norms = np.sqrt(norms)
  if not permuted:
    return np.concatenate([norms, distances])
  ranks = np.linspace(0, 1, _QUANTILES)
  values = np.sqrt(np.maximum(np.linalg.eigvalsh(z.T @ z)[::-1], 0))
  return np.concatenate(
    [
      np.quantile(norms, ranks),
      np.quantile(distances, ranks),
      np.log(values[: min(z.shape) - 1] + 1e-6 * values[0] + 1e-30),
    ]
  )
