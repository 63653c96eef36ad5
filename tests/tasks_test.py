"""Tests of tasks.py, mostly with networks of one layer, as they compile fast.

Where a test looks at what reaches the loss, the loss is replaced by one that
returns its arguments.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ppcmi_jax import losses, tasks
from ppcmi_jax.models import autoencoder, fused, mapping, unet

K, SIDE = 3, 8
AUGMENT = {'gain': 0.3}
MOVED = {'translation': 0.3}  # of masks, too


def waves(key, shape, dtype=jnp.float32):
  """Initial weights that compile faster than random ones."""
  return jnp.cos(jnp.arange(math.prod(shape), dtype=dtype)).reshape(shape)


dense = functools.partial(nn.Dense, kernel_init=waves)


class Layers(nn.Module):
  """Stands for an autoencoder or a segmentation network."""

  channels: int

  def setup(self):
    self.down = dense(4)
    self.norm = nn.BatchNorm(momentum=0.9)
    self.up = dense(self.channels)

  def __call__(self, x, *, train):
    return self.decode(self.encode(x, train=train), train=train)

  def encode(self, x, *, train):
    return {
      'b': nn.relu(self.norm(self.down(x), use_running_average=not train))
    }

  def decode(self, latents, *, train):
    return self.up(latents['b'])


class Identity(nn.Module):
  """Encodes, decodes and maps by doing nothing."""

  def __call__(self, x, *, train):
    return x

  def encode(self, x, *, train):
    return {'b': x}

  def decode(self, latents, *, train):
    return latents['b']


class Mapping(nn.Module):
  """Stands for a mapping network, with dropout."""

  @nn.compact
  def __call__(self, latents, *, train):
    norm = functools.partial(nn.BatchNorm, use_running_average=not train)
    drop = nn.Dropout(0.5, deterministic=not train)
    return {k: drop(norm()(dense(5)(z))) for k, z in latents.items()}


def batch_of(count=4, seed=0):
  rng = np.random.default_rng(seed)
  shape = (count, SIDE, SIDE)
  return {
    'image': rng.integers(0, 256, (*shape, 1), np.uint8),
    'mask': rng.integers(0, K, shape, np.uint8),
    'slot': np.arange(count, dtype=np.int32),
  }


def latents_of(seed, count=6):
  rng = np.random.default_rng(seed)
  return {
    name: np.float32(rng.uniform(0, 2, (count, s, s, 5)))
    for name, s in (('s4', 2), ('b', 1))
  }


LATENT_BATCH = {
  'image': latents_of(0),
  'mask': latents_of(1),
  'slot': np.arange(6, dtype=np.int32),
}

TASKS = {
  'image': (
    tasks.image_reconstruction(Layers(1), augment=AUGMENT),
    batch_of(),
  ),
  'mask': (
    tasks.mask_reconstruction(Layers(K), num_classes=K, augment=MOVED),
    batch_of(),
  ),
  'mapping': (
    tasks.mapping(Mapping()),
    LATENT_BATCH,
  ),
  'segmentation': (
    tasks.segmentation(Layers(K), num_classes=K, augment=AUGMENT),
    batch_of(),
  ),
}


def without_slots(batch):
  return {k: v for k, v in batch.items() if k != 'slot'}


@pytest.fixture(scope='module', params=list(TASKS))
def run(request):
  """(variables, batch, compiled train and eval functions) of each task."""
  task, batch = TASKS[request.param]
  variables = jax.jit(task.init)(jax.random.key(0), batch)

  @jax.jit
  def train(variables, batch, key):
    loss = lambda params: task.loss(
      {**variables, 'params': params}, batch, key, train=True
    )
    return jax.value_and_grad(loss, has_aux=True)(variables['params'])

  evaluate = jax.jit(functools.partial(task.loss, train=False))
  return variables, batch, train, evaluate


def assert_trees(check, a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(check, a, b)


def assert_finite(tree):
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


def test_training_gives_finite_gradients_and_new_statistics(run):
  variables, batch, train, _ = run
  (loss, (metrics, new)), grads = train(variables, batch, jax.random.key(1))
  assert loss.shape == () and loss > 0 and metrics['loss'] == loss
  assert_finite((loss, grads, new))
  assert any(np.any(g) for g in jax.tree.leaves(grads))
  assert jax.tree.structure(new) == jax.tree.structure(variables)
  moved = jax.tree.map(
    lambda a, b: not np.array_equal(a, b), variables, dict(new)
  )
  assert all(jax.tree.leaves(moved.pop('batch_stats')))
  assert not any(jax.tree.leaves(moved))  # params


def test_validation_draws_nothing_and_changes_nothing(run):
  variables, batch, _, evaluate = run
  loss, (metrics, new) = evaluate(
    variables, without_slots(batch), jax.random.key(1)
  )
  again, _ = evaluate(variables, without_slots(batch), jax.random.key(2))
  slotted, _ = evaluate(variables, batch, jax.random.key(3))
  assert loss == again == slotted == metrics['loss']
  assert_finite(loss)
  assert_trees(np.testing.assert_array_equal, new, variables)


def test_training_is_random_in_its_key_alone(run):
  variables, batch, train, _ = run
  losses_of = [
    float(train(variables, batch, jax.random.key(seed))[0][0])
    for seed in (1, 1, 2)
  ]
  assert losses_of[0] == losses_of[1] != losses_of[2]


@pytest.fixture
def seen(monkeypatch):
  """Makes losses return (logits, labels), before tasks are made."""
  look = lambda *, logits, labels, **_: (logits, labels)
  names = ('image_reconstruction', 'official_reconstruction', 'segmentation')
  for name in names:
    monkeypatch.setattr(losses, name, look)

  @functools.cache
  def compiled(task, train):
    return jax.jit(
      lambda batch: task.loss({}, batch, jax.random.key(0), train=train)[0]
    )

  def call(task, batch, train=True):
    return jax.tree.map(np.asarray, compiled(task, train)(batch))

  return call


def test_augmentation_does_not_know_how_slots_are_grouped(seen):
  augment = {**AUGMENT, 'noise': 0.1, 'translation': 0.2}
  task = tasks.segmentation(Identity(), num_classes=K, augment=augment)
  batch = batch_of(6)

  def grouped(*groups):
    parts = [
      seen(task, {name: a[rows] for name, a in batch.items()})
      for rows in map(np.array, groups)
    ]
    order = np.argsort(np.concatenate(groups))
    return [np.concatenate(part)[order] for part in zip(*parts)]

  image, labels = grouped([0, 1, 2], [3, 4, 5])
  for a, b in zip((image, labels), grouped([4, 0, 3], [2, 5, 1])):
    np.testing.assert_array_equal(a, b)
  plain, one_hot = seen(task, batch, train=False)
  np.testing.assert_allclose(plain, batch['image'] / 255, atol=1e-6)
  np.testing.assert_array_equal(one_hot, np.eye(K)[batch['mask']])
  for a, b in ((image, plain), (labels, one_hot)):
    assert np.all(np.abs(a - b).max((1, 2, 3)) > 0.1)


def test_an_augmented_image_is_its_own_target(seen):
  task = tasks.image_reconstruction(Identity(), augment=AUGMENT)
  image, target = seen(task, batch_of())
  np.testing.assert_array_equal(image, target)


def test_a_weight_adds_the_segmentation_of_the_same_augmented_pair():
  class Segmenting(Identity):
    def __call__(self, x, *, train):
      return jnp.concatenate([x, -x, 0 * x], -1)

    def reconstruct_and_segment(self, x, *, train):
      return x, self(x, train=train)

  def loss(make, model, **options):
    task = make(model, augment=AUGMENT, **options)
    key = jax.random.key(0)
    return float(task.loss({}, batch_of(), key, train=True)[0])

  image = loss(tasks.image_reconstruction, Identity())
  mask = loss(tasks.segmentation, Segmenting(), num_classes=3)
  both = loss(tasks.image_reconstruction, Segmenting(), segmentation_weight=0.3)
  np.testing.assert_allclose(both, image + 0.3 * mask, rtol=1e-5)
  assert 0.3 * mask > 0.1 * image


def test_masks_are_reconstructed_by_either_loss():
  model, batch = Layers(K), batch_of()
  task, official = (
    tasks.mask_reconstruction(model, num_classes=K, official=official)
    for official in (False, True)
  )
  variables = jax.jit(task.init)(jax.random.key(0), batch)
  labels = np.eye(K, dtype=np.float32)[batch['mask']]

  @jax.jit
  def run(variables, key):
    logits, updates = model.apply(
      variables, labels, train=True, mutable=['batch_stats']
    )
    given = {'logits': logits, 'labels': labels}
    return (
      (losses.segmentation(**given), updates),
      losses.official_reconstruction(**given),
      task.loss(variables, batch, key, train=True),
      official.loss(variables, batch, key, train=True)[0],
    )

  (expected, updates), expected_official, (loss, (_, new)), loss_official = run(
    variables, jax.random.key(1)
  )
  assert loss == pytest.approx(float(expected), rel=1e-5)
  assert loss_official == pytest.approx(float(expected_official), rel=1e-5)
  assert_trees(
    functools.partial(np.testing.assert_allclose, rtol=1e-5),
    new['batch_stats'],
    updates['batch_stats'],
  )


def test_mapping_loss_and_prediction_of_a_network_that_does_nothing():
  task, batch = tasks.mapping(Identity()), LATENT_BATCH
  variables = task.init(jax.random.key(0), batch)
  loss, _ = task.loss(variables, batch, jax.random.key(1), train=False)
  found = task.predict(variables, batch['image'])
  x, y = batch['image'], batch['mask']
  expected = sum(np.mean((x[name] - y[name]) ** 2) for name in x)
  assert loss == pytest.approx(float(expected), rel=1e-5)
  for name, z in found.items():
    np.testing.assert_allclose(z, x[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('dtype', [np.float16, jnp.bfloat16])
def test_mapping_works_in_float32_whatever_the_wire_carried(dtype):
  task, _ = TASKS['mapping']
  low = jax.tree.map(lambda z: z.astype(dtype), latents_of(0))
  variables = jax.eval_shape(
    task.init, jax.random.key(0), {**LATENT_BATCH, 'image': low}
  )
  out = jax.eval_shape(task.predict, variables, low)
  for leaf in jax.tree.leaves((variables, out)):
    assert leaf.dtype == jnp.float32


def network(name):
  widths = (2, 2, 3, 3, 4)
  return {
    'image': autoencoder.Autoencoder(1, widths),
    'image that segments': autoencoder.Autoencoder(
      1, widths, blocks=1, num_classes=K
    ),
    'mask': autoencoder.Autoencoder(K, widths),
    'segmentation': unet.UNet(K, width=2, depth=2),
    'mapping': mapping.MappingNetwork(0.01),
    'fused': fused.FusedMapping((8, 8, 8)),
  }[name]


@pytest.mark.parametrize(
  'name',
  [
    'image',
    'image that segments',
    'mask',
    'segmentation',
    'mapping',
    'fused',
  ],
)
def test_the_networks_of_the_package_fit_their_tasks(name):
  images = {
    'image': np.zeros((2, 32, 32, 1), np.uint8),
    'mask': np.zeros((2, 32, 32), np.uint8),
    'slot': np.arange(2, dtype=np.int32),
  }
  latents = {
    k: np.zeros((2, s, s, c), np.float32)
    for k, s, c in (('s3', 4, 3), ('s4', 2, 3), ('b', 1, 4))
    if name == 'fused' or k == 'b'
  }
  pairs = {**images, 'image': latents, 'mask': latents}
  model = network(name)
  make = {
    'image': tasks.image_reconstruction,
    'image that segments': functools.partial(
      tasks.image_reconstruction, segmentation_weight=0.3
    ),
    'mask': functools.partial(tasks.mask_reconstruction, num_classes=K),
    'segmentation': functools.partial(tasks.segmentation, num_classes=K),
  }.get(name, tasks.mapping)
  task, batch = make(model), pairs if name in ('mapping', 'fused') else images
  key = jax.random.key(0)
  variables = jax.eval_shape(task.init, key, batch)
  for train in (True, False):
    loss, (_, new) = jax.eval_shape(
      functools.partial(task.loss, train=train), variables, batch, key
    )
    assert loss.shape == ()
    assert jax.tree.structure(dict(new)) == jax.tree.structure(variables)
  inputs = batch['mask' if name == 'mask' else 'image']
  out = jax.eval_shape(task.predict, variables, inputs)
  if batch is pairs:
    assert jax.tree.map(lambda z: z.shape, out) == {
      k: z.shape for k, z in latents.items()
    }
  elif name.startswith('image'):
    assert (out.shape, out.dtype) == ((2, 32, 32, 1), jnp.float32)
  else:
    assert (out.shape, out.dtype) == ((2, 32, 32), jnp.uint8)
