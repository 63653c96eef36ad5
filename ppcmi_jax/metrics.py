"""Scores of segmentations: overlap, surface distance, the prior to beat.

Every function scores cases one by one (a NumPy array [N]); `summarize`
reduces last. What a score means where a class is empty is a policy, and a
missed structure must never improve a mean:

| case     | truth | prediction | dice, iou, nsd | sensitivity | hd95, asd mm |
|----------|-------|------------|----------------|-------------|--------------|
| usual    | some  | some       | formula        | formula     | formula      |
| missed   | some  | none       | 0              | 0           | diagonal     |
| spurious | none  | some       | 0              | NaN         | diagonal     |
| empty    | none  | none       | NaN            | NaN         | NaN          |

NaN stands for undefined, and means are over the defined cases. The diagonal is
that of the field of view in mm, hypot(H * row, W * column), larger than any
distance inside the image. Specificity is always its formula, TN / (TN + FP),
and undefined only where the truth fills the image. Where the size of a pixel
is unknown, a spacing of 1 makes every mm below a pixel.

Axes: N cases, H height, W width.

>>> truth = np.zeros([1, 8, 8], bool)
>>> truth[:, 2:6, 2:6] = True
>>> prediction = np.roll(truth, 2, axis=2)
>>> scores = segmentation_scores(
...   prediction=prediction, truth=truth, spacing_mm=np.array([[1.0, 3.0]])
... )
>>> float(scores['dice'][0]), float(scores['hd95_mm'][0])
(0.5, 6.0)
>>> summarize(scores)['n']
1
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

MEANS = (
  'dice',
  'iou',
  'sensitivity',
  'specificity',
  'hd95_mm',
  'asd_mm',
  'nsd',
)
FLAGS = ('missed', 'spurious', 'empty')
TOLERANCE_MM = 2.0


def segmentation_scores(
  *,
  prediction: ArrayLike,
  truth: ArrayLike,
  spacing_mm: ArrayLike,
  tolerance_mm: float = TOLERANCE_MM,
) -> dict[str, np.ndarray]:
  """Scores the masks of one class, case by case.

  With TP, FP, FN, TN in pixels: dice = 2 TP / (2 TP + FP + FN), iou = TP /
  (TP + FP + FN), sensitivity = TP / (TP + FN), specificity = TN / (TN + FP).
  A mask's surface is its pixels with one of the four neighbours outside the
  mask (beyond the border is outside); distances run between pixel centres.
  hd95_mm is the larger of the two directed 95th percentiles, asd_mm the mean
  of the distances of both directions together. nsd is the normalised surface
  Dice (Nikolov et al., 2018) with surface pixels, all of one weight, for
  surface elements: of the pixels of both surfaces, the share no farther than
  `tolerance_mm` from the other surface.

  Args:
    prediction: bool [N, H, W].
    truth: bool [N, H, W].
    spacing_mm: [N, 2], size of a pixel in mm, row then column.
    tolerance_mm: of nsd; a distance equal to it, up to one part in a million
      (the spacing's rounding), is within. 0 asks for the same pixels.

  Returns:
    float64 [N] of each of `MEANS`, NaN where undefined, and bool [N] of each
    of `FLAGS`; the module's table says which case is which.

  Raises:
    ValueError: shapes differ, masks are not bool, a spacing is not above 0, a
      tolerance is below 0.
  """
  prediction, truth = np.asarray(prediction), np.asarray(truth)
  spacing_mm = np.asarray(spacing_mm, np.float64)
  for name, mask in (('prediction', prediction), ('truth', truth)):
    if mask.dtype != bool:
      raise ValueError(
        f'{name} must be bool (one class), found {mask.dtype}; '
        'compare labels with the class first'
      )
  if prediction.shape != truth.shape or truth.ndim != 3:
    raise ValueError(
      'prediction and truth must both be [N, H, W], found '
      f'{list(prediction.shape)} and {list(truth.shape)}'
    )
  n, height, width = truth.shape
  if spacing_mm.shape != (n, 2):
    raise ValueError(
      f'spacing_mm must be [N, 2] = {[n, 2]} (row, column), found '
      f'{list(spacing_mm.shape)}'
    )
  if not np.all(np.isfinite(spacing_mm) & (spacing_mm > 0)):
    bad = spacing_mm[~np.isfinite(spacing_mm) | (spacing_mm <= 0)][0]
    raise ValueError(
      f'spacing_mm must be finite and above 0, found {bad}; '
      'use 1.0 where the pixel size is unknown'
    )
  if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
    raise ValueError(
      f'tolerance_mm must be finite and at least 0, found {tolerance_mm}; '
      'give the error in mm that does not matter'
    )

  pixels = (1, 2)
  tp = np.sum(prediction & truth, axis=pixels, dtype=np.float64)
  fp = np.sum(prediction & ~truth, axis=pixels, dtype=np.float64)
  fn = np.sum(~prediction & truth, axis=pixels, dtype=np.float64)
  tn = height * width - tp - fp - fn
  in_truth, in_prediction = tp + fn > 0, tp + fp > 0

  hd95_mm, asd_mm, nsd = np.full((3, n), np.nan)
  one_empty = in_truth ^ in_prediction
  nsd[one_empty] = 0
  diagonal_mm = np.linalg.norm(spacing_mm * [height, width], axis=1)
  hd95_mm[one_empty] = asd_mm[one_empty] = diagonal_mm[one_empty]
  for i in np.flatnonzero(in_truth & in_prediction):
    there, back = _surface_distances(prediction[i], truth[i], spacing_mm[i])
    hd95_mm[i] = max(np.percentile(there, 95), np.percentile(back, 95))
    both = np.concatenate([there, back])
    asd_mm[i] = np.mean(both)
    nsd[i] = np.mean(both <= tolerance_mm * (1 + 1e-6))

  return {
    'dice': _ratio(2 * tp, 2 * tp + fp + fn),
    'iou': _ratio(tp, tp + fp + fn),
    'sensitivity': _ratio(tp, tp + fn),
    'specificity': _ratio(tn, tn + fp),
    'hd95_mm': hd95_mm,
    'asd_mm': asd_mm,
    'nsd': nsd,
    'missed': in_truth & ~in_prediction,
    'spurious': ~in_truth & in_prediction,
    'empty': ~in_truth & ~in_prediction,
  }


def summarize(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Reduces the scores of one class over its cases.

  Args:
    scores: what `segmentation_scores` returns, arrays [N].

  Returns:
    The mean of each score over the cases that define it (NaN where none does,
    as for a class that is nowhere), 'std' with the standard deviation of each
    over the same cases (NaN for fewer than two), and the counts: 'n' of cases
    that define dice, 'n_missed', 'n_spurious', 'n_empty'. n + n_empty is N.
  """
  names = [name for name in scores if name not in FLAGS]
  summary = {name: mean_defined(scores[name]) for name in names}
  summary['std'] = {name: std_defined(scores[name]) for name in names}
  summary['n'] = int(np.sum(np.isfinite(scores['dice'])))
  for name in FLAGS:
    summary[f'n_{name}'] = int(np.sum(scores[name]))
  return summary


def mean_defined(values: ArrayLike) -> float:
  """Averages `values` [N] where they are not NaN; NaN where all are."""
  values = np.asarray(values, np.float64)
  values = values[~np.isnan(values)]
  return float(np.mean(values)) if values.size else float('nan')


def std_defined(values: ArrayLike) -> float:
  """Returns the sample standard deviation (n - 1) of `values` that are not NaN.

  NaN for fewer than two: one case says nothing of the spread.
  """
  values = np.asarray(values, np.float64)
  values = values[~np.isnan(values)]
  return float(np.std(values, ddof=1)) if values.size > 1 else float('nan')


def fit_shape_prior(masks: ArrayLike, num_classes: int) -> np.ndarray:
  """Fits the mean-shape prior: the constant mask a blind predictor would draw.

  Per class, the mean of the masks that contain it is cut at the level that
  maximises their mean Dice (every distinct level is tried); where classes
  overlap, the one with the larger mean relative to its level wins. A score
  says something about an image only as far as it beats this prior.

  Args:
    masks: integer [N, H, W], labels 0 (background) to num_classes - 1, of the
      training set. A class in none of them is never predicted.
    num_classes: classes, background included.

  Returns:
    uint8 [H, W], the prior's labels.

  Raises:
    ValueError: no masks, not integers, or a label is out of range.
  """
  masks = np.asarray(masks)
  check_labels(masks, num_classes=num_classes, name='masks')
  if not len(masks):
    raise ValueError('masks must hold at least one training mask, found none')
  prior = np.zeros(masks.shape[1:], np.uint8)
  best = np.ones(masks.shape[1:])
  for label in range(1, num_classes):
    inside = masks == label
    inside = inside[np.any(inside, axis=(1, 2))]
    if not len(inside):
      continue
    counts = np.sum(inside, axis=0)  # the mean, in units of 1 / len(inside)
    strength = counts / _best_level(inside, counts)
    # `best` starts at 1, so a pixel below the level stays background.
    wins = (strength > best) | ((prior == 0) & (strength >= 1))
    prior[wins], best[wins] = label, strength[wins]
  return prior


def check_labels(labels: np.ndarray, *, num_classes: int, name: str) -> None:
  """Raises a ValueError unless `labels` is integer [N, H, W] of the classes."""
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f'{name} must hold integer labels, found {labels.dtype}; '
      'take the argmax of logits first'
    )
  if labels.ndim != 3:
    raise ValueError(f'{name} must be [N, H, W], found {list(labels.shape)}')
  if not 2 <= num_classes <= 256:
    raise ValueError(f'num_classes must be 2 to 256, found {num_classes}')
  if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
    raise ValueError(
      f'{name} must hold labels 0 to {num_classes - 1}, found '
      f'{labels.min()} to {labels.max()}; check the class list'
    )


def _best_level(inside: np.ndarray, counts: np.ndarray) -> int:
  """Returns the t for which counts >= t has the best mean Dice; t >= 1."""
  num_levels = len(inside) + 1
  total = np.zeros(num_levels)
  # Pixels at level t and above, of all pixels and of each mask's own.
  above = np.cumsum(np.bincount(counts.ravel(), minlength=num_levels)[::-1])
  above = above[::-1]
  for mask in inside:
    hits = np.bincount(counts[mask], minlength=num_levels)[::-1]
    hits = np.cumsum(hits)[::-1]
    total += 2 * hits / (above + hits[0])
  return 1 + int(np.argmax(total[1:]))


def _surface_distances(
  a: np.ndarray, b: np.ndarray, spacing_mm: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the distances from a's surface to b's and from b's to a's."""
  # Cropping to both masks changes no distance and saves most of the work.
  rows, columns = ndimage.find_objects((a | b).astype(np.uint8))[0]
  a, b = _surface(a[rows, columns]), _surface(b[rows, columns])
  to_a = ndimage.distance_transform_edt(~a, sampling=spacing_mm)
  to_b = ndimage.distance_transform_edt(~b, sampling=spacing_mm)
  return to_b[a], to_a[b]


def _surface(mask: np.ndarray) -> np.ndarray:
  """Marks the pixels of a mask that have a 4-neighbour outside it."""
  return mask & ~ndimage.binary_erosion(mask)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
  """Divides, with NaN where the denominator is zero."""
  undefined = np.full(numerator.shape, np.nan)
  return np.divide(numerator, denominator, out=undefined, where=denominator > 0)
