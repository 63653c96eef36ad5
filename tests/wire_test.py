"""Tests of the wire format: its layout, round trips, and damage."""

import itertools
import re
import struct

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from wire_messages import DATA, HEADER, MESSAGE, forge, refuse

from ppcmi_jax import wire


def assert_messages_equal(found, expected):
  assert found._replace(latents=None) == expected._replace(latents=None)
  assert found.latents.keys() == expected.latents.keys()
  for name, z in expected.latents.items():
    assert found.latents[name].dtype == z.dtype
    assert found.latents[name].shape == z.shape
    assert found.latents[name].tobytes() == z.tobytes()


def test_layout_is_that_of_the_table():
  values = [*MESSAGE.latents['b'].flat, *MESSAGE.latents['s3'].flat]
  assert forge(HEADER, struct.pack('<18f', *values)) == DATA
  (length,) = struct.unpack_from('<I', DATA, 12)
  assert DATA[:8].hex(' ') == '89 50 50 43 4d 49 0d 0a'
  assert (16 + length) % 8 == 0 and len(DATA) == 16 + length + 72 + 4


@pytest.mark.parametrize('dtype', wire.DTYPES)
def test_round_trip_gives_read_only_views(dtype):
  data = wire.encode(MESSAGE, dtype=dtype)
  found = wire.decode(data)
  expected = {
    name: z.astype(wire.DTYPES[dtype]) for name, z in MESSAGE.latents.items()
  }
  assert_messages_equal(found, MESSAGE._replace(latents=expected))
  for z in found.latents.values():
    assert not z.flags.owndata and not z.flags.writeable and z.flags.aligned
  assert list(found.latents) == ['b', 's3']
  assert wire.encode(found, dtype=dtype) == data
  item_bytes = np.dtype(wire.DTYPES[dtype]).itemsize
  assert len(data) - 18 * item_bytes <= 280


def test_jax_arrays_and_other_floats_are_taken():
  expected = wire.encode(MESSAGE, dtype='bfloat16')
  for convert in (
    lambda z: jnp.asarray(z, jnp.bfloat16),
    lambda z: z.astype(np.float64),
    lambda z: np.asfortranarray(z),
    lambda z: z.astype('>f4'),
    lambda z: np.repeat(z, 2, axis=0)[::2],
  ):
    latents = {name: convert(z) for name, z in MESSAGE.latents.items()}
    message = MESSAGE._replace(latents=latents)
    assert wire.encode(message, dtype='bfloat16') == expected
  assert wire.decode(expected).latents['b'].dtype == jnp.bfloat16


@st.composite
def messages(draw):
  """Yields (message, dtype), latents of arbitrary finite bit patterns."""
  dtype = draw(st.sampled_from(list(wire.DTYPES)))
  batch = draw(st.integers(1, 3))
  tail = st.lists(st.integers(1, 4), min_size=1, max_size=4)
  names = st.text('abz019_S', min_size=1, max_size=16)
  shapes = draw(st.dictionaries(names, tail, min_size=1, max_size=8))
  rng = np.random.default_rng(draw(st.integers(0, 2**32)))
  latents = {}
  for name, shape in shapes.items():
    itemsize = wire.DTYPES[dtype].itemsize
    size = batch * int(np.prod(shape))
    z = np.frombuffer(rng.bytes(size * itemsize), wire.DTYPES[dtype])
    with np.errstate(all='ignore'):
      z = np.where(np.isfinite(z), z, np.zeros_like(z))
    latents[name] = z.reshape(batch, *shape)
  protection = draw(st.sampled_from(['klt', 'official', 'none']))
  key_ids = st.from_regex('[0-9a-f]{16}', fullmatch=True)
  if protection == 'none':
    key_ids = key_ids | st.just('')
  message = wire.Message(
    client=draw(
      st.from_regex('[A-Za-z0-9][A-Za-z0-9._-]{0,63}', fullmatch=True)
    ),
    key_id=draw(key_ids),
    protection=protection,
    direction=draw(st.sampled_from(['query', 'reply', 'contribution'])),
    modality=draw(st.sampled_from(['image', 'mask'])),
    message_id=draw(st.binary(min_size=16, max_size=16)),
    latents=latents,
  )
  return message, dtype


@hypothesis.given(messages())
@hypothesis.settings(max_examples=100, deadline=None)
def test_round_trip_is_bit_exact(drawn):
  message, dtype = drawn
  data = wire.encode(message, dtype=dtype)
  found = wire.decode(data, like=message.latents)
  assert_messages_equal(found, message)
  assert wire.encode(found, dtype=dtype) == data


def test_every_truncation_and_extension_is_refused():
  for end in range(len(DATA)):
    refuse(DATA[:end], 'cut or damaged')
  refuse(DATA + b'\0', 'cut or damaged')
  refuse(DATA + DATA, 'cut or damaged')


def test_every_changed_byte_is_refused():
  for position, mask in itertools.product(range(len(DATA)), (1, 2, 0x20, 0xFF)):
    changed = bytearray(DATA)
    changed[position] ^= mask
    refuse(bytes(changed))


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=200, deadline=None)
def test_any_changed_bytes_are_refused(data):
  # CRC-32 finds any damage within 4 bytes, and misses others once in 2^32.
  start = data.draw(st.integers(0, len(DATA) - 1))
  piece = data.draw(st.binary(min_size=1, max_size=4))
  changed = (DATA[:start] + piece + DATA[start + len(piece) :])[: len(DATA)]
  hypothesis.assume(changed != DATA)
  refuse(changed)


@hypothesis.given(st.binary(max_size=300))
@hypothesis.settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused(data):
  refuse(data)
  refuse(wire.MAGIC + data)
  refuse(forge(data[:150], data[150:]))


@pytest.mark.parametrize(
  'changes, kwargs, message',
  [
    ({'client': 'a b'}, {}, 'client: expected'),
    ({'client': None}, {}, 'client: expected .*, found None'),
    ({'key_id': ''}, {}, 'key_id: expected 16 hex digits'),
    ({'protection': 'sealed'}, {}, 'protection: expected'),
    ({'direction': ''}, {}, 'direction: expected'),
    ({'modality': np.zeros(3)}, {}, 'modality: expected'),
    ({'message_id': b'short'}, {}, 'message_id: expected 16 bytes'),
    ({'message_id': '00' * 16}, {}, 'message_id: expected 16 bytes'),
    ({}, {'dtype': 'int8'}, "dtype: expected one of .*, found 'int8'"),
    ({}, {'dtype': np.float32}, 'dtype: expected one of'),
    ({}, {'dtype': np.dtype('float32')}, 'dtype: expected one of'),
    ({'latents': []}, {}, 'latents: expected a dict of arrays'),
    ({'latents': {}}, {}, 'latents: expected 1 to 8'),
    ({'latents': {3: np.ones((1, 1))}}, {}, 'latent name: expected .* found 3'),
    ({'latents': {'b': 1.0}}, {}, "latent 'b': expected 2 to 5 dimensions"),
    ({'latents': {'b': np.ones((1, 0))}}, {}, "latent 'b': expected sizes"),
    ({'latents': {'b': np.ones((1, 1), int)}}, {}, "'b': expected a floating"),
    ({'latents': {'b': np.ones((1, 1), complex)}}, {}, 'expected a floating'),
    ({'latents': {'b': np.array([['x']])}}, {}, "'b': expected a floating"),
    ({'latents': {'b': np.full((1, 1), np.nan)}}, {}, "'b': .* found NaN"),
    ({'latents': {'b': np.full((1, 1), 1e39)}}, {}, "'b': .* in float32"),
    (
      {'latents': {'a': np.ones((1, 1)), 'b': np.full((1, 1), 65520.0)}},
      {'dtype': 'float16'},
      "latent 'b': expected finite numbers in float16, found NaN or infinity",
    ),
    (
      {'latents': {'b': np.full((1, 1), 3.4e38, np.float32)}},
      {'dtype': 'bfloat16'},
      "latent 'b': expected finite numbers in bfloat16",
    ),
  ],
)
def test_encode_refuses_what_decode_would(changes, kwargs, message):
  with pytest.raises(ValueError, match=message) as caught:
    wire.encode(MESSAGE._replace(**changes), **kwargs)
  assert '\n' not in str(caught.value)


def test_like_compares_all_but_the_batch():
  like = {
    name: jax.ShapeDtypeStruct((7, *z.shape[1:]), jnp.bfloat16)
    for name, z in MESSAGE.latents.items()
  }
  assert_messages_equal(wire.decode(DATA, like=like), wire.decode(DATA))
  for shape in ([3, 2, 2], [2, 3, 2], [2, 2, 3]):  # each axis but B counts
    like['s3'] = np.zeros((2, *shape))
    expected = ', '.join(['B', *map(str, shape)])
    message = f"latent 's3': expected shape [{expected}], found [2, 2, 2, 2]"
    refuse(DATA, re.escape(message), like=like)
  like['s3'] = np.zeros((2, 2, 2))
  refuse(DATA, re.escape('expected shape [B, 2, 2], found'), like=like)
  del like['s3']
  refuse(DATA, re.escape("expected ['b'], found ['b', 's3']"), like=like)
  refuse(DATA, 'like: expected a dict', like=[1])
