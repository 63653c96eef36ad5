"""Channels behind a rotation, found as facets of the cloud of positions.

A latent ends in a ReLU: channel c is never negative and is exactly 0 at many
positions. So w_p = Q z_p + b lies on one side of the hyperplane <q_c, w> = a_c
(q_c is column c of Q), with many positions exactly on it: each channel is a
facet of the convex hull of the positions, and a facet shows through any
rotation and shift, in whatever order the positions lie.

Facets come out of linear programs. Among the affine functions f(w) = <q, w> -
a that are nowhere negative and 1 at a chosen position, the one of least mean
is an extreme ray of their cone, and such rays are facets. The mean is then
weighted by 1 / f, which prefers more zeros (Candes, Wakin and Boyd, arXiv
0711.1612). A facet of many more positions than its dimension needs cannot be
chance; its hyperplane follows from these to the precision of the numbers. As Q
is orthogonal, the search goes on in the complement of what was found, where
fewer zeros suffice, so that dense channels come up, too.

Axes: P positions (of all messages), C channels, D what is left of them, F
facets.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize

_MARGINS = (2.5, 1.6, 1.25)  # positions on a facet per dimension, in turn
_SPARE = 4  # positions on a facet that must be left over besides
_REWEIGHTINGS = 5
_ROUNDS = 15  # of adding violated constraints to a program
_BOUND = 1e4  # of coefficients, so that no program is unbounded


class Facets(NamedTuple):
  """Hyperplanes with all positions on one side and many on them.

  Attributes:
    directions: float64 [C, F], unit columns, orthogonal to each other;
      positions lie on the side that they point to.
    offsets: float64 [F]: <directions, w> is at least this, up to rounding.
    ties: int64 [F], distinct positions on each.
  """

  directions: np.ndarray
  offsets: np.ndarray
  ties: np.ndarray


def find(
  points: np.ndarray,
  *,
  starts: np.ndarray | None = None,
  tolerance: float = 1e-3,
  batch: int = 16,
  patience: int = 2,
  max_programs: int = 400,
  seed: int = 0,
) -> Facets:
  """Finds mutually orthogonal facets of a cloud of positions.

  Args:
    points: floating [P, C].
    starts: [C, S], guesses of directions that are tried first, or None.
    tolerance: how near to a hyperplane a position is on it, in standard
      deviations of the positions across it; above the rounding of the wire.
    batch: guesses tried before what they found is set apart.
    patience: batches in a row that find nothing before weaker facets are
      accepted, and at last the search ends.
    max_programs: guesses at most.
    seed: of the positions that are chosen.

  Returns:
    What was found, in the order of finding; F may be 0.
  """
  rng = np.random.default_rng(seed)
  points = distinct(points, tolerance)
  mean = points.mean(axis=0)
  points = points - mean
  found, ties = np.zeros((points.shape[1], 0)), []
  guesses = [] if starts is None else list(np.asarray(starts, np.float64).T)
  margins, stale, tried = list(_MARGINS), 0, 0
  while margins and tried < max_programs:
    basis = _complement(points, found)
    needed = margins[0] * basis.shape[1] + _SPARE
    if not basis.shape[1]:
      break
    if len(points) < needed:
      margins.pop(0)
      continue
    cloud, candidates = points @ basis, []
    whitening = _whitening(cloud)
    rows = np.column_stack([cloud @ whitening, np.ones(len(cloud))])
    for _ in range(batch):
      tried += 1
      if guesses:  # <q, guess> = 1 instead of f = 1 at a position
        guess = np.append(whitening.T @ (basis.T @ guesses.pop(0)), 0.0)
      else:
        guess = rows[rng.integers(len(rows))]
      one = _search(cloud, rows, whitening, guess, needed, tolerance, rng)
      if one is not None:
        candidates.append((one[1], basis @ one[0]))
    before = len(ties)
    for count, direction in sorted(candidates, key=lambda c: -c[0]):
      if not ties or np.abs(found.T @ direction).max() < 1e-2:
        found = np.column_stack([found, direction])
        ties.append(count)
    stale = 0 if len(ties) > before or guesses else stale + 1
    if stale == patience:
      margins.pop(0)
      stale = 0
  offsets = np.array([_floor(points @ q, tolerance) for q in found.T])
  return Facets(found, offsets + mean @ found, np.array(ties, np.int64))


def distinct(points: np.ndarray, tolerance: float) -> np.ndarray:
  """Drops repeats among positions [P, C], float64; they would tie anywhere.

  Empty background repeats one vector of channels exactly.
  """
  points = np.asarray(points, np.float64)
  cells = np.round(points / (tolerance * points.std() + 1e-30))
  _, kept = np.unique(cells, axis=0, return_index=True)
  return points[np.sort(kept)]


def _complement(points, found):
  """Returns an orthonormal basis of what the positions span beside `found`."""
  rest = points - points @ found @ np.linalg.pinv(found)
  values, vectors = np.linalg.eigh(rest.T @ rest)
  return vectors[:, values > 1e-8 * np.sum(points**2) / len(values)]


def _whitening(cloud):
  values, vectors = np.linalg.eigh(cloud.T @ cloud / len(cloud))
  return vectors / np.sqrt(values)


def _search(cloud, rows, whitening, guess, needed, tolerance, rng):
  """Returns (unit direction [D], ties) of one facet, or None."""
  few = min(len(rows), 6 * rows.shape[1])
  active = rng.choice(len(rows), few, replace=False)
  weights = np.ones(len(rows))
  for _ in range(1 + _REWEIGHTINGS):
    solution, active = _program(rows, weights, guess, active)
    if solution is None:
      return None
    one = _polish(cloud, whitening @ solution[:-1], tolerance)
    if one is not None and one[1] >= needed:
      return one
    values = np.maximum(rows @ solution, 0)
    weights = 1 / (values + 0.1 * values.mean() + 1e-12)
  return None


def _program(rows, weights, guess, active):
  """Returns the nonnegative function of least mean, 1 at `guess`, or None.

  Constraints enter as they are violated, as few positions ever matter; the
  second value are those in use.
  """
  size = rows.shape[1]
  for _ in range(_ROUNDS):
    result = optimize.linprog(
      weights @ rows / weights.sum(),
      A_ub=-rows[active],
      b_ub=np.zeros(len(active)),
      A_eq=guess[None],
      b_eq=[1.0],
      bounds=(-_BOUND, _BOUND),
      method='highs-ds',
    )
    if result.x is None:
      return None, active
    values = rows @ result.x
    violated = np.setdiff1d(np.flatnonzero(values < -1e-7), active)
    if not len(violated):
      return result.x, active
    worst = violated[np.argsort(values[violated])[: 3 * size]]
    active = np.concatenate([active, worst])
  return None, active


def _polish(cloud, direction, tolerance):
  """Fits a hyperplane to the positions on it; (unit direction, ties) or None.

  They are chosen anew after each fit, ever more strictly.
  """
  for step in (10, 3, 1, 1):
    direction = direction / np.linalg.norm(direction)
    on = _on(cloud @ direction, step * tolerance)
    if on.sum() <= cloud.shape[1]:
      return None
    near = cloud[on] - cloud[on].mean(axis=0)
    spectrum, vectors = np.linalg.eigh(near.T @ near)
    direction = vectors[:, 0] * np.sign(vectors[:, 0] @ direction)
  values = cloud @ direction
  on, near = _on(values, tolerance), tolerance * values.std()
  # Chance fills the whole band around a hyperplane, zeros are in its middle.
  if not on.any() or values[on].std() > 0.3 * near:
    return None
  if len(spectrum) > 1 and spectrum[1] < max(
    len(cloud) * 1e-14, 30 * spectrum[0]
  ):
    return None  # they lie in more than one hyperplane
  return direction, int(on.sum())


def _on(values, tolerance):
  return np.abs(values - _floor(values, tolerance)) < tolerance * values.std()


def _floor(values, tolerance):
  """Returns the value at the low end at which the most positions tie."""
  values, near = np.sort(values), tolerance * values.std()
  low = values[: max(1, len(values) // 50)]
  ends = np.searchsorted(values, low + near, side='right')
  starts = np.searchsorted(values, low - near)
  best = np.argmax(ends - starts)
  return np.median(values[starts[best] : ends[best]])
