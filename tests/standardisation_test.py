"""Tests of standardisation.py."""

import numpy as np

from ppcmi_jax import standardisation


def test_a_million_positions_are_averaged_exactly():
  z = np.full((2000, 32, 32, 2), 0.35, np.float32)
  z[1::2] += 0.25
  client = np.zeros(len(z), np.int32)
  found = standardisation.Statistics.of({'s3': z}, client, 1)
  assert found.mean['s3'].dtype == found.std['s3'].dtype == np.float32
  np.testing.assert_allclose(found.mean['s3'], 0.475, rtol=1e-6)
  np.testing.assert_allclose(found.std['s3'], 1.01 * 0.125, rtol=1e-4)


def test_standardised_latents_have_mean_0_and_deviation_1_and_come_back():
  rng = np.random.default_rng(0)
  client = np.array([0, 1] * 20)
  z = rng.gamma(2.0, size=(40, 4, 4, 8)) * (1 + client[:, None, None, None])
  latents = {'s3': np.float32(z)}
  found = standardisation.Statistics.of(latents, client, 2)
  scaled = found.standardise(latents, client)
  for number in (0, 1):
    own = np.asarray(scaled['s3'])[client == number]
    np.testing.assert_allclose(own.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(own.std((0, 1, 2)), 1, atol=0.02)
  again = found.restore(scaled, client)
  np.testing.assert_allclose(again['s3'], latents['s3'], rtol=1e-5, atol=1e-6)
