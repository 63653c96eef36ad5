"""Messages as bytes: all that ever crosses between a client and a server.

`encode` writes a `Message` of latents; `decode` reads it back and believes
nothing: it checks every length and field before it allocates, and bytes that
`encode` did not write raise a one-line ValueError. Integers and numbers are
little-endian:

  offset  bytes  content
  ------  -----  ---------------------------------------------------------------
  0       8      magic: 89 50 50 43 4d 49 0d 0a ('PPCMI' between bytes that
                 text-mode transfers damage)
  8       4      version, 1
  12      4      length L of the header, at most MAX_HEADER_BYTES
  16      L      header: canonical JSON in ASCII (keys sorted, no white space),
                 then 0 to 7 spaces so that 16 + L is a multiple of 8
  16 + L  N      payload: the latents by sorted name, each in row order, packed
  end     4      CRC-32 (zlib) of all bytes before it

The header is one object with exactly these fields:

  field       value
  ----------  ------------------------------------------------------------------
  client      1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or a digit
  direction   'query', 'reply' or 'contribution'
  dtype       of the payload: 'float32', 'bfloat16' or 'float16'
  key_id      16 hex digits; also '' where protection is 'none'
  latents     {name: [B, ..., C]}: 1 to 8 names of 1 to 16 of A-Z a-z 0-9 _; 2
              to 5 dimensions, each at least 1, one B for all
  message_id  32 hex digits
  modality    'image' or 'mask'
  protection  'klt' (the keyed linear transform), 'official' (that of the
              official code, without the permutation) or 'none'

One message and dtype give one string of bytes, and `len` of it is what crosses.
The payload of an official query at 256x256 is 114,688 numbers, 458,752 bytes in
float32 and half in the others; all else is about 260 bytes.

**The checksum catches accidental damage only.** Nothing here is authenticated
or encrypted: whoever holds a message can read it, change it and make it check.

  >>> import numpy as np
  >>> from ppcmi_jax import wire
  >>> message = wire.Message(
  ...   client='clinic-1', key_id='0123456789abcdef', protection='klt',
  ...   direction='query', modality='image', message_id=bytes(16),
  ...   latents={'b': np.ones([1, 8, 8, 256], np.float32)},
  ... )
  >>> data = wire.encode(message, dtype='bfloat16')
  >>> len(data)
  32996
  >>> wire.decode(data).latents['b'].dtype
  dtype(bfloat16)
"""

import json
import math
import re
import reprlib
import struct
import zlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ppcmi_jax import channel

MAGIC = b'\x89PPCMI\r\n'
VERSION = 1
MAX_HEADER_BYTES = 4096

DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': np.dtype(jnp.bfloat16),
  'float16': np.dtype(np.float16),
}
CHOICES = {
  'dtype': tuple(DTYPES),
  'protection': ('klt', 'official', 'none'),
  'direction': channel.DIRECTIONS,
  'modality': channel.MODALITIES,
}

_WORDS = {name: np.dtype(f'<u{d.itemsize}') for name, d in DTYPES.items()}
_PREFIX = struct.Struct('<8sII')
_CHECKSUM = struct.Struct('<I')
_PATTERNS = {
  'client': (channel.CLIENT, '1 to 64 of A-Z a-z 0-9 . _ -'),
  'key_id': ('[0-9a-f]{16}', '16 hex digits'),
  'message_id': ('[0-9a-f]{32}', '16 bytes as 32 hex digits'),
}
_FIELDS = sorted([*CHOICES, *_PATTERNS, 'latents'])
_AT_SOURCE = 'correct the message where it is made'
_DAMAGED = 'the message was cut or damaged: send it again'
_MODELS = 'check that both sides use the same model and image size'


class Message(NamedTuple):
  """What one party sends to the other.

  Attributes:
    client: whose keys protect the latents; safe as a part of a file name.
    key_id: public name of the client's secret (`keyring.key_id`).
    protection: 'klt', 'official' or 'none'.
    direction: 'query', 'reply' or 'contribution'.
    modality: 'image' or 'mask', the encoder that the latents belong to.
    message_id: 16 bytes; a reply carries its query's.
    latents: name -> floating array [B, ..., C], one B for all.
  """

  client: str
  key_id: str
  protection: str
  direction: str
  modality: str
  message_id: bytes
  latents: dict[str, np.ndarray]


def encode(message: Message, *, dtype: str = 'float32') -> bytes:
  """Writes a message as bytes.

  Args:
    message: its latents may be NumPy or JAX arrays of any floating dtype.
    dtype: what to round the latents to: 'float32', 'bfloat16' or 'float16'
      (finite up to 65504; magnitudes of 3e-8 and less become 0).

  Returns:
    The bytes; the same message and dtype always give the same.

  Raises:
    ValueError: for a field outside the format, and for latents that are NaN or
      infinite or become so in `dtype`.
  """
  if not isinstance(message.message_id, bytes):
    raise _error('message_id', '16 bytes', _shown(message.message_id))
  if not isinstance(message.latents, dict):
    raise _error('latents', 'a dict of arrays', _shown(message.latents))
  latents = {name: np.asarray(z) for name, z in message.latents.items()}
  header = message._asdict() | {
    'dtype': dtype,
    'message_id': message.message_id.hex(),
    'latents': {name: list(z.shape) for name, z in latents.items()},
  }
  num_payload_bytes = _check_header(header)
  parts = [_pack_header(header)]
  _check_total(len(parts[0]) + num_payload_bytes + _CHECKSUM.size)
  for name, latent in sorted(latents.items()):
    if not jnp.issubdtype(latent.dtype, jnp.floating):
      raise _error(f'latent {name!r}', 'a floating dtype', latent.dtype)
    with np.errstate(all='ignore'):
      latent = np.ascontiguousarray(latent).astype(DTYPES[dtype], copy=False)
    _check_finite(name, latent)
    parts.append(_native_or_little(latent.reshape(-1).view(_WORDS[dtype])))
  checksum = 0
  for part in parts:
    checksum = zlib.crc32(part, checksum)
  return b''.join([*parts, _CHECKSUM.pack(checksum)])


def decode(data: bytes, *, like: Any = None) -> Message:
  """Reads a message; safe on any bytes, but proves nothing of their origin.

  Args:
    data: the whole message.
    like: the latents expected, a dict of arrays or `jax.ShapeDtypeStruct`;
      names and all dimensions but the first, B, must agree. None takes any.

  Returns:
    The message, its latents sorted by name: read-only views of `data` in the
    dtype it was sent in.

  Raises:
    ValueError: for anything but the bytes that `encode` writes, each with its
      own text, and for latents other than `like`.
  """
  header, start = _read_header(data)
  num_payload_bytes = _check_header(header)
  if _pack_header(header) != data[:start]:
    raise _error('header', 'canonical JSON as documented', 'another form')
  end = start + num_payload_bytes
  total = end + _CHECKSUM.size
  if total != len(data):
    raise _error('message', f'{total} bytes', len(data), _DAMAGED)
  _check_like(header['latents'], like)
  found = zlib.crc32(memoryview(data)[:end])
  (expected,) = _CHECKSUM.unpack_from(data, end)
  if found != expected:
    raise _error('checksum', f'{expected:08x}', f'{found:08x}', _DAMAGED)
  dtype = header['dtype']
  latents = {}
  for name, shape in sorted(header['latents'].items()):
    words = np.frombuffer(data, _WORDS[dtype], math.prod(shape), start)
    latent = _native_or_little(words).view(DTYPES[dtype]).reshape(shape)
    _check_finite(name, latent)
    latents[name] = latent
    start += latent.nbytes
  header['message_id'] = bytes.fromhex(header['message_id'])
  header['latents'] = latents
  return Message(**{name: header[name] for name in Message._fields})


def _read_header(data):
  """Returns the parsed, unchecked header and where the payload starts."""
  if not isinstance(data, bytes):
    raise _error('message', 'bytes', _shown(data))
  _check_total(len(data))
  if len(data) < _PREFIX.size:
    expected = f'at least {_PREFIX.size} bytes'
    raise _error('message', expected, len(data), _DAMAGED)
  magic, version, length = _PREFIX.unpack_from(data)
  if magic != MAGIC:
    todo = 'this is no message of ppcmi_jax'
    raise _error('magic', MAGIC.hex(), magic.hex(), todo)
  if version != VERSION:
    todo = 'use the release of ppcmi_jax that wrote the message'
    raise _error('version', VERSION, version, todo)
  limit = min(MAX_HEADER_BYTES, len(data) - _PREFIX.size)
  if length > limit:
    raise _error('header length', f'at most {limit} bytes', length, _DAMAGED)
  start = _PREFIX.size + length
  return _parse(data[_PREFIX.size : start]), start


def _parse(text):
  duplicates = set()

  def as_dict(pairs):
    names = [name for name, _ in pairs]
    duplicates.update(name for name in names if names.count(name) > 1)
    return dict(pairs)

  try:
    header = json.loads(text.decode('ascii'), object_pairs_hook=as_dict)
  except (ValueError, RecursionError):
    error = _error('header', 'JSON in ASCII', 'something else', _DAMAGED)
    raise error from None
  if duplicates:
    raise _error(
      'header', 'every name once', f'{_shown(min(duplicates))} twice'
    )
  return header


def _check_header(header):
  """Checks every field of a header; returns the size of its payload, bytes."""
  if not isinstance(header, dict) or sorted(header) != _FIELDS:
    found = _shown(sorted(header) if isinstance(header, dict) else header)
    raise _error('header', f'the fields {", ".join(_FIELDS)}', found)
  for name, choices in CHOICES.items():
    if not isinstance(header[name], str) or header[name] not in choices:
      raise _error(name, f'one of {", ".join(choices)}', _shown(header[name]))
  for name, (pattern, text) in _PATTERNS.items():
    value = header[name]
    if (name, value) == ('key_id', '') and header['protection'] == 'none':
      continue
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
      raise _error(name, text, _shown(value))
  return DTYPES[header['dtype']].itemsize * _check_shapes(header['latents'])


def _check_shapes(shapes):
  """Checks the shapes of all latents; returns how many numbers they hold."""
  most, largest = channel.MAX_LATENTS, channel.MAX_MESSAGE_BYTES
  if not isinstance(shapes, dict) or not 1 <= len(shapes) <= most:
    raise _error('latents', f'1 to {most} named shapes', _shown(shapes))
  for name, shape in shapes.items():
    if not isinstance(name, str) or not channel.LATENT.fullmatch(name):
      raise _error('latent name', '1 to 16 of A-Z a-z 0-9 _', _shown(name))
    leaf = f'latent {name!r}'
    if not isinstance(shape, list) or not 2 <= len(shape) <= channel.MAX_RANK:
      raise _error(leaf, f'2 to {channel.MAX_RANK} dimensions', _shown(shape))
    for size in shape:
      if type(size) is not int or not 1 <= size <= largest:
        raise _error(leaf, f'sizes of 1 to {largest}', _shown(size))
  batches = sorted({shape[0] for shape in shapes.values()})
  if len(batches) > 1:
    raise _error('latents', 'one batch size for all', _shown(batches))
  return sum(map(math.prod, shapes.values()))


def _check_total(num_bytes):
  if num_bytes > channel.MAX_MESSAGE_BYTES:
    expected = f'at most {channel.MAX_MESSAGE_BYTES} bytes'
    raise _error('message', expected, num_bytes, 'send smaller batches')


def _check_like(shapes, like):
  if like is None:
    return
  if not isinstance(like, dict):
    raise _error('like', 'a dict of arrays', _shown(like), 'pass one or None')
  if shapes.keys() != like.keys():
    raise _error('latents', sorted(like), sorted(shapes), _MODELS)
  for name, shape in shapes.items():
    expected = list(np.shape(like[name]))
    if expected[1:] != shape[1:]:
      expected = f'shape {["B", *expected[1:]]}'.replace("'", '')
      raise _error(f'latent {name!r}', expected, shape, _MODELS)


def _check_finite(name, latent):
  with np.errstate(all='ignore'):  # a signalling NaN would also warn
    is_finite = np.isfinite(latent).all()
  if not is_finite:
    expected = f'finite numbers in {latent.dtype}'
    todo = 'check the model that made them, or send a wider dtype'
    raise _error(f'latent {name!r}', expected, 'NaN or infinity', todo)


def _pack_header(header):
  """Returns the bytes before the payload."""
  text = json.dumps(header, sort_keys=True, separators=(',', ':')).encode()
  text += b' ' * (-(_PREFIX.size + len(text)) % 8)
  return _PREFIX.pack(MAGIC, VERSION, len(text)) + text


def _native_or_little(words):
  """Swaps the bytes of little-endian words on big-endian machines only."""
  return words.astype(words.dtype.newbyteorder('='), copy=False)


def _error(name, expected, found, todo=_AT_SOURCE):
  return ValueError(f'{name}: expected {expected}, found {found}; {todo}')


def _shown(value):
  """Describes an untrusted value, however deep or long, in one short line."""
  text = ' '.join(reprlib.repr(value).split())  # which bounds the depth only
  return text if len(text) <= 80 else f'{text[:77]}...'
