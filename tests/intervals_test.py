"""Tests of intervals.py: enumeration, SciPy's bootstrap, coverage, speed."""

import itertools
import time

import numpy as np
import pytest
from scipy import stats

from ppcmi_jax import intervals


def make_cases(rng, num_subjects, most_cases=9, spread=0.3, noise=0.05):
  """Cases of subjects that differ: values [N], subject [N]."""
  counts = rng.integers(1, most_cases + 1, num_subjects)
  subject = np.repeat(np.arange(num_subjects), counts)
  level = spread * rng.standard_normal(num_subjects)
  values = 1 + level[subject] + noise * rng.standard_normal(len(subject))
  order = rng.permutation(len(subject))
  return values[order], subject[order]


def test_draws_are_those_of_all_equally_likely_choices():
  """Three subjects have 27 choices; a draw's mean is over cases."""
  values = np.array([1.0, 2, 4, 8, 16, 32])
  subject = ['a', 'b', 'b', 'c', 'c', 'c']
  groups = [[1.0], [2.0, 4], [8.0, 16, 32]]
  expected = {}
  for choice in itertools.product(groups, repeat=3):
    mean = round(np.mean([*itertools.chain(*choice)]), 6)
    expected[mean] = expected.get(mean, 0) + 1 / 27
  draws = intervals.bootstrap_means(values, subject=subject, num_draws=20000)
  found, counts = np.unique(draws.round(6), return_counts=True)
  assert found.tolist() == sorted(expected)
  shares = [expected[mean] for mean in found]
  np.testing.assert_allclose(counts / 20000, shares, atol=0.012)


@pytest.mark.parametrize('level', [0.95, 0.8])
def test_interval_agrees_with_scipy_over_subjects(level):
  """SciPy resamples pairs of a subject's sum and count of cases."""
  values, subject = make_cases(np.random.default_rng(0), 25)
  sums, counts = np.bincount(subject, values), np.bincount(subject)
  expected = stats.bootstrap(
    (sums, counts),
    lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
    paired=True,
    vectorized=True,
    method='percentile',
    n_resamples=20000,
    confidence_level=level,
    random_state=0,
  ).confidence_interval
  found = intervals.bootstrap_interval(
    values, subject=subject, level=level, num_draws=20000
  )
  width = expected.high - expected.low
  np.testing.assert_allclose(found, expected, atol=0.04 * width)


def test_interval_covers_the_truth_over_subjects_and_not_over_cases():
  """95 % where subjects are drawn; far less where slices count as patients."""
  rng = np.random.default_rng(1)
  hits = np.zeros(2)
  for _ in range(200):
    level = rng.standard_normal(40)
    values = np.repeat(level, 8) + 0.1 * rng.standard_normal(320)
    for i, subject in enumerate((np.arange(320) // 8, np.arange(320))):
      low, high = intervals.bootstrap_interval(
        values, subject=subject, num_draws=300
      )
      hits[i] += low <= 0 <= high
  assert 0.89 <= hits[0] / 200 <= 0.98
  assert hits[1] / 200 < 0.7


def test_repeating_every_case_of_a_subject_changes_nothing():
  values, subject = make_cases(np.random.default_rng(2), 12)
  once = intervals.bootstrap_interval(values, subject=subject)
  often = intervals.bootstrap_interval(
    np.tile(values, 7), subject=np.tile(subject, 7)
  )
  np.testing.assert_allclose(once, often)


def test_columns_share_draws_and_memory_blocks_change_nothing(monkeypatch):
  values, subject = make_cases(np.random.default_rng(3), 10)
  table = np.stack([values, 2 * values, values**2], axis=-1)[:, None]
  whole = intervals.bootstrap_means(table, subject=subject)
  assert whole.shape == (2000, 1, 3)
  np.testing.assert_allclose(whole[..., 1], 2 * whole[..., 0])
  alone = intervals.bootstrap_means(values, subject=subject)
  np.testing.assert_allclose(whole[:, 0, 0], alone)
  monkeypatch.setattr(intervals, '_ENTRIES', 70)
  np.testing.assert_allclose(
    whole, intervals.bootstrap_means(table, subject=subject)
  )
  other = intervals.bootstrap_means(table, subject=subject, seed=1)
  assert not np.allclose(whole, other)


def test_one_subject_has_no_interval_per_column():
  values = np.array([[0.1, 0.2, np.nan], [0.3, np.nan, np.nan]] * 3)
  subject = ['p1', 'p2'] * 3  # the second column is p1's alone
  found = intervals.bootstrap_interval(values, subject=subject)
  np.testing.assert_allclose(found[0], [0.1, 0.3])
  assert np.isnan(found[1:]).all()
  assert np.isnan(
    intervals.bootstrap_interval(values, subject=['p1'] * 6)
  ).all()


def test_draws_without_a_defined_case_are_left_out():
  values, subject = [0.2, 0.6, np.nan, np.nan], ['a', 'b', 'c', 'd']
  draws = intervals.bootstrap_means(values, subject=subject)
  # Both of the two defined subjects are missed with probability 1 / 2 ** 4.
  assert np.mean(np.isnan(draws)) == pytest.approx(1 / 16, abs=0.02)
  np.testing.assert_allclose(
    intervals.bootstrap_interval(values, subject=subject), [0.2, 0.6]
  )


def test_a_thousand_cases_take_little_time():
  """About 30 ms here; the bound leaves room for a slow, busy machine."""
  values = np.random.default_rng(0).random((1000, 4, 7))
  subject = [f'p{i}' for i in range(1000)]
  seconds = []
  for _ in range(3):
    start = time.process_time()
    intervals.bootstrap_interval(values, subject=subject)
    seconds.append(time.process_time() - start)
  assert min(seconds) < 0.5


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'values': []}, r'values must be \[N'),
    ({'values': 0.5}, r'values must be \[N'),
    ({'subject': ['a']}, r'values must be \[N'),
    ({'values': [0.5, np.inf]}, 'infinite'),
    ({'num_draws': 0}, 'num_draws'),
    ({'level': 0}, 'level'),
    ({'level': np.nan}, 'level'),
    ({'level': 95}, 'level'),
  ],
)
def test_bad_arguments_are_refused(changes, message):
  arguments = {'values': [0.5, 0.6], 'subject': ['a', 'b'], **changes}
  with pytest.raises(ValueError, match=message) as error:
    intervals.bootstrap_interval(arguments.pop('values'), **arguments)
  assert '\n' not in str(error.value)


def test_no_draws_are_refused():
  with pytest.raises(ValueError, match='draws'):
    intervals.percentile_interval(np.zeros((0, 3)))


def test_the_mean_of_columns_is_always_of_the_same_ones():
  nan = np.nan
  values = [[1.0, nan, nan], [3.0, nan, 1.0]]
  draws = [[1.0, nan, 1.0], [2.0, nan, 4.0], [1.0, nan, nan]]
  found = intervals.mean_of_columns(draws, values)
  np.testing.assert_array_equal(found, [1.0, 3.0, nan])
  none = intervals.mean_of_columns(np.full((3, 2), nan), [[nan, nan]])
  np.testing.assert_array_equal(none, [nan] * 3)
