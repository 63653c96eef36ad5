"""Tests of evaluators.py: batching, aggregation, policy."""

import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppcmi_jax import (
  evaluators,
  image_metrics,
  intervals,
  metrics,
  official_metrics,
  score_table,
)

NAMES = ('background', 'head', 'symphysis', 'absent')


def make_examples(n=5, size=12):
  rng = np.random.default_rng(0)
  mask = np.zeros((n, size, size), np.uint8)
  mask[:, 2:7, 2:7] = 1
  mask[::2, 9:11, 3:9] = 2
  return types.SimpleNamespace(
    image=rng.integers(0, 256, (n, size, size, 1), np.uint8),
    mask=mask,
    spacing_mm=np.full((n, 2), 0.5),
    subject=np.array([b'p1', b'p1', b'p2', b'p2', b'p3'][:n]),
    site=np.array(['A'] * n),
    case=np.arange(n),
  )


def constant(labels, calls=None):
  def predict(batch):
    if calls is not None:
      calls.append(batch.shape)
    return np.broadcast_to(labels, (len(batch), *labels.shape))

  return predict


@pytest.mark.parametrize('batch_size, expected', [(2, 2), (5, 5), (99, 5)])
def test_every_batch_has_one_shape(batch_size, expected):
  examples, calls = make_examples(), []
  evaluators.segmentation(
    constant(examples.mask[0], calls),
    examples,
    class_names=NAMES,
    batch_size=batch_size,
  )
  assert set(calls) == {(expected, 12, 12, 1)}
  assert len(calls) == math.ceil(5 / expected)


@pytest.mark.parametrize('batch_size', [1, 2, 3, 5, 8])
def test_batching_keeps_the_order_and_compiles_once(batch_size):
  examples = make_examples()
  traces = []

  @jax.jit
  def predict(image):  # labels that depend on the image alone
    traces.append(image.shape)
    assert image.dtype == jnp.float32
    return (image[..., 0] > 0.5).astype(jnp.int32)

  examples.mask = (examples.image[..., 0] > 127).astype(np.uint8)
  result = evaluators.segmentation(
    predict, examples, class_names=('background', 'x'), batch_size=batch_size
  )
  assert len(traces) == 1
  assert result['x']['dice'] == 1
  assert [row['case'] for row in result['per_case']] == list(range(5))


def test_segmentation_agrees_with_the_metrics():
  examples = make_examples()
  guess = np.roll(examples.mask[0], 1, axis=0)
  result = evaluators.segmentation(
    constant(guess), examples, class_names=NAMES, batch_size=2
  )
  for label, name in enumerate(NAMES[1:], start=1):
    expected = metrics.summarize(
      metrics.segmentation_scores(
        prediction=np.broadcast_to(guess == label, examples.mask.shape),
        truth=examples.mask == label,
        spacing_mm=examples.spacing_mm,
      )
    )
    found = dict(result[name])
    del found['ci95'], found['n_subjects']
    spread = found.pop('std')
    assert spread == pytest.approx(expected.pop('std'), nan_ok=True)
    assert found == pytest.approx(expected, nan_ok=True)
  assert set(result) == {
    *NAMES[1:],
    'foreground',
    'mean',
    'per_case',
    'per_case_foreground',
    'settings',
  }


def test_foreground_is_all_classes_merged():
  """Confusing two classes costs each of them, and the foreground nothing."""
  examples = make_examples()
  swap = np.array([0, 2, 1, 0], np.uint8)
  result = evaluators.mask_reconstruction(
    lambda mask: swap[mask], examples, class_names=NAMES
  )
  assert result['mean']['dice'] == 0
  assert result['foreground']['dice'] == 1
  assert result['foreground']['hd95_mm'] == 0
  assert result['foreground']['n'] == 5
  rows = result['per_case_foreground']
  assert json.loads(json.dumps(rows, allow_nan=False)) == rows
  assert [row['index'] for row in rows] == list(range(5))
  assert {row['class'] for row in rows} == {'foreground'}
  assert rows[0].keys() == result['per_case'][0].keys()


def test_one_class_may_be_called_foreground_and_is():
  examples = make_examples()
  examples.mask[examples.mask == 2] = 1
  guess = examples.mask[0]
  named, other = (
    evaluators.segmentation(
      constant(guess), examples, class_names=('background', name)
    )
    for name in ('foreground', 'organ')
  )
  assert named['foreground']['dice'] == other['organ']['dice']
  assert other['foreground'] == other['organ']
  assert named['mean']['dice'] == other['mean']['dice']


def test_intervals_are_over_subjects_of_the_rows():
  examples = make_examples()
  guess = np.roll(examples.mask[0], 1, axis=0)
  result = evaluators.segmentation(constant(guess), examples, class_names=NAMES)
  assert result['settings']['num_subjects'] == 3
  assert result['head']['n_subjects'] == result['mean']['n_subjects'] == 3
  for name in NAMES[1:3]:
    rows = [row for row in result['per_case'] if row['class'] == name]
    for metric in metrics.MEANS:
      values = [
        math.nan if row[metric] is None else row[metric] for row in rows
      ]
      expected = intervals.bootstrap_interval(
        values, subject=[row['subject'] for row in rows]
      )
      found = result[name]['ci95'][metric]
      np.testing.assert_allclose(found, expected)
      low, high = found
      assert low <= result[name][metric] + 1e-12
      assert result[name][metric] <= high + 1e-12
  assert result['absent']['n_subjects'] == 0
  assert all(map(math.isnan, result['absent']['ci95']['dice']))


def test_interval_of_the_mean_averages_classes_draw_by_draw():
  examples = make_examples()
  examples.mask[:, 9:11, 3:9] = 2  # both classes in every case
  guess = np.roll(examples.mask[0], 1, axis=0)
  shifted = [np.roll(guess, i, axis=1) for i in range(5)]
  result = evaluators.segmentation(
    lambda image: np.stack(shifted), examples, class_names=NAMES
  )
  dice = np.array([row['dice'] or 0 for row in result['per_case']])
  per_case = dice.reshape(5, 3)[:, :2].mean(axis=1)
  found = result['mean']
  assert found['dice'] == pytest.approx(per_case.mean())
  assert found['std']['dice'] == pytest.approx(per_case.std(ddof=1))
  np.testing.assert_allclose(
    found['ci95']['dice'],
    intervals.bootstrap_interval(per_case, subject=examples.subject),
  )
  assert found['ci95']['dice'][0] < found['ci95']['dice'][1]


def test_one_subject_gives_no_interval():
  examples = make_examples()
  examples.subject[:] = b'p1'
  guess = np.roll(examples.mask[0], 1, axis=0)
  result = evaluators.segmentation(constant(guess), examples, class_names=NAMES)
  for entry in (*NAMES[1:], 'foreground', 'mean'):
    assert np.isnan(list(result[entry]['ci95'].values())).all()
  assert not math.isnan(result['symphysis']['std']['dice'])


def test_a_class_of_one_subject_leaves_the_mean_without_an_interval():
  examples = make_examples()
  examples.mask[examples.mask == 2] = 0
  examples.mask[4, 9:11, 3:9] = 2
  result = evaluators.mask_reconstruction(
    lambda mask: mask, examples, class_names=NAMES
  )
  assert result['head']['ci95']['dice'] == [1, 1]
  assert np.isnan(result['symphysis']['ci95']['dice']).all()
  assert np.isnan(result['mean']['ci95']['dice']).all()


def test_tolerance_and_unit_reach_the_result():
  examples = make_examples()  # half a mm a pixel
  moved = lambda mask: np.roll(mask, 1, axis=2)
  nsd = [
    evaluators.mask_reconstruction(
      moved, examples, class_names=NAMES, tolerance_mm=tolerance_mm
    )['head']['nsd']
    for tolerance_mm in (0.4, 0.5)
  ]
  assert nsd[0] < 1 == nsd[1]
  settings = evaluators.mask_reconstruction(
    moved, examples, class_names=NAMES, distance_unit='pixels'
  )['settings']
  assert settings['distance_unit'] == 'pixels'
  assert settings['preset'] == 'default' and settings['nsd_tolerance'] == 2
  assert json.loads(json.dumps(settings, allow_nan=False)) == settings


def test_official_preset_drops_what_the_official_code_drops():
  examples = make_examples()
  examples.mask[1] = 0  # an empty mask: left out
  guess = examples.mask[0]
  arguments = {'class_names': NAMES, 'preset': 'official'}
  result = evaluators.segmentation(constant(guess), examples, **arguments)
  default = evaluators.segmentation(
    constant(guess), examples, class_names=NAMES
  )
  assert result['settings']['preset'] == 'official'
  assert result['settings']['distance_unit'] == 'pixels'
  assert result['settings']['num_left_out'] == 1
  assert [row['index'] for row in result['per_case'][::3]] == [0, 2, 3, 4]
  # 'symphysis' is drawn in case 3, which has none: an infinite distance.
  assert result['symphysis']['n_spurious'] == 1
  assert result['symphysis']['hd95_px'] == 0 < default['symphysis']['hd95_mm']
  scores = official_metrics.segmentation_scores(
    prediction=np.stack([guess] * 4) == 2,
    truth=examples.mask[[0, 2, 3, 4]] == 2,
  )
  assert result['symphysis']['dice'] == pytest.approx(np.mean(scores['dice']))
  assert 'nsd' not in result['head'] and 'hd95_mm' not in result['head']
  json.dumps(result['per_case'], allow_nan=False)


@pytest.mark.parametrize('preset', score_table.PRESETS)
def test_every_evaluator_of_masks_takes_the_options(preset):
  examples = make_examples()
  options = {
    'class_names': NAMES,
    'preset': preset,
    'tolerance_mm': 1.0,
    'distance_unit': 'pixels',
  }
  results = [
    evaluators.segmentation(constant(examples.mask[0]), examples, **options),
    evaluators.mask_reconstruction(lambda mask: mask, examples, **options),
    evaluators.shape_prior(examples.mask, examples, **options),
  ]
  assert all(result['settings']['preset'] == preset for result in results)
  assert len({tuple(result) for result in results}) == 1


def test_mean_is_over_classes_of_the_truth_and_counts_over_all():
  examples = make_examples()
  guess = examples.mask[0].copy()
  guess[0, 0] = 3  # invents the class that the truth never has
  result = evaluators.segmentation(constant(guess), examples, class_names=NAMES)
  mean = result['mean']
  assert mean['n_classes'] == 2
  for name in metrics.MEANS:
    pair = [result['head'][name], result['symphysis'][name]]
    assert mean[name] == pytest.approx(np.mean(pair))
  assert result['absent']['n_spurious'] == 5
  assert mean['n_spurious'] == 5 + 2  # 'symphysis' is in 3 of 5 truths
  assert mean['n_missed'] == 0


def test_class_that_is_nowhere_is_kept_as_nan():
  examples = make_examples()
  result = evaluators.segmentation(
    constant(examples.mask[0]), examples, class_names=NAMES
  )
  assert result['absent']['n'] == 0
  assert math.isnan(result['absent']['dice'])
  assert result['mean']['n_empty'] == 5
  assert not math.isnan(result['mean']['dice'])


def test_rows_are_json_with_none_for_undefined():
  examples = make_examples()
  rows = evaluators.segmentation(
    constant(examples.mask[0]), examples, class_names=NAMES
  )['per_case']
  assert json.loads(json.dumps(rows, allow_nan=False)) == rows
  assert [row['class'] for row in rows] == list(NAMES[1:]) * 5
  assert [row['index'] for row in rows[::3]] == list(range(5))
  assert rows[0]['subject'] == 'p1' and rows[0]['site'] == 'A'
  assert rows[2]['empty'] and rows[2]['dice'] is None
  assert rows[4]['spurious'] and rows[4]['sensitivity'] is None


def test_float_images_reach_predict_unchanged():
  examples = make_examples()
  examples.image = np.linspace(0, 1, examples.image.size).reshape(
    examples.image.shape
  )
  seen = []

  def predict(image):
    seen.append(image)
    return np.zeros(image.shape[:3], int)

  evaluators.segmentation(predict, examples, class_names=NAMES, batch_size=5)
  np.testing.assert_allclose(seen[0], examples.image, atol=1e-7)


def test_mask_reconstruction_of_the_identity_is_perfect():
  examples = make_examples()
  result = evaluators.mask_reconstruction(
    lambda mask: mask, examples, class_names=NAMES, batch_size=2
  )
  assert result['mean']['dice'] == 1
  assert result['mean']['hd95_mm'] == 0


def test_shape_prior_scores_the_fitted_prior():
  examples = make_examples()
  prior = metrics.fit_shape_prior(examples.mask, len(NAMES))
  fitted = evaluators.shape_prior(examples.mask, examples, class_names=NAMES)
  drawn = evaluators.segmentation(constant(prior), examples, class_names=NAMES)
  assert fitted['per_case'] == drawn['per_case']
  assert fitted['head']['dice'] == 1


@pytest.mark.parametrize('batch_size', [2, 5])
def test_reconstruction_averages_over_images(batch_size):
  examples = make_examples()
  noisy = jax.jit(lambda image: jnp.abs(image - 0.1))
  result = evaluators.reconstruction(noisy, examples, batch_size=batch_size)
  truth = examples.image / 255
  prediction = np.abs(truth - 0.1)
  psnr = image_metrics.psnr(prediction=prediction, truth=truth)
  ssim = image_metrics.ssim(prediction=prediction, truth=truth)
  assert result['psnr_db'] == pytest.approx(np.mean(psnr), abs=1e-4)
  assert result['ssim'] == pytest.approx(np.mean(ssim), abs=1e-5)
  assert result['n'] == 5


@pytest.mark.parametrize(
  'output, message',
  [
    (np.zeros((5, 12, 12)), 'integer'),
    (np.zeros((5, 6, 6), int), 'must both be'),
    (np.zeros((4, 12, 12), int), '5 results'),
    (np.full((5, 12, 12), 4), 'labels 0 to 3'),
    (np.zeros((5, 12, 12, 4), int), r'\[N, H, W\]'),
  ],
)
def test_bad_predictions_are_refused(output, message):
  with pytest.raises(ValueError, match=message):
    evaluators.segmentation(
      lambda image: output, make_examples(), class_names=NAMES
    )


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'class_names': ('background', 'mean')}, 'class_names'),
    ({'class_names': ('background', 'a', 'foreground', 'b')}, 'class_names'),
    ({'class_names': ('foreground', 'a', 'b', 'c')}, 'class_names'),
    ({'class_names': ('background', 'settings')}, 'class_names'),
    ({'preset': 'Official'}, 'preset'),
    ({'distance_unit': 'cm'}, 'distance_unit'),
    ({'tolerance_mm': -1}, 'tolerance_mm'),
    ({'class_names': ('background', 'x', 'x', 'y')}, 'class_names'),
    ({'class_names': ('background', 'x')}, 'mask must hold labels'),
    ({'batch_size': 0}, 'batch_size'),
  ],
)
def test_bad_arguments_are_refused(changes, message):
  arguments = {'class_names': NAMES, **changes}
  blank = np.zeros((12, 12), np.uint8)
  with pytest.raises(ValueError, match=message):
    evaluators.segmentation(constant(blank), make_examples(), **arguments)


def test_bad_examples_are_refused():
  blank, arguments = np.zeros((12, 12), np.uint8), {'class_names': NAMES}
  examples = make_examples()
  examples.subject = examples.subject[:3]
  with pytest.raises(ValueError, match='subject must name each of the 5'):
    evaluators.segmentation(constant(blank), examples, **arguments)
  examples = make_examples()
  examples.spacing_mm[0] = np.nan
  with pytest.raises(ValueError, match='spacing_mm must be finite'):
    evaluators.segmentation(constant(blank), examples, **arguments)
  examples.mask[:] = 0
  with pytest.raises(ValueError, match='leaves out cases'):
    evaluators.segmentation(
      constant(blank), examples, preset='official', **arguments
    )


def test_no_examples_and_wrong_image_types_are_refused():
  blank = np.zeros((12, 12), np.uint8)
  with pytest.raises(ValueError, match='found none'):
    evaluators.segmentation(
      constant(blank), make_examples(0), class_names=NAMES
    )
  examples = make_examples()
  examples.image = examples.image.astype(np.int16)
  with pytest.raises(ValueError, match='int16'):
    evaluators.reconstruction(lambda image: image, examples)
  examples.image = examples.image.astype(np.float32)
  with pytest.raises(ValueError, match='divide 8-bit'):
    evaluators.segmentation(constant(blank), examples, class_names=NAMES)
