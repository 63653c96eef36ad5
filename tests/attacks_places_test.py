"""Tests of attacks.places: positions find where they belong."""

import numpy as np
import pytest
import synthetic_latents as synthetic

from ppcmi_jax.attacks import alignment, places


def test_positions_find_their_places():
  """Right order means the likeliest: of all messages far more than chance."""
  latents = synthetic.encode(synthetic.images(40)[0])
  z = alignment.flatten(latents['s4'])
  order = np.random.default_rng(0).permutation(z.shape[1])
  expected = places.of_public(z[20:])
  score = places.likelihood(z[:20][:, order], expected)
  assert np.mean(alignment.assign(score) == order) > 0.5


def test_likelihood_is_that_of_independent_gaussians():
  rng = np.random.default_rng(0)
  back, variance = rng.normal(size=(3, 4, 2)), rng.random((4, 2)) + 0.5
  for count in (1, 3):
    mean = rng.normal(size=(count, 4, 2))
    found = places.likelihood(back, places.Places(mean, variance))
    gap = back[:, :, None] - mean[:, None]
    direct = -0.5 * np.sum(gap**2 / variance + np.log(variance), axis=(0, 3))
    np.testing.assert_allclose(found, direct)


def test_a_coarser_scale_foretells_a_finer_one():
  rng = np.random.default_rng(0)
  coarser = rng.normal(size=(60, 2, 3, 2))
  slope = rng.normal(size=(4, 6, 2, 3))  # each place has its own
  wide = coarser.repeat(2, axis=1).repeat(2, axis=2)
  finer = np.einsum('nhwc,hwcd->nhwd', wide, slope) + 5
  finer += 0.1 * rng.normal(size=finer.shape)
  foretell = places.foretelling(finer[:40], coarser[:40])
  mean, variance = foretell(coarser[40:])
  truth = alignment.flatten(finer[40:])
  error = np.mean((mean - truth) ** 2)
  assert 0.01 < error < 0.015  # the noise, and what 40 images leave open
  assert 0.9 < error / (variance.mean() / 1.1) < 1.1


@pytest.mark.parametrize('count, width', [(30, 8), (22, 64)])
def test_what_foretells_nothing_changes_nothing(count, width):
  """With more channels than images, too, where a ridge fits all it saw."""
  rng = np.random.default_rng(0)
  coarser = rng.normal(size=(count + 30, 2, 2, width))
  finer = rng.normal(size=(count + 30, 4, 4, 3))
  foretell = places.foretelling(finer[:count], coarser[:count])
  foretold = foretell(coarser[count:])
  truth = alignment.flatten(finer[count:])
  error = np.mean((foretold.mean - truth) ** 2)
  assert error < 1.1 and 0.8 < foretold.variance.mean() / error < 1.2
