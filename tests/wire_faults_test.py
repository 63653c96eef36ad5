"""Tests of the wire format: each fault of a header has its own error."""

import json
import struct
import tracemalloc

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from wire_messages import (
  DATA,
  HEADER,
  MESSAGE,
  PAYLOAD,
  canonical,
  forge,
  refuse,
)

from ppcmi_jax import channel, wire


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
