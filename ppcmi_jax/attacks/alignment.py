"""Isometries that an attacker estimates, and positions that it matches.

The static transform of a scale is w_p = Q z_i(p) + b, one orthogonal Q, shift b
and order i of positions for all messages. An `Isometry` is an estimate of it,
and `undo` applies its inverse.

Axes: N messages, P positions, C channels, M rows of channels.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

Latents = Mapping[str, ArrayLike]


class Isometry(NamedTuple):
  """An estimate of one scale's transform: z_order(p) = s Q^T (w_p - m') + m.

  Attributes:
    rotation: float64 [C, C], Q; a partial isometry where the data left some
      directions open, which then are taken to be at their mean.
    scale: s, float; 1 for an isometry, near 0 where there is no relation.
    latent_mean: float64 [C], m.
    observed_mean: float64 [C], m'.
    order: int [P], the position of the latents that each observed one is of.
  """

  rotation: np.ndarray
  scale: float
  latent_mean: np.ndarray
  observed_mean: np.ndarray
  order: np.ndarray


def flatten(z: ArrayLike) -> np.ndarray:
  """Returns [N, h, w, C] as float64 [N, P, C]; ValueError for another rank."""
  z = np.asarray(z, np.float64)
  if z.ndim != 4:
    raise ValueError(
      f'latents: expected [N, h, w, C], found {list(z.shape)}; add the axis of '
      'messages'
    )
  return z.reshape(len(z), z.shape[1] * z.shape[2], z.shape[-1])


def check(one: Latents, other: Latents, *, paired: bool) -> None:
  """Raises ValueError unless two dicts have equal names and fitting shapes.

  Args:
    one, other: {name: [N, h, w, C]}.
    paired: whether N must agree, too.
  """
  if one.keys() != other.keys():
    raise ValueError(
      f'scales: expected {sorted(one)}, found {sorted(other)}; give both alike'
    )
  first = 0 if paired else 1
  for name in one:
    expected, found = np.shape(one[name]), np.shape(other[name])
    if expected[first:] != found[first:]:
      raise ValueError(
        f'{name}: expected shape {list(expected)}, found {list(found)}; give '
        'latents and messages of one encoder' + ', in pairs' * paired
      )


def procrustes(latents: np.ndarray, observed: np.ndarray) -> Isometry:
  """Fits z = s Q^T (w - m') + m by least squares (Schoenemann, 1966).

  Args:
    latents: float [M, C], z.
    observed: float [M, C], w, in pairs.

  Returns:
    The fit, with an empty order.
  """
  latent_mean, observed_mean = latents.mean(axis=0), observed.mean(axis=0)
  centred = observed - observed_mean
  left, values, right = np.linalg.svd(centred.T @ (latents - latent_mean))
  # Rounded float32 spans all directions, at 1e-7 of the values squared.
  known = values > 1e-9 * values[0] if values[0] > 0 else values < 0
  scale = values.sum() / max(np.sum(centred**2), np.finfo(float).tiny)
  return Isometry(
    left[:, known] @ right[known],
    float(scale),
    latent_mean,
    observed_mean,
    np.zeros(0, np.int64),
  )


def undo(
  isometries: Mapping[str, Isometry], observed: Latents
) -> dict[str, np.ndarray]:
  """Returns the latents behind messages of the same secret.

  Args:
    isometries: {name: what a fit gave}.
    observed: {name: float [N, h, w, C]}.

  Returns:
    {name: float32 [N, h, w, C]}.
  """
  latents = {}
  for name, fit in isometries.items():
    w = flatten(observed[name])
    z = np.empty_like(w)
    z[:, fit.order] = rotate_back(fit, w)
    latents[name] = z.reshape(np.shape(observed[name])).astype(np.float32)
  return latents


def rotate_back(fit: Isometry, observed: np.ndarray) -> np.ndarray:
  """Undoes rotation and shift of [..., C], and leaves the order."""
  back = (observed - fit.observed_mean) @ fit.rotation
  return fit.scale * back + fit.latent_mean


def profiles(z: np.ndarray) -> np.ndarray:
  """Returns each position's distances to all others, sorted.

  Isometries keep them, and a permutation of positions only moves them.

  Args:
    z: float [P, C].

  Returns:
    float64 [P, P], rows ascending.
  """
  z = z - z.mean(axis=0)
  norms = np.sum(z**2, axis=1)
  squared = norms[:, None] + norms - 2 * z @ z.T
  return np.sort(np.sqrt(np.maximum(squared, 0)), axis=1)


def stack(z: np.ndarray) -> np.ndarray:
  """Returns what all messages [N, P, C] have at each position, [P, N C]."""
  return z.transpose(1, 0, 2).reshape(z.shape[1], -1)


def match(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Matches features of positions so that the squared distances sum least.

  Args:
    one: float [P, F], of the latents' positions.
    other: float [P, F], of the observed positions.

  Returns:
    int [P]: for each observed position the one of the latents.
  """
  return assign(_likeness(one, other))


def match_profiles(
  latents: np.ndarray, observed: np.ndarray, *, scaled: bool = False
) -> np.ndarray:
  """Matches positions by their `profiles` in all messages together.

  As `match` of the profiles side by side, but one message at a time is in
  memory: 1000 of 1024 positions would be 8 GB.

  Args:
    latents: float [N, P, C].
    observed: float [N, P, C'], in pairs.
    scaled: whether a message's profiles are divided by their mean.

  Returns:
    int [P]: for each observed position the one of the latents.
  """
  score = 0.0
  for pair in zip(latents, observed, strict=True):
    one, other = map(profiles, pair)
    if scaled:
      tiny = np.finfo(float).tiny
      one, other = one / (one.mean() + tiny), other / (other.mean() + tiny)
    score = score + _likeness(one, other)
  return assign(score)


def _likeness(one, other):
  """Returns [P observed, P latents]; what is alike in a row is largest."""
  return other @ one.T - 0.5 * np.sum(one**2, axis=1)


def assign(score: np.ndarray) -> np.ndarray:
  """Returns the columns of the rows' best assignment; score is float [P, P]."""
  return optimize.linear_sum_assignment(score, maximize=True)[1]


def relative_error(estimate: Latents, latents: Latents) -> dict[str, float]:
  """Returns |estimate - z| / |z| of each scale, over all messages.

  The mean map of other latents as the estimate gives the error of an attacker
  who has seen no message.
  """
  check(latents, estimate, paired=True)
  errors = {}
  for name, z in latents.items():
    z = np.asarray(z, np.float64)
    errors[name] = float(np.linalg.norm(estimate[name] - z) / np.linalg.norm(z))
  return errors
