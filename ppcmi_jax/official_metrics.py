"""Scores as the official code defines them, defects included: for parity only.

A number from here may stand beside a published one, never beside one of
`metrics`. What the official code is known to do is repeated:

* distances are in pixels, whatever the size of a pixel;
* where one of two masks is empty the distance is infinite, and what is
  infinite is left out of the mean: a missed structure improves HD95 and ASD;
* cases with an empty mask are left out before anything is scored, so that
  structures drawn where there are none cost nothing.

Dice has the smoothing of the training loss, (2 TP + eps) / (2 TP + FP + FN +
eps), so that two empty masks of a class agree (Dice 1).
What is not known of it is as in `metrics`: IoU, sensitivity and
specificity without smoothing, pixels with a 4-neighbour outside as surface,
the larger of two directed percentiles, a mean over both directions.

Axes: N cases, H height, W width.

>>> truth = np.zeros([2, 8, 8], bool)
>>> truth[:, 2:6, 2:6] = True
>>> missed_one = truth & np.array([True, False])[:, None, None]
>>> segmentation_scores(prediction=missed_one, truth=truth)['hd95_px']
array([ 0., nan])
"""

import numpy as np
from numpy.typing import ArrayLike

from ppcmi_jax import metrics

MEANS = ('dice', 'iou', 'sensitivity', 'specificity', 'hd95_px', 'asd_px')
EPS = 1e-6


def segmentation_scores(
  *, prediction: ArrayLike, truth: ArrayLike
) -> dict[str, np.ndarray]:
  """Scores the masks of one class, case by case (module docstring).

  Args:
    prediction: bool [N, H, W].
    truth: bool [N, H, W].

  Returns:
    float64 [N] of each of `MEANS`, NaN where undefined or, in the official
    code, infinite: both stay out of `metrics.summarize`'s means. And bool [N]
    of each of `metrics.FLAGS`.

  Raises:
    ValueError: as `metrics.segmentation_scores`.
  """
  prediction, truth = np.asarray(prediction), np.asarray(truth)
  scores = metrics.segmentation_scores(
    prediction=prediction,
    truth=truth,
    spacing_mm=np.ones((len(truth) if truth.ndim else 0, 2)),
  )
  pixels = (1, 2)
  overlap = np.sum(prediction & truth, axis=pixels, dtype=np.float64)
  total = np.sum(prediction, axis=pixels) + np.sum(truth, axis=pixels)
  infinite = scores['missed'] | scores['spurious']
  return {
    'dice': (2 * overlap + EPS) / (total + EPS),
    **{name: scores[name] for name in ('iou', 'sensitivity', 'specificity')},
    'hd95_px': np.where(infinite, np.nan, scores['hd95_mm']),
    'asd_px': np.where(infinite, np.nan, scores['asd_mm']),
    **{name: scores[name] for name in metrics.FLAGS},
  }


def scored_cases(mask: ArrayLike) -> np.ndarray:
  """Returns which cases the official code scores: bool [N].

  Args:
    mask: integer [N, H, W], the true labels, 0 background; a case that holds
      nothing else is left out.
  """
  return np.any(np.asarray(mask) != 0, axis=(1, 2))
