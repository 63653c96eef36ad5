"""Tests of roundings.py, against published figures and brute force."""

import math

import numpy as np
import pytest

from ppcmi_jax import roundings

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


@pytest.mark.parametrize('bits, expected', DISTORTION.items())
def test_mixed_latents_err_as_gaussians_do(bits, expected):
  latents = relu_latents(20)
  arrived, size = roundings.mixed(bits)(latents)
  for name, z in latents.items():
    error = np.square(arrived[name] - z).mean((1, 2, 3))
    relative = error / np.square(z).mean((1, 2, 3))
    assert relative.mean() == pytest.approx(expected, rel=0.1)
  numbers = 4 * 4 * 32 + 16 * 16 * 8
  assert size.tolist() == [math.ceil(bits * numbers / 8)] * 20


def test_a_coder_spends_what_frequencies_say():
  known = {'b': np.float32([0, 0, 0, 1, 2, 0]).reshape(1, 3, 2, 1)}
  code = roundings.coded({'b': np.float32([1])}, known)
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
  ways = roundings.ways(latents)
  found = [ways[f'coded, step {step:g}'](latents) for step in roundings.STEPS]
  sizes = [size.mean() for _, size in found]
  errors = [np.square(a['b'] - latents['b']).mean() for a, _ in found]
  assert sizes == sorted(sizes, reverse=True)
  assert errors == sorted(errors)
  for step, (arrived, _) in zip(roundings.STEPS, found, strict=True):
    for name, z in latents.items():
      largest = step * z.std((0, 1, 2)) / 2 * (1 + 1e-4)
      assert (np.abs(arrived[name] - z) <= largest).all()


def test_a_scale_alone_leaves_means_of_the_others():
  latents = relu_latents(5)
  ways = roundings.ways(latents)
  assert [way for way in ways if 'alone' in way] == ['s3 alone']
  arrived, size = ways['s3 alone'](relu_latents(2, seed=1))
  np.testing.assert_array_equal(arrived['s3'], relu_latents(2, seed=1)['s3'])
  np.testing.assert_allclose(
    arrived['b'], np.tile(latents['b'].mean((0, 1, 2)), (2, 4, 4, 1)), rtol=1e-5
  )
  assert size.tolist() == [2 * 16 * 16 * 8] * 2


@pytest.mark.parametrize('share, error', [(1, 0), (0.5, 0), (0.25, 0.05)])
def test_components_hold_all_that_channels_share(share, error):
  """Of eight channels four are free, and one never changes."""
  rng = np.random.default_rng(0)
  free = rng.normal(size=(40, 3, 3, 4)) * [2, 2, 1, 1]
  z = free @ rng.normal(size=(4, 8)) + 5
  z[..., 7] = 3
  latents, units = {'b': np.float32(z)}, {'b': z.std((0, 1, 2)) + 1e-6}
  bases = roundings.components(latents, units)
  keep = roundings.principal(share, bases, lambda parts: (parts, None))
  found, _ = keep(latents)
  assert found['b'].dtype == np.float32
  assert np.allclose(found['b'][..., 7], 3, atol=1e-3)
  lost = np.mean(np.square((found['b'] - z) / units['b']))
  # The textbook's: the variances of the components that are left out.
  flat = (z / units['b']).reshape(-1, 8)
  spectrum = np.linalg.svd(flat - flat.mean(0))[1] ** 2 / flat.size
  assert lost == pytest.approx(spectrum[round(8 * share) :].sum(), abs=1e-6)
  assert (lost > error) if error else (lost < 1e-6)


def test_fewer_channels_are_fewer_bytes():
  latents = relu_latents(10)
  ways = roundings.ways(latents)
  bytes_of = lambda way: int(ways[way](latents)[1][0])
  numbers = 4 * 4 * 32 + 16 * 16 * 8
  assert bytes_of('1/4 of the channels') == 2 * numbers / 4
  assert bytes_of('1/4 of the channels, mixed, 4 bits') == numbers / 8
  arrived, _ = ways['3/4 of the channels'](latents)
  assert {k: z.shape for k, z in arrived.items()} == {
    k: z.shape for k, z in latents.items()
  }


def test_a_channel_that_never_changes_costs_nothing():
  latents = {'b': np.full((4, 2, 2, 3), 1.5, np.float32)}
  latents['b'][..., 0] = np.arange(16).reshape(4, 2, 2)
  ways = roundings.ways(latents)
  arrived, size = ways['coded, step 1'](latents)
  assert np.isfinite(size).all() and (size <= 4 * 5 / 8 + 1).all()
  assert np.isfinite(arrived['b']).all()
  # Nor does it shout where it changes after all, in halves of 65504.
  moved = {'b': latents['b'] + np.float32([0, 100, 0])}
  arrived, _ = ways['3/4 of the channels'](moved)
  np.testing.assert_allclose(arrived['b'], latents['b'], atol=0.01)
