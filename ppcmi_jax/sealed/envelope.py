"""The layout of sealed messages: a header in clear, ciphertext, a tag.

This module reads and writes the header and knows all sizes; `sealing` encrypts.
Integers are little-endian; strings are ASCII, zero bytes fill the rest:

  offset   bytes  content
  -------  -----  --------------------------------------------------------------
  0        8      magic: 89 50 50 43 4d 53 0d 0a; `wire`'s has 49 for the 53
  8        4      version, 1
  12       4      length of the header from offset 0, L, a multiple of 8
  16       1      suite, 1: HKDF-SHA256, ChaCha20 words, AES-256-GCM
  17       1      direction: 0 query, 1 reply, 2 contribution
  18       1      modality: 0 image, 1 mask
  19       1      dtype: 0 float32, 1 bfloat16, 2 float16, 3 int8, 4 int4
  20       4      key epoch
  24       8      counter of the sender in this epoch, from 1
  32       16     message id; a reply carries its query's
  48       32     nonce
  80       64     client: 1 to 64 of A-Z a-z 0-9 . _ -
  144      32     model id: 1 to 32 of these
  176      1      number K of latents, 1 to 8
  177      37 K   of each, by sorted name: name 16, rank 1, five dimensions 4
  ..       0-7    zero bytes up to L
  L        N      AES-256-GCM of: each latent's words, then each one's numbers
  L + N    16     tag

Names are unique, of 1 to 16 of A-Z a-z 0-9 _, ranks 2 to 5, and all latents
have one B. N = sum of 4 ceil(item bits x elements / 32) + 8 B. The size
depends on shapes and dtype alone: beside the latents 177 + 37 K, rounded up
to eight, and 16 + 8 K B bytes; 328 for one image at three scales.

  >>> from ppcmi_jax.sealed import envelope
  >>> header = envelope.Header(
  ...   client='clinic-1', epoch=0, direction='query', modality='image',
  ...   model_id='demo', message_id=bytes(16), counter=1, dtype='int8',
  ...   shapes={'b': (1, 8, 8, 256)}, nonce=bytes(32),
  ... )
  >>> len(envelope.pack(header)), envelope.message_bytes(header)
  (216, 16624)
"""

import math
import re
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ppcmi_jax import channel

MAGIC = b'\x89PPCMS\r\n'
VERSION = 1
SUITE = 1
TAG_BYTES = 16
NONCE_BYTES = 32
# Of a number on the wire.
BITS = {'float32': 32, 'bfloat16': 16, 'float16': 16, 'int8': 8, 'int4': 4}

_DTYPES = tuple(BITS)
_FIXED = struct.Struct('<8sII4BIQ16s32s64s32sB')
_LATENT = struct.Struct('<16sB5I')
_MODEL_ID = re.compile('[A-Za-z0-9][A-Za-z0-9._-]{0,31}')


class MessageRejected(ValueError):
  """A sealed message that is not to be believed; it never says why.

  Raised whatever is wrong, so that forgers of messages learn nothing.
  """

  def __init__(self):
    super().__init__(
      'message rejected: damaged, forged, replayed or meant for another; '
      'check names, epochs and models on both sides and send it again'
    )


class Header(NamedTuple):
  """What a sealed message says in clear.

  Attributes:
    client: whose keys protect the message, whatever its direction.
    epoch: of these keys.
    direction: 'query', 'reply' or 'contribution'.
    modality: 'image' or 'mask'.
    model_id: the public name of the models that both sides must agree on.
    message_id: 16 bytes; a reply carries its query's.
    counter: of the sender, 1 to 2^64 - 1.
    dtype: of the words' numbers, one of BITS.
    shapes: {name: (B, ..., C)} by sorted name, one B for all.
    nonce: 32 bytes.
  """

  client: str
  epoch: int
  direction: str
  modality: str
  model_id: str
  message_id: bytes
  counter: int
  dtype: str
  shapes: dict[str, tuple[int, ...]]
  nonce: bytes


def read(data: bytes) -> Header:
  """Reads what a message says in clear, to find its key; it proves nothing.

  Raises:
    MessageRejected: for bytes that `sealing.seal` did not write.
  """
  header = unpack(data)
  if header is None:
    raise MessageRejected
  return header


def unpack(data: bytes) -> Header | None:
  """Returns the header of a message, or None where `read` would raise.

  All of the header and the size of the message are as `sealing.seal` makes
  them, checked before anything of that size is allocated.
  """
  if not isinstance(data, bytes):
    return None
  if not _FIXED.size < len(data) <= channel.MAX_MESSAGE_BYTES:
    return None
  magic, version, length, suite, *fields = _FIXED.unpack_from(data)
  if (magic, version, suite) != (MAGIC, VERSION, SUITE):
    return None
  direction, modality, dtype, epoch, counter, *fields = fields
  message_id, nonce, client, model_id, count = fields
  if not 1 <= count <= channel.MAX_LATENTS:
    return None
  if length > len(data) or length != _round_up(count):
    return None
  try:
    shapes = {}
    for index in range(count):
      place = _FIXED.size + index * _LATENT.size
      name, rank, *shape = _LATENT.unpack_from(data, place)
      shapes[_text(name)] = tuple(shape[:rank])
    header = Header(
      client=_text(client),
      epoch=epoch,
      direction=channel.DIRECTIONS[direction],
      modality=channel.MODALITIES[modality],
      model_id=_text(model_id),
      message_id=message_id,
      counter=counter,
      dtype=_DTYPES[dtype],
      shapes=shapes,
      nonce=nonce,
    )
    check(header)
  except (ValueError, IndexError):
    return None
  # Reading then writing shows sorted names, no duplicates, zero padding.
  if pack(header) != data[:length]:
    return None
  if message_bytes(header) != len(data):
    return None
  return header


def check(header: Header) -> None:
  """Raises ValueError for a field outside the format."""
  for name, pattern in (('client', channel.CLIENT), ('model_id', _MODEL_ID)):
    value = getattr(header, name)
    if not isinstance(value, str) or not pattern.fullmatch(value):
      raise error(name, f'text like {pattern.pattern}', shown(value))
  for name, choices in (
    ('direction', channel.DIRECTIONS),
    ('modality', channel.MODALITIES),
    ('dtype', _DTYPES),
  ):
    value = getattr(header, name)
    if value not in choices:
      raise error(name, f'one of {", ".join(choices)}', shown(value))
  for name, low, bits in (('epoch', 0, 32), ('counter', 1, 64)):
    value = getattr(header, name)
    if type(value) is not int or not low <= value < 2**bits:
      raise error(name, f'{low} to 2^{bits} - 1', shown(value))
  for name, size in (('message_id', 16), ('nonce', NONCE_BYTES)):
    value = getattr(header, name)
    if not isinstance(value, bytes) or len(value) != size:
      raise error(name, f'{size} bytes', type(value).__name__)
  most = channel.MAX_MESSAGE_BYTES
  if not 1 <= len(header.shapes) <= channel.MAX_LATENTS:
    raise error('shapes', f'1 to {channel.MAX_LATENTS}', len(header.shapes))
  for name, shape in header.shapes.items():
    if not isinstance(name, str) or not channel.LATENT.fullmatch(name):
      raise error('latent name', '1 to 16 of A-Z a-z 0-9 _', shown(name))
    sizes = all(type(n) is int and 1 <= n <= most for n in shape)
    if not 2 <= len(shape) <= channel.MAX_RANK or not sizes:
      expected = f'2 to {channel.MAX_RANK} dimensions of at least 1'
      raise error(f'latent {name!r}', expected, shown(shape))
  batches = sorted({shape[0] for shape in header.shapes.values()})
  if len(batches) > 1:
    raise error('shapes', 'one batch size for all', shown(batches))
  size = message_bytes(header)
  if size > most:
    todo = 'send smaller batches'
    raise error('message', f'at most {most} bytes', size, todo)


def pack(header: Header) -> bytes:
  """Returns the bytes before the ciphertext; one header gives one string."""
  length = header_bytes(header)
  packed = _FIXED.pack(
    MAGIC,
    VERSION,
    length,
    SUITE,
    channel.DIRECTIONS.index(header.direction),
    channel.MODALITIES.index(header.modality),
    _DTYPES.index(header.dtype),
    header.epoch,
    header.counter,
    header.message_id,
    header.nonce,
    header.client.encode(),
    header.model_id.encode(),
    len(header.shapes),
  )
  for name, shape in sorted(header.shapes.items()):
    dimensions = shape + (0,) * (channel.MAX_RANK - len(shape))
    packed += _LATENT.pack(name.encode(), len(shape), *dimensions)
  return packed.ljust(length, b'\0')


def parts(
  shape: tuple[int, ...], dtype: str
) -> tuple[tuple[str, np.dtype, tuple[int, ...]], ...]:
  """Returns (part, dtype, shape) of the arrays of one latent."""
  return (
    ('words', np.dtype(np.uint32), (num_words(shape, dtype),)),
    ('numbers', np.dtype(np.float32), (shape[0], 2)),
  )


def num_words(shape: tuple[int, ...], dtype: str) -> int:
  """Returns how many uint32 words the numbers of a latent take."""
  return -(-math.prod(shape) * BITS[dtype] // 32)


def message_bytes(header: Header) -> int:
  """Returns the size of the whole message; shapes and dtype decide it."""
  body = sum(
    4 * math.prod(size)
    for shape in header.shapes.values()
    for _, _, size in parts(shape, header.dtype)
  )
  return header_bytes(header) + body + TAG_BYTES


def header_bytes(header: Header) -> int:
  """Returns the size of what is before the ciphertext."""
  return _round_up(len(header.shapes))


def _round_up(num_latents):
  return -(-(_FIXED.size + num_latents * _LATENT.size) // 8) * 8


def _text(padded):
  return padded.rstrip(b'\0').decode('ascii')


def shown(value: Any) -> str:
  """Returns a value in at most 80 characters of ASCII."""
  text = ascii(sorted(value) if isinstance(value, Mapping) else value)
  return text if len(text) <= 80 else f'{text[:77]}...'


def error(
  name: str,
  expected: Any,
  found: Any,
  todo: str = 'correct it where the message is made',
) -> ValueError:
  """Returns the error of one line: what, expected, found, what to do."""
  return ValueError(f'{name}: expected {expected}, found {found}; {todo}')
