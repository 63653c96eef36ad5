"""Tests of ChaCha20."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cryptography.hazmat.primitives import ciphers
from cryptography.hazmat.primitives.ciphers import algorithms
from hypothesis import strategies as st

from ppcmi_jax.sealed import chacha

KEY = bytes(range(32))


def reference(key, nonce, counter, num_words):
  """The keystream words of the `cryptography` package."""
  start = counter.to_bytes(4, 'little') + nonce
  cipher = ciphers.Cipher(algorithms.ChaCha20(key, start), mode=None)
  return np.frombuffer(cipher.encryptor().update(bytes(4 * num_words)), '<u4')


def words_of(data):
  return np.frombuffer(data, '<u4').astype(np.uint32)


def one_block(key, counter, nonce):
  counters = jnp.full((1,), counter, jnp.uint32)
  found = chacha.blocks(words_of(key), counters, words_of(nonce))
  return np.asarray(found)[0].astype('<u4').tobytes()


@pytest.mark.parametrize(
  'key, nonce, counter, block',
  [
    (  # RFC 8439, section 2.3.2
      KEY.hex(),
      '000000090000004a00000000',
      1,
      '10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e'
      'd2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e',
    ),
    (  # A.1, vector 1
      '00' * 32,
      '00' * 12,
      0,
      '76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7'
      'da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586',
    ),
    (  # A.1, vector 3
      '00' * 31 + '01',
      '00' * 12,
      1,
      '3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a'
      '8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0',
    ),
    (  # A.1, vector 5
      '00' * 32,
      '00' * 11 + '02',
      0,
      'c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7'
      '8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d',
    ),
  ],
)
def test_blocks_are_those_of_rfc_8439(key, nonce, counter, block):
  found = one_block(bytes.fromhex(key), counter, bytes.fromhex(nonce))
  assert found.hex() == block


def test_encryption_is_that_of_rfc_8439():
  """Section 2.4.2: a text longer than a block, counted from 1."""
  text = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only "
    b'one tip for the future, sunscreen would be it.'
  )
  nonce = words_of(bytes.fromhex('000000000000004a00000000'))
  stream = chacha.blocks(words_of(KEY), jnp.arange(1, 3, dtype='uint32'), nonce)
  stream = np.asarray(stream).astype('<u4').tobytes()
  found = bytes(a ^ b for a, b in zip(text, stream))
  assert found.hex().startswith('6e2e359a2568f98041ba0728dd0d6981')
  assert found.hex().endswith('8eedf2785e42874d')


@hypothesis.given(
  st.binary(min_size=32, max_size=32),
  st.binary(min_size=12, max_size=12),
  st.integers(0, 2**32 - 3),
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_blocks_agree_with_the_cryptography_package(key, nonce, counter):
  counters = jnp.arange(3, dtype=jnp.uint32) + jnp.uint32(counter)
  found = JITTED(words_of(key), counters, words_of(nonce))
  expected = reference(key, nonce, counter, 48).reshape(3, 16)
  np.testing.assert_array_equal(found, expected)


JITTED = jax.jit(chacha.blocks)


@pytest.mark.parametrize('num_words', [0, 1, 16, 17, 1000])
def test_keystream_counts_from_zero_and_is_a_prefix(num_words):
  found = chacha.keystream(chacha.key_words(KEY), num_words)
  assert found.dtype == jnp.uint32
  np.testing.assert_array_equal(found, reference(KEY, bytes(12), 0, num_words))


def test_eager_jit_and_vmap_agree():
  rng = np.random.default_rng(0)
  keys = rng.integers(0, 2**32, (3, 8), dtype=np.uint32)
  nonces = rng.integers(0, 2**32, (3, 3), dtype=np.uint32)
  stream = lambda key, nonce: chacha.keystream(key, 40, nonce)
  expected = np.stack(
    [
      reference(k.astype('<u4').tobytes(), n.astype('<u4').tobytes(), 0, 40)
      for k, n in zip(keys, nonces)
    ]
  )
  jitted = jax.jit(stream)
  for function in (jitted, stream):
    found = [function(k, n) for k, n in zip(keys, nonces)]
    np.testing.assert_array_equal(found, expected)
  for function in (jax.vmap(stream), jax.jit(jax.vmap(stream))):
    np.testing.assert_array_equal(function(keys, nonces), expected)
  one_by_one = jax.vmap(
    lambda counter: chacha.blocks(keys[0], counter[None], nonces[0])[0]
  )
  np.testing.assert_array_equal(
    one_by_one(jnp.arange(3, dtype='uint32')).reshape(-1)[:40], expected[0]
  )


def test_key_words_are_little_endian():
  assert hex(chacha.key_words(KEY)[0]) == '0x3020100'
  assert chacha.key_words(KEY).dtype == np.uint32


def test_several_keystreams_are_those_of_each():
  keys = {name: words_of(bytes([i]) * 32) for i, name in enumerate('abc')}
  sizes = {'a': 40, 'b': 0, 'c': 16}
  found = jax.jit(lambda keys: chacha.keystreams(keys, sizes))(keys)
  for name, size in sizes.items():
    expected = chacha.keystream(keys[name], size)
    np.testing.assert_array_equal(found[name], expected)
  with pytest.raises(ValueError, match=r'b: key: expected uint32 \[8\]'):
    chacha.keystreams(keys | {'b': keys['b'][:7]}, sizes)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: chacha.key_words(b'short'), 'key: expected 32 bytes, found 5'),
    (lambda: chacha.key_words('x' * 32), 'found str'),
    (lambda: chacha.keystream(jnp.zeros(7, 'uint32'), 1), r'key.*\[8\]'),
    (lambda: chacha.keystream(jnp.zeros(8, 'int32'), 1), 'uint32.*int32'),
    (
      lambda: chacha.keystream(
        jnp.zeros(8, 'uint32'), 1, jnp.zeros(2, 'uint32')
      ),
      r'nonce.*\[3\]',
    ),
    (
      lambda: chacha.keystream(jnp.zeros(8, 'uint32'), chacha.MAX_WORDS + 1),
      'num_words',
    ),
    (
      lambda: chacha.blocks(jnp.zeros(8, 'uint32'), jnp.zeros((), 'uint32')),
      'counters',
    ),
  ],
)
def test_errors_name_what_is_wrong(call, message):
  with pytest.raises(ValueError, match=message):
    call()
