"""How likely latents are at each place, from public latents of one encoder.

Each place has channels of its own means and variances (`of_public`). A coarser
scale of the same messages, once it is opened, says more: what it has at a place
foretells the finer one there (`foretelling`), message by message, so that many
messages tell even neighbours apart.

Axes: N messages, M public latents, P places, C channels, h, w sides.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ppcmi_jax.attacks import alignment

_PENALTIES = 10.0 ** np.arange(-3, 2)  # times the mean eigenvalue
_FLOOR = 0.1  # of the mean variance over places, added to each


class Places(NamedTuple):
  """What is expected: independent Gaussian channels at each place.

  Attributes:
    mean: float [N, P, C], or [1, P, C] for all messages alike.
    variance: float [P, C].
  """

  mean: np.ndarray
  variance: np.ndarray


def of_public(public: np.ndarray) -> Places:
  """Returns what is expected of any image, from public ones [M, P, C]."""
  mean = public.mean(axis=0)
  return Places(mean[None], _floored(public.var(axis=0)))


def foretelling(
  public: ArrayLike, coarser: ArrayLike
) -> Callable[[ArrayLike], Places]:
  """Learns to foretell a scale from the next coarser one.

  A ridge regression for each place, from all channels of the coarser scale
  there; the penalty, one for all, is that of the least left-out error. Images
  are left out one by one, so that copies of each other make it too small.

  Args:
    public: float [M, h, w, C].
    coarser: float [M, h', w', C'], of the same images.

  Returns:
    float [N, h', w', C'] of other images -> what is expected of these.
  """
  shape = np.shape(public)[1:3]

  def features(coarser):
    """Returns [P, M, C'], the coarser latent that each place lies in."""
    rows, columns = (
      np.arange(side) * less // side
      for side, less in zip(shape, np.shape(coarser)[1:3])
    )
    z = np.asarray(coarser)[:, rows][:, :, columns]
    return alignment.flatten(z).transpose(1, 0, 2)

  x, y = features(coarser), alignment.flatten(public).transpose(1, 0, 2)
  middle_x, middle_y = x.mean(axis=1), y.mean(axis=1)
  x, y = x - middle_x[:, None], y - middle_y[:, None]
  values, vectors = np.linalg.eigh(x.transpose(0, 2, 1) @ x)
  turned = x @ vectors  # [P, M, C']
  product = turned.transpose(0, 2, 1) @ y
  variance, slope = y.var(axis=1), np.zeros_like(product)
  for penalty in _PENALTIES * max(values.mean(), 1e-12):
    shrunk = 1 / (np.maximum(values, 0) + penalty)
    leverage = np.sum(turned**2 * shrunk[:, None], axis=2) + 1 / x.shape[1]
    weights = shrunk[:, :, None] * product
    error = y - turned @ weights
    error /= np.maximum(1 - leverage, 1e-9)[..., None]
    left_out = np.mean(error**2, axis=1)
    if left_out.sum() < variance.sum():
      variance, slope = left_out, vectors @ weights

  def foretell(coarser):
    found = (features(coarser) - middle_x[:, None]) @ slope
    mean = (found + middle_y[:, None]).transpose(1, 0, 2)
    return Places(mean, _floored(variance))

  return foretell


def likelihood(back: np.ndarray, places: Places) -> np.ndarray:
  """Returns the log-likelihood of each position at each place, float [P, P].

  Args:
    back: float [N, P, C], latents at positions in another order.
    places: of as many messages, or of all alike.
  """
  mean, variance = places
  inverse, count = 1 / variance, len(back)
  if len(mean) == 1:
    product = np.sum(back, axis=0) @ (mean[0] * inverse).T
  else:
    product = alignment.stack(back) @ alignment.stack(mean * inverse).T
  squares = np.mean(mean**2, axis=0) * inverse
  return -0.5 * (
    np.sum(back**2, axis=0) @ inverse.T
    - 2 * product
    + count * np.sum(squares + np.log(variance), axis=1)
  )


def _floored(variance):
  return variance + _FLOOR * variance.mean(axis=0) + 1e-6
