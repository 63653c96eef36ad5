"""Tests of sealed messages: their layout, their keys, their secrecy."""

import copy
import functools
import itertools
import os
import pickle
import struct

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import aead
from cryptography.hazmat.primitives.kdf import hkdf
from hypothesis import strategies as st
from sealed_messages import (
  DATA,
  HEADER_BYTES,
  KEY,
  MESSAGE_ID,
  OFFICIAL,
  ROUTE,
  SHAPES,
  draft_of,
  masked_of,
  message_of,
  words_of,
)

from ppcmi_jax import keyed
from ppcmi_jax.sealed import body, envelope, masking, mixing, sealing

MASKED = masked_of()


def test_layout_is_that_of_the_table():
  names = {'b': (4, 2, 1, 1, 5, 0), 's3': (4, 2, 2, 2, 2, 0)}
  nonce = envelope.read(DATA).nonce
  header = b''.join(
    [
      bytes.fromhex('89 50 50 43 4d 53 0d 0a'),
      struct.pack('<II', 1, HEADER_BYTES),
      bytes([1, 0, 0, 3]),
      struct.pack('<IQ', 3, 7),
      MESSAGE_ID,
      nonce,
      b'clinic-1'.ljust(64, b'\0'),
      b'demo.1'.ljust(32, b'\0'),
      bytes([2]),
      *(
        name.encode().ljust(16, b'\0') + struct.pack('<B5I', *numbers)
        for name, numbers in names.items()
      ),
    ]
  ).ljust(HEADER_BYTES, b'\0')
  assert DATA[:HEADER_BYTES] == header and len(nonce) == 32

  def derive(key, salt, *labels):
    texts = ['ppcmi_jax derive v1', *labels]
    info = b''.join(len(t).to_bytes(4, 'big') + t.encode() for t in texts)
    return hkdf.HKDF(hashes.SHA256(), 32, salt, info).derive(key)

  key = derive(KEY, nonce, 'message', 'clinic-1', 'query', 'image', '3')
  key = derive(key, b'', 'seal')
  plain = aead.AESGCM(key).decrypt(bytes(12), DATA[HEADER_BYTES:], header)
  expected = b''.join(
    MASKED[name][part].tobytes()
    for part in ('words', 'numbers')
    for name in ('b', 's3')
  )
  assert plain == expected
  assert len(DATA) == HEADER_BYTES + len(expected) + 16


@pytest.mark.parametrize('dtype', masking.DTYPES)
def test_open_undoes_seal(dtype):
  draft = draft_of(dtype=dtype)
  masked = masked_of(dtype)
  data = sealing.seal(draft, jnp.asarray(body.join(masked)))
  opened = sealing.open(data, KEY, **ROUTE, dtype=dtype, message_id=MESSAGE_ID)
  assert opened.header == draft.header == envelope.read(data)
  assert list(opened.header.shapes) == ['b', 's3']
  parts = body.split(opened.words, SHAPES, dtype=dtype)
  for name, entry in masked.items():
    for part, array in entry.items():
      found = parts[name][part]
      assert found.dtype == array.dtype and found.shape == array.shape
      assert found.tobytes() == array.tobytes()
    for kind in ('mix_keys', 'mask_keys'):
      one, other = getattr(draft, kind)[name], getattr(opened, kind)[name]
      assert one.dtype == np.uint32 and one.shape == (8,)
      np.testing.assert_array_equal(one, other)


@hypothesis.given(st.binary(min_size=52, max_size=52))
@hypothesis.settings(max_examples=50, deadline=None)
def test_any_words_cross_bit_by_bit(data):
  shapes = {'x': (1, 13)}
  words = np.frombuffer(data + bytes(8), np.uint32)
  draft = draft_of(dtype='float32', shapes=shapes)
  opened = sealing.open(sealing.seal(draft, words), KEY, **ROUTE)
  assert opened.words.tobytes() == data + bytes(8)


def test_every_key_differs():
  """Over purposes, scales, messages, clients, directions, ... and epochs."""
  changes = [
    {},
    {},
    {'client': 'clinic-2'},
    {'direction': 'reply'},
    {'modality': 'mask'},
    {'epoch': 4},
  ]
  drafts = [draft_of(**change) for change in changes]
  keys = [
    key.tobytes()
    for draft in drafts
    for tree in (draft.mix_keys, draft.mask_keys)
    for key in tree.values()
  ] + [draft.seal_key[0] for draft in drafts]
  assert len(set(keys)) == len(keys) == 5 * len(drafts)


@pytest.mark.parametrize('label', ['client', 'direction', 'modality', 'epoch'])
def test_labels_alone_change_the_keys(label, monkeypatch):
  monkeypatch.setattr(sealing, '_draw_nonce', lambda: bytes(32))
  changes = {
    'client': 'clinic-2',
    'direction': 'reply',
    'modality': 'mask',
    'epoch': 4,
  }
  one, other = draft_of(), draft_of(**{label: changes[label]})
  assert one.seal_key != other.seal_key
  assert np.any(one.mask_keys['b'] != other.mask_keys['b'])


def test_no_caller_chooses_the_nonce():
  nonces = {draft_of().header.nonce for _ in range(50)}
  assert len(nonces) == 50
  with pytest.raises(TypeError):
    draft_of(nonce=bytes(32))


def test_a_draft_seals_once():
  draft = draft_of()
  words = words_of()
  for wrong in (words_of('float32'), words.view(np.float32), words[None]):
    with pytest.raises(ValueError, match='words'):
      sealing.seal(draft, wrong)  # spends nothing
  sealing.seal(draft, words)
  with pytest.raises(ValueError, match='draft: expected an unused one'):
    sealing.seal(draft, words)


def test_a_copy_of_a_draft_seals_never(monkeypatch):
  draft = draft_of()
  for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
    with pytest.raises(TypeError, match='neither copied nor pickled'):
      duplicate(draft)
  monkeypatch.setattr(os, 'getpid', lambda: 1)  # as a fork finds it
  with pytest.raises(ValueError, match='draft: expected one of this process'):
    sealing.seal(draft, words_of())


def test_size_depends_on_shapes_alone():
  sizes = {
    len(message_of(client=client, epoch=epoch, counter=counter, model_id=model))
    for client in ('c', 'c' * 64)
    for epoch, counter in ((0, 1), (2**32 - 1, 2**64 - 1))
    for model in ('m', 'm' * 32)
  }
  assert len(sizes) == 1


@pytest.mark.parametrize('dtype', masking.DTYPES)
def test_overhead_at_the_official_size(dtype):
  data = sealing.seal(
    draft_of(dtype=dtype, shapes=OFFICIAL), words_of(dtype, OFFICIAL)
  )
  latent_bytes = 114688 * envelope.BITS[dtype] // 8
  assert len(data) - latent_bytes == 328


def test_masking_knows_what_the_envelope_names():
  assert list(masking.DTYPES) == list(envelope.BITS)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'client': '../x'}, 'client'),
    ({'client': 'c' * 65}, 'client'),
    ({'model_id': ''}, 'model_id'),
    ({'direction': 'answer'}, 'direction.*query'),
    ({'modality': 3}, 'modality'),
    ({'dtype': 'int2'}, 'dtype'),
    ({'epoch': -1}, 'epoch'),
    ({'epoch': True}, 'epoch'),
    ({'counter': 0}, 'counter'),
    ({'counter': 2**64}, 'counter'),
    ({'message_id': b'short'}, 'message_id'),
    ({'shapes': {}}, 'shapes'),
    ({'shapes': {'a b': (1, 2)}}, 'latent name'),
    ({'shapes': {'b': (1,)}}, "latent 'b'"),
    ({'shapes': {'b': (1, 0)}}, "latent 'b'"),
    ({'shapes': {'b': (1, 2), 'c': (2, 2)}}, 'one batch size'),
    ({'key': b'short'}, 'secret'),
  ],
)
def test_mistakes_of_the_sender_are_explained(changes, message):
  with pytest.raises(ValueError, match=message) as caught:
    draft_of(**changes)
  assert not isinstance(caught.value, sealing.MessageRejected)


def test_a_wrong_key_length_is_the_receivers_mistake():
  with pytest.raises(ValueError, match='32 bytes'):
    sealing.open(DATA, b'short', **ROUTE)


def test_keys_are_not_shown():
  for value in (draft_of(), sealing.open(DATA, KEY, **ROUTE)):
    assert repr(value).endswith(f'({MESSAGE_ID.hex()})')


@functools.cache
def protector(dtype):
  transform = keyed.chain(mixing.mix(), masking.mask(dtype))

  @jax.jit
  def protect(keys, latents):
    return transform.forward(transform.init(keys, latents), latents)

  @jax.jit
  def reveal(keys, masked, like):
    return transform.inverse(transform.init(keys, like), masked)

  return protect, reveal


@pytest.mark.parametrize(
  'dtype, error', [('float32', 2e-6), ('int8', 0.03), ('int4', 0.12)]
)
def test_the_journey_of_latents(dtype, error, monkeypatch):
  """Mix, mask, seal, open, unmask, unmix; and what an onlooker sees of it."""
  shapes = {'s3': (1, 16, 16, 64), 'b': (1, 8, 8, 100)}
  rng = np.random.default_rng(0)
  latents = {
    name: jnp.asarray(np.maximum(rng.standard_normal(shape), 0), jnp.float32)
    for name, shape in shapes.items()
  }
  protect, reveal = protector(dtype)
  nonces = iter([bytes([1]) * 32, bytes([2]) * 32])
  monkeypatch.setattr(sealing, '_draw_nonce', lambda: next(nonces))
  bodies = []
  for _ in range(2):
    draft = draft_of(dtype=dtype, shapes=shapes)
    masked = protect((draft.mix_keys, draft.mask_keys), latents)
    data = sealing.seal(draft, body.join(masked))
    words = np.concatenate([entry['words'] for entry in masked.values()])
    sealed = data[envelope.header_bytes(draft.header) : -16]
    bodies += [words.astype('<u4').tobytes(), sealed]
    opened = sealing.open(data, KEY, **ROUTE)
    parts = body.split(opened.words, shapes, dtype=dtype)
    found = reveal((opened.mix_keys, opened.mask_keys), parts, latents)
    for name, z in latents.items():
      difference = np.linalg.norm(found[name] - z) / np.linalg.norm(z)
      assert difference < error
  size = min(map(len, bodies))
  streams = [np.frombuffer(of[:size], np.uint8) for of in bodies]
  for stream in streams:
    counts = np.bincount(stream, minlength=256)
    assert scipy.stats.chisquare(counts).pvalue > 1e-6
  for one, other in itertools.combinations(streams, 2):
    correlation = np.corrcoef(one, other)[0, 1]
    assert abs(correlation) < 5.5 / np.sqrt(size)


def test_int8_loses_less_with_mixing():
  """Where channels are uneven, most of them use little of the range."""
  rng = np.random.default_rng(0)
  z = np.maximum(rng.standard_normal((1, 16, 16, 64)), 0)
  z = {'s3': jnp.asarray(z * rng.lognormal(0, 1, 64), jnp.float32)}
  round_int8 = lambda x: masking.dequantise(
    *masking.quantise(x, 'int8'), 'int8'
  )
  transform = mixing.mix()
  secret = transform.init({'s3': jnp.arange(8, dtype='uint32')}, z)
  mixed = transform.forward(secret, z)
  mixed['s3']['values'] = round_int8(mixed['s3']['values'])
  found = {'mix': transform.inverse(secret, mixed), 'plain': {}}
  found['plain']['s3'] = round_int8(z['s3'])
  error = {
    name: jnp.linalg.norm(latents['s3'] - z['s3']) / jnp.linalg.norm(z['s3'])
    for name, latents in found.items()
  }
  assert error['mix'] < 0.013
  assert error['mix'] < error['plain']
