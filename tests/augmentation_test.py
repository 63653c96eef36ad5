"""Tests of augmentation.py: geometry recovered from ramps, and purity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppcmi_jax import augmentation

B, H, W = 8, 24, 20
GEOMETRY = {'rotation_deg': 20.0, 'scale': 0.2, 'translation': 0.1}
VALUES = {'gamma': 0.3, 'gain': 0.2, 'noise': 0.05}
LABELS = np.array([0, 1, 3, 4], np.uint8)


@functools.cache
def compiled(**options):
  return jax.jit(functools.partial(augmentation.augment, **options))


def keys_of(seed, count=B):
  return jax.random.split(jax.random.key(seed), count)


@pytest.fixture(scope='module')
def pair():
  """Images whose channels are row, column and 1; masks of random labels."""
  row, column = np.mgrid[:H, :W] / np.array([H - 1, W - 1])[:, None, None]
  image = np.stack([row, column, np.ones_like(row)], -1).astype(np.float32)
  mask = np.random.default_rng(0).choice(LABELS, (B, H, W))
  return np.broadcast_to(image, (B, H, W, 3)), mask


@pytest.fixture(scope='module')
def warped(pair):
  image, mask = compiled(**GEOMETRY)(keys_of(1), *pair)
  return np.asarray(image), np.asarray(mask)


@pytest.fixture(scope='module')
def varied(pair):
  """All variations at once."""
  image, mask = compiled(**GEOMETRY, **VALUES)(keys_of(1), *pair)
  return np.asarray(image), np.asarray(mask)


def source_of(image):
  """Row and column that each pixel came from, and where that is known."""
  source = image[..., :2] * np.array([H - 1, W - 1])
  return source, image[..., 2] > 0.9999


def test_nothing_asked_nothing_changed(pair):
  image, mask = augmentation.augment(keys_of(0), *pair)
  np.testing.assert_array_equal(image, pair[0])
  np.testing.assert_array_equal(mask, pair[1])
  assert image.dtype == jnp.float32 and mask.dtype == jnp.uint8


def test_image_and_mask_share_their_geometry(pair, warped):
  image, mask = warped
  source, known = source_of(image)
  known &= np.all(abs(source % 1 - 0.5) > 1e-3, axis=-1)  # not between pixels
  assert known.mean() > 0.5 and not known.all()
  at = np.rint(source).astype(int)
  for i in range(B):
    expected = pair[1][i][at[i, ..., 0], at[i, ..., 1]]
    np.testing.assert_array_equal(mask[i][known[i]], expected[known[i]])


def test_a_mask_warped_as_an_image_stays_on_the_mask():
  row, column = np.mgrid[:H, :W]
  disc = np.hypot(row - 10, column - 9) < 6
  masks = np.broadcast_to(disc, (B, H, W)).astype(np.uint8)
  images = np.repeat(np.float32(masks)[..., None], 3, -1)
  image, mask = compiled(**GEOMETRY)(keys_of(2), images, masks)
  assert np.mean((image[..., 0] > 0.5) == mask) > 0.99
  assert np.mean(masks == mask) < 0.98  # and it did move


def test_outside_is_background(warped):
  image, mask = warped
  outside = image[..., 2] == 0
  assert outside.any()
  assert not mask[outside].any() and not image[outside].any()


def test_the_drawn_maps_stay_within_the_options(pair):
  found = []
  for seed in range(8):
    image, _ = compiled(**GEOMETRY)(keys_of(seed), *pair)
    for source, known in zip(*source_of(np.asarray(image))):
      points = np.argwhere(known)
      design = np.c_[points, np.ones(len(points))]
      fit, *_ = np.linalg.lstsq(design, source[known], rcond=None)
      matrix, offset = fit[:2].T, fit[2]
      np.testing.assert_allclose(
        design @ fit, source[known], atol=1e-3, err_msg='not affine'
      )
      zoom = 1 / np.linalg.norm(matrix, axis=0)
      angle = np.rad2deg(np.arctan2(matrix[1, 0], matrix[0, 0]))
      centre = (np.array([H, W]) - 1) / 2
      shift = np.linalg.solve(matrix, centre - offset) - centre
      found.append([angle, *np.log(zoom), *(shift / [H, W])])
  found = np.array(found)
  limit = np.array([20, *2 * [np.log(1.2)], 0.1, 0.1])
  assert np.all(abs(found) <= limit * 1.01)
  assert np.all(found.max(0) > 0.8 * limit)  # and fill that range, both ways
  assert np.all(found.min(0) < -0.8 * limit)


def test_some_pairs_come_back_as_they_are():
  rng = np.random.default_rng(0)
  image = np.float32(rng.uniform(0.2, 0.8, (300, 2, 2, 1)))
  mask = rng.choice(LABELS, (300, 2, 2))
  varied, same = compiled(gain=0.2, probability=0.25)(
    keys_of(0, 300), image, mask
  )
  np.testing.assert_array_equal(same, mask)
  changed = np.any(varied != image, axis=(1, 2, 3))
  assert 0.15 < changed.mean() < 0.35


def test_an_example_depends_on_its_own_key_only(pair, varied):
  image, mask = pair
  keys = keys_of(1)
  backwards = compiled(**GEOMETRY, **VALUES)(
    keys[::-1], image[::-1], mask[::-1]
  )
  for a, b in zip(varied, backwards):
    np.testing.assert_array_equal(a, b[::-1])
  others = compiled(**GEOMETRY, **VALUES)(keys_of(2), image, mask)
  assert not np.allclose(others[0], varied[0], atol=0.01)


def test_one_example_without_jit_equals_its_row_of_a_jitted_batch(pair, varied):
  alone = (keys_of(1)[3:4], pair[0][3:4], pair[1][3:4])
  image, mask = augmentation.augment(*alone, **GEOMETRY, **VALUES)
  np.testing.assert_allclose(image[0], varied[0][3], atol=1e-4)
  assert np.mean(mask[0] == varied[1][3]) > 0.99


def test_values_stay_in_the_unit_range_and_labels_a_subset(varied):
  image, mask = varied
  assert image.dtype == np.float32 and mask.dtype == np.uint8
  assert image.min() == 0 and image.max() == 1  # the noise went beyond
  assert set(np.unique(mask)) <= set(LABELS)


def test_grey_values_change_by_one_curve_an_image(pair):
  image, mask = compiled(gamma=0.3, gain=0.2)(keys_of(4), *pair)
  np.testing.assert_array_equal(mask, pair[1])
  curves = np.asarray(image[:, :, 0, 0])  # of grey values 0 to 1
  np.testing.assert_array_equal(
    image[..., 0], np.broadcast_to(curves[..., None], (B, H, W))
  )
  assert np.all(np.diff(curves) >= 0)
  assert np.all(curves[:, 0] < 1e-3)
  x = np.arange(1, H) / (H - 1)
  low = np.minimum(x**1.3, x ** (1 / 1.3)) / 1.2
  high = np.minimum(np.maximum(x**1.3, x ** (1 / 1.3)) * 1.2, 1)
  assert np.all(curves[:, 1:] >= low - 1e-4)
  assert np.all(curves[:, 1:] <= high + 1e-4)
  assert np.std(curves[:, 12]) > 0.03


def test_noise_has_the_deviation_asked_for(pair):
  grey = np.full((B, H, W, 3), 0.5, np.float32)
  image, _ = compiled(noise=0.05)(keys_of(5), grey, pair[1])
  noise = np.asarray(image) - 0.5
  assert np.std(noise) == pytest.approx(0.05, rel=0.05)
  assert abs(np.mean(noise)) < 0.002
  flat = noise.reshape(B, -1)
  assert np.all(abs(np.corrcoef(flat) - np.eye(B)) < 0.15)


def test_half_of_the_pairs_are_mirrored(pair):
  image, mask = (np.repeat(x[:1], 200, axis=0) for x in pair)
  mirrored, labels = compiled(flip=True)(keys_of(6, 200), image, mask)
  flipped = np.all(mirrored == image[:, :, ::-1], axis=(1, 2, 3))
  same = np.all(mirrored == image, axis=(1, 2, 3))
  assert np.all(flipped ^ same) and 0.4 < flipped.mean() < 0.6
  np.testing.assert_array_equal(labels[same], mask[same])
  np.testing.assert_array_equal(labels[flipped], mask[flipped][:, :, ::-1])


def test_flip_leaves_the_other_draws_alone(pair, varied):
  """The same keys give the same angles, shifts, curves and noise."""
  keys = keys_of(1)
  _, mask = compiled(**GEOMETRY, **VALUES)(keys, *pair)
  _, flipped = compiled(flip=True)(keys, *pair)
  sides = np.any(np.asarray(flipped) != pair[1], axis=(1, 2))
  assert sides.any() and not sides.all()
  image, mask = compiled(flip=True, **GEOMETRY, **VALUES)(keys, *pair)
  np.testing.assert_array_equal(mask[~sides], varied[1][~sides])
  np.testing.assert_allclose(image[~sides], varied[0][~sides], atol=1e-5)


def test_draws_have_the_bits_that_eight_had():
  """More uniforms than an earlier version drew, the first ones the same."""
  key = jax.random.key(3)
  nine, eight = (jax.random.uniform(key, (n,)) for n in (9, 8))
  np.testing.assert_array_equal(nine[:8], eight)


def test_speckle_is_relative_and_the_same_in_all_channels(pair):
  grey = np.full((B, H, W, 3), 0.5, np.float32)
  grey[:, : H // 2] = 0.1
  image, mask = compiled(speckle=0.1)(keys_of(5), grey, pair[1])
  np.testing.assert_array_equal(mask, pair[1])
  relative = np.asarray(image) / grey - 1
  assert np.std(relative[:, : H // 2]) == pytest.approx(0.1, rel=0.1)
  assert np.std(relative[:, H // 2 :]) == pytest.approx(0.1, rel=0.1)
  np.testing.assert_allclose(relative[..., 1], relative[..., 0], atol=1e-5)
  black, _ = compiled(speckle=0.1)(keys_of(5), 0 * grey, pair[1])
  assert not black.any()
