"""Tests of attacks.linear_maps: what is left out, and learnt from."""

import numpy as np

from ppcmi_jax.attacks import linear_maps


def test_folds_are_of_neighbours_and_hold_whole_sources():
  source = np.array([9, 3, 3, 7, 1, 5, 2, 8, 4, 6, 0, 7])
  fold = linear_maps._folds(source, np.ones(12, bool))
  assert fold.tolist() == [4, 1, 1, 3, 0, 2, 1, 4, 2, 3, 0, 3]
  assert linear_maps._folds(np.array([4, 4, 9]), np.ones(3, bool)).tolist() == [
    0,
    0,
    1,
  ]


def test_those_who_judge_are_in_all_folds_and_so_are_the_others():
  source = np.array([0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 2])  # the last a copy
  fold = linear_maps._folds(source, np.arange(11) < 5)
  assert fold.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 2]


def test_positions_are_learnt_from_all_images(monkeypatch):
  """They came from the first images alone, as many as fit in memory."""
  monkeypatch.setattr(linear_maps, '_ROWS', 256)
  rng = np.random.default_rng(0)
  z = rng.normal(size=(40, 8, 8, 2)).astype(np.float32)
  z[:8] = 0  # there is nothing to learn
  images = np.repeat(np.repeat(z[..., :1], 2, 1), 2, 2)
  inputs = {'s3': z, 'prior': np.zeros((40, 8, 8, 4), np.float32)}
  fitted = linear_maps.fit(
    inputs, images, source=np.arange(40), judges=np.ones(40, bool), rng=rng
  )
  error = np.mean((images - fitted.left_out) ** 2)
  assert error < 0.1 * np.mean(images**2)
