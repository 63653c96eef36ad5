"""Measures how far a network has to look to segment the phantoms.

  python -m ppcmi_jax.datasets.phantom_criteria

prints, for 240 training and 60 test subjects, what needs no network: the Dice
of a mean-shape prior that never looks at the image (0.476 for the symphysis,
0.623 for the head) and of the best global threshold (0.093 and 0.368). With
--out it draws some phantoms too. Axes: N images, H height, W width.
"""

from collections.abc import Sequence

import numpy as np
from absl import app, flags
from PIL import Image
from scipy import ndimage

from ppcmi_jax import metrics
from ppcmi_jax.datasets import phantom, phantom_rendering

_NUM_TRAIN = flags.DEFINE_integer(
  'num_train', 240, 'Subjects the prior is made of.', lower_bound=1
)
_NUM_TEST = flags.DEFINE_integer(
  'num_test', 60, 'Subjects that are scored.', lower_bound=1
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the phantoms.', lower_bound=0)
_OUT = flags.DEFINE_string('out', None, 'Where to write a contact sheet (PNG).')


def prior_dice(
  train_masks: np.ndarray, test_masks: np.ndarray, spacing_mm: np.ndarray
) -> list[float]:
  """Scores `metrics.fit_shape_prior` of the training masks on every test image.

  Args:
    train_masks: uint8 [M, H, W], indices into `phantom_rendering.CLASSES`.
    test_masks: uint8 [N, H, W], likewise.
    spacing_mm: [N, 2] of the test masks, row then column.

  Returns:
    The mean Dice of each class but the background.
  """
  num_classes = len(phantom_rendering.CLASSES)
  prior = metrics.fit_shape_prior(train_masks, num_classes)
  prior = np.broadcast_to(prior, test_masks.shape)
  scores = [
    metrics.segmentation_scores(
      prediction=prior == label,
      truth=test_masks == label,
      spacing_mm=spacing_mm,
    )
    for label in range(1, num_classes)
  ]
  return [metrics.mean_defined(score['dice']) for score in scores]


def threshold_dice(images: np.ndarray, masks: np.ndarray, label: int) -> float:
  """Scores the best global threshold, chosen on the scored images themselves.

  Tries every grey level in both directions, after Gaussian smoothing with a
  standard deviation of 0, 2 and 4 pixels.

  Args:
    images: [N, H, W] uint8.
    masks: [N, H, W] uint8.
    label: the class.

  Returns:
    The best mean Dice over the N images.
  """
  best = 0.0
  for sigma in (0, 2, 4):
    below = 0.0
    above = 0.0
    for image, mask in zip(images, masks == label):
      if sigma:
        image = ndimage.gaussian_filter(image.astype(np.float32), sigma)
      level = image.astype(np.uint8)
      every = np.cumsum(np.bincount(level.ravel(), minlength=256))
      hits = np.cumsum(np.bincount(level[mask], minlength=256))
      total = max(hits[-1], 1)
      below += 2 * hits / (every + total)
      above += 2 * (total - hits) / (every[-1] - every + total)
    best = max(best, np.max(below), np.max(above))
  return float(best / len(images))


def _contact_sheet(path, seed, num=4):
  """Writes `num` subjects of each site, plain above outlined, as a PNG."""
  rows = []
  for site in phantom_rendering.SITES:
    plain, outlined = [], []
    for k in range(num):
      subject = len(phantom_rendering.SITES) * k + site - 1
      image, mask, _ = phantom_rendering.render(
        seed=seed, subject=subject, site=site
      )
      rgb = np.repeat(image, 3, axis=2)
      plain.append(rgb)
      rgb = rgb.copy()
      for label, colour in ((1, (255, 80, 80)), (2, (80, 220, 255))):
        region = mask == label
        rgb[region & ~ndimage.binary_erosion(region)] = colour
      outlined.append(rgb)
    rows += [np.concatenate(plain, 1), np.concatenate(outlined, 1)]
  Image.fromarray(np.concatenate(rows)).save(path)


def main(argv: Sequence[str]) -> None:
  """Prints the mean-shape prior and the thresholds of each class."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  num_train, num_test = _NUM_TRAIN.value, _NUM_TEST.value
  cases = [
    phantom_rendering.render(
      seed=_SEED.value, subject=i, site=phantom.site_of(i)
    )
    for i in range(num_train + num_test)
  ]
  images, masks, spacing_mm = (np.stack(values) for values in zip(*cases))
  images, test = images[num_train:, ..., 0], masks[num_train:]
  priors = prior_dice(masks[:num_train], test, spacing_mm[num_train:])
  print(f'{num_train} training and {num_test} test subjects')
  for label, prior in enumerate(priors, start=1):
    threshold = threshold_dice(images, test, label)
    print(
      f'{phantom_rendering.CLASSES[label]}: '
      f'share of pixels {np.mean(test == label):.3f}, '
      f'mean-shape prior Dice {prior:.3f}, best threshold {threshold:.3f}'
    )
  if _OUT.value:
    _contact_sheet(_OUT.value, _SEED.value)


if __name__ == '__main__':
  app.run(main)
