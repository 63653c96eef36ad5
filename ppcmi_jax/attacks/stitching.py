"""Stitching: one paired image joins another client's latents to one's decoder.

Threat. A client, or whoever stole its checkpoint, sees another client's latents
or messages. Its own decoder makes nothing of them, as encoders trained apart
agree on no basis, and the published test stops there (12 dB even without a
transform). But with K >= 1 images of which it holds the other client's latents,
it has its own encoder's latents of the same images, and a linear map between
the two, per scale and position, stitches the one encoder to the other decoder
(one image gave 22 dB; Bansal et al., arXiv 2106.07682). A rotation and shift
are linear and so are part of that map: the static transform changes nothing.
Against permuted positions it first has to find the pairs of positions;
distances between positions are alike under both encoders, only not equal, so
that this takes more images.

Whether positions are mapped alone or with their neighbours, and the ridge that
holds the map down, is chosen by cross-validation over blocks of positions. The
stitched latents are for one's own decoder.

Axes: K pairs, N messages, P positions, C channels of the other client, D own.
"""

from typing import NamedTuple

import numpy as np

from ppcmi_jax.attacks import alignment

_SIDES = (1, 3)  # of windows; what foretells better is taken
_PENALTIES = 10.0 ** np.arange(-7, 3)  # times the mean squared norm of features
_FOLDS = 4
_REFINEMENTS = 15


class Stitch(NamedTuple):
  """An affine map of one scale, own = (window of other - mean) A + own_mean.

  Attributes:
    matrix: float64 [S S C, D].
    other_mean: float64 [S S C].
    own_mean: float64 [D].
    side: S, of the square window of positions that own ones depend on.
    order: int [P], the own position of each of the other's.
  """

  matrix: np.ndarray
  other_mean: np.ndarray
  own_mean: np.ndarray
  side: int
  order: np.ndarray


def fit(
  other: alignment.Latents, own: alignment.Latents, *, permuted: bool = False
) -> dict[str, Stitch]:
  """Fits the map from another client's latents to one's own.

  Args:
    other: {name: float [K, h, w, C]}, latents or messages of K images.
    own: {name: float [K, h, w, D]}, one's own encoder's of the same images.
    permuted: whether the other's positions are permuted, alike in all messages.

  Raises:
    ValueError: names, K, h or w differ.
  """
  if other.keys() != own.keys():
    raise ValueError(
      f'scales: expected {sorted(own)}, found {sorted(other)}; give both alike'
    )
  stitches = {}
  for name in own:
    expected, found = np.shape(own[name])[:3], np.shape(other[name])[:3]
    if expected != found:
      raise ValueError(
        f'{name}: expected [K, h, w] {list(expected)}, found {list(found)}; '
        'give pairs of the same images'
      )
    stitches[name] = _fit_scale(
      np.asarray(other[name], np.float64), own[name], permuted
    )
  return stitches


def stitch(
  stitches: dict[str, Stitch], other: alignment.Latents
) -> dict[str, np.ndarray]:
  """Returns another client's latents as one's own decoder expects them.

  Args:
    stitches: of `fit`.
    other: {name: float [N, h, w, C]}.

  Returns:
    {name: float32 [N, h, w, D]}, at least 0, as latents are.
  """
  stitched = {}
  for name, s in stitches.items():
    x = _place(alignment.flatten(other[name]), s.order)
    x = x.reshape(np.shape(other[name]))
    y = np.maximum(_apply(s, _windows(x, s.side)), 0).astype(np.float32)
    stitched[name] = y.reshape(*x.shape[:3], -1)
  return stitched


def _fit_scale(other, own, permuted):
  shape, x, y = other.shape, alignment.flatten(other), alignment.flatten(own)
  order = np.arange(x.shape[1])
  if permuted:
    order = alignment.match_profiles(y, x, scaled=True)
    for _ in range(_REFINEMENTS):
      fit, _ = _ridge(x, y[:, order], 1)
      rematched = alignment.match(
        alignment.stack(y), alignment.stack(_apply(fit, x))
      )
      if np.array_equal(rematched, order):
        break
      order = rematched
  x = _place(x, order).reshape(shape)
  fits = [_ridge(_windows(x, side), y, side) for side in _SIDES]
  best, _ = min(fits, key=lambda fit: fit[1])
  return best._replace(order=order)


def _place(x, order):
  """Puts positions of [N, P, C] where they belong."""
  placed = np.empty_like(x)
  placed[:, order] = x
  return placed


def _windows(x, side):
  """Returns what [N, h, w, C] has around each position, [N, P, S S C]."""
  edge = side // 2
  padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)), mode='edge')
  height, width = x.shape[1:3]
  shifted = [
    padded[:, i : i + height, j : j + width]
    for i in range(side)
    for j in range(side)
  ]
  return alignment.flatten(np.concatenate(shifted, axis=-1))


def _apply(s, x):
  return (x - s.other_mean) @ s.matrix + s.own_mean


def _ridge(x, y, side):
  """Fits [N, P, .] with the penalty that foretells left-out positions best.

  Returns:
    (the fit, its squared error on left-out positions).
  """
  positions = x.shape[1]
  # Neighbours overlap, so that whole blocks of positions are left out.
  fold = np.arange(positions) * _FOLDS // positions
  errors = np.zeros(len(_PENALTIES))
  for k in range(_FOLDS):
    kept, left = fold != k, fold == k
    if kept.any() and left.any():
      fits = _solve(x[:, kept], y[:, kept], _PENALTIES, side)
      errors += [
        np.sum((_apply(s, x[:, left]) - y[:, left]) ** 2) for s in fits
      ]
  best = np.argmin(errors)
  return _solve(x, y, _PENALTIES[[best]], side)[0], errors[best]


def _solve(x, y, penalties, side):
  """Returns the ridge regression of each penalty, in the smaller dimension."""
  x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
  means = x.mean(axis=0), y.mean(axis=0)
  x, y = x - means[0], y - means[1]
  dual = len(x) < x.shape[1]
  values, vectors = np.linalg.eigh(x @ x.T if dual else x.T @ x)
  target = vectors.T @ (y if dual else x.T @ y)
  lift = x.T @ vectors if dual else vectors
  floor = max(values.mean(), np.finfo(float).tiny)
  return [
    Stitch(
      lift @ (target / (np.maximum(values, 0) + p * floor)[:, None]),
      *means,
      side,
      np.zeros(0, np.int64),
    )
    for p in penalties
  ]
