"""Ridge regression in its dual form, with its left-out predictions.

The dual form works with inner products of rows, so that it takes rows of any
length, and does not change when all rows are rotated alike.

  >>> rng = np.random.default_rng(0)
  >>> x, group = rng.normal(size=[40, 3]), np.arange(40) // 8
  >>> ridge, left_out = fit(x, x @ [[1.0], [2.0], [3.0]], group, rng)
  >>> ridge(np.eye(3)).round(1).ravel().tolist()
  [1.0, 2.0, 3.0]
"""

import functools
from collections.abc import Callable

import numpy as np

_LARGEST = 2048  # rows; a matrix of them squared is decomposed
_PENALTIES = 10.0 ** np.arange(-3, 2.5, 0.5)  # times the mean eigenvalue


def fit(
  x: np.ndarray,
  y: np.ndarray,
  group: np.ndarray,
  rng: np.random.Generator,
  *,
  judged: np.ndarray | None = None,
) -> tuple[
  Callable[[np.ndarray], np.ndarray],
  Callable[[np.ndarray, np.ndarray], np.ndarray],
]:
  """Regresses y [n, D] on x [n, F], without a constant.

  The penalty is that of the smallest error of groups that are left out, in
  closed form; an infinite one, which predicts zero, is among them. Rows that
  are nearly alike belong into one group, or they foretell each other.

  Args:
    x: inputs.
    y: targets.
    group: int [n], rows with the same number are left out together.
    rng: chooses rows where there are more than 2048.
    judged: bool [n], the rows whose errors count; all by default.

  Returns:
    The prediction, a function of x, and another of x and its groups, for which
    each row is foretold by the other groups alone.
  """
  rows = np.arange(len(x))
  if len(x) > _LARGEST:
    rows = rng.choice(len(x), _LARGEST, replace=False)
  some, truth = x[rows], y[rows]
  counts = slice(None) if judged is None else judged[rows]
  names = np.unique(group[rows])
  groups = {name: np.flatnonzero(group[rows] == name) for name in names}
  values, vectors = np.linalg.eigh((some @ some.T).astype(np.float64))
  values, turned = np.maximum(values, 0), vectors.T @ truth
  best = np.sum(np.square(truth[counts])), np.inf, truth
  for penalty in _PENALTIES * max(values.mean(), 1e-12):
    shrunk = vectors / (values + penalty)
    weights, error = shrunk @ turned, np.empty_like(truth)
    for one in groups.values():
      block = shrunk[one] @ vectors[one].T
      error[one] = np.linalg.solve(block, weights[one])
    loss = np.sum(np.square(error[counts]))
    if loss < best[0]:
      best = loss, penalty, error
  _, penalty, error = best
  shrunk = vectors / (values + penalty)
  weights = shrunk @ turned
  # Whichever takes less: by the rows that were learnt from, or by features.
  features, outputs = some.shape[1], weights.shape[1]
  primal = features * outputs <= len(some) * (features + outputs)

  def regression(weights):
    weights = weights.astype(y.dtype)
    slope = some.T @ weights if primal else None
    return lambda x: x @ some.T @ weights if slope is None else x @ slope

  @functools.cache
  def without(name):
    one = groups.get(name, [])
    left = weights - shrunk @ (vectors[one].T @ error[one])
    left[one] = 0  # as it is but for rounding
    return regression(left)

  def left_out(x, group):
    guess = np.empty((len(x), outputs), y.dtype)
    for name in np.unique(group):
      guess[group == name] = without(name)(x[group == name])
    return guess

  return regression(weights), left_out
