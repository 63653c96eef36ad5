"""A message as it is on the wire, and forged ones, for the tests of wire."""

import json
import struct
import zlib

import numpy as np
import pytest

from ppcmi_jax import wire

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
