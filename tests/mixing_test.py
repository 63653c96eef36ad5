"""Tests of the mixing of latents."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import scipy.stats
from cryptography.hazmat.primitives import ciphers
from cryptography.hazmat.primitives.ciphers import algorithms

from ppcmi_jax.sealed import chacha, mixing

# Hadamard alone, in one and in several factors; DCT-II alone; both; no height.
SHAPES = {
  's3': (2, 8, 8, 16),
  's4': (1, 2, 4, 4),
  'odd': (2, 3, 5, 7),
  'both': (3, 6, 4, 8),
  'flat': (2, 5),
  'one': (2, 1, 1, 1),
}
MIX = mixing.mix()
forward = jax.jit(MIX.forward)
inverse = jax.jit(MIX.inverse)


def key_of(number):
  return chacha.key_words(bytes([number]) * 32)


def latents_of(shapes=None, seed=0):
  rng = np.random.default_rng(seed)
  return {
    name: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    for name, shape in (shapes or SHAPES).items()
  }


LATENTS = latents_of()
KEYS = {name: key_of(i) for i, name in enumerate(SHAPES)}
SECRET = jax.jit(MIX.init)(KEYS, LATENTS)


def error_of(found, expected):
  return max(
    float(np.abs(np.float64(found[n]) - np.float64(z)).max() / abs(z).max())
    for n, z in expected.items()
  )


def oracle(key, z):
  """One example in float64, by the table of the module's docstring."""
  positions, channels = math.prod(z.shape[:-1]), z.shape[-1]
  num_signs = -(-z.size // 32)
  cipher = ciphers.Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None)
  num_words = 3 * (positions + channels + num_signs)
  words = np.frombuffer(cipher.encryptor().update(bytes(4 * num_words)), '<u4')
  rows, columns, signs = np.split(
    words, [3 * positions, 3 * (positions + channels)]
  )
  norm = np.sqrt(np.mean(np.square(z)))
  x = (z / norm).reshape(positions, channels)
  for k in range(3):
    p = np.argsort(rows.reshape(3, -1)[k], kind='stable')
    q = np.argsort(columns.reshape(3, -1)[k], kind='stable')
    bits = np.unpackbits(
      signs.reshape(3, -1)[k].view(np.uint8), bitorder='little'
    )
    x = x[p][:, q] * (1 - 2.0 * bits[: z.size].reshape(x.shape))
    x = x.reshape(z.shape)
    for axis, size in enumerate(z.shape):
      if size & (size - 1):
        x = scipy.fft.dct(x, axis=axis, norm='ortho')
      else:
        matrix = scipy.linalg.hadamard(size) / math.sqrt(size)
        x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
    x = x.reshape(positions, channels)
  return x.reshape(z.shape), norm


@pytest.mark.parametrize('name', SHAPES)
def test_forward_is_the_table_of_the_docstring(name):
  mixed = forward(SECRET, LATENTS)[name]
  key = np.asarray(KEYS[name]).astype('<u4').tobytes()
  expected, norm = oracle(key, np.float64(LATENTS[name][0]))
  np.testing.assert_allclose(mixed['values'][0], expected, atol=3e-6)
  np.testing.assert_allclose(mixed['norm'][0], norm, rtol=1e-6)


def test_inverse_undoes_forward():
  mixed = forward(SECRET, LATENTS)
  for name, z in LATENTS.items():
    assert mixed[name]['values'].shape == z.shape
    assert mixed[name]['norm'].shape == z.shape[:1]
    assert mixed[name]['values'].dtype == jnp.float32
    rms = np.sqrt(
      np.mean(np.square(mixed[name]['values']), (*range(1, z.ndim),))
    )
    np.testing.assert_allclose(rms, 1, rtol=1e-5)
  assert error_of(inverse(SECRET, mixed), LATENTS) < 2e-6


@pytest.mark.parametrize('seed', range(2))
def test_round_trip_at_the_official_shapes(seed):
  """Of latents as they are: mostly zeros, channels of very uneven strength."""
  rng = np.random.default_rng(seed)
  latents = {
    name: jnp.asarray(
      np.maximum(rng.standard_normal(shape), 0)
      * rng.lognormal(0, 2, shape[-1]),
      jnp.float32,
    )
    for name, shape in OFFICIAL.items()
  }
  keys = {name: key_of(seed + i) for i, name in enumerate(OFFICIAL)}
  mixed, found = ROUND_TRIP(keys, latents)
  assert error_of(found, latents) < 2e-6
  for name, entry in mixed.items():
    values = np.asarray(entry['values']).ravel()
    assert np.abs(values).max() < 6.5, name  # Gaussian, of any latents
    assert abs(scipy.stats.kurtosis(values)) < 0.2


OFFICIAL = {'s3': (1, 32, 32, 64), 's4': (1, 16, 16, 128), 'b': (1, 8, 8, 256)}


@jax.jit
def ROUND_TRIP(keys, latents):
  secret = MIX.init(keys, latents)
  mixed = MIX.forward(secret, latents)
  return mixed, MIX.inverse(secret, mixed)


def test_eager_is_jit():
  shapes = {name: SHAPES[name] for name in ('s4', 'odd')}
  latents = {name: LATENTS[name] for name in shapes}
  keys = {name: KEYS[name] for name in shapes}
  secret = MIX.init(keys, jax.eval_shape(lambda: latents))
  for name in shapes:
    for one, other in zip(secret[name], SECRET[name]):
      np.testing.assert_array_equal(one, other)
  mixed = MIX.forward(secret, latents)
  for name, entry in mixed.items():
    found = forward(SECRET, LATENTS)[name]['values']
    np.testing.assert_allclose(entry['values'], found, atol=2e-6)
  assert error_of(MIX.inverse(secret, mixed), latents) < 2e-6


def test_secret_holds_permutations_and_fair_signs():
  for name, secret in SECRET.items():
    for orders in (secret.rows, secret.columns):
      expected = np.broadcast_to(np.arange(orders.shape[-1]), orders.shape)
      np.testing.assert_array_equal(np.sort(orders, axis=-1), expected)
    assert np.all(np.abs(secret.signs) == 1), name
  signs = np.asarray(SECRET['s3'].signs)
  assert abs(signs.mean()) < 5 / math.sqrt(signs.size)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_narrow_latents_are_mixed_in_float32(dtype):
  latents = {'s4': LATENTS['s4'].astype(dtype)}
  secret = {'s4': SECRET['s4']}
  mixed = MIX.forward(secret, latents)
  assert mixed['s4']['values'].dtype == jnp.float32
  assert error_of(MIX.inverse(secret, mixed), latents) < 2e-6


def distances(z):
  z = np.float64(z).reshape(len(z), -1)
  return np.linalg.norm(z[:, None] - z, axis=-1)


def test_examples_of_one_message_are_not_comparable():
  """Two equal examples, and one of other contents, look alike unrelated."""
  one, other = LATENTS['s3']
  latents = {'s3': jnp.stack([one, one, 1e-3 * one, other])}
  secret = MIX.init({'s3': key_of(9)}, latents)
  mixed = MIX.forward(secret, latents)['s3']['values']
  far = distances(mixed)[np.triu_indices(4, 1)]
  # Of unrelated unit Gaussians: sqrt(2 n), to within 5 standard deviations.
  np.testing.assert_allclose(far, math.sqrt(2 * one.size), rtol=0.12)


def test_distances_between_positions_do_not_survive():
  z = np.zeros([8, 8, 16], np.float32)
  z[:, :4] = np.random.default_rng(1).standard_normal(16)  # two materials
  latents = {'s3': jnp.asarray(z[None].repeat(2, 0))}
  mixed = MIX.forward({'s3': SECRET['s3']}, latents)['s3']['values']
  near = distances(mixed[0].reshape(64, 16))[np.triu_indices(64, 1)]
  assert near.min() > 1.5  # all 64 positions would be one of two
  before = distances(z.reshape(64, 16))[np.triu_indices(64, 1)]
  assert np.sum(before == 0) > 900


def test_another_key_gives_unrelated_numbers():
  latents = {'s3': LATENTS['s3']}
  mixed = [
    np.asarray(
      MIX.forward(MIX.init({'s3': key}, latents), latents)['s3']['values']
    ).ravel()
    for key in (key_of(0), key_of(0).copy(), key_of(1))
  ]
  np.testing.assert_array_equal(mixed[0], mixed[1])
  correlation = np.corrcoef(mixed[0], mixed[2])[0, 1]
  assert abs(correlation) < 5 / math.sqrt(mixed[0].size)


SECRET_4 = {'s4': SECRET['s4']}


@pytest.mark.parametrize('scale', [0, 1e-44, 1e-38, 1e-30, 1e30, 3e38])
@pytest.mark.parametrize('jit', [True, False])
def test_zeros_denormals_and_extremes_come_back(scale, jit):
  z = np.clip(np.asarray(LATENTS['s4']), -1, 1) * np.float32(scale)
  maybe_jit = jax.jit if jit else lambda function: function
  mixed = maybe_jit(MIX.forward)(SECRET_4, {'s4': jnp.asarray(z)})
  found = np.asarray(maybe_jit(MIX.inverse)(SECRET_4, mixed)['s4'])
  assert np.isfinite(mixed['s4']['norm']).all()
  assert np.isfinite(mixed['s4']['values']).all()
  # Below the smallest normal number, a latent becomes zeros.
  np.testing.assert_allclose(
    np.float64(found), np.float64(z), rtol=0, atol=2e-6 * scale + 2e-38
  )


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_bad_number_makes_its_examples_norm_nan(bad):
  latents = {'s3': LATENTS['s3'].at[1, 2, 3, 4].set(bad)}
  mixed = jax.jit(MIX.forward)({'s3': SECRET['s3']}, latents)
  assert np.isnan(mixed['s3']['norm']).tolist() == [False, True]


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: MIX.init({'x': KEYS['s4']}, {'s4': LATENTS['s4']}), 'keys'),
    (lambda: MIX.init(KEYS['s4'], LATENTS['s4']), 'dicts'),
    (lambda: MIX.init({'s4': jnp.zeros(8)}, {'s4': LATENTS['s4']}), 's4.*uint'),
    (lambda: MIX.init({'s4': KEYS['s4']}, {'s4': jnp.ones([0, 4])}), 'empty'),
    (lambda: MIX.init({'s4': KEYS['s4']}, {'s4': jnp.ones(4)}), 'shape'),
    (
      lambda: MIX.init({'s4': KEYS['s4']}, {'s4': jnp.ones([1, 4], 'int8')}),
      's4: dtype',
    ),
    (lambda: MIX.forward(SECRET_4, {'s4': LATENTS['s3']}), 's4: secret'),
    (lambda: MIX.inverse(SECRET_4, {'s4': LATENTS['s4']}), 's4: mixed'),
    (
      lambda: MIX.inverse(
        SECRET_4, {'s4': {'values': LATENTS['s4'], 'norm': jnp.ones(2)}}
      ),
      's4: norm',
    ),
  ],
)
def test_errors_name_the_latent(call, message):
  with pytest.raises(ValueError, match=message):
    call()
