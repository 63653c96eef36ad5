"""Tests of official_metrics.py: what it repeats, and what that gives away."""

import numpy as np
import pytest

from ppcmi_jax import metrics, official_metrics


def square(top, left, size=4, shape=(16, 20)):
  mask = np.zeros((1, *shape), bool)
  mask[0, top : top + size, left : left + size] = True
  return mask


SOME, NONE = square(2, 2), np.zeros((1, 16, 20), bool)


def summarize(prediction, truth):
  scores = official_metrics.segmentation_scores(
    prediction=np.concatenate(prediction), truth=np.concatenate(truth)
  )
  return metrics.summarize(scores)


def test_dropping_a_poor_structure_improves_the_distances():
  """The defect, repeated; the default's mean gets worse (metrics_test.py)."""
  poor = summarize([SOME, square(10, 14)], [SOME, SOME])
  gone = summarize([SOME, NONE], [SOME, SOME])
  assert gone['hd95_px'] == 0 < poor['hd95_px']
  assert gone['asd_px'] == 0 < poor['asd_px']
  assert gone['n_missed'] == 1 and gone['n'] == 2


def test_distances_are_in_pixels_and_as_the_default_otherwise():
  a, b = square(2, 3), square(5, 9, 5)
  official = official_metrics.segmentation_scores(prediction=a, truth=b)
  default = metrics.segmentation_scores(
    prediction=a, truth=b, spacing_mm=[[1, 1]]
  )
  assert official.keys() == {*official_metrics.MEANS, *metrics.FLAGS}
  for name in official:
    expected = default[name.replace('_px', '_mm')]
    np.testing.assert_allclose(official[name], expected, atol=1e-7)


def test_smoothed_dice_by_hand():
  scores = official_metrics.segmentation_scores(
    prediction=np.concatenate([NONE, NONE, SOME, square(2, 4)]),
    truth=np.concatenate([NONE, SOME, NONE, SOME]),
  )
  eps = 1e-6
  expected = [1, eps / (16 + eps), eps / (16 + eps), (16 + eps) / (32 + eps)]
  np.testing.assert_allclose(scores['dice'], expected, rtol=1e-12)
  assert np.isnan(scores['hd95_px'][:3]).all()


def test_cases_with_an_empty_mask_are_not_scored():
  mask = np.zeros((3, 4, 4), np.uint8)
  mask[1, 0, 0] = 2
  assert official_metrics.scored_cases(mask).tolist() == [False, True, False]


@pytest.mark.parametrize(
  'prediction, truth, message',
  [
    (NONE.astype(int), NONE, 'prediction must be bool'),
    (NONE, NONE[:, :8], 'must both be'),
    (NONE[0], NONE[0], 'must both be'),
  ],
)
def test_bad_masks_are_refused(prediction, truth, message):
  with pytest.raises(ValueError, match=message):
    official_metrics.segmentation_scores(prediction=prediction, truth=truth)
