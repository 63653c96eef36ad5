"""Tests of image_metrics.py against the formulas, with explicit windows."""

import numpy as np
import pytest

from ppcmi_jax import image_metrics


def test_psnr_of_known_error_and_of_equal_images():
  truth = np.full((2, 12, 12, 3), 0.5)
  prediction = truth + np.array([0.1, 0.0])[:, None, None, None]
  values = image_metrics.psnr(prediction=prediction, truth=truth)
  assert values[0] == pytest.approx(20)
  assert values[1] == np.inf


def test_ssim_is_one_for_equal_images_and_falls_with_noise():
  rng = np.random.default_rng(0)
  truth = rng.random((3, 16, 18, 1)).astype(np.float32)
  noise = np.array([0, 0.05, 0.5])[:, None, None, None] * rng.random(
    truth.shape
  )
  prediction = np.clip(truth + noise, 0, 1)
  values = image_metrics.ssim(prediction=prediction, truth=truth)
  assert values[0] == pytest.approx(1)
  assert 1 > values[1] > values[2] > -1
  back = image_metrics.ssim(prediction=truth, truth=prediction)
  np.testing.assert_allclose(values, back)


def test_ssim_of_constant_images_is_the_luminance_term():
  # Wang et al. 2004, eq. 6, with C1 = 0.01 ** 2; contrast and structure are 1.
  a, b, c1 = 0.2, 0.6, 1e-4
  value = image_metrics.ssim(
    prediction=np.full((1, 12, 12, 1), a), truth=np.full((1, 12, 12, 1), b)
  )
  expected = (2 * a * b + c1) / (a**2 + b**2 + c1)
  assert value[0] == pytest.approx(expected)


def test_ssim_matches_the_formula_with_explicit_windows():
  rng = np.random.default_rng(1)
  a, b = rng.random((2, 11, 11))  # one window: only the centre pixel counts
  offsets = np.arange(-5, 6)
  weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
  weights /= weights.sum()
  mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
  var_a = (weights * a**2).sum() - mean_a**2
  var_b = (weights * b**2).sum() - mean_b**2
  cov = (weights * a * b).sum() - mean_a * mean_b
  expected = ((2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)) / (
    (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
  )
  value = image_metrics.ssim(
    prediction=a[None, ..., None], truth=b[None, ..., None]
  )
  assert value[0] == pytest.approx(expected)


@pytest.mark.parametrize('function', [image_metrics.psnr, image_metrics.ssim])
@pytest.mark.parametrize(
  'prediction, message',
  [
    (np.zeros((1, 12, 12)), 'must both be'),
    (np.full((1, 12, 12, 1), np.nan), 'finite'),
    (np.full((1, 12, 12, 1), 255, np.uint8), 'divide 8-bit'),
    (np.full((1, 12, 12, 1), -0.5), 'lie in'),
  ],
)
def test_bad_images_are_refused(function, prediction, message):
  with pytest.raises(ValueError, match=message):
    function(prediction=prediction, truth=np.zeros((1, 12, 12, 1)))


def test_ssim_refuses_images_below_its_window():
  image = np.zeros((1, 10, 12, 1))
  with pytest.raises(ValueError, match='at least 11'):
    image_metrics.ssim(prediction=image, truth=image)
