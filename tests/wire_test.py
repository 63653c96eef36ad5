"""Tests of the wire format."""

import itertools
import json
import re
import struct
import tracemalloc
import zlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from ppcmi_jax import channel, wire

MESSAGE = wire.Message(
  client='clinic-1',
  key_id='0123456789abcdef',
  protection='klt',
  direction='query',
  modality='image',
  message_id=bytes(range(16)),
  latents={
    's3': np.arange(16, dtype=np.float32).reshape(2, 2, 2, 2) / 8,
    'b': np.array([[[[-1.5]]], [[[0.25]]]], np.float32),
  },
)
HEADER = {
  'client': 'clinic-1',
  'direction': 'query',
  'dtype': 'float32',
  'key_id': '0123456789abcdef',
  'latents': {'b': [2, 1, 1, 1], 's3': [2, 2, 2, 2]},
  'message_id': '000102030405060708090a0b0c0d0e0f',
  'modality': 'image',
  'protection': 'klt',
}
DATA = wire.encode(MESSAGE)
PAYLOAD = DATA[-4 - 18 * 4 : -4]


def canonical(header):
  text = json.dumps(header, sort_keys=True, separators=(',', ':')).encode()
  return text + b' ' * (-len(text) % 8)


def forge(
  header=None, payload=PAYLOAD, *, magic=wire.MAGIC, version=1, length=None
):
  """Builds a message by the table of the docstring, checksum included."""
  header = HEADER if header is None else header
  text = header if isinstance(header, bytes) else canonical(header)
  length = len(text) if length is None else length
  body = magic + struct.pack('<II', version, length) + text + payload
  return body + struct.pack('<I', zlib.crc32(body))


def refuse(data, message=None, **kwargs):
  """Checks that decoding raises a ValueError of one short line."""
  with pytest.raises(ValueError, match=message) as caught:
    wire.decode(data, **kwargs)
  assert type(caught.value) is ValueError
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 400


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


def test_the_largest_header_fits():
  names = [f'{"n" * 15}{i}' for i in range(channel.MAX_LATENTS)]
  size = channel.MAX_MESSAGE_BYTES
  header = HEADER | {
    'client': 'c' * 64,
    'direction': 'contribution',
    'latents': {name: [size] * channel.MAX_RANK for name in names},
  }
  assert len(canonical(header)) < wire.MAX_HEADER_BYTES
  refuse(forge(header), 'message: expected [0-9]{40,} bytes, found')


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


JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text()
  | st.sampled_from(['query', 'float16', '', 's3', 2**30, 2**64, 1, 0]),
  lambda leaf: st.lists(leaf) | st.dictionaries(st.text(), leaf),
  max_leaves=8,
)


@hypothesis.given(
  st.sampled_from([*HEADER, 'unknown', 'b', 's3', 'whole']), JSON, st.booleans()
)
@hypothesis.settings(max_examples=300, deadline=None)
def test_headers_of_any_json_raise_value_errors_only(field, value, is_shape):
  header = HEADER | {'latents': dict(HEADER['latents'])}
  if field == 'whole':
    header = value
  elif field in header:
    header[field] = value
  else:
    header['latents' if field in 'b s3' else 'x'] = {field: value}
  if is_shape:
    header = HEADER | {'latents': {'b': [2, 1, 1, value]}}
  try:
    found = wire.decode(forge(canonical(header)))
  except ValueError as error:
    assert type(error) is ValueError
    assert '\n' not in str(error) and len(str(error)) < 400
  else:  # another valid header: as if it had been sent so
    assert wire.encode(found, dtype=header['dtype']) == forge(canonical(header))


def edit(**changes):
  return forge(HEADER | changes)


def shapes(**latents):
  return forge(HEADER | {'latents': latents})


NESTED = b'[' * 4000


@pytest.mark.parametrize(
  'data, message',
  [
    ('text', "message: expected bytes, found 'text'"),
    (bytearray(DATA), r'message: expected bytes, found bytearray'),
    (b'', 'message: expected at least 16 bytes, found 0'),
    (DATA[:15], 'message: expected at least 16 bytes, found 15'),
    (
      forge(magic=b'\x89PNG\r\n\x1a\n'),
      'magic: expected 895050434d490d0a, found',
    ),
    (forge(version=2), 'version: expected 1, found 2; use the release'),
    (forge(length=2**32 - 1), 'header length: .* found 4294967295'),
    (
      forge(b' ' * 4104),
      'header length: expected at most 4096 bytes, found 4104',
    ),
    (forge(b'{'), 'header: expected JSON in ASCII, found something else'),
    (forge(b''), 'header: expected JSON in ASCII'),
    (forge('{"client":"\u00e9"}'.encode()), 'header: expected JSON in ASCII'),
    (forge(NESTED), 'header: expected JSON in ASCII'),
    (forge(NESTED[:2000] + b']' * 2000), 'header: expected'),
    (forge(b'[' * 90 + b']' * 90), 'header: expected the fields .* found'),
    (forge(b'9' * 4096), 'header: expected the fields'),
    (forge(b'NaN'), 'header: expected the fields .*, found nan'),
    (forge([]), r'header: expected the fields client, .*, found \[\]'),
    (forge({**HEADER, 'x': 1}), 'header: expected the fields'),
    (forge({k: v for k, v in HEADER.items() if k != 'dtype'}), 'the fields'),
    (forge(canonical(HEADER) + b' ' * 8), 'header: expected canonical JSON'),
    (forge(canonical(HEADER).rstrip()), 'header: expected canonical JSON'),
    (forge(canonical(HEADER).replace(b':', b': ')), 'canonical JSON'),
    (
      forge(json.dumps(dict(reversed(HEADER.items()))).encode()),
      'canonical JSON',
    ),
    (forge(canonical(HEADER).replace(b'query', b'\\u0071uery')), 'canonical'),
    (
      forge(canonical(HEADER).replace(b'{"b":', b'{"b":[1],"b":')),
      "header: expected every name once, found 'b' twice",
    ),
    (
      forge(canonical(HEADER).replace(b'{"client"', b'{"client":1,"client"')),
      "found 'client' twice",
    ),
    (edit(client=''), "client: expected 1 to 64 of .*, found ''"),
    (edit(client='../x'), 'client: expected'),
    (edit(client='a/b'), 'client: expected'),
    (edit(client='a\n'), r"client: .*found 'a\\n'"),
    (edit(client='\ud800'), 'client: expected'),
    (edit(client='c' * 65), r"client: expected .*, found 'ccc*\.\.\.c*'"),
    (edit(client=7), 'client: expected .*, found 7'),
    (
      edit(client=[[{'x' * 20: [9] * 4}] * 4] * 4),
      r'client: .*\.\.\.; correct',
    ),
    (edit(key_id=''), "key_id: expected 16 hex digits, found ''"),
    (edit(key_id='0123456789ABCDEF'), 'key_id: expected 16 hex digits'),
    (edit(key_id='0', protection='none'), 'key_id: expected 16 hex digits'),
    (edit(message_id='00'), 'message_id: expected 16 bytes as 32 hex digits'),
    (
      edit(protection='sealed'),
      "protection: expected one of klt, official, none, found 's",
    ),
    (edit(protection=['klt']), 'protection: expected one of'),
    (
      edit(direction='answer'),
      'direction: expected one of query, reply, contr',
    ),
    (edit(modality={}), r'modality: expected one of image, mask, found \{\}'),
    (
      edit(dtype='float64'),
      "dtype: expected one of float32, .*, found 'float64'",
    ),
    (edit(dtype=None), 'dtype: expected one of'),
    (edit(latents=[]), r'latents: expected 1 to 8 named shapes, found \[\]'),
    (shapes(), 'latents: expected 1 to 8 named shapes'),
    (
      shapes(**{name: [1, 1] for name in 'abcdefghi'}),
      'latents: expected 1 to 8',
    ),
    (
      shapes(**{'a b': [1, 1]}),
      "latent name: expected 1 to 16 .*, found 'a b'",
    ),
    (shapes(**{'': [1, 1]}), 'latent name: expected'),
    (shapes(**{'\u0663': [1, 1]}), 'latent name: expected'),
    (shapes(b=18), "latent 'b': expected 2 to 5 dimensions, found 18"),
    (shapes(b=[18]), r"latent 'b': expected 2 to 5 dimensions, found \[18\]"),
    (shapes(b=[1] * 6), "latent 'b': expected 2 to 5 dimensions"),
    (shapes(b=[2, 9.0]), "latent 'b': expected sizes of 1 to .*, found 9.0"),
    (shapes(b=[18, True]), "latent 'b': expected sizes .*, found True"),
    (shapes(b=[0, 4]), "latent 'b': expected sizes .*, found 0"),
    (shapes(b=[-9, -2]), "latent 'b': expected sizes .*, found -9"),
    (shapes(b=[1, 2**30 + 1]), "latent 'b': expected sizes"),
    (shapes(b=[1, [18]]), r"latent 'b': expected sizes .*, found \[18\]"),
    (shapes(b=[1, 2], s3=[2, 8]), r'one batch size for all, found \[1, 2\]'),
    (
      shapes(b=[2, 8]),
      r'message: expected \d+ bytes, found \d+; the message was',
    ),
    (edit(dtype='float16'), r'message: expected \d+ bytes, found'),
    (
      DATA[:-1] + bytes([DATA[-1] ^ 1]),
      'checksum: expected [0-9a-f]{8}, found',
    ),
    (
      forge(payload=PAYLOAD[:-4] + struct.pack('<f', np.nan)),
      "latent 's3': expected finite numbers in float32, found NaN or infinity",
    ),
    (
      forge(payload=struct.pack('<f', -np.inf) + PAYLOAD[4:]),
      "latent 'b': exp",
    ),
    (
      forge(HEADER | {'dtype': 'bfloat16'}, PAYLOAD[:34] + b'\x80\x7f'),
      "latent 's3': expected finite numbers in bfloat16",
    ),
    (
      forge(HEADER | {'dtype': 'float16'}, PAYLOAD[:34] + b'\x00\x7c'),
      "latent 's3': expected finite numbers in float16",
    ),
  ],
)
def test_each_fault_has_its_own_error(data, message):
  refuse(data, message)


@pytest.mark.parametrize('dtype', wire.DTYPES)
def test_every_pattern_of_nan_and_infinity_is_refused(dtype):
  # A signalling NaN makes NumPy warn, and here warnings are errors.
  patterns = {
    'float32': ('7f800000', 'ff800000', '7f800001', '7fbfffff', 'ffc00000'),
    'bfloat16': ('7f80', 'ff80', '7f81', '7fbf', 'ffc0', 'ffff'),
    'float16': ('7c00', 'fc00', '7c01', '7dff', 'fe00', 'ffff'),
  }
  num_zeros = 17 * wire.DTYPES[dtype].itemsize
  for pattern in patterns[dtype]:
    payload = bytes.fromhex(pattern)[::-1] + bytes(num_zeros)
    data = forge(HEADER | {'dtype': dtype}, payload)
    refuse(data, f"latent 'b': expected finite numbers in {dtype}")


@pytest.mark.parametrize('size', [2**20, 2**30, 2**30 + 1, 2**62, 10**400])
def test_declared_sizes_allocate_nothing(size):
  data = forge(HEADER | {'latents': {'b': [1, size, 64], 's3': [1, size]}})
  tracemalloc.start()
  try:
    refuse(data, 'expected')
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 200_000


def test_oversized_messages_are_refused(monkeypatch):
  monkeypatch.setattr(channel, 'MAX_MESSAGE_BYTES', len(DATA) - 1)
  refuse(DATA, f'message: expected at most {len(DATA) - 1} bytes, found')
  with pytest.raises(ValueError, match=r'at most .* smaller batches'):
    wire.encode(MESSAGE)


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
