"""Tests of metrics.py: hand-computed shapes, brute force, published code."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial import distance

from ppcmi_jax import metrics

SPACING = np.array([[1.0, 1.0]])


def square(top, left, size=4, shape=(16, 20)):
  mask = np.zeros((1, *shape), bool)
  mask[0, top : top + size, left : left + size] = True
  return mask


def score(prediction, truth, spacing_mm=SPACING, **options):
  scores = metrics.segmentation_scores(
    prediction=prediction, truth=truth, spacing_mm=spacing_mm, **options
  )
  return {name: values[0].item() for name, values in scores.items()}


def brute_force(prediction, truth, spacing_mm, tolerance_mm=2.0):
  """HD95, ASD, NSD of all distances of surface pixels, found by neighbours."""

  def surface(mask):
    points = []
    for y, x in np.argwhere(mask):
      around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
      if any(
        not (0 <= v < mask.shape[0] and 0 <= u < mask.shape[1])
        or not mask[v, u]
        for v, u in around
      ):
        points.append((y * spacing_mm[0], x * spacing_mm[1]))
    return np.array(points)

  between = distance.cdist(surface(prediction), surface(truth))
  there, back = between.min(axis=1), between.min(axis=0)
  hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
  num = len(there) + len(back)
  tolerance_mm *= 1 + 1e-6  # two ways to round a distance of 2 mm
  within = np.sum(there <= tolerance_mm) + np.sum(back <= tolerance_mm)
  return hd95, (there.sum() + back.sum()) / num, within / num


def test_overlap_of_shifted_squares():
  scores = score(square(2, 4), square(2, 2))  # 8 of 16 pixels shared
  assert scores['dice'] == 0.5
  assert scores['iou'] == pytest.approx(8 / 24)
  assert scores['sensitivity'] == 0.5
  assert scores['specificity'] == pytest.approx((320 - 24) / (320 - 16))
  assert not scores['missed'] and not scores['spurious'] and not scores['empty']


@pytest.mark.parametrize(
  'offset, spacing, expected_mm',
  [((0, 6), (1, 1), 6), ((0, 6), (1, 2.5), 15), ((6, 0), (0.5, 9), 3)],
)
def test_distances_follow_offset_and_spacing(offset, spacing, expected_mm):
  a = np.zeros((1, 16, 20), bool)
  a[0, 5, 5] = True
  b = np.roll(a, offset, axis=(1, 2))
  scores = score(a, b, np.array([spacing]))
  assert scores['hd95_mm'] == pytest.approx(expected_mm)
  assert scores['asd_mm'] == pytest.approx(expected_mm)


def test_asd_of_nested_squares_by_hand():
  # 1 x 1 inside 3 x 3: the ring lies 1 (four sides) or sqrt(2) (corners) away.
  scores = score(square(4, 4, 1), square(3, 3, 3))
  expected = (1 + 4 * 1 + 4 * np.sqrt(2)) / 9
  assert scores['asd_mm'] == pytest.approx(expected)
  assert scores['hd95_mm'] == pytest.approx(np.sqrt(2))


def test_hd95_ignores_one_far_pixel_in_fifty():
  truth = np.zeros((1, 8, 60), bool)
  truth[0, 4, 2:42] = True
  prediction = truth.copy()
  prediction[0, 4, 57] = True
  assert score(prediction, truth)['hd95_mm'] == 0
  assert score(prediction, truth)['asd_mm'] == pytest.approx(16 / 81)


@pytest.mark.parametrize(
  'tolerance_mm, expected',
  [(0, 2), (0.99, 2), (1, 4), (1.42, 6), (2, 7), (2.24, 9)],
)
def test_nsd_of_a_dot_on_a_ring_by_hand(tolerance_mm, expected):
  """Nine surface pixels: the dot's, at 0, and eight of the ring.

  Those lie 0, 1, 1 (in the dot's row), sqrt(2) twice (middle row), 2 and
  sqrt(5) twice (far row) from the dot.
  """
  ring, dot = square(3, 3, 3), square(3, 4, 1)
  found = score(dot, ring, tolerance_mm=tolerance_mm)['nsd']
  assert found == pytest.approx(expected / 9)


def test_nsd_tolerance_is_in_mm_and_survives_the_rounding_of_spacing():
  a, b = square(5, 2, 1), square(5, 12, 1)  # ten columns apart
  spacing_mm = np.array([[9, 0.2]], np.float32)
  assert float(spacing_mm[0, 1]) * 10 > 2
  assert score(a, b, spacing_mm)['nsd'] == 1
  assert score(a, b, spacing_mm, tolerance_mm=1.99)['nsd'] == 0


@pytest.mark.parametrize('seed', range(8))
def test_scores_agree_with_medpy(seed):
  """MedPy 0.5.2 (Maier et al.), where the definitions are the same.

  Both take the pixels with a 4-neighbour outside as surface (medpy's
  connectivity 1, its default; its connectivity 2 counts diagonal neighbours
  too and so finds thicker surfaces) and pixels at the border of the image as
  surface. asd_mm is medpy's assd, the mean of both directions together; its
  asd is one direction. medpy's hd95 is the percentile of both directions
  together, here it is the larger of the two directed percentiles, which a
  large surface near the truth can't hide; the distances are the same. Where
  one mask is empty medpy raises, and where both are, its Dice is 0.
  """
  binary = pytest.importorskip('medpy.metric.binary')
  rng = np.random.default_rng(seed)
  noise = rng.standard_normal((2, 24, 20))
  a, b = ndimage.gaussian_filter(noise, (0, 2, 2)) > 0.02
  spacing = rng.uniform(0.3, 3, 2)
  found = score(a[None], b[None], spacing[None])
  assert found['dice'] == pytest.approx(binary.dc(a, b))
  assert found['iou'] == pytest.approx(binary.jc(a, b))
  assert found['sensitivity'] == pytest.approx(binary.sensitivity(a, b))
  assert found['specificity'] == pytest.approx(binary.specificity(a, b))
  assert found['asd_mm'] == pytest.approx(binary.assd(a, b, spacing))
  distances = getattr(binary, '__surface_distances')
  there, back = distances(a, b, spacing), distances(b, a, spacing)
  expected = max(np.percentile(there, 95), np.percentile(back, 95))
  assert found['hd95_mm'] == pytest.approx(expected)
  both = np.concatenate([there, back])
  assert binary.hd95(a, b, spacing) == pytest.approx(np.percentile(both, 95))
  assert found['nsd'] == pytest.approx(np.mean(both <= 2))


def test_whole_image_has_its_border_as_surface():
  full = np.ones((1, 9, 9), bool)
  centre = square(4, 4, 1, (9, 9))
  scores = score(full, centre)
  assert scores['hd95_mm'] == pytest.approx(np.sqrt(32), abs=0.3)
  assert scores['specificity'] == 0
  assert np.isnan(score(centre, full)['specificity'])


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
  pair=hnp.arrays(bool, (2, 7, 6)),
  spacing=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)),
)
def test_scores_agree_with_brute_force(pair, spacing):
  a, b = pair
  spacing_mm = np.array([spacing])
  there = score(a[None], b[None], spacing_mm)
  back = score(b[None], a[None], spacing_mm)
  for name in ('dice', 'iou', 'hd95_mm', 'asd_mm', 'nsd'):
    assert there[name] == pytest.approx(back[name], nan_ok=True)
  for name in ('dice', 'iou', 'sensitivity', 'specificity', 'nsd'):
    assert np.isnan(there[name]) or 0 <= there[name] <= 1
  assert there['missed'] == back['spurious']
  diagonal = np.hypot(7 * spacing[0], 6 * spacing[1])
  if a.any() and b.any():
    hd95, asd, nsd = brute_force(a, b, spacing)
    assert there['nsd'] == pytest.approx(nsd)
    assert there['hd95_mm'] == pytest.approx(hd95)
    assert there['asd_mm'] == pytest.approx(asd)
    assert there['hd95_mm'] < diagonal
    iou = there['dice'] / (2 - there['dice'])
    assert there['iou'] == pytest.approx(iou)


def test_policy_of_empty_masks():
  some, none = square(2, 2), np.zeros((1, 16, 20), bool)
  spacing_mm = np.array([[3.0, 2.0]])
  diagonal = np.hypot(16 * 3, 20 * 2)

  missed = score(none, some, spacing_mm)
  assert missed['missed']
  assert missed['dice'] == missed['iou'] == missed['sensitivity'] == 0
  assert missed['nsd'] == 0
  assert missed['hd95_mm'] == missed['asd_mm'] == diagonal
  assert missed['specificity'] == 1

  spurious = score(some, none, spacing_mm)
  assert spurious['spurious']
  assert spurious['dice'] == spurious['iou'] == spurious['nsd'] == 0
  assert np.isnan(spurious['sensitivity'])
  assert spurious['hd95_mm'] == spurious['asd_mm'] == diagonal

  empty = score(none, none, spacing_mm)
  assert empty['empty'] and empty['specificity'] == 1
  for name in ('dice', 'iou', 'sensitivity', 'hd95_mm', 'asd_mm', 'nsd'):
    assert np.isnan(empty[name])


def test_summary_counts_and_means_over_defined_cases():
  some, none = square(2, 2), np.zeros((1, 16, 20), bool)
  scores = metrics.segmentation_scores(
    prediction=np.concatenate([some, none, some, none]),
    truth=np.concatenate([some, some, none, none]),
    spacing_mm=np.ones((4, 2)),
  )
  summary = metrics.summarize(scores)
  assert summary['dice'] == pytest.approx(1 / 3)
  assert summary['sensitivity'] == 0.5
  assert summary['asd_mm'] == pytest.approx(2 / 3 * np.hypot(16, 20))
  counts = [summary[k] for k in ('n', 'n_missed', 'n_spurious', 'n_empty')]
  assert counts == [3, 1, 1, 1]
  assert summary['std']['dice'] == pytest.approx(np.sqrt(1 / 3))  # 1, 0, 0
  assert summary['std'].keys() == set(metrics.MEANS)
  del summary['std']
  assert set(map(type, summary.values())) == {float, int}


def test_standard_deviation_of_fewer_than_two_cases_is_undefined():
  assert np.isnan(metrics.std_defined([np.nan, 0.5]))
  assert np.isnan(metrics.std_defined([]))
  assert metrics.std_defined([0.5, np.nan, 0.7]) == pytest.approx(0.1 * 2**0.5)


def test_class_that_is_nowhere_gives_nan_and_no_warning():
  none = np.zeros((3, 4, 4), bool)
  scores = metrics.segmentation_scores(
    prediction=none, truth=none, spacing_mm=np.ones((3, 2))
  )
  summary = metrics.summarize(scores)
  assert np.isnan(summary['dice']) and np.isnan(summary['hd95_mm'])
  assert summary['n'] == 0 and summary['n_empty'] == 3


def test_a_worse_prediction_never_improves_the_mean():
  """Dropping a poorly drawn structure entirely must cost, on every metric."""
  truth = np.concatenate([square(2, 2), square(2, 2)])
  poor = np.concatenate([square(2, 2), square(10, 14)])
  gone = np.concatenate([square(2, 2), np.zeros((1, 16, 20), bool)])
  spacing_mm = np.ones((2, 2))
  a, b = (
    metrics.summarize(
      metrics.segmentation_scores(
        prediction=prediction, truth=truth, spacing_mm=spacing_mm
      )
    )
    for prediction in (poor, gone)
  )
  assert b['dice'] <= a['dice'] and b['nsd'] <= a['nsd']
  assert b['hd95_mm'] > a['hd95_mm'] and b['asd_mm'] > a['asd_mm']


@pytest.mark.parametrize(
  'prediction, truth, spacing_mm, message',
  [
    (np.zeros((1, 4, 4), int), None, None, 'prediction must be bool'),
    (None, np.full((1, 4, 4), np.nan), None, 'truth must be bool'),
    (None, np.zeros((2, 4, 4), bool), None, 'must both be'),
    (np.zeros((4, 4), bool), np.zeros((4, 4), bool), None, 'must both be'),
    (None, None, [[0, 1]], 'above 0'),
    (None, None, [[np.nan, 1]], 'above 0'),
    (None, None, [1, 1], 'spacing_mm must be'),
  ],
)
def test_bad_masks_are_refused(prediction, truth, spacing_mm, message):
  none = np.zeros((1, 4, 4), bool)
  with pytest.raises(ValueError, match=message) as error:
    metrics.segmentation_scores(
      prediction=none if prediction is None else prediction,
      truth=none if truth is None else truth,
      spacing_mm=SPACING if spacing_mm is None else spacing_mm,
    )
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('tolerance_mm', [-1, np.nan, np.inf])
def test_bad_tolerances_are_refused(tolerance_mm):
  with pytest.raises(ValueError, match='tolerance_mm'):
    score(square(2, 2), square(2, 2), tolerance_mm=tolerance_mm)


def mean_dice(prior, masks):
  dices = [
    2 * np.sum(prior & mask) / (prior.sum() + mask.sum())
    for mask in masks
    if mask.any()
  ]
  return np.mean(dices)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
  masks=hnp.arrays(np.uint8, (5, 4, 4), elements=st.integers(0, 1))
)
def test_shape_prior_is_the_best_level_set(masks):
  prior = metrics.fit_shape_prior(masks, 2).astype(bool)
  if not masks.any():
    assert not prior.any()
    return
  inside = masks[masks.any(axis=(1, 2))] == 1
  mean = inside.mean(axis=0)
  best = max(mean_dice(mean >= level, inside) for level in mean[mean > 0])
  assert mean_dice(prior, inside) == pytest.approx(best)


def test_shape_prior_of_equal_masks_is_the_mask():
  mask = np.zeros((6, 6), np.uint8)
  mask[1:3, 1:3], mask[4:, 2:] = 1, 3
  prior = metrics.fit_shape_prior(np.stack([mask] * 4), 5)
  np.testing.assert_array_equal(prior, mask)
  assert prior.dtype == np.uint8


def test_shape_prior_ignores_masks_without_the_class():
  mask = np.zeros((1, 6, 6), np.uint8)
  mask[0, 1:3, 1:3] = 1
  masks = np.concatenate([mask] + [np.zeros_like(mask)] * 50)
  np.testing.assert_array_equal(metrics.fit_shape_prior(masks, 2), mask[0])


def test_shape_prior_gives_an_overlap_to_the_stronger_class():
  masks = np.zeros((5, 1, 3), np.uint8)
  masks[:, 0, 0], masks[:, 0, 2] = 1, 2
  masks[:3, 0, 1], masks[3:, 0, 1] = 1, 2  # contested, 3 votes to 2
  prior = metrics.fit_shape_prior(masks, 3)
  np.testing.assert_array_equal(prior, [[1, 1, 2]])


@pytest.mark.parametrize(
  'masks, num_classes, message',
  [
    (np.zeros((0, 4, 4), np.uint8), 2, 'at least one'),
    (np.zeros((2, 4, 4)), 2, 'integer'),
    (np.zeros((4, 4), np.uint8), 2, r'\[N, H, W\]'),
    (np.full((1, 4, 4), 2, np.uint8), 2, 'labels 0 to 1'),
    (np.full((1, 4, 4), -1), 2, 'labels 0 to 1'),
    (np.zeros((1, 4, 4), np.uint8), 1, 'num_classes'),
  ],
)
def test_bad_training_masks_are_refused(masks, num_classes, message):
  with pytest.raises(ValueError, match=message):
    metrics.fit_shape_prior(masks, num_classes)
