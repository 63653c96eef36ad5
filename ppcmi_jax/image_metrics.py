"""Scores of images against the images they should be: PSNR and SSIM.

Every function scores images one by one (a NumPy array [N]); the caller
reduces. Axes: N images, H height, W width, C channels.

>>> truth = np.full([2, 16, 16, 1], 0.5)
>>> psnr(prediction=truth + 0.1, truth=truth).round(6).tolist()
[20.0, 20.0]
"""

import numpy as np
import skimage.metrics
from numpy.typing import ArrayLike

# Window of Wang et al. 2004: 11 x 11 Gaussian weights of sigma 1.5.
SSIM_SIGMA = 1.5
SSIM_WINDOW = 11


def psnr(*, prediction: ArrayLike, truth: ArrayLike) -> np.ndarray:
  """Computes the peak signal-to-noise ratio of each image in dB.

  10 log10(1 / MSE), the MSE over all pixels and channels of the image.

  Args:
    prediction: float [N, H, W, C] in [0, 1].
    truth: float [N, H, W, C] in [0, 1].

  Returns:
    float64 [N] in dB, infinite where the images are equal.

  Raises:
    ValueError: shapes differ, or values are not finite or not in [0, 1].
  """
  prediction, truth = _check_images(prediction, truth)
  mse = np.mean(np.square(prediction - truth), axis=(1, 2, 3))
  with np.errstate(divide='ignore'):
    return -10 * np.log10(mse)


def ssim(*, prediction: ArrayLike, truth: ArrayLike) -> np.ndarray:
  """Computes the structural similarity of each image.

  Wang et al. 2004 (IEEE TIP 13:4): Gaussian window of sigma 1.5, population
  covariances, K1 = 0.01, K2 = 0.03, mean over pixels and channels.

  Args:
    prediction: float [N, H, W, C] in [0, 1], H and W at least 11.
    truth: float [N, H, W, C] in [0, 1].

  Returns:
    float64 [N] in [-1, 1], 1 where the images are equal.

  Raises:
    ValueError: shapes differ, images are smaller than the window, or values
      are not finite or not in [0, 1].
  """
  prediction, truth = _check_images(prediction, truth)
  if min(truth.shape[1:3]) < SSIM_WINDOW:
    raise ValueError(
      f'ssim needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, '
      f'found {truth.shape[1]} x {truth.shape[2]}'
    )
  values = [
    skimage.metrics.structural_similarity(
      a,
      b,
      data_range=1.0,
      channel_axis=-1,
      gaussian_weights=True,
      sigma=SSIM_SIGMA,
      use_sample_covariance=False,
    )
    for a, b in zip(prediction, truth)
  ]
  return np.asarray(values, np.float64)


def check_unit_range(image: np.ndarray, *, name: str) -> None:
  """Raises a ValueError unless all of `image` is finite and in [0, 1]."""
  rounding = 1e-4
  if not np.all(np.isfinite(image)):
    raise ValueError(f'{name} must be finite, found NaN or infinity')
  if image.size and (image.min() < -rounding or image.max() > 1 + rounding):
    raise ValueError(
      f'{name} must lie in [0, 1], found {image.min():g} to '
      f'{image.max():g}; divide 8-bit images by 255'
    )


def _check_images(
  prediction: ArrayLike, truth: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
  """Returns both as float64 [N, H, W, C], checked to be in [0, 1]."""
  prediction = np.asarray(prediction, np.float64)
  truth = np.asarray(truth, np.float64)
  if prediction.shape != truth.shape or truth.ndim != 4:
    raise ValueError(
      'prediction and truth must both be [N, H, W, C], found '
      f'{list(prediction.shape)} and {list(truth.shape)}'
    )
  check_unit_range(prediction, name='prediction')
  check_unit_range(truth, name='truth')
  return prediction, truth
