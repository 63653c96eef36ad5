"""Tests of attacks.dual_ridge: against direct solutions, and on noise."""

import numpy as np
import pytest

from ppcmi_jax.attacks import dual_ridge


@pytest.mark.parametrize('each', [1, 3])
def test_ridge_predicts_left_out_groups_without_them(each):
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(12, 5)), rng.normal(size=(12, 2))
  y += x[:, :2] * 3
  group = np.arange(12) // each
  _, left_out = dual_ridge.fit(x, y, group, rng)
  gaps = []
  for penalty in 10.0 ** np.arange(-3, 2.5, 0.5):
    penalty *= np.trace(x @ x.T) / 12
    direct = []
    for i in range(12):
      rest = group != group[i]
      gram = x[rest].T @ x[rest] + penalty * np.eye(5)
      direct.append(x[i] @ np.linalg.solve(gram, x[rest].T @ y[rest]))
    gaps.append(np.abs(np.array(direct) - left_out(x, group)).max())
  assert min(gaps) < 1e-6


def test_ridge_on_noise_predicts_zero_or_nearly():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(50, 20)), rng.normal(size=(50, 3))
  ridge, left_out = dual_ridge.fit(x, y, np.arange(50), rng)
  assert np.mean((y - left_out(x, np.arange(50))) ** 2) <= np.mean(y**2)
  assert np.mean(ridge(rng.normal(size=(50, 20))) ** 2) < 0.1


def test_twins_do_not_foretell_each_other():
  # Noise by pairs: a row left out alone is told by its twin.
  rng = np.random.default_rng(0)
  x, y = (np.repeat(rng.normal(size=(20, n)), 2, axis=0) for n in (200, 3))
  pairs = np.arange(40) // 2
  _, alone = dual_ridge.fit(x, y, np.arange(40), rng)
  ridge, together = dual_ridge.fit(x, y, pairs, rng)
  assert np.mean((y - alone(x, np.arange(40))) ** 2) < 0.1 * np.mean(y**2)
  assert np.mean((y - together(x, pairs)) ** 2) >= 0.8 * np.mean(y**2)
  assert np.mean(ridge(rng.normal(size=(50, 200))) ** 2) < 0.1


def test_ridge_takes_some_of_many_rows(monkeypatch):
  monkeypatch.setattr(dual_ridge, '_LARGEST', 100)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(500, 2))
  ridge, left_out = dual_ridge.fit(x, x, np.arange(500), rng)
  np.testing.assert_allclose(left_out(x, np.arange(500)), x, atol=0.05)
  np.testing.assert_allclose(ridge(np.eye(2)), np.eye(2), atol=0.02)


def test_rows_that_were_not_drawn_are_left_out_with_their_group(monkeypatch):
  monkeypatch.setattr(dual_ridge, '_LARGEST', 200)
  rng = np.random.default_rng(0)
  each = np.repeat(np.arange(8), 100)  # noise, but alike within a group
  x, y = (rng.normal(size=(8, n))[each] for n in (300, 3))
  x = x + 0.1 * rng.normal(size=x.shape)
  y = y - y.mean(0)
  _, left_out = dual_ridge.fit(x, y, np.arange(800), rng)  # each by itself
  assert np.mean((y - left_out(x, np.arange(800))) ** 2) < 0.1 * np.mean(y**2)
  _, left_out = dual_ridge.fit(x, y, each, rng)
  assert np.mean((y - left_out(x, each)) ** 2) >= 0.8 * np.mean(y**2)
