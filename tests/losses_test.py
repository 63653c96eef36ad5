"""Tests of losses.py against numpy, and of what each loss notices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppcmi_jax import losses

SHAPE = (2, 6, 5, 3)  # one for all tests, so that each loss compiles once
LOSSES = ('official_reconstruction', 'image_reconstruction', 'segmentation')
JITTED = {
  name: jax.jit(jax.value_and_grad(lambda x, y, f=f: f(logits=x, labels=y)))
  for name, f in ((name, getattr(losses, name)) for name in LOSSES)
}


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def logit(p):
  return np.log(p / (1 - p))


def one_hot(mask, classes=3):
  return np.eye(classes, dtype=np.float32)[mask]


def official_by_hand(x, y):
  p = sigmoid(x)
  bce = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
  dice = [
    (2 * np.sum(a * b) + 1e-6) / (np.sum(a) + np.sum(b) + 1e-6)
    for a, b in zip(p, y)
  ]
  return 0.5 * bce + 0.5 * (1 - np.mean(dice))


def image_by_hand(x, y):
  error = sigmoid(x) - y
  return np.mean(np.abs(error)) + np.mean(error**2)


def segmentation_by_hand(x, y):
  p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
  dices = []
  for k in range(x.shape[-1]):
    a, b = p[..., k], y[..., k]
    if b.any():
      dices.append(2 * np.sum(a * b) / (np.sum(a) + np.sum(b)))
  return -np.mean(np.sum(y * np.log(p), -1)) + 1 - np.mean(dices)


@pytest.mark.parametrize('labels', ['one_hot', 'mixture', 'class_absent'])
@pytest.mark.parametrize(
  'name, oracle',
  [*zip(LOSSES, (official_by_hand, image_by_hand, segmentation_by_hand))],
)
def test_losses_agree_with_numpy(name, oracle, labels):
  rng = np.random.default_rng(0)
  logits = 2 * rng.normal(size=SHAPE)
  y = one_hot(rng.integers(0, 2 if labels == 'class_absent' else 3, SHAPE[:3]))
  if labels == 'mixture':
    y = 0.7 * y + 0.3 * one_hot(rng.integers(0, 3, SHAPE[:3]))
  value, _ = JITTED[name](np.float32(logits), np.float32(y))
  assert value.shape == () and value.dtype == jnp.float32
  assert value == pytest.approx(oracle(logits, y), rel=1e-5)


def test_latent_mse_sums_the_means_of_scales():
  rng = np.random.default_rng(0)
  shapes = {'s3': (2, 4, 4, 3), 's4': (2, 2, 2, 5), 'b': (2, 1, 1, 7)}
  a, b = (
    {name: np.float32(rng.normal(size=shape)) for name, shape in shapes.items()}
    for _ in range(2)
  )
  expected = sum(np.mean((a[name] - b[name]) ** 2) for name in shapes)
  loss = jax.jit(losses.latent_mse)
  assert loss(predictions=a, targets=b) == pytest.approx(expected, rel=1e-5)
  assert loss(predictions=a, targets=a) == 0


def test_a_missing_scale_is_an_error():
  with pytest.raises(KeyError):
    losses.latent_mse(predictions={}, targets={'b': np.zeros((1, 1, 1, 1))})


def brightened():
  """Logits of a grey image times 1.0, 1.1 ... 1.5, and of it dimmed."""
  y, x = np.mgrid[:6, :5] / 5
  image = 0.1 + 0.5 * np.exp(-6 * ((y - 0.5) ** 2 + (x - 0.4) ** 2))
  image = np.broadcast_to(image[None, ..., None], SHAPE)
  factors = np.array([0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5])
  logits = [np.float32(logit(f * image)) for f in factors]
  return factors, logits, np.float32(image)


def test_the_image_loss_is_smallest_at_a_perfect_reconstruction():
  factors, logits, image = brightened()
  found = [float(JITTED['image_reconstruction'](x, image)[0]) for x in logits]
  assert factors[np.argmin(found)] == 1
  assert min(found) == pytest.approx(0, abs=1e-6)


def test_the_official_loss_prefers_an_image_too_bright():
  """A defect of the official loss: outputs 31 % too bright."""
  factors, logits, image = brightened()
  found = [
    float(JITTED['official_reconstruction'](x, image)[0]) for x in logits
  ]
  assert 1.2 <= factors[np.argmin(found)] <= 1.4
  assert min(found) < found[2] - 1e-3


@pytest.mark.parametrize('confidence', [2, 4, 8])
def test_a_lost_small_class_costs_little_only_officially(confidence):
  mask = np.zeros((1, 32, 32), int)
  mask[0, 4:20, 4:24] = 1
  mask[0, 24:27, 24:27] = 2  # 0.9 % of the pixels
  labels = one_hot(mask)
  right = confidence * (labels - 0.5)
  lost = confidence * (one_hot(np.where(mask == 2, 0, mask)) - 0.5)
  cost = {
    name: loss(logits=lost, labels=labels) - loss(logits=right, labels=labels)
    for name, loss in (
      ('official', losses.official_reconstruction),
      ('default', losses.segmentation),
    )
  }
  assert 0 < cost['official'] < 0.02
  assert cost['default'] > 10 * cost['official']
  if confidence > 2:
    assert cost['default'] > 0.15


def test_segmentation_ignores_classes_that_are_nowhere():
  rng = np.random.default_rng(0)
  mask = rng.integers(0, 2, SHAPE[:3])
  logits = rng.normal(size=SHAPE)
  logits[..., 2] = -100  # the network does not predict it, either
  with_class = losses.segmentation(logits=logits, labels=one_hot(mask))
  without = losses.segmentation(logits=logits[..., :2], labels=one_hot(mask, 2))
  assert with_class == pytest.approx(float(without), rel=1e-5)


def test_segmentation_pools_a_class_over_the_batch():
  # The class is in one of the two examples: the other's Dice is no 0 or 1.
  mask = np.zeros(SHAPE[:3], int)
  mask[0, :2] = 2
  value, _ = JITTED['segmentation'](60 * one_hot(mask), one_hot(mask))
  assert value == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize('devices', [1, 2, 4])
def test_devices_that_share_a_batch_take_dice_of_all_of_it(devices):
  """Means over devices, of loss and gradient, are those of the whole."""
  rng = np.random.default_rng(0)
  mask = rng.integers(0, 2, (4, 4, 4))
  mask[0, :2] = 2  # a class that one device has
  logits = rng.normal(size=(4, 4, 4, 3)).astype(np.float32)
  factor = np.float32(1)  # parameters, which all devices have

  def loss(factor, logits, labels, axis_name=None):
    return losses.segmentation(
      logits=factor * logits, labels=labels, axis_name=axis_name
    )

  share = lambda x: x.reshape(devices, -1, *x.shape[1:])
  own = jax.vmap(
    jax.value_and_grad(functools.partial(loss, axis_name='batch')),
    in_axes=(None, 0, 0),
    axis_name='batch',
  )
  found = own(factor, share(logits), share(one_hot(mask)))
  expected = jax.value_and_grad(loss)(factor, logits, one_hot(mask))
  for a, b in zip(found, expected, strict=True):
    assert float(np.mean(a)) == pytest.approx(float(b), rel=1e-5)


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('scale', [0, 1, 1e4])
@pytest.mark.parametrize('labels', ['nothing', 'background', 'mixed'])
def test_values_and_gradients_are_finite(name, scale, labels):
  rng = np.random.default_rng(0)
  y = {
    'nothing': np.zeros(SHAPE, np.float32),
    'background': one_hot(np.zeros(SHAPE[:3], int)),
    'mixed': one_hot(rng.integers(0, 3, SHAPE[:3])),
  }[labels]
  for logits in (scale * (2 * y - 1), -scale * (2 * y - 1)):
    value, gradient = JITTED[name](np.float32(logits), y)
    assert np.isfinite(value) and value >= -1e-6
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize('name', ['official_reconstruction', 'segmentation'])
def test_a_class_that_is_wrong_is_learnt(name):
  """The gradient raises the right class and lowers the wrong one."""
  mask = np.zeros(SHAPE[:3], int)
  mask[:, 2:4, 2:4] = 2
  logits = 2 * one_hot(np.zeros(SHAPE[:3], int))
  _, gradient = JITTED[name](logits, one_hot(mask))
  assert np.all(gradient[mask == 2][:, 2] < 0)
  assert np.all(gradient[mask == 2][:, 0] > 0)
