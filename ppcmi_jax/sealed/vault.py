"""Keys of messages that outlive their epoch, wrapped by the server's own key.

A server trains from contributions for longer than it keeps the epoch key that
sealed them. When it opens one for the first time it puts the message's own key
(`sealing.message_key`) here, encrypted by AES-256-GCM under a key derived from
its storage secret and the message's digest; the contribution itself stays as it
came. With the epoch key erased, who finds the message and this folder reads
nothing without the storage secret, and who has the server's secrets reads what
it contributed to, no query and no reply.

    <folder>/<client>/<SHA-256 of the message, hex>.kept    mode 0600

Erase a file to forget a contribution for good, a folder to forget a client's.
"""

import contextlib
import hashlib
import os
import pathlib

from cryptography import exceptions
from cryptography.hazmat.primitives.ciphers import aead

from ppcmi_jax import keyring
from ppcmi_jax.keyring import files

_IV = bytes(12)  # each wrapping key encrypts one key, always the same
_WRAPPED_BYTES = keyring.SECRET_BYTES + 16


class Vault:
  """The kept keys of a folder.

  Args:
    folder: made with mode 0700 where it is missing.
    secret: the server's storage secret, 32 bytes (`keyring.create`).
  """

  def __init__(self, folder: str | os.PathLike[str], secret: bytes):
    self._folder, self._secret = pathlib.Path(folder), secret
    self._used: set[pathlib.Path] = set()

  def put(self, client: str, message: bytes, key: bytes) -> None:
    """Keeps the 32-byte key of a client's message; on disk when it returns."""
    digest = hashlib.sha256(message).digest()
    path = self._path(client, digest)
    wrapped = self._cipher(digest).encrypt(_IV, key, digest)
    with contextlib.suppress(FileExistsError):
      files.write_new(str(path), wrapped)
    self._used.add(path)

  def forget_others(self, client: str) -> None:
    """Erases a client's keys but those that were put or got since the start.

    What a crash left of any is erased, too.
    """
    folder = self._folder / client
    strays = [p for p in folder.glob('.new-*') if files.STRAY.fullmatch(p.name)]
    others = [p for p in folder.glob('*.kept') if p not in self._used]
    for path in (*strays, *others):
      files.destroy(str(path))

  def get(self, client: str, message: bytes) -> bytes | None:
    """Returns the key of a client's message, or None where none was kept.

    Raises:
      ValueError: the file is damaged, or was wrapped with another secret.
    """
    digest = hashlib.sha256(message).digest()
    path = self._path(client, digest)
    try:
      wrapped = path.read_bytes()
    except FileNotFoundError:
      return None
    self._used.add(path)
    try:
      return self._cipher(digest).decrypt(_IV, wrapped, digest)
    except exceptions.InvalidTag:
      raise files.error(
        str(path),
        f'{_WRAPPED_BYTES} bytes wrapped with the storage key',
        f'{len(wrapped)} others',
        'restore it or the storage key',
      ) from None

  def _path(self, client, digest):
    return self._folder / client / f'{digest.hex()}.kept'

  def _cipher(self, digest):
    key = keyring.derive(self._secret, 'vault', salt=digest)
    return aead.AESGCM(key)
