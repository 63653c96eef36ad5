"""Tests of official/: parity with the official PyTorch code, and its files.

golden/README.md says what the golden files hold and how weights are drawn.
"""

import functools
import json
import math
import pathlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from hypothesis import strategies as st

from ppcmi_jax import keyed, official, tasks, train_step
from ppcmi_jax.models import autoencoder, fused, mapping
from ppcmi_jax.official import archive, state_dicts

GOLDEN = pathlib.Path(__file__).parent / 'golden'
LARGE = pathlib.Path(__file__).parents[2] / 'shared' / 'golden'
SHAPES = 'state_dict_shapes.json'
STEP = 'recipe_autoencoder_step.npz'
TINY_FILE = 'tiny_img_ae.pt'
TINY = (2, 3, 4, 5, 6)
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


def assert_trees_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


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


class Norm(nn.Module):
  """A lone BatchNorm, with PyTorch's numbers."""

  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, *, train):
    return nn.BatchNorm(
      not train, momentum=0.9, axis_name=self.axis_name, name='norm'
    )(x)


def moved(variables, x, axis_name=None, train=True):
  model = Norm(axis_name)
  run = lambda x: model.apply(
    variables, x, train=train, mutable=['batch_stats']
  )[1]
  return official.unbiased_variance(run)(x)['batch_stats']['norm']


def test_running_variances_are_unbiased_over_all_devices():
  x = np.float32(np.random.default_rng(0).normal(size=(2, 3, 2, 2, 5)))
  init = official.unbiased_variance(functools.partial(Norm().init, train=True))
  variables = init(jax.random.key(0), x[0])
  np.testing.assert_array_equal(variables['batch_stats']['norm']['var'], 1)
  flat = x.reshape(-1, 5)
  expected = 0.9 + 0.1 * flat.var(axis=0, ddof=1)
  found = moved(variables, x.reshape(6, 2, 2, 5))
  np.testing.assert_allclose(found['var'], expected, rtol=1e-6)
  np.testing.assert_allclose(found['mean'], 0.1 * flat.mean(0), atol=1e-7)
  run = functools.partial(moved, variables, axis_name='batch')
  found = jax.vmap(run, axis_name='batch')(x)
  np.testing.assert_allclose(found['var'], [expected] * 2, rtol=1e-6)


def test_variances_are_left_alone_outside_training_and_outside_the_call():
  x = np.float32(np.random.default_rng(0).normal(size=(3, 1, 1, 2)))
  variables = Norm().init(jax.random.key(0), x, train=False)
  np.testing.assert_array_equal(moved(variables, x, train=False)['var'], 1)
  moved(variables, x)
  plain = Norm().apply(variables, x, train=True, mutable=['batch_stats'])[1]
  np.testing.assert_allclose(
    plain['batch_stats']['norm']['var'],
    0.9 + 0.1 * x.var((0, 1, 2)),
    rtol=1e-6,
  )


def test_one_value_a_channel_is_refused():
  x = np.ones((1, 1, 1, 2), np.float32)
  variables = Norm().init(jax.random.key(0), x, train=False)
  with pytest.raises(ValueError, match='norm: expected more than one value'):
    moved(variables, x)


# Files


def blank_state(channels, widths, skips=True, protected=True):
  """An autoencoder's state_dict of zeros, Q of ones on the diagonal."""
  variables = shape_variables(
    autoencoder.Autoencoder(channels, widths, skips),
    jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32),
  )
  secret = None
  if protected:
    sizes = dict(zip(('s3', 's4', 'b'), widths[2:]))
    eye = {scale: np.eye(n, dtype=np.float32) for scale, n in sizes.items()}
    zero = {scale: np.zeros(n, np.float32) for scale, n in sizes.items()}
    secret = eye, zero
  return state_dicts.state_from_autoencoder(variables, secret)


def tiny_state(channels=1, widths=TINY, skips=True, protected=True, seed=1):
  state = blank_state(channels, widths, skips, protected)
  return recipe({key: x.shape for key, x in state.items()}, seed)


def shape_variables(model, x):
  """Variables of zeros."""
  init = functools.partial(model.init, train=False)
  tree = jax.eval_shape(init, jax.random.key(0), x)
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)


def tiny_mapping(width=0.02, channels=(6, 4, 5)):
  x = {
    scale: jax.ShapeDtypeStruct((1, 1, 1, n), jnp.float32)
    for scale, n in zip(SCALES, channels)
  }
  return shape_variables(mapping.MappingNetwork(width), x)


def test_keys_are_those_of_the_official_code_in_its_order():
  shapes = json.loads((GOLDEN / SHAPES).read_text())
  state = blank_state(1, (16, 32, 64, 128, 256))
  found = [[key, list(x.shape)] for key, x in state.items()]
  assert found == shapes['autoencoder_1ch']
  state = state_dicts.state_from_mapping(tiny_mapping())
  assert list(state) == [key for key, _ in shapes['mapping']]


def test_a_file_of_pytorch_is_read():
  variables, secret = official.load_autoencoder(GOLDEN / TINY_FILE)
  expected = recipe({k: x.shape for k, x in tiny_state().items()}, 106)
  found = state_dicts.state_from_autoencoder(variables, secret)
  for key, x in expected.items():
    if not key.endswith('tracked'):
      np.testing.assert_allclose(found[key], x, atol=1e-6)
  # The secret is not among the variables.
  assert set(variables) == {'params', 'batch_stats'}
  assert len(jax.tree.leaves(secret)) == 6


@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
@hypothesis.given(
  st.tuples(*[st.integers(1, 9)] * 5), st.integers(1, 4), st.booleans(),
  st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_autoencoders_survive_a_round_trip(
  tmp_path_factory, widths, channels, skips, protected, seed
):
  state = tiny_state(channels, widths, skips, protected, seed)
  variables, secret = state_dicts.autoencoder_from_state(state)
  options = official.autoencoder_options(variables)
  assert options['widths'] == widths and options['channels'] == channels
  assert options['skips'] == skips and (secret is not None) == protected
  path = tmp_path_factory.mktemp('official') / 'client1_mask_ae.pt'
  official.save_autoencoder(path, variables, secret)
  assert_trees_equal(official.load_autoencoder(path), (variables, secret))
  assert path.stat().st_mode & 0o077 == 0 or not protected


@pytest.mark.parametrize('width', [0.02, 0.0494])
def test_mappings_survive_a_round_trip(tmp_path, width):
  rng, like = np.random.default_rng(0), tiny_mapping(width)
  draw = lambda x: np.float32(rng.uniform(size=x.shape))
  variables = jax.tree.map(draw, like)
  official.save_mapping(tmp_path / 'umn.pt', variables)
  assert_trees_equal(official.load_mapping(tmp_path / 'umn.pt'), variables)
  options = official.mapping_options(variables)
  assert_trees_equal(tiny_mapping(options['width']), like)


def test_what_is_read_is_wired_as_the_transform_expects():
  _, secret = state_dicts.autoencoder_from_state(tiny_state())
  z = {s: np.float32(np.eye(n)) for s, n in zip(SCALES, (6, 4, 5))}
  w = official.TRANSFORM.forward(secret, z)
  for scale, (q, b) in {s: (secret[0][s], secret[1][s]) for s in z}.items():
    np.testing.assert_allclose(w[scale], q.T + b, atol=1e-6)


KEY = 'decoder.up2.1.0.weight'


@pytest.mark.parametrize(
  'change, expected',
  [
    ({KEY: None}, r"found 1 missing \('decoder.up2.1.0.weight'\) of 62 keys"),
    ({'encoderT.T_b.Q': None}, "1 missing .'encoderT.T_b.Q'"),
    ({'more': np.zeros(1)}, r"found 1 unknown \('more'\)"),
    (
      {KEY: np.zeros((4, 11, 3, 3), 'f')},
      rf'{KEY}: expected \[4, 10, 3, 3\], found \[4, 11, 3, 3\];',
    ),
    ({KEY: np.zeros((4, 10, 3), 'f')}, r'\[4, 10, 3, 3\], found \[4, 10, 3\];'),
    ({KEY: np.zeros((), 'f')}, r'\[4, 10, 3, 3\], found \[\];'),
    ({KEY: np.zeros((4, 10, 3, 3))}, f'{KEY}: expected float32, found float64'),
    ({KEY: np.full((4, 10, 3, 3), np.nan, 'f')}, f'{KEY}: .* found NaN'),
    (
      {'encoderT.e3.1.weight': np.ones(7, 'f')},
      r'e3.1.weight: expected \[4\],',
    ),
    ({'encoderT.b.1.weight': np.ones(0, 'f')}, r'b.1.weight: .* found \[0\];'),
    ({'encoderT.e2.0.weight': np.ones(0, 'f')}, r'e2.0.weight: .* found \[0\]'),
    ({'encoderT.e1.1.running_var': -np.ones(2, 'f')}, 'variances of at least'),
    ({'encoderT.T_b.Q': np.ones((6, 6), 'f')}, 'expected an orthogonal'),
    ({'encoderT.T_s3.b': np.ones(5, 'f')}, r'T_s3.b: expected \[4\], found'),
    ({'encoderT.e1.1.num_batches_tracked': np.array(0.5)}, 'expected int64'),
    ({'decoder.out_conv.bias': np.ones(3, 'f')}, r'\[2, 3, 3, 3\], found'),
  ],
)
def test_a_wrong_file_is_refused_by_file_key_and_shapes(
  tmp_path, change, expected
):
  state = {**tiny_state(), **change}
  path = tmp_path / 'client7_img_ae.pt'
  archive.write(path, {k: x for k, x in state.items() if x is not None})
  with pytest.raises(ValueError, match=expected) as error:
    official.load_autoencoder(path)
  text = str(error.value)
  assert text.startswith(f'{path}: ') and '\n' not in text


def test_the_other_network_is_refused(tmp_path):
  archive.write(tmp_path / 'a.pt', tiny_state())
  with pytest.raises(ValueError, match=r'umn\.pt to load_mapping') as error:
    official.load_mapping(tmp_path / 'a.pt')
  assert '417 missing' in str(error.value)
  official.save_mapping(tmp_path / 'umn.pt', tiny_mapping())
  with pytest.raises(ValueError, match=r"417 unknown \('mb\.c1\.0\.w"):
    official.load_autoencoder(tmp_path / 'umn.pt')


def test_what_the_official_code_has_no_place_for_is_not_written(tmp_path):
  variables, secret = state_dicts.autoencoder_from_state(tiny_state())
  path = tmp_path / 'x.pt'
  three = keyed.chain(keyed.orthogonal(), keyed.permutation(), keyed.shift())
  z = {s: jnp.zeros((1, 2, 2, n)) for s, n in zip(SCALES, (6, 4, 5))}
  other = three.init(jax.random.key(0), z)
  nan = jax.tree.map(lambda x: np.full_like(x, np.nan), variables)
  half = jax.tree.map(np.float16, variables)
  image = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
  shuffled = autoencoder.Autoencoder(1, TINY, upsampling='shuffle')
  for expected, arguments in {
    'secret: expected the two parts': (variables, other),
    'secret/0/b': (variables, ({}, secret[1])),
    'found NaN': (nan, secret),
    'expected float32, found float16': (half, secret),
    'batch_stats/encoder/stage1': ({'params': variables['params']}, None),
    'it is of another network': (shape_variables(shuffled, image), None),
  }.items():
    with pytest.raises(ValueError, match=expected):
      official.save_autoencoder(path, *arguments)
  sides = zip(SCALES, (1, 4, 2), (6, 4, 5))
  shape = lambda n, c: jax.ShapeDtypeStruct((1, n, n, c), jnp.float32)
  latents = {scale: shape(side, n) for scale, side, n in sides}
  for expected, variables in {
    'unknown .*latent_stats': {**tiny_mapping(), 'latent_stats': {'mean': 1}},
    'missing .*block_b': shape_variables(fused.FusedMapping((8,) * 3), latents),
  }.items():
    with pytest.raises(ValueError, match=expected):
      official.save_mapping(path, variables)
  assert not list(tmp_path.iterdir())
