"""Tests of privacy/cells.py: what figures of attacks prove."""

import json

import numpy as np
import pytest

from ppcmi_jax import exposure
from ppcmi_jax.privacy import cells


def test_intervals_are_paired():
  rng = np.random.default_rng(0)
  trivial = rng.normal(20, 3, 40)
  cell = cells.of_means(trivial + 1, trivial, subject=np.arange(40))
  assert cell['gain'] == pytest.approx(1)
  assert cell['gain_interval'] == pytest.approx([1, 1])
  assert cell['interval'][1] - cell['interval'][0] > 1
  assert json.loads(json.dumps(cell)) == cell


@pytest.mark.parametrize(
  'klt, interval, sealed, expected',
  [
    (4.0, [3, 5], 0.05, ('yes', 'held', True)),
    (4.0, [3, 5], 0.2, ('yes', 'broken', True)),
    (2.0, [1, 3], 0.0, ('in part', 'held', False)),
    (2.0, [0, 4], 0.0, ('no', 'held', False)),
    (-1.0, None, -1.0, ('no', 'held', False)),
    (4.0, [3, 5], None, ('yes', None, False)),
    (None, None, 0.0, ('no', 'held', False)),
  ],
)
def test_a_row_counts_only_where_a_static_transform_breaks(
  klt, interval, sealed, expected
):
  def cell(gain, interval=None):
    if gain is None:
      return cells.missing('why')
    return {'value': 0, 'gain': gain, 'gain_interval': interval}

  found = cells.verdict(
    {
      'none': cell(4.2),
      'klt': cell(klt, interval),
      'sealed': cell(sealed),
    },
    tolerance=0.1,
    needed=0.9,
  )
  assert (
    found['breaks']['klt'],
    found['sealed'],
    found['proof'],
  ) == expected


def test_positions_that_stay_in_order_are_a_static_transform_too():
  gains = {'none': 4.0, 'official': 4.0, 'klt': 0.0, 'sealed': 0.0}
  found = cells.verdict(
    {
      name: {'value': 0, 'gain': gain, 'gain_interval': None}
      for name, gain in gains.items()
    },
    tolerance=0.1,
    needed=0.9,
  )
  assert found['breaks'] == {'official': 'yes', 'klt': 'no'}
  assert found['kept'] == {'official': 1.0, 'klt': 0.0}
  assert found['proof']


@pytest.mark.parametrize('whole, breaks', [(None, 'yes'), (100, 'in part')])
def test_as_little_as_without_protection_may_be_little(whole, breaks):
  gains = {'none': 5.0, 'klt': 9.0, 'sealed': 0.0}
  found = cells.verdict(
    {
      name: {'value': gain, 'gain': gain, 'gain_interval': None}
      for name, gain in gains.items()
    },
    tolerance=0.0,
    needed=0.6,
    whole=whole,
  )
  assert found['breaks'] == {'klt': breaks}
  assert found['proof'] == (whole is None)


@pytest.mark.parametrize(
  'interval, state',
  [(None, 'broken'), ([-0.12, -0.05], 'broken'), ([-0.2, 0.01], 'in doubt')],
)
def test_linking_below_chance_is_a_leak_too(interval, state):
  gains = {'none': 0.5, 'klt': 0.5, 'sealed': -0.1}
  found = cells.verdict(
    {
      name: {'value': 0, 'gain': gain, 'gain_interval': interval}
      for name, gain in gains.items()
    },
    tolerance=0.02,
    needed=0.9,
    two_sided=True,
  )
  assert found['sealed'] == state


@pytest.mark.parametrize('others, state', [(13.8, 'held'), (13.0, 'broken')])
def test_better_than_from_other_images_is_a_leak_below_the_mean_image(
  others, state
):
  found = {
    name: {'value': value, 'gain': value - 21.0, 'gain_interval': None}
    for name, value in (
      ('none', 25.0),
      ('klt', 25.0),
      ('sealed', 13.9),
      (exposure.OTHERS, others),
    )
  }
  verdict = cells.verdict(found, tolerance=0.1, needed=0.9, slack=0.5)
  assert verdict['sealed'] == state
  assert verdict['over_others'] == pytest.approx(13.9 - others)
