"""Tests of evaluators.py: batching, aggregation, policy."""

import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppcmi_jax import evaluators, image_metrics, metrics

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


def test_registry_lists_the_evaluators():
  assert evaluators.EVALUATORS['segmentation'] is evaluators.segmentation
  assert set(evaluators.EVALUATORS) == {
    'segmentation',
    'reconstruction',
    'mask_reconstruction',
    'shape_prior',
  }


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
    assert result[name] == pytest.approx(expected, nan_ok=True)
  assert set(result) == {*NAMES[1:], 'mean', 'per_case'}


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
