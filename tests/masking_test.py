"""Tests of quantising, packing and masking."""

import functools
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.stats
from cryptography.hazmat.primitives import ciphers
from cryptography.hazmat.primitives.ciphers import algorithms
from hypothesis import strategies as st

from ppcmi_jax import keyed
from ppcmi_jax.sealed import chacha, masking, mixing

NUMPY = {
  'float32': np.dtype('<f4'),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
  'float16': np.dtype('<f2'),
  'int8': np.dtype('<i1'),
  'int4': np.dtype('<i1'),
}
KEY = chacha.key_words(bytes(range(32)))
pack = jax.jit(masking.pack, static_argnums=1)
unpack = jax.jit(masking.unpack, static_argnums=(1, 2))


@jax.jit
def add(key, words):
  return masking.add(chacha.keystream(key, len(words)), words)


@jax.jit
def subtract(key, words):
  return masking.subtract(chacha.keystream(key, len(words)), words)


def bits_of(array):
  return np.asarray(array).tobytes()


def stream_of(key, num_bytes):
  cipher = ciphers.Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None)
  return np.frombuffer(cipher.encryptor().update(bytes(num_bytes)), '<u4')


@pytest.mark.parametrize('dtype', masking.DTYPES)
@hypothesis.given(data=st.binary(min_size=24, max_size=24))
@hypothesis.example(data=bytes.fromhex('0100807f010080ff01007f7f' * 2))
@hypothesis.settings(max_examples=60, deadline=None)
def test_any_bits_come_back(dtype, data):
  """NaNs with payloads, infinities, denormals and -0 among them."""
  values = np.frombuffer(data, NUMPY[dtype])
  if dtype == 'int4':  # two in each byte, the lower half first
    values = np.stack([values << 4, values], axis=-1).ravel() >> 4
  words = pack(values, dtype)
  assert words.dtype == jnp.uint32
  assert np.asarray(words).astype('<u4').tobytes() == data
  masked = add(KEY, words)
  recovered = unpack(subtract(KEY, masked), values.shape, dtype)
  assert recovered.dtype == values.dtype
  assert bits_of(recovered) == bits_of(values)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'int8'])
@pytest.mark.parametrize('jit', [True, False])
def test_every_bit_pattern_of_a_number_comes_back(dtype, jit):
  size = NUMPY[dtype].itemsize
  values = np.arange(256**size, dtype=f'<u{size}').view(NUMPY[dtype])
  values = jnp.asarray(values.reshape(2, -1))
  if jit:
    recovered = unpack(pack(values, dtype), values.shape, dtype)
  else:
    words = masking.pack(values, dtype)
    recovered = masking.unpack(words, values.shape, dtype)
  assert bits_of(recovered) == bits_of(values)


def test_the_last_word_is_filled_with_zeros():
  values = jnp.array([[1, 2, 3], [-1, 5, 6]], jnp.int8)
  words = masking.pack(values, 'int8')
  assert [hex(word) for word in words] == ['0xff030201', '0x605']
  words = masking.pack(jnp.tile(values, 2), 'int4')
  assert [hex(word) for word in words] == ['0x5f321321', '0x65f6']
  assert masking.num_words((2, 3), 'int8') == 2
  assert masking.num_words((3,), 'bfloat16') == 2
  assert [masking.num_words((n,), 'int4') for n in (1, 8, 9)] == [1, 1, 2]


@hypothesis.given(
  st.binary(min_size=32, max_size=32),
  st.lists(st.integers(0, 2**32 - 1), min_size=20, max_size=20),
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_masking_adds_the_keystream_modulo_two_to_the_32(key, words):
  words = np.array(words, np.uint32)
  found = np.asarray(add(chacha.key_words(key), words))
  expected = (words + stream_of(key, 80).astype(np.uint64)) % 2**32
  np.testing.assert_array_equal(found, expected.astype(np.uint32))
  np.testing.assert_array_equal(subtract(chacha.key_words(key), found), words)


LATENT = np.random.default_rng(0).standard_normal((3, 4, 5, 6), np.float32)


@pytest.mark.parametrize(
  'dtype, error',
  [('float32', 0), ('bfloat16', 2**-8), ('float16', 2**-11), ('int8', 0.5)],
)
def test_quantising_errs_as_the_table_says(dtype, error):
  x = LATENT * np.array([1, 1e-6, 100], np.float32).reshape(3, 1, 1, 1)
  values, scale = masking.quantise(jnp.asarray(x), dtype)
  assert values.dtype == NUMPY[dtype] and scale.shape == (3,)
  found = np.asarray(masking.dequantise(values, scale, dtype))
  assert found.dtype == np.float32
  largest = np.abs(x).max(axis=(1, 2, 3), keepdims=True)
  if dtype == 'int8':
    np.testing.assert_allclose(scale, largest.ravel() / 127, rtol=1e-6)
    bound = 0.5001 * largest / 127
    assert np.abs(np.asarray(values, np.int32)).max() == 127
  else:
    bound = error * np.abs(x) + (2**-25 if dtype == 'float16' else 0)
  assert np.all(np.abs(found - x) <= bound)


def test_four_bits_are_those_of_the_best_spacing():
  """Scores as Max's table II says of a Gaussian, whatever its size."""
  x = np.random.default_rng(1).standard_normal((2, 400000), np.float32)
  x *= np.array([[1e-25], [1e20]], np.float32)
  values, scale = masking.quantise(jnp.asarray(x), 'int4')
  assert set(np.unique(values)) == set(range(-8, 8))
  found = np.asarray(masking.dequantise(values, scale, 'int4'))
  rms = np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=1))
  np.testing.assert_allclose(scale, 0.3352 * rms, rtol=1e-4)
  lost = np.mean(np.square(found - x, dtype=np.float64), axis=1) / rms**2
  np.testing.assert_allclose(lost, 0.01154, rtol=0.02)
  step = np.asarray(scale)[:, None]
  bound = np.maximum(step / 2, np.abs(x) - 7.5 * step)
  assert np.all(np.abs(found - x) <= 1.0001 * bound)


@pytest.mark.parametrize('dtype', masking.DTYPES)
@pytest.mark.parametrize('jit', [True, False])
def test_zeros_denormals_and_extremes_stay_numbers(dtype, jit):
  x = np.zeros((4, 8), np.float32)
  x[1] = 1e-42
  x[2] = np.finfo(np.float32).tiny
  x[3, 0] = 60000.0
  function = functools.partial(masking.quantise, dtype=dtype)
  values, scale = (jax.jit(function) if jit else function)(x)
  found = np.asarray(masking.dequantise(values, scale, dtype))
  assert np.isfinite(found).all() and np.isfinite(scale).all()
  if dtype == 'int4':  # for Gaussian numbers alone
    found, x = found[:3], x[:3]
  np.testing.assert_allclose(found, x, rtol=2**-8, atol=2e-38)


@pytest.mark.parametrize('dtype', masking.DTYPES)
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_bad_number_shows_in_its_examples_scale(dtype, bad):
  x = LATENT.copy()
  x[1, 2, 3, 4] = bad
  _, scale = masking.quantise(jnp.asarray(x), dtype)
  assert np.isnan(scale).tolist() == [False, True, False]
  if dtype == 'float16':  # too large for it
    _, scale = masking.quantise(jnp.full([1, 1], 1e5), dtype)
    assert np.isnan(scale[0])


@pytest.mark.parametrize('dtype', masking.DTYPES)
def test_the_inverse_undoes_all_but_the_rounding(dtype):
  latents = {
    's3': {'values': jnp.asarray(LATENT), 'norm': jnp.array([1.0, 2.0, 3.0])},
    'b': {'values': jnp.asarray(LATENT[:, :1]), 'norm': jnp.zeros(3)},
  }
  keys = {'s3': KEY, 'b': chacha.key_words(bytes(32))}
  transform = masking.mask(dtype)
  secret = jax.jit(transform.init)(keys, latents)
  masked = jax.jit(transform.forward)(secret, latents)
  if dtype != 'int4':  # whose scale is a mean, summed in any order
    eager = transform.forward(transform.init(keys, latents), latents)
    jax.tree.map(np.testing.assert_array_equal, eager, masked)
  assert masked['s3']['words'].shape == (masking.num_words((360,), dtype),)
  assert masked['s3']['numbers'].shape == (3, 2)
  found = jax.jit(transform.inverse)(secret, masked)
  for name, entry in latents.items():
    np.testing.assert_array_equal(found[name]['norm'], entry['norm'])
    rounded = masking.quantise(entry['values'], dtype)
    expected = masking.dequantise(*rounded, dtype)
    np.testing.assert_allclose(
      found[name]['values'],
      expected,
      rtol=1e-6 if dtype == 'int4' else 0,  # a mean, summed in any order
    )


def test_it_chains_and_maps_as_keyed_transforms_do():
  """With the paper's rotation before it, two clients under `vmap`."""
  transform = keyed.chain(
    keyed.orthogonal(), mixing.mix(), masking.mask('float32')
  )
  words = jnp.arange(32, dtype=jnp.uint32).reshape(2, 2, 8)
  keys = (
    jax.random.split(jax.random.key(0)),
    *({'b': words[:, part]} for part in range(2)),
  )
  latents = {'b': jnp.asarray(LATENT[None, :, :4, :2]).repeat(2, 0)}
  secret = jax.vmap(transform.init)(keys, latents)
  masked = jax.jit(jax.vmap(transform.forward))(secret, latents)
  assert masked['b']['words'].shape == (2, 3 * 4 * 2 * 6)
  of = lambda tree, client: jax.tree.map(lambda leaf: leaf[client], tree)
  for client in range(2):
    alone = transform.init(of(keys, client), of(latents, client))
    stream = alone[2]['b'].stream
    np.testing.assert_array_equal(stream, of(secret, client)[2]['b'].stream)
  found = jax.vmap(transform.inverse)(secret, masked)
  np.testing.assert_allclose(found['b'], latents['b'], atol=1e-5)


def test_masked_words_are_uniform_and_two_messages_unrelated():
  """Of the least random latents there are, all the same, under test keys."""
  keys = [chacha.key_words(bytes([number]) * 32) for number in range(3)]
  words = pack(np.full(2**18, 7, np.int8), 'int8')
  messages = [np.asarray(add(key, words)) for key in keys]
  for message in messages:
    for shift in (0, 8, 16, 24):
      counts = np.bincount((message >> shift) & 255, minlength=256)
      assert scipy.stats.chisquare(counts).pvalue > 1e-6
    bits = (message[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    ones = bits.sum(axis=0)
    sigma = np.sqrt(len(message)) / 2
    assert np.abs(ones - len(message) / 2).max() < 5.5 * sigma
  for one, other in itertools.combinations(messages, 2):
    correlation = np.corrcoef(one.astype(float), other.astype(float))[0, 1]
    assert abs(correlation) < 5.5 / np.sqrt(len(one))
    counts = np.bincount((one - other) & 255, minlength=256)
    assert scipy.stats.chisquare(counts).pvalue > 1e-6
    assert np.sum(one == other) <= 3


LATENTS = {'b': {'values': jnp.ones([1, 2]), 'norm': jnp.ones(1)}}
LONGER = {'b': {'values': jnp.ones([1, 9]), 'norm': jnp.ones(1)}}
MASK = masking.mask('int8')
SECRET = MASK.init({'b': KEY}, LATENTS)
MASKED = MASK.forward(SECRET, LATENTS)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: masking.quantise(jnp.ones([1, 2]), 'int2'), 'dtype.*int4.*int2'),
    (lambda: masking.pack(jnp.ones(2, 'int32'), 'int4'), 'int8, found int32'),
    (lambda: masking.unpack(jnp.zeros(2, 'uint32'), (2,), 'int8'), 'words.*1'),
    (lambda: masking.unpack(jnp.zeros(1), (1,), 'float32'), 'uint32.*float32'),
    (
      lambda: masking.add(jnp.zeros(2), jnp.zeros(2)),
      'words.*float32',
    ),
    (lambda: masking.mask('int2'), 'dtype.*int4.*int2'),
    (lambda: MASK.init({'s3': KEY}, LATENTS), "keys.*'b'.*'s3'"),
    (lambda: MASK.forward({'s3': SECRET['b']}, LATENTS), "secret.*'b'.*'s3'"),
    (lambda: MASK.forward(SECRET, LONGER), r'b: values.*1, 2.*1, 9'),
    (
      lambda: MASK.forward({'b': SECRET['b'].replace(shape=(1, 9))}, LONGER),
      r'b: keystream.*3.*1',
    ),
    (
      lambda: MASK.inverse(
        SECRET, {'b': {**MASKED['b'], 'numbers': jnp.ones([2, 2])}}
      ),
      'b: numbers',
    ),
  ],
)
def test_errors_name_what_is_wrong(call, message):
  with pytest.raises(ValueError, match=message):
    call()
