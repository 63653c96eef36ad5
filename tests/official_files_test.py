"""Tests of official/: its files, as they are read, written and refused."""

import functools
import json

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from official_test import GOLDEN, SCALES, SHAPES, recipe

from ppcmi_jax import keyed, official
from ppcmi_jax.models import autoencoder, fused, mapping
from ppcmi_jax.official import archive, state_dicts

TINY_FILE = 'tiny_img_ae.pt'
TINY = (2, 3, 4, 5, 6)


def assert_trees_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


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
    'unknown .*others': {**tiny_mapping(), 'others': {'mean': 1}},
    'missing .*block_b': shape_variables(fused.FusedMapping((8,) * 3), latents),
  }.items():
    with pytest.raises(ValueError, match=expected):
      official.save_mapping(path, variables)
  assert not list(tmp_path.iterdir())
