"""Tests of images.py: what becomes a grey value, and geometry shared."""

import jax.numpy as jnp
import numpy as np
import pytest

from ppcmi_jax import images


def test_uint8_is_scaled_and_floats_are_kept():
  scaled = images.unit_image(np.array([0, 51, 255], np.uint8))
  np.testing.assert_allclose(scaled, [0, 0.2, 1], rtol=1e-6)
  np.testing.assert_array_equal(images.unit_image(jnp.array([0.25])), [0.25])
  assert images.unit_image(jnp.array([0.5], jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize('dtype', [np.int16, np.int32, np.bool_])
def test_other_dtypes_are_refused(dtype):
  with pytest.raises(ValueError, match='window and scale'):
    images.unit_image(np.zeros(3, dtype))


def test_a_window_is_linear_and_clipped():
  hu = np.array([-32768, -1000, -160, 40, 240, 241, 32767], np.int16)
  found = images.grey_levels(hu, (-160, 240))
  np.testing.assert_allclose(found, [0, 0, 0, 127.5, 255, 255, 255])
  assert found.dtype == np.float32


def test_floats_lose_half_a_level_at_most():
  image = np.linspace(0, 1, 1001, dtype=np.float32).reshape(7, 143, 1)
  found = np.rint(images.grey_levels(image)) / 255
  assert np.max(abs(found - image)) <= 1 / 510 + 1e-6
  error = np.sqrt(np.mean((found - image) ** 2))
  assert error == pytest.approx(0.0011, abs=1e-4)  # 59 dB


@pytest.mark.parametrize(
  'image, expected',
  [
    (np.zeros((2, 2, 1), np.int16), r'int16 \(HU\) need one, found none; set'),
    (np.full((2, 2, 1), 1.1), r'float in \[0, 1\], found 1.1 to 1.1; scale'),
    (np.full((2, 2, 1), -1e-3), 'found -0.001 to -0.001'),
    (np.array([0.5, np.nan]), 'found nan to nan'),
    (np.zeros((2, 2, 1), np.int32), 'found int32'),
    (np.zeros((2, 2, 1), bool), 'found bool'),
  ],
)
def test_other_grey_values_are_refused(image, expected):
  with pytest.raises(ValueError, match=expected) as error:
    images.grey_levels(image)
  assert '\n' not in str(error.value)


def test_windows_are_applied_before_pixels_are_averaged():
  """Of half air and half bone, the mean of the greys, not of the HU."""
  case = case_of(np.zeros((4, 4)))
  case['image'] = np.full((4, 4, 1), -1000, np.int16)
  case['image'][:, 1::2] = 3000
  found = images.fit(case, 2, (0, 100))
  np.testing.assert_array_equal(found['image'], 128)
  with pytest.raises(ValueError, match='need one'):
    images.fit(case, 2)


def areas(plane, height, width):
  """Area averages by brute force: on a grid that both sizes divide."""
  big = np.kron(plane, np.ones((height, width)))
  shape = (height, plane.shape[0], width, plane.shape[1])
  return big.reshape(shape).mean((1, 3))


@pytest.mark.parametrize('shape, new', [((6, 9), (4, 5)), ((7, 4), (3, 4))])
def test_smaller_images_are_averages_over_areas(shape, new):
  plane = np.random.default_rng(0).uniform(0, 255, shape)
  found = images.resize_image(np.float32(plane)[..., None], *new)
  np.testing.assert_allclose(found[..., 0], areas(plane, *new), rtol=1e-5)


def test_larger_images_are_linear_between_centres():
  ramp = np.float32(np.arange(5))[:, None, None] * np.ones((1, 3, 2), 'f')
  found = images.resize_image(ramp, 10, 3)
  expected = np.clip((np.arange(10) + 0.5) / 2 - 0.5, 0, 4)
  np.testing.assert_allclose(found[:, 1, 1], expected, atol=1e-6)


def test_masks_take_the_class_of_most_of_the_area():
  mask = np.random.default_rng(0).choice(
    np.array([0, 2, 5], np.uint8), (14, 9), p=[0.5, 0.3, 0.2]
  )
  found = images.resize_mask(mask, 5, 4)
  share = np.stack([areas(mask == k, 5, 4) for k in (5, 2, 0)])  # rarest first
  expected = np.array([5, 2, 0])[np.argmax(np.round(share, 4), axis=0)]
  np.testing.assert_array_equal(found, expected)
  assert found.dtype == np.uint8


def test_ties_go_to_the_rarer_class():
  mask = np.zeros((8, 8), np.uint8)
  mask[1:3, 2:4] = 1  # half of each of two pixels
  expected = np.zeros((4, 4))
  expected[0:2, 1] = 1
  np.testing.assert_array_equal(images.resize_mask(mask, 4, 4), expected)
  np.testing.assert_array_equal(
    images.resize_mask(1 - mask, 4, 4), 1 - expected
  )


def centroid(plane):
  grid = np.indices(plane.shape) + 0.5
  return np.array([np.sum(g * plane) / np.sum(plane) for g in grid])


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize(
  'shape, size',
  [
    ((96, 80), 48),
    ((96, 80), 32),
    ((96, 80), 64),
    ((420, 580), 256),
    ((64, 48), 160),
  ],
  ids=['factor 2', 'factor 3', 'factor 1.5', '580x420', 'enlarged'],
)
def test_image_and_mask_have_the_same_centroid(shape, size, seed):
  """A pear, whose edge crosses pixels everywhere (straight ones would snap)."""
  rng = np.random.default_rng(seed)
  y, x = (np.indices(shape) + 0.5) / np.array(shape)[:, None, None]
  (a, b), c = rng.uniform(0.3, 0.4, 2), rng.uniform(0, 0.1)
  belly = np.hypot(y - a, x - b) < 0.23
  tip = np.hypot((y - a - 0.25 - c) / 0.8, x - b - 0.2) < 0.15
  mask = np.uint8(belly | tip)
  case = case_of(mask)
  case['image'] = 255 * mask[..., None]
  found = images.fit(case, size)
  image_at = centroid(np.float64(found['image'][..., 0]))
  mask_at = centroid(found['mask'])
  assert np.all(abs(image_at - mask_at) < 0.1 * max(1, size / max(shape)))
  # And both lie where the shape lies.
  scale = size / max(shape)
  sides = np.round(np.array(shape) * scale)
  expected = centroid(mask) * sides / shape + (size - sides) // 2
  assert np.all(abs(image_at - expected) < 0.02 * max(1, scale))


def case_of(mask, spacing_mm=(1.0, 1.0), channels=1):
  return {
    'image': np.repeat(np.uint8(50 * mask)[..., None], channels, -1),
    'mask': np.uint8(mask),
    'spacing_mm': np.float32(spacing_mm),
    'subject': b's1',
    'site': 'Zürich'.encode(),
    'case': b's1-07',
    'position': np.int32(7),
  }


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
  'shape, size', [((40, 24), 20), ((24, 40), 10), ((8, 8), 32), ((20, 4), 20)]
)
def test_image_and_mask_are_fitted_alike(shape, size, channels):
  blocks = np.random.default_rng(0).integers(
    0, 4, (shape[0] // 4, shape[1] // 4)
  )
  mask = np.kron(blocks, np.ones((4, 4), int))
  found = images.fit(case_of(mask, channels=channels), size)
  assert found['image'].shape == (size, size, channels)
  assert found['mask'].shape == (size, size)
  assert found['image'].dtype == found['mask'].dtype == np.uint8
  if size <= max(shape):  # whole blocks become whole pixels
    for c in range(channels):
      np.testing.assert_array_equal(found['image'][..., c], 50 * found['mask'])
  # Every class keeps its share of the image's area.
  area = (size / max(shape)) ** 2
  for k in range(1, 4):
    assert np.sum(found['mask'] == k) == area * np.sum(mask == k)


@pytest.mark.parametrize(
  'shape, size, height, width',
  [
    ((40, 20), 10, 10, 5),
    ((20, 40), 10, 5, 10),
    ((30, 30), 7, 7, 7),
    ((58, 42), 16, 16, 12),
    ((5, 3), 20, 20, 12),
    ((100, 1), 10, 10, 1),
    ((64, 32), 64, 64, 32),
  ],
)
def test_the_aspect_is_kept_and_the_padding_centred(shape, size, height, width):
  case = case_of(np.ones(shape))
  found = images.fit(case, size)
  top, left = (size - height) // 2, (size - width) // 2
  expected = np.zeros((size, size), np.uint8)
  expected[top : top + height, left : left + width] = 1
  np.testing.assert_array_equal(found['mask'], expected)
  np.testing.assert_array_equal(found['image'][..., 0], 50 * expected)


@pytest.mark.parametrize('size', [7, 16, 50])
def test_fitting_makes_up_no_classes(size):
  mask = np.random.default_rng(0).choice([0, 3], (37, 29))
  found = images.fit(case_of(mask), size)
  assert set(np.unique(found['mask'])) == {0, 3}


@pytest.mark.parametrize(
  'shape, size, expected_mm',
  [
    ((40, 20), 10, (2.0, 8.0)),
    ((20, 20), 40, (0.25, 1.0)),
    ((20, 20), 20, (0.5, 2.0)),
    ((58, 42), 16, (0.5 * 58 / 16, 2.0 * 42 / 12)),  # 42 fit into 11.6: 12
  ],
)
def test_spacing_keeps_the_physical_size(shape, size, expected_mm):
  case = case_of(np.ones(shape), spacing_mm=(0.5, 2.0))
  found = images.fit(case, size)
  assert found['spacing_mm'].dtype == np.float32
  np.testing.assert_allclose(found['spacing_mm'], expected_mm, rtol=1e-6)


def test_fitting_keeps_names_and_the_case_itself():
  case = case_of(np.ones((4, 4)))
  found = images.fit(case, 8)
  assert (found['subject'], found['case']) == ('s1', 's1-07')
  assert (found['site'], found['position']) == ('Zürich', 7)
  assert case['mask'].shape == (4, 4) and case['site'] == 'Zürich'.encode()
