"""The best of four linear maps from latents to images.

Two map all positions to all pixels, which does not change under any constant
orthogonal map of what is observed; two each position of the finest scale, with
its eight neighbours, to the cell of pixels under it, alike for all positions.
One of the two is from all scales, one from the finest alone, as more to look at
is more to mistake. Which is best is judged by folds that are left out; where
there is one only, by quarters of the image.

Axes: P pairs, H, h height, W, w width, C channels.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ppcmi_jax import examples
from ppcmi_jax.attacks import dual_ridge, position_order

_FOLDS = 5
_ROWS = 8192  # positions at a time, and to learn from, to bound memory


class LinearMap(NamedTuple):
  """A fitted map.

  Attributes:
    names: what it takes: scales, and 'prior'.
    predict: {name: [N, h, w, C]} -> float32 [N, H, W, C].
    left_out: float32 [P, H, W, C], predictions of the targets, each made
      without its fold.
  """

  names: tuple[str, ...]
  predict: Callable[[Mapping[str, np.ndarray]], np.ndarray]
  left_out: np.ndarray


def fit(
  z: Mapping[str, np.ndarray],
  target: np.ndarray,
  *,
  source: np.ndarray,
  judges: np.ndarray,
  rng: np.random.Generator,
) -> LinearMap:
  """Fits the best of the four maps.

  Args:
    z: {scale: float32 [P, h, w, C]}, and 'prior', what is known of any image,
      [P, h, w, c] at the finest scale.
    target: float32 [P, H, W, C].
    source: int [P], of which image each pair is a copy.
    judges: bool [P], the pairs whose errors count.
    rng: draws positions where there are more than memory should hold.
  """
  sides, shape = z['prior'].shape[1:3], target.shape[1:]
  cells = lambda y: position_order.cells(y, sides)

  def all_positions(z):
    parts = [z[k].reshape(len(z[k]), -1) for k in sorted(z) if k != 'prior']
    return np.concatenate(parts, axis=1)

  def one_position(z):
    parts = []
    for name in sorted(z):
      a = z[name]
      for axis, side in zip((1, 2), sides):
        a = a.repeat(side // a.shape[axis], axis)
      if name != 'prior':  # the eight neighbours, too
        a = np.pad(a, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
        a = np.lib.stride_tricks.sliding_window_view(a, (3, 3), axis=(1, 2))
      parts.append(a.reshape(len(a) * sides[0] * sides[1], -1))
    return np.concatenate(parts, axis=1)

  def fit_one(names, features, split, join, at_once):
    def mapped(z, function):
      """Applies (features, which images) -> rows to `at_once` at a time."""
      starts = range(0, len(z['prior']), at_once)
      parts = [slice(i, i + at_once) for i in starts]
      rows = (function(features(examples.take(z, i)), i) for i in parts)
      return np.concatenate(list(rows))

    some, fold = {k: z[k] for k in names}, _folds(source, judges)
    each = len(features(examples.take(some, slice(1))))
    group = np.repeat(fold, each)
    if fold.max() == 0 and each > 1:  # neighbours foretell each other
      row, column = np.indices(sides) * 2 // np.reshape(sides, (2, 1, 1))
      group = np.tile((2 * row + column).ravel(), len(fold))
    group = group.reshape(len(fold), each)
    # A position is drawn from all images alike.
    count = max(1, _ROWS // len(fold)) if each > 1 else 1
    drawn = np.argsort(rng.random(group.shape), axis=1)[:, :count]

    def pick(rows, part=slice(None)):
      which = drawn[part, :, None]
      rows = rows.reshape(len(which), each, -1)
      return np.take_along_axis(rows, which, axis=1).reshape(which.size, -1)

    predict, left_out = dual_ridge.fit(
      mapped(some, pick),
      pick(split(target)),
      pick(group).ravel(),
      rng,
      judged=np.repeat(judges, drawn.shape[1]),
    )
    apply = lambda z: mapped(z, lambda x, _: join(predict(x)))
    guess = mapped(some, lambda x, i: join(left_out(x, group[i].ravel())))
    error = np.sum(np.square(target - guess)[judges])
    return error, LinearMap(names, apply, guess)

  finest = max(z.keys() - {'prior'}, key=lambda k: z[k].shape[1:3])
  found = [
    fit_one(names, *how)
    for names in dict.fromkeys((tuple(sorted(z)), (finest, 'prior')))
    for how in (
      (
        all_positions,
        lambda y: y.reshape(len(y), -1),
        lambda y: y.reshape(-1, *shape),
        len(target),
      ),
      (
        one_position,
        lambda y: cells(y).reshape(-1, cells(y[:1]).shape[-1]),
        lambda y: position_order.join_cells(y, sides, shape),
        max(1, _ROWS // (sides[0] * sides[1])),
      ),
    )
  ]
  return min(found, key=lambda one: one[0])[1]


def _folds(source, judges):
  """Returns to which of five parts [P] each pair belongs.

  Sources beside each other, such as the slices of a volume, are in one part, so
  that they don't foretell each other; copies are in that of their source. Those
  that judge are in all five, as are the others.
  """
  fold = np.zeros(len(source), int)
  judged = np.isin(source, source[judges])
  for some in (judged, ~judged):
    names, place = np.unique(source[some], return_inverse=True)
    fold[some] = place * _FOLDS // max(len(names), _FOLDS)
  return fold
