"""Tests of official/: parity with the official PyTorch code.

golden/README.md says what the golden files hold and how weights are drawn.
"""

import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ppcmi_jax import official, tasks, train_step
from ppcmi_jax.models import autoencoder, mapping
from ppcmi_jax.official import state_dicts

GOLDEN = pathlib.Path(__file__).parent / 'golden'
LARGE = pathlib.Path(__file__).parents[2] / 'shared' / 'golden'
SHAPES = 'state_dict_shapes.json'
STEP = 'recipe_autoencoder_step.npz'
SCALES = state_dicts.SCALES
SIZES = {'b': (256, 8, 8), 's3': (64, 32, 32), 's4': (128, 16, 16)}
nhwc = lambda x: np.moveaxis(x, 1, -1)


@pytest.fixture(autouse=True, scope='module')
def compile_fast():
  """What is compiled here runs once, and compiling it would take longer."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def recipe(shapes, seed):
  """Draws the weights of a state_dict, see golden/README.md."""
  rs, state = np.random.RandomState(seed), {}
  for key, shape in shapes.items():
    name = key.rpartition('.')[2]
    if name == 'num_batches_tracked':
      state[key] = np.array(7)
      continue
    if name == 'running_var':
      x = 0.5 + rs.random_sample(shape)
    else:
      x = rs.standard_normal(shape)
      if name == 'Q':
        x = np.linalg.qr(x)[0]
      elif name == 'running_mean':
        x *= 0.3
      elif len(shape) > 1:
        x *= np.sqrt(2 / math.prod(shape[1:]))
      else:
        x = 1 + 0.25 * x if name == 'weight' else 0.2 * x
    state[key] = x.astype(np.float32)
  return state


@functools.cache
def official_state(network, seed):
  shapes = json.loads((GOLDEN / SHAPES).read_text())
  return recipe(dict(shapes[network]), seed)


def step_images():
  images = np.random.RandomState(107).random_sample((2, 64, 64, 3))
  return images.astype(np.float32)


def large(name):
  path = LARGE / name
  if not path.exists():
    pytest.skip(f'{name} is too large to be kept here, and not beside it')
  return path


def assert_close(found, expected, rtol):
  """Errors relative to the largest value of the whole array."""
  found, expected = np.asarray(found), np.asarray(expected)
  assert found.shape == expected.shape
  error = np.max(np.abs(found - expected), initial=0)
  assert error <= rtol * np.max(np.abs(expected), initial=0), error


# Parity of the forward pass


def test_the_whole_pipeline_gives_what_the_official_code_gives():
  image, image_secret = state_dicts.autoencoder_from_state(
    official_state('autoencoder_3ch', 101)
  )
  mask, mask_secret = state_dicts.autoencoder_from_state(
    official_state('autoencoder_3ch', 102)
  )
  server = state_dicts.mapping_from_state(official_state('mapping', 103))
  model = autoencoder.Autoencoder(**official.autoencoder_options(image))
  network = mapping.MappingNetwork(**official.mapping_options(server))
  transform = official.TRANSFORM

  @jax.jit
  def run(image, mask, server, secrets, x):
    apply = functools.partial(model.apply, train=False)
    found = {}
    z = apply(image, x, method='encode')
    found['client_protected'] = transform.forward(secrets[0], z)
    z = transform.inverse(secrets[0], found['client_protected'])
    found['server'] = z
    found['umn'] = network.apply(server, z, train=False)
    found['server_protected'] = transform.forward(secrets[1], found['umn'])
    z = transform.inverse(secrets[1], found['server_protected'])
    return found, jax.nn.sigmoid(apply(mask, z, method='decode'))

  x = np.random.RandomState(104).random_sample((2, 3, 256, 256))
  secrets = image_secret, mask_secret
  found, out = run(image, mask, server, secrets, nhwc(np.float32(x)))
  golden = np.load(GOLDEN / 'recipe_out.npz')
  assert len(golden) == 1 + 4 * len(SCALES)
  for stage, latents in found.items():
    # Q is the Q of another linear algebra library, perhaps.
    rtol = 1e-4 if 'protected' in stage else 1e-5
    for scale in SCALES:
      assert_close(latents[scale], nhwc(golden[f'{stage}_{scale}']), rtol)
  assert_close(out, nhwc(golden['out']), 1e-5)


def test_an_official_file_gives_what_the_official_code_gives():
  variables, secret = official.load_autoencoder(large('client1_img_ae.pt'))
  golden = np.load(large('out_ae_in3.npz'))
  for scale in SCALES:
    q, b = secret[0][scale], secret[1][scale]
    np.testing.assert_array_equal(q, golden[f'T_{scale}_Q'])
    np.testing.assert_array_equal(b, golden[f'T_{scale}_bias'])
  model = autoencoder.Autoencoder(**official.autoencoder_options(variables))

  @jax.jit
  def run(variables, secret, x):
    apply = functools.partial(model.apply, variables, train=False)
    z = apply(x, method='encode')
    w = official.TRANSFORM.forward(secret, z)
    back = official.TRANSFORM.inverse(secret, w)
    return z, w, back, jax.nn.sigmoid(apply(back, method='decode'))

  *latents, out = run(variables, secret, nhwc(golden['x']))
  for prefix, found in zip(('', 'protected_', 'recovered_'), latents):
    for scale in SCALES:
      assert_close(found[scale], nhwc(golden[f'{prefix}{scale}']), 1e-5)
  assert_close(out, nhwc(golden['decoder_out']), 1e-5)


# Parity of a training step


def make_autoencoder_step(variables):
  """Returns x -> (state_dict after a step of our training, gradients, loss)."""
  options = official.autoencoder_options(variables)
  model = autoencoder.Autoencoder(axis_name='batch', **options)
  task = tasks.image_reconstruction(model, official=True)
  task = task._replace(loss=official.unbiased_variance(task.loss))
  tx = train_step.optimizer(learning_rate=1e-3, steps=1, schedule='constant')
  variables = jax.tree.map(jnp.asarray, variables)
  step = train_step.make_train_step(task, tx)

  def run(x):
    state = train_step.TrainState(
      step=jnp.int32(0),
      variables=jax.tree.map(jnp.copy, variables),
      opt_state=tx.init(variables['params']),
      best_variables={},
      best_loss=jnp.float32(0),
      best_step=jnp.int32(0),
    )
    batch = {'image': x[None], 'mask': np.zeros((1, *x.shape[:3]), np.uint8)}
    state, metrics = step(state, batch, jax.random.key(0))
    state = jax.device_get(state)
    # The first moment after one step is a tenth of the gradient.
    gradients = jax.tree.map(lambda m: 10 * m, state.opt_state[0].mu)
    after = state_dicts.state_from_autoencoder(state.variables)
    gradients = state_dicts.state_from_autoencoder(
      {**state.variables, 'params': gradients}
    )
    return after, gradients, metrics['loss']

  return run


def assert_step_matches(after, gradients, loss, golden, rtol):
  assert_close(loss, golden['loss'], 1e-6)
  kinds = set()
  for name in golden:
    kind, _, key = name.partition('/')
    if kind == 'grad':
      assert_close(gradients[key], golden[name], rtol)
    elif kind == 'gradnorm':
      norm = np.linalg.norm(np.float64(gradients[key]).ravel())
      assert_close(norm, golden[name], rtol)
    elif kind == 'after' and 'running' in key:
      assert_close(after[key], golden[name], 1e-6)
    elif kind == 'after' and key in gradients and f'grad/{key}' in golden:
      # Adam's first step is the rate times the sign of the gradient, wherever
      # that is more than noise.
      error = np.abs(after[key] - golden[name])
      is_signal = np.abs(golden[f'grad/{key}']) > 1e-6
      assert np.max(error[is_signal]) < 3e-7 and np.mean(is_signal) > 0.9
    kinds.add(kind)
  assert kinds >= {'grad', 'gradnorm', 'after'}


def check_step(variables, x, golden, rtol):
  """Compares a step on x, or on a neighbour of it, with the golden one.

  Where the input of a ReLU is zero up to rounding, or two of a pooling window
  are equal up to it, processors choose differently, and gradients jump by up to
  3e-3. Images that differ by one unit in the last place of float32 choose
  differently, too: some of them as the processor of the golden step did.
  """
  step, rs = make_autoencoder_step(variables), np.random.RandomState(0)
  for attempt in range(9):
    noise = 1e-7 * rs.standard_normal(x.shape) if attempt else 0
    try:
      return assert_step_matches(
        *step(np.float32(x * (1 + noise))), golden, rtol
      )
    except AssertionError as error:
      mismatch = error
  raise mismatch


def test_an_autoencoder_trains_as_in_pytorch():
  variables, _ = state_dicts.autoencoder_from_state(
    official_state('autoencoder_3ch', 101)
  )
  check_step(variables, step_images(), np.load(GOLDEN / STEP), 1e-4)


def test_an_official_file_trains_as_the_official_code_trains_it():
  variables, _ = official.load_autoencoder(large('client1_img_ae.pt'))
  golden = np.load(large('train_step_ae_in3.npz'))
  check_step(variables, nhwc(golden['x']), golden, 2e-5)


def test_a_block_of_the_mapping_trains_as_the_official_code_trains_it():
  # The other two are the same code on larger inputs: half a minute more.
  variables = state_dicts.mapping_from_state(official_state('mapping', 103))
  options = official.mapping_options(variables)
  variables = {c: {'block_b': v['block_b']} for c, v in variables.items()}
  rs, draws = np.random.RandomState(105), []
  for _ in ('image', 'mask'):
    draw = {s: rs.standard_normal((4, *shape)) for s, shape in SIZES.items()}
    draws.append({'b': nhwc(np.float32(np.maximum(draw['b'], 0)))})
  batch = {'image': draws[0], 'mask': draws[1], 'client': np.zeros(4, int)}
  task = tasks.mapping(mapping.MappingNetwork(dropout=0.0, **options))
  loss = official.unbiased_variance(task.loss)

  def gradient_norms(variables, batch):
    run = lambda params: loss(
      {**variables, 'params': params}, batch, jax.random.key(0), True
    )
    grad, (_, after) = jax.grad(run, has_aux=True)(variables['params'])
    norms = jax.tree.map(lambda g: jnp.linalg.norm(g.ravel()), grad)
    return {**after, 'params': norms}

  found = jax.jit(gradient_norms)(variables, batch)
  found = traverse_util.flatten_dict(found)
  golden = np.load(GOLDEN / 'recipe_mapping_step.npz')
  count = 0
  for key, path in state_dicts._mapping_table().items():
    if not key.startswith('mb.') or key.endswith('tracked'):
      continue
    if path[0] == 'batch_stats':
      assert_close(found[path], golden[f'after/{key}'], 2e-6)
    elif golden[f'gradnorm/{key}'] > 1e-5:  # else zero in exact arithmetic
      # The golden norms are sums in float32: 2e-4 off for millions of numbers.
      assert_close(found[path], golden[f'gradnorm/{key}'], 1e-3)
      count += 1
  assert count == 74
