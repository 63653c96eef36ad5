"""A client's 256-bit secret: its key file, and the keys derived from it.

One secret of 32 bytes, drawn from the operating system, is all that a client
keeps. Every other key is derived from it by labels with HKDF-SHA256 (RFC 5869),
so there is nothing else to store and no two purposes share a key:

  function  output                    info of HKDF
  --------  ------------------------  ------------------------------------------
  derive    `length` bytes            'ppcmi_jax derive v1', labels...
  prng_key  8 bytes, 2 big-endian     'ppcmi_jax prng_key v1', labels...
            words of a threefry key
  key_id    8 bytes, as hex; public   'ppcmi_jax key_id v1'

Each string of the info is written as its length in bytes (4 bytes, big-endian)
and its UTF-8 bytes, so different lists of labels never give the same info.

A key file is one line of ASCII, mode 0600:

  ppcmi_jax-key-v1 <secret, 64 hex digits> <key id, 16 hex digits>\\n

The key id is computed from the secret and so catches truncation, corruption
and editing. Messages and logs may name it; it tells nothing about the secret.
Secrets never come from a seed of a config: `jax.random.key(seed)` keeps 32 bits
of it. File modes are those of POSIX systems.

Beside the secret that never changes, this package has keys that do:

  module  what
  ------  -------------------------------------------------------------
  epochs  keys that a client and the server share, replace and erase
  ledger  counters of messages: each is sent once and let through once
  kept    keys of contributions that a server keeps, under its storage key
  files   how all of these are written and read

`python -m ppcmi_jax.keyring --help` is for those who carry them.

  >>> import os
  >>> import tempfile
  >>> from ppcmi_jax import keyring
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = os.path.join(folder, 'secrets', 'clinic-1.key')
  ...   secret = keyring.create(path)
  ...   keyring.load(path, key_id=keyring.key_id(secret)) == secret
  True
  >>> len(keyring.derive(secret, 'seal', 'query', 'image'))
  32
"""

import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf import hkdf

from ppcmi_jax.keyring import files

SECRET_BYTES = 32
FORMAT = 'ppcmi_jax-key-v1'
MAX_DERIVED_BYTES = 255 * 32  # RFC 5869, section 2.3

_LINE = re.compile(
  rb'%s ([0-9a-f]{64}) ([0-9a-f]{16})\n' % re.escape(FORMAT.encode())
)
# What is right depends on the key: a run's is copied, the server's made anew.
_RENEW = 'replace it as docs/keys.md says'
_KEY_ID = re.compile(r'[0-9a-f]{16}')
_LINE_BYTES = len(FORMAT) + 1 + 64 + 1 + 16 + 1


def create(path: str | os.PathLike[str]) -> bytes:
  """Draws a new secret and writes its key file, which must not exist.

  The line is written to a temporary file of mode 0600 beside `path`, synced,
  and then linked to its name: after a crash there is no file at `path` or a
  whole one (perhaps with a stray `.new-*` beside it, to be deleted). Of several
  callers at once one succeeds. Missing folders get mode 0700; in one that was
  there and is open to others, `load` refuses the file.

  Args:
    path: the key file to make.

  Returns:
    The secret, 32 bytes from `os.urandom`.

  Raises:
    ValueError: if something is at `path` already or the file can't be written.
  """
  where = ascii(os.fspath(path))
  secret = os.urandom(SECRET_BYTES)
  line = f'{FORMAT} {secret.hex()} {key_id(secret)}\n'.encode()
  try:
    files.write_new(os.fspath(path), line)
  except FileExistsError:
    todo = 'it is never overwritten: load it, or choose another path'
    raise files.error(where, 'no file', 'one', todo) from None
  except (OSError, ValueError) as error:
    todo = 'choose a folder you may write to, on a disk with hard links'
    raise files.error(
      where, 'to write a file', files.reason(error), todo
    ) from None
  return secret


def load(path: str | os.PathLike[str], *, key_id: str | None = None) -> bytes:
  """Reads the secret of a key file.

  Args:
    path: a file that `create` wrote; it and its folder are open to their owner
      alone.
    key_id: the key id to insist on, 16 lower-case hex digits; None takes any.

  Returns:
    The secret, 32 bytes.

  Raises:
    ValueError: if the file is missing, unreadable, malformed, or holds another
      key, if it or its folder is open to group or others, and for a `key_id`
      of another form. The text never contains the secret.
  """
  where = ascii(os.fspath(path))
  if key_id is not None and not _KEY_ID.fullmatch(str(key_id)):
    # Not quoted: someone may have passed the secret itself.
    todo = 'take it from keyring.key_id'
    raise files.error(
      'key_id', '16 lower-case hex digits', 'another form', todo
    )
  line = files.read_line(os.fspath(path), 'a key file', renew=_RENEW)
  match = _LINE.fullmatch(line)
  todo = f'the file was damaged or edited: {_RENEW}'
  if not match:
    expected = f'one line of {_LINE_BYTES} bytes, {FORMAT!r}, secret, key id'
    raise files.error(where, expected, _malformation(line), todo)
  secret, written = bytes.fromhex(match[1].decode()), match[2].decode()
  found = _key_id(secret)
  if written != found:
    expected = f'a secret of key id {written}, as its line says'
    raise files.error(where, expected, f'one of {found}', todo)
  if key_id not in (None, found):
    todo = 'wrong key: use the file of the expected one'
    raise files.error(where, f'key id {key_id}', found, todo)
  return secret


def key_id(secret: bytes) -> str:
  """Returns the public name of a secret, 16 hex digits.

  Raises:
    ValueError: for a secret that is not 32 bytes.
  """
  return _key_id(secret)


def derive(
  secret: bytes, *labels: str, length: int = 32, salt: bytes = b''
) -> bytes:
  """Derives a key by labels: HKDF-SHA256, the labels in its info.

  HKDF's output for a smaller `length` begins that for a larger one: give keys
  of different lengths different labels. HMAC pads short salts with zero bytes
  (b'a' and b'a\\0' are one salt): use salts of one length.

  Args:
    secret: 32 bytes, from `create`, `load` or an earlier `derive`.
    *labels: at least one string; ('ab', 'c') and ('a', 'bc') are different.
    length: bytes to return, 1 to 8160.
    salt: a public value such as a message's nonce.

  Raises:
    ValueError: for a secret that is not 32 bytes, no labels, labels that are
      not strings of valid Unicode, a salt not of bytes or an unusable length.
  """
  return _hkdf(secret, _info('ppcmi_jax derive v1', labels), length, salt)


def prng_key(secret: bytes, *labels: str) -> jax.Array:
  """Derives a typed JAX PRNG key of shape () by labels.

  Obfuscation-grade: a threefry2x32 key has 64 bits, which can be searched, and
  JAX's generators promise no secrecy. It serves the transforms of `keyed` and
  experiments. The key is the same in every release of JAX; what is drawn from
  it need not be, so keep drawn secrets.

  Args:
    secret: 32 bytes.
    *labels: at least one string, as for `derive`.

  Raises:
    ValueError: as `derive`.
  """
  bits = _hkdf(secret, _info('ppcmi_jax prng_key v1', labels), 8, b'')
  words = np.frombuffer(bits, '>u4').astype(np.uint32)
  return jax.random.wrap_key_data(words, impl='threefry2x32')


def draw_secrets(
  init: Callable[[Any, Any], Any],
  secret: bytes,
  client: str,
  latents: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
  """Draws the secrets of a keyed transform, with a sub-key for each scale.

  Both ends derive the same from the client's secret: the client to protect and
  reveal, the server to undo and redo the protection.

  Args:
    init: the transform's `init` (`keyed.Transform`), given a tree of PRNG keys.
    secret: 32 bytes.
    client: the client's name, a label like the modality and the scale.
    latents: {modality: {scale: array or ShapeDtypeStruct [B, h, w, C]}}.

  Returns:
    {modality: secret of the transform}.

  Raises:
    ValueError: as `derive`.
  """
  return {
    modality: init(
      {
        scale: prng_key(secret, 'transform', client, modality, scale)
        for scale in like
      },
      like,
    )
    for modality, like in latents.items()
  }


def _key_id(secret):
  return _hkdf(secret, _encoded(('ppcmi_jax key_id v1',)), 8, b'').hex()


def _info(domain, labels):
  todo = 'name the use of the key in plain text'
  if not labels:
    raise files.error('labels', 'at least one', 'none', todo)
  for label in labels:
    if not isinstance(label, str):
      raise files.error('labels', 'strings', type(label).__name__, todo)
  try:
    return _encoded((domain, *labels))
  except UnicodeEncodeError:
    found = 'a lone surrogate'
    raise files.error('labels', 'valid Unicode', found, todo) from None


@functools.lru_cache(maxsize=1024)
def _encoded(strings):
  texts = [string.encode('utf-8') for string in strings]
  return b''.join(len(text).to_bytes(4, 'big') + text for text in texts)


def _hkdf(secret, info, length, salt):
  if not isinstance(secret, bytes) or not isinstance(salt, bytes):
    found = f'{type(secret).__name__} and {type(salt).__name__}'
    raise files.error('secret and salt', 'bytes', found, 'convert them')
  if len(secret) != SECRET_BYTES:
    found, todo = f'{len(secret)}', 'use keyring.create or keyring.load'
    raise files.error('secret', f'{SECRET_BYTES} bytes', found, todo)
  if type(length) is not int or not 1 <= length <= MAX_DERIVED_BYTES:
    expected, todo = f'1 to {MAX_DERIVED_BYTES} bytes', 'derive several keys'
    raise files.error('length', expected, repr(length), todo)
  return hkdf.HKDF(hashes.SHA256(), length, salt, info).derive(secret)


def _malformation(line):
  """Says what is wrong with a line without quoting it."""
  if len(line) > _LINE_BYTES:
    return 'more than that'
  if len(line) < _LINE_BYTES:
    return f'{len(line)} bytes'
  return 'bytes of another form'
