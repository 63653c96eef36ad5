"""Tests of figures/latents.py: panels, points, PCA, few and odd points."""

import itertools

import numpy as np
import pytest
import sheet_layout
from scipy.spatial import distance

from ppcmi_jax.figures import latents as latent_figures


def make_latents(num_clients=3, n=4, d=5, seed=0):
  rng = np.random.default_rng(seed)
  return {f'client {i}': rng.normal(size=(n, d)) for i in range(num_clients)}


def draw(tmp_path, before, after=None):
  arguments = {'before': before, 'after': before if after is None else after}
  path = tmp_path / 'figure.png'
  return sheet_layout.draw(latent_figures.draw_latents, path, **arguments)


def points_of(panel):
  return np.concatenate([line.get_xydata() for line in panel.lines])


def test_four_panels_with_every_point_and_a_look_a_client(tmp_path):
  before, after = make_latents(7, n=2), make_latents(7, n=2, d=9, seed=1)
  drawn = draw(tmp_path, before, after)
  assert len(drawn.panels) == 4
  for panel in drawn.panels:
    assert points_of(panel).shape == (14, 2)
    looks = {(line.get_color(), line.get_marker()) for line in panel.lines}
    assert len(looks) == 7
    for (a, _), (b, _) in itertools.combinations(looks, 2):
      assert np.linalg.norm(np.subtract(a, b)) > 0.2


def test_pca_is_that_of_all_points(tmp_path):
  before = make_latents(2, n=2, d=6)
  points = np.concatenate(list(before.values()))
  left, values, _ = np.linalg.svd(points - points.mean(axis=0))
  expected = left[:, :2] * values[:2]
  panel = draw(tmp_path, before).panels[0]
  np.testing.assert_allclose(  # whatever the order and the signs
    np.sort(distance.pdist(points_of(panel))), np.sort(distance.pdist(expected))
  )


def test_a_rotation_does_not_change_pca_distances(tmp_path):
  before = make_latents(1, n=3, d=4)
  rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))
  after = {name: points @ rotation for name, points in before.items()}
  first, second = draw(tmp_path, before, after).panels[:2]
  np.testing.assert_allclose(
    np.sort(distance.pdist(points_of(first))),
    np.sort(distance.pdist(points_of(second))),
  )


@pytest.mark.parametrize(
  'before',
  [
    make_latents(1, n=1),
    make_latents(1, n=2),
    make_latents(2, n=2),
    make_latents(2, n=3, d=1),
    {'A': np.ones((5, 3))},
    {'A': np.full((2, 3), np.nan), 'B': np.eye(3)},
    {'a client of a name ' * 5: np.eye(3), 'B': np.zeros((0, 3))},
  ],
)
def test_few_and_odd_points(tmp_path, before):
  finite = sum(int(np.isfinite(p).all(axis=1).sum()) for p in before.values())
  panels = draw(tmp_path, before).panels
  assert len(panels) == 4
  assert len(points_of(panels[0])) == finite


def test_points_are_drawn_from_clients_alike_and_repeatably(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(latent_figures, 'MAX_POINTS', 10)
  before = make_latents(2, n=50)
  before['client 1'] = before['client 1'][:3]
  drawn = [draw(tmp_path, before) for _ in range(2)]
  assert 'client 0 (n = 5)' in drawn[0].words()
  assert 'client 1 (n = 3)' in drawn[0].words()
  for one, other in zip(drawn[0].panels, drawn[1].panels):
    np.testing.assert_array_equal(points_of(one), points_of(other))


def test_latents_that_are_not_finite_on_either_side_are_left_out(tmp_path):
  before, after = make_latents(1, n=6), make_latents(1, n=6, seed=1)
  before['client 0'][0, 0] = np.nan
  after['client 0'][5, 0] = np.inf
  for panel in draw(tmp_path, before, after).panels:
    assert len(points_of(panel)) == 4


@pytest.mark.parametrize('before', [{}, {'A': np.zeros((0, 3))}])
def test_without_points_there_is_no_file(tmp_path, before):
  path = tmp_path / 'figure.png'
  assert not latent_figures.draw_latents(path, before=before, after=before)
  assert not path.exists()


@pytest.mark.parametrize(
  'before, after, message',
  [
    ({'A': np.eye(2)}, {'B': np.eye(2)}, 'after must hold the clients'),
    ({'A': np.eye(2)}, {'A': np.ones((3, 2))}, 'as many latents of client'),
    ({'A': np.ones(2)}, {'A': np.eye(2)}, r'before must be \[N, D\]'),
    ({'A': np.eye(2), 'B': np.eye(3)},) * 2 + ('of one D',),
  ],
)
def test_bad_arguments_are_refused(tmp_path, before, after, message):
  with pytest.raises(ValueError, match=message):
    draw(tmp_path, before, after)
