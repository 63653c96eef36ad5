"""Confidence intervals of mean scores, over subjects.

The cases of one subject (slices of a volume, frames of a video) are alike, so
that a thousand slices of ten patients tell about ten patients. Here whole
subjects are drawn with replacement, all the cases of each together (a cluster
bootstrap), and the mean over cases is taken anew: how the mean would vary had
other subjects been tested. The network stays the same throughout; what another
training run would have given is no part of the interval.

With one subject there is nothing to draw from, and the interval is NaN, not of
zero width. With few (below about ten) a percentile interval is too narrow: say
the number of subjects beside it.

Axes: N cases, P subjects, D draws; any axes may follow.

>>> dice = np.array([0.9, 0.9, 0.8, 0.7])
>>> bootstrap_interval(dice, subject=['p1', 'p1', 'p2', 'p3']).round(2)
array([0.7, 0.9])
>>> bootstrap_interval(dice, subject=['p1'] * 4)
array([nan, nan])
"""

import numpy as np
from numpy.typing import ArrayLike

NUM_DRAWS = 2000
LEVEL = 0.95
_ENTRIES = 1 << 20  # of a block of draws, to bound memory


def bootstrap_interval(
  values: ArrayLike,
  *,
  subject: ArrayLike,
  level: float = LEVEL,
  num_draws: int = NUM_DRAWS,
  seed: int = 0,
) -> np.ndarray:
  """Returns the percentile interval of the mean over cases, over subjects.

  Args:
    values: [N, ...], NaN where a case does not define a value.
    subject: [N], the name (text or number) of each case's subject.
    level: the interval's coverage, between 0 and 1.
    num_draws: D.
    seed: of the draws; equal seeds draw equal subjects.

  Returns:
    float64 [..., 2], low and high; NaN where fewer than two subjects define a
    value.

  Raises:
    ValueError: as `bootstrap_means` and `percentile_interval`.
  """
  means = bootstrap_means(
    values, subject=subject, num_draws=num_draws, seed=seed
  )
  return percentile_interval(means, level=level)


def bootstrap_means(
  values: ArrayLike,
  *,
  subject: ArrayLike,
  num_draws: int = NUM_DRAWS,
  seed: int = 0,
) -> np.ndarray:
  """Returns the mean over cases of each draw of P subjects from the P.

  One draw serves all the trailing axes, so that what is computed of several
  columns (a mean over classes, a difference of two methods) can be computed
  draw by draw.

  Args:
    values: [N, ...], NaN where a case does not define a value; means are over
      the others.
    subject: [N], the name (text or number) of each case's subject.
    num_draws: D.
    seed: of NumPy's default generator.

  Returns:
    float64 [D, ...]. A column that fewer than two subjects define is NaN; in
    another column a draw that got none of the subjects that define it is NaN.

  Raises:
    ValueError: no cases, lengths differ, an infinite value, no draws.
  """
  values, subject = np.asarray(values, np.float64), np.asarray(subject)
  if values.ndim < 1 or subject.shape != values.shape[:1] or not len(values):
    raise ValueError(
      'values must be [N, ...] and subject [N], N at least 1, found '
      f'{list(values.shape)} and {list(subject.shape)}'
    )
  if np.any(np.isinf(values)):
    raise ValueError(
      'values must be finite or NaN, found an infinite one; bound it, or mark '
      'it undefined with NaN'
    )
  if num_draws < 1:
    raise ValueError(f'num_draws must be at least 1, found {num_draws}')
  names, index = np.unique(subject, return_inverse=True)
  columns = values.reshape(len(values), -1)
  defined = ~np.isnan(columns)
  # Sums and counts of each subject, [P, 2 * columns].
  parts = np.concatenate([np.where(defined, columns, 0), defined], axis=1)
  order = np.argsort(index, kind='stable')
  starts = np.searchsorted(index[order], np.arange(len(names)))
  parts = np.add.reduceat(parts[order], starts, axis=0)

  rng = np.random.default_rng(seed)
  block = max(1, _ENTRIES // len(names))
  drawn = []
  for start in range(0, num_draws, block):
    times = _draw_subjects(rng, min(block, num_draws - start), len(names))
    drawn.append(times @ parts)
  sums, counts = np.split(np.concatenate(drawn), 2, axis=1)
  subjects = np.sum(np.split(parts, 2, axis=1)[1] > 0, axis=0)
  means = np.full(sums.shape, np.nan)
  np.divide(sums, counts, out=means, where=(counts > 0) & (subjects > 1))
  return means.reshape(num_draws, *values.shape[1:])


def mean_of_columns(draws: ArrayLike, values: ArrayLike) -> np.ndarray:
  """Averages each draw over the columns that some case defines.

  A draw that lacks one of these is NaN: without it, it would be the mean of
  something else.

  Args:
    draws: [D, K, ...], as `bootstrap_means` returns them.
    values: [N, K, ...], what they are draws of.

  Returns:
    float64 [D, ...]; NaN where no case defines any column.
  """
  draws = np.asarray(draws, np.float64)
  defined = ~np.all(np.isnan(values), axis=0)
  sums = np.sum(draws, axis=1, where=defined)
  means = np.full(sums.shape, np.nan)
  return np.divide(sums, defined.sum(0), out=means, where=defined.any(0))


def percentile_interval(
  draws: ArrayLike, *, level: float = LEVEL
) -> np.ndarray:
  """Returns the percentiles (1 - level) / 2 and (1 + level) / 2 of draws.

  Args:
    draws: [D, ...]; those that are NaN are left out.
    level: the interval's coverage, between 0 and 1.

  Returns:
    float64 [..., 2], low and high; NaN where all draws are.

  Raises:
    ValueError: no draws, a level outside (0, 1).
  """
  draws = np.asarray(draws, np.float64)
  if draws.ndim < 1 or not len(draws):
    raise ValueError(
      f'draws must be [D, ...] with D at least 1, found {list(draws.shape)}'
    )
  if not 0 < level < 1:
    raise ValueError(f'level must be between 0 and 1, found {level}')
  columns = draws.reshape(len(draws), -1)
  ranks = [50 * (1 - level), 50 * (1 + level)]
  interval = np.full((columns.shape[1], 2), np.nan)
  for bounds, column in zip(interval, columns.T):
    column = column[~np.isnan(column)]
    if column.size:
      bounds[:] = np.percentile(column, ranks)
  return interval.reshape(*draws.shape[1:], 2)


def _draw_subjects(
  rng: np.random.Generator, num_draws: int, num_subjects: int
) -> np.ndarray:
  """Returns how often each draw has each subject, float64 [D, P]."""
  chosen = rng.integers(num_subjects, size=(num_draws, num_subjects))
  chosen += num_subjects * np.arange(num_draws)[:, None]
  times = np.bincount(chosen.ravel(), minlength=num_draws * num_subjects)
  return times.reshape(num_draws, num_subjects).astype(np.float64)
