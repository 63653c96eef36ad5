"""Tests of payload.py: rounding against published figures and brute force."""

import math

import numpy as np
import pytest

from ppcmi_jax import payload

# Mean squared error of uniform levels on a Gaussian of unit variance: Max, IRE
# Trans. Inform. Theory 6(1), 1960, table II.
DISTORTION = {5: 0.003495, 4: 0.01154, 3: 0.03744, 2: 0.1188}


def relu_latents(count, seed=0):
  """Latents as encoders give them: never negative, channels of many sizes."""
  rng = np.random.default_rng(seed)
  scale = lambda channels: np.geomspace(0.01, 3, channels)
  return {
    'b': np.float32(
      np.maximum(rng.normal(size=(count, 4, 4, 32)), 0) * scale(32)
    ),
    's3': np.float32(
      np.maximum(rng.normal(size=(count, 16, 16, 8)), 0) * scale(8)
    ),
  }


def test_a_client_without_structures_is_in_no_mean():
  # None is what a file makes of NaN.
  for undefined in (math.nan, None):
    row = {'dice': {'a': 0.8, 'b': undefined, 'c': 0.6}}
    assert payload.mean_dice(row) == pytest.approx(0.7)


@pytest.mark.parametrize('bits, expected', DISTORTION.items())
def test_mixed_latents_err_as_gaussians_do(bits, expected):
  latents = relu_latents(20)
  arrived, size = payload.mixed(bits)(latents)
  for name, z in latents.items():
    error = np.square(arrived[name] - z).mean((1, 2, 3))
    relative = error / np.square(z).mean((1, 2, 3))
    assert relative.mean() == pytest.approx(expected, rel=0.1)
  numbers = 4 * 4 * 32 + 16 * 16 * 8
  assert size.tolist() == [math.ceil(bits * numbers / 8)] * 20


def test_a_coder_spends_what_frequencies_say():
  known = {'b': np.float32([0, 0, 0, 1, 2, 0]).reshape(1, 3, 2, 1)}
  code = payload.coded({'b': np.float32([1])}, known)
  # 0, 1 and 2 were seen 4, 1 and 1 times, and count one more each.
  p = {0: 5 / 9, 1: 2 / 9, 2: 2 / 9}
  sent = np.float32([0.2, 1.4, 0, 9, -3, 2] * 40).reshape(1, 40, 6, 1)
  arrived, size = code({'b': sent})
  levels = [0, 1, 0, 2, 0, 2] * 40  # the last ones were outside
  assert arrived['b'].ravel().tolist() == levels
  bits = -sum(math.log2(p[level]) for level in levels)
  assert size.tolist() == [math.ceil(bits / 8)]


def test_coarser_steps_cost_less_and_err_more():
  latents = relu_latents(30)
  ways = payload.roundings(latents, alike=False)
  found = [ways[f'coded, step {step:g}'](latents) for step in payload.STEPS]
  sizes = [size.mean() for _, size in found]
  errors = [np.square(a['b'] - latents['b']).mean() for a, _ in found]
  assert sizes == sorted(sizes, reverse=True)
  assert errors == sorted(errors)
  for step, (arrived, _) in zip(payload.STEPS, found, strict=True):
    for name, z in latents.items():
      largest = step * z.std((0, 1, 2)) / 2 * (1 + 1e-4)
      assert (np.abs(arrived[name] - z) <= largest).all()


def test_where_errors_are_alike_so_are_steps():
  latents = relu_latents(10)
  arrived, size = payload.roundings(latents, alike=True)['coded, step 1'](
    latents
  )
  (step,) = {
    float(np.unique(z[z > 0]).min()).__round__(4)
    for z in (arrived['b'], arrived['s3'])
  }
  squares = [np.mean(z.std((0, 1, 2)) ** 2) for z in latents.values()]
  assert step == pytest.approx(np.sqrt(np.mean(squares)), abs=1e-4)
  # Channels that hardly matter cost next to nothing.
  assert not arrived['b'][..., :8].any()
  separate = payload.roundings(latents, alike=False)['coded, step 1'](latents)
  assert size.mean() < separate[1].mean()


def test_a_scale_alone_leaves_means_of_the_others():
  latents = relu_latents(5)
  ways = payload.roundings(latents, alike=False)
  assert [way for way in ways if 'alone' in way] == ['s3 alone']
  arrived, size = ways['s3 alone'](relu_latents(2, seed=1))
  np.testing.assert_array_equal(arrived['s3'], relu_latents(2, seed=1)['s3'])
  np.testing.assert_allclose(
    arrived['b'], np.tile(latents['b'].mean((0, 1, 2)), (2, 4, 4, 1)), rtol=1e-5
  )
  assert size.tolist() == [2 * 16 * 16 * 8] * 2


def test_a_channel_that_never_changes_costs_nothing():
  latents = {'b': np.full((4, 2, 2, 3), 1.5, np.float32)}
  latents['b'][..., 0] = np.arange(16).reshape(4, 2, 2)
  for alike in (False, True):
    ways = payload.roundings(latents, alike=alike)
    arrived, size = ways['coded, step 1'](latents)
    assert np.isfinite(size).all() and (size <= 4 * 5 / 8 + 1).all()
    assert np.isfinite(arrived['b']).all()
