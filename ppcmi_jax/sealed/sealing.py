"""Sealed messages as bytes: authenticated encryption of what crosses.

The third layer of the protection `sealed`. All masked words, norms and scales
of a message go into one AES-256-GCM, whose associated data is the header in
clear; `envelope` has the layout of the bytes.

Keys, by HKDF-SHA256 (`keyring.derive`): a message's key of the epoch's key, the
nonce its salt, labels 'message', client, direction, modality, epoch; of that,
one for each purpose, labels 'seal', 'mix' or 'mask' and, for the last two, the
latent's name. Every message has a nonce of 256 bits from the operating system,
which no caller chooses, so every key serves one message and the 96-bit IV of
GCM is zero. A `Draft` seals once.

`open` believes nothing. It checks every size before it allocates or decrypts,
and raises the one `MessageRejected`, without detail, whatever is wrong. Replays
are valid messages: `ledger` refuses them. Whoever copies a running machine
copies the state its randomness comes from; start anew after cloning one.

**What stays in clear**: the header, that is who talks to whom, when, how often,
with which model and shapes. The receiver has the keys and sees the latents.

  >>> import numpy as np
  >>> from ppcmi_jax.sealed import sealing
  >>> key = bytes(32)
  >>> route = dict(client='clinic-1', epoch=0, direction='query',
  ...              modality='image', model_id='demo')
  >>> draft = sealing.draft(key, **route, dtype='int8', counter=1,
  ...                       shapes={'b': (1, 8, 8, 256)})
  >>> data = sealing.seal(draft, np.zeros(4096 + 2, np.uint32))
  >>> len(data) - 8 * 8 * 256
  240
  >>> sealing.open(data, key, **route).header.shapes
  {'b': (1, 8, 8, 256)}
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from cryptography import exceptions
from cryptography.hazmat.primitives.ciphers import aead
from numpy.typing import ArrayLike

from ppcmi_jax import keyring
from ppcmi_jax.sealed import body, chacha, envelope

NONCE_BYTES = envelope.NONCE_BYTES

Header = envelope.Header
MessageRejected = envelope.MessageRejected

_IV = bytes(12)  # each key encrypts once


class Draft(NamedTuple):
  """A message about to be sealed, once.

  Attributes:
    header: what it will say in clear.
    mix_keys: {name: uint32 [8]}, for `mixing`.
    mask_keys: {name: uint32 [8]}, for `masking`.
    seal_key: [32 bytes]; `seal` takes it out.
    process: that may seal it: not one forked since, which has a copy.
  """

  header: Header
  mix_keys: dict[str, np.ndarray]
  mask_keys: dict[str, np.ndarray]
  seal_key: list[bytes]
  process: int

  def __repr__(self):
    return f'Draft({self.header.message_id.hex()})'

  def __reduce__(self):
    raise TypeError('a draft seals once: it can be neither copied nor pickled')


class Opened(NamedTuple):
  """A message that was proven to be whole and of its sender.

  Attributes:
    header: proven too.
    mix_keys, mask_keys: as in Draft.
    words: uint32 [N], for `body.split`; its numbers are finite.
  """

  header: Header
  mix_keys: dict[str, np.ndarray]
  mask_keys: dict[str, np.ndarray]
  words: np.ndarray

  def __repr__(self):
    return f'Opened({self.header.message_id.hex()})'


def draft(
  key: bytes,
  *,
  client: str,
  epoch: int,
  direction: str,
  modality: str,
  model_id: str,
  dtype: str,
  shapes: Mapping[str, tuple[int, ...]],
  counter: int,
  message_id: bytes | None = None,
) -> Draft:
  """Draws the nonce of a message and derives its keys.

  Args:
    key: 32 bytes, the client's key of the epoch.
    client, epoch, direction, modality, model_id, dtype, shapes, counter: as in
      Header. The counter is `ledger.Ledger.reserve`'s.
    message_id: the query's for a reply, the pair's for a contribution; None
      draws one from the operating system.

  Raises:
    ValueError: for a field outside the format.
  """
  header = Header(
    client=client,
    epoch=epoch,
    direction=direction,
    modality=modality,
    model_id=model_id,
    message_id=os.urandom(16) if message_id is None else message_id,
    counter=counter,
    dtype=dtype,
    shapes={name: tuple(shapes[name]) for name in sorted(shapes)},
    nonce=_draw_nonce(),
  )
  envelope.check(header)
  keys = _derive(message_key(key, header), header.shapes)
  return Draft(header, *keys, os.getpid())


def seal(draft: Draft, words: ArrayLike) -> bytes:
  """Encrypts and authenticates a message; works once for a draft.

  Args:
    draft: what `draft` gave.
    words: uint32 [N], of NumPy or JAX: what `masking` made with the draft's
      keys, joined by `body.join`.

  Returns:
    The message.

  Raises:
    ValueError: for words that don't fit the draft's shapes, numbers that are
      NaN or infinite (as those of latents with a NaN are), and a draft that was
      used or is another process'.
  """
  header = draft.header
  words = np.asarray(words)
  if words.dtype != np.uint32 or words.ndim != 1:
    found = f'{words.dtype} {list(words.shape)}'
    raise envelope.error('words', 'uint32 [N]', found)
  parts = body.split(words, header.shapes, dtype=header.dtype)
  for name, entry in parts.items():
    if not np.isfinite(entry['numbers']).all():
      todo = 'check the model that made the latents, or send a wider dtype'
      raise envelope.error(
        f'latent {name!r}', 'numbers', 'NaN or infinity', todo
      )
  todo = 'draft another: two messages under one key reveal both'
  if draft.process != os.getpid():
    expected, found = 'one of this process', "another's"
    raise envelope.error('draft', expected, found, todo)
  try:
    seal_key = draft.seal_key.pop()
  except IndexError:
    raise envelope.error('draft', 'an unused one', 'a used one', todo) from None
  associated = envelope.pack(header)
  plain = words.astype('<u4', copy=False).tobytes()
  return associated + aead.AESGCM(seal_key).encrypt(_IV, plain, associated)


def open(
  data: bytes,
  key: bytes,
  *,
  client: str,
  epoch: int,
  direction: str,
  modality: str,
  model_id: str,
  like: Mapping[str, Any] | None = None,
  dtype: str | None = None,
  message_id: bytes | None = None,
) -> Opened:
  """Checks and decrypts a message.

  Args:
    data: the whole message.
    key: 32 bytes, the client's key of the epoch.
    client, epoch, direction, modality, model_id: what the header must say.
    like: {name: array or shape-bearing [B, ..., C]}; names and all dimensions
      but B must agree. None takes any, up to the limits of the format.
    dtype: what it must say; None takes any.
    message_id: of the query, where `data` must be its reply; None takes any.

  Raises:
    MessageRejected: for all but a message that `seal` made with this key and
      these fields. It doesn't remember: see `ledger.Ledger.accept`.
    ValueError: for a key that is not 32 bytes.
  """
  keyring.key_id(key)  # the receiver's own mistakes are not the message's
  expected = {
    'client': client,
    'epoch': epoch,
    'direction': direction,
    'modality': modality,
    'model_id': model_id,
  }
  optional = {'dtype': dtype, 'message_id': message_id}
  expected |= {name: v for name, v in optional.items() if v is not None}
  derive = lambda header: message_key(key, header)
  opened = _open(data, derive, expected, like)
  if opened is None:
    raise MessageRejected
  return opened


def reopen(
  data: bytes,
  key: bytes,
  *,
  like: Mapping[str, Any] | None = None,
  **expected: Any,
) -> Opened:
  """Opens, with its own key, a message that was kept when its epoch ended.

  Args:
    data: the whole message.
    key: 32 bytes, what `message_key` gave of it.
    like: as for `open`.
    **expected: fields of Header and their values.

  Raises:
    MessageRejected, ValueError: as `open`.
  """
  keyring.key_id(key)
  opened = _open(data, lambda _: key, expected, like)
  if opened is None:
    raise MessageRejected
  return opened


def message_key(key: bytes, header: Header) -> bytes:
  """Derives the key of one message, 32 bytes, from that of its epoch."""
  return keyring.derive(
    key,
    'message',
    header.client,
    header.direction,
    header.modality,
    str(header.epoch),
    salt=header.nonce,
  )


def _open(data, derive, expected, like):
  """Returns the opened message, or None for each reason to reject it."""
  header = envelope.unpack(data)
  if header is None:
    return None
  if any(getattr(header, name) != v for name, v in expected.items()):
    return None
  if like is not None and not _fits(header.shapes, like):
    return None
  start = envelope.header_bytes(header)
  mix_keys, mask_keys, (seal_key,) = _derive(derive(header), header.shapes)
  try:
    plain = aead.AESGCM(seal_key).decrypt(_IV, data[start:], data[:start])
  except exceptions.InvalidTag:
    return None
  words = np.frombuffer(plain, '<u4').astype(np.uint32, copy=False)
  parts = body.split(words, header.shapes, dtype=header.dtype)
  if not all(np.isfinite(entry['numbers']).all() for entry in parts.values()):
    return None
  return Opened(header, mix_keys, mask_keys, words)


def _derive(key, names):
  """Returns the mix keys, the mask keys and [the seal key] of a message key."""
  mix_keys, mask_keys = (
    {
      name: chacha.key_words(keyring.derive(key, purpose, name))
      for name in names
    }
    for purpose in ('mix', 'mask')
  )
  return mix_keys, mask_keys, [keyring.derive(key, 'seal')]


def _fits(shapes, like):
  return shapes.keys() == like.keys() and all(
    shape[1:] == tuple(like[name].shape)[1:] for name, shape in shapes.items()
  )


def _draw_nonce():
  """Draws the nonce; tests alone replace it."""
  return os.urandom(NONCE_BYTES)
