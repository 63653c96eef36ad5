"""Tests of official_draws.py: what the published functions drew, pinned.

The numbers were computed apart from this package, by the published code's steps
with seed 42 and three clients.
"""

import numpy as np
import pytest

from ppcmi_jax import official_draws

PARTS = [
  [15, 9, 14, 7, 12, 10, 6],
  [19, 3, 0, 16, 5, 11, 18],
  [2, 4, 17, 1, 13, 8],
]


def names(count, prefix='case'):
  return np.array([f'{prefix}{i:03d}' for i in range(count)])


def draw(case, subject=None, kept=None, **options):
  return official_draws.draw(
    case,
    case if subject is None else subject,
    np.ones(len(case), bool) if kept is None else kept,
    **{
      'num_clients': 3,
      'test': 'random',
      'test_fraction': 0.1,
      'valid_fraction': 0.2,
      'seed': 42,
      'unused': 'gap',
      **options,
    },
  )


@pytest.mark.parametrize('seed', [None, 0])
def test_cases_are_dealt_by_name(seed):
  order = np.arange(20)
  if seed is not None:
    np.random.default_rng(seed).shuffle(order)
  dealt = official_draws.dealt_cases(names(20)[order], 3, 42)
  assert [list(order[part]) for part in dealt] == PARTS


@pytest.mark.parametrize('seed', [None, 0])
def test_random_cases_are_tested_and_each_client_validates(seed):
  order = np.arange(20)
  if seed is not None:
    np.random.default_rng(seed).shuffle(order)
  splits = np.empty(20, '<U5')
  splits[order] = draw(names(20)[order])
  assert list(np.flatnonzero(splits == 'test')) == [9, 15]
  assert list(np.flatnonzero(splits == 'valid')) == [8, 10, 16]
  assert np.sum(splits == 'train') == 15


def test_a_folder_of_test_cases():
  case = np.concatenate([names(5, 'test/'), names(20, 'train/')])
  splits = draw(case, test='prefix')
  assert list(splits[:5]) == 5 * ['test']
  assert list(np.flatnonzero(splits[5:] == 'valid')) == [8, 14, 16]
  assert np.sum(splits[5:] == 'train') == 17


def test_whole_patients_are_tested():
  patient = np.repeat([f'PAT{i:03d}' for i in range(1, 36)], 4)
  kept = np.ones(140, bool)
  kept[::3] = False
  splits = draw(names(140), patient, kept, test='subjects')
  assert set(patient[splits == 'test']) == {
    'PAT006', 'PAT017', 'PAT025', 'PAT026'
  }  # fmt: skip
  assert set(splits[~kept]) == {'gap'} and 'gap' not in splits[kept]
  drawn = np.isin(patient, patient[splits == 'test'])
  assert np.all(splits[kept & drawn] == 'test')


def test_cases_that_are_not_kept_change_the_draw_as_if_not_there():
  kept = np.ones(30, bool)
  kept[[0, 4, 5, 9, 13, 14, 20, 22, 27, 29]] = False
  splits = draw(names(30), kept=kept)
  np.testing.assert_array_equal(splits[kept], draw(names(20)))
  assert set(splits[~kept]) == {'gap'}


@pytest.mark.parametrize(
  'options, expected',
  [
    ({'test': 'prefix'}, "named train/... or test/..., found 'case000'; use"),
    ({'test': 'folder'}, 'one of random, subjects, prefix, found .folder.'),
  ],
)
def test_what_is_unknown_is_refused(options, expected):
  with pytest.raises(ValueError, match=expected):
    draw(names(5), **options)
