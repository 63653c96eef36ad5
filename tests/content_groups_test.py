"""Tests of content_groups.py: videos found, patients kept apart."""

import functools

import numpy as np
import pytest
from scipy import ndimage

from ppcmi_jax import content_groups
from ppcmi_jax.datasets import phantom, phantom_rendering

SIZE, FRAMES = 128, 6


@functools.cache
def phantoms(count, visit=0):
  return np.stack(
    [
      phantom_rendering.render(
        seed=1, subject=i, visit=visit, site=phantom.site_of(i), size=SIZE
      )[0]
      for i in range(count)
    ]
  )


def videos_of(images, drift):
  """Frames that move by a share of the side, with new noise and gain."""
  rng = np.random.default_rng(1)
  frames = []
  for image in images[..., 0]:
    angle = rng.uniform(0, 2 * np.pi)
    step = drift * SIZE * np.array([np.sin(angle), np.cos(angle)])
    for k in range(FRAMES):
      frame = ndimage.shift(image.astype(np.float32), k * step, order=1)
      frame = frame * np.exp(rng.normal(0, 0.1))
      frames.append(frame + rng.normal(0, 6, image.shape))
  frames = np.clip(frames, 0, 255).astype(np.uint8)[..., None]
  return frames, np.repeat(np.arange(len(images)), FRAMES)


def recall_and_precision(group, video):
  off = ~np.eye(len(group), dtype=bool)
  found = (group[:, None] == group) & off
  real = (video[:, None] == video) & off
  both = np.sum(found & real)
  return both / np.sum(real), both / max(1, np.sum(found))


@pytest.mark.parametrize(
  'drift, least, most',
  [(0, 1, 1), (0.01, 0.99, 1), (0.015, 0.5, 0.9), (0.02, 0, 0.2)],
)
def test_videos_are_found_as_the_docstring_says(drift, least, most):
  frames, video = videos_of(phantoms(60), drift)
  group = content_groups.content_groups(frames)
  recall, precision = recall_and_precision(group, video)
  print(f'drift {drift}: recall {recall:.2f}, precision {precision:.2f}')
  assert least <= recall <= most
  assert precision == 1


def test_another_visit_is_found_in_part_only():
  both = np.concatenate([phantoms(30), phantoms(30, visit=1)])
  group = content_groups.content_groups(both)
  share = np.mean(group[:30] == group[30:])
  assert 0.1 < share < 0.9


def test_padding_does_not_make_images_alike():
  """Thin strips of noise in black squares: nothing but the squares agrees."""
  images = np.zeros((20, 96, 96, 1), np.uint8)
  rng = np.random.default_rng(0)
  noise = rng.integers(100, 255, (20, 6, 24))
  images[:, 36:60] = np.kron(noise, np.ones((4, 4)))[..., None]
  assert len(set(content_groups.content_groups(images))) == 20


def test_groups_are_numbered_as_they_come_and_link_in_chains():
  """Neighbours of a long video are alike, its ends are not: one group."""
  frames, _ = videos_of(phantoms(2), 0.01)
  a, b = frames[:FRAMES], frames[FRAMES:]
  ends = content_groups.content_groups(a[[0, -1]], threshold=0.97)
  assert list(ends) == [0, 1]
  mixed = np.empty((2 * FRAMES, *a.shape[1:]), np.uint8)
  mixed[0::2], mixed[1::2] = b, a
  assert list(content_groups.content_groups(mixed)) == [0, 1] * FRAMES


def test_blocks_change_nothing(monkeypatch):
  frames, _ = videos_of(phantoms(12), 0.01)
  frames = frames[np.random.default_rng(0).permutation(len(frames))]
  whole = content_groups.content_groups(frames)
  monkeypatch.setattr(content_groups, 'BLOCK', 7)
  np.testing.assert_array_equal(content_groups.content_groups(frames), whole)


def test_blank_and_repeated_images_and_channels():
  blank = np.zeros((2, SIZE, SIZE, 1), np.uint8)
  images = np.concatenate([blank, phantoms(2), blank + 7, phantoms(1)])
  expected = [0, 0, 1, 2, 0, 0, 1]
  for some in (images, np.broadcast_to(images, (*images.shape[:-1], 3))):
    assert list(content_groups.content_groups(some)) == expected
  assert list(content_groups.content_groups(blank[:1])) == [0]
  assert list(content_groups.content_groups(blank[:0])) == []


@pytest.mark.parametrize('threshold', [0, -1, 1.1, float('nan')])
def test_a_senseless_threshold_is_refused(threshold):
  with pytest.raises(ValueError, match='threshold: expected in'):
    content_groups.content_groups(phantoms(1), threshold=threshold)
