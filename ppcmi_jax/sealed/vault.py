"""Keys of messages that outlive their epoch, wrapped by the server's own key.

A server trains from contributions for longer than it keeps the epoch key that
sealed them. When it opens one for the first time it puts the message's own key
(`sealing.message_key`) here, wrapped by the storage secret; the contribution
itself stays as it came. With the epoch key erased, who finds the message and
this folder reads nothing without the storage secret, and who has the server's
secrets reads what it contributed to, no query and no reply.

    <folder>/<client>/<SHA-256 of the message, hex>.kept    mode 0600

How they are wrapped, rotated and erased by people is in `keyring.kept`.
"""

import contextlib
import hashlib
import os
import pathlib

from ppcmi_jax.keyring import files, kept


class Vault:
  """The kept keys of a folder.

  Args:
    folder: made with mode 0700 where it is missing.
    storage: path of the server's storage key, which is read for every message,
      so that one that is rotated is so for a program that runs.

  Raises:
    ValueError: as `kept.storage_secret`; so do the methods.
  """

  def __init__(
    self, folder: str | os.PathLike[str], storage: str | os.PathLike[str]
  ):
    self._folder, self._storage = pathlib.Path(folder), storage
    self._used: set[pathlib.Path] = set()
    with self._secret():  # refuses a bad one now
      pass

  def put(self, client: str, message: bytes, key: bytes) -> None:
    """Keeps the 32-byte key of a client's message; on disk when it returns."""
    digest = hashlib.sha256(message).digest()
    path = self._path(client, digest)
    with self._secret() as secret, contextlib.suppress(FileExistsError):
      files.write_new(str(path), kept.wrap(secret, digest, key))
    self._used.add(path)

  def forget_others(self, client: str) -> None:
    """Erases a client's keys but those that were put or got since the start.

    What a crash left of any is erased, too.
    """
    folder = self._folder / client
    with self._secret():
      strays = [
        p for p in folder.glob('.new-*') if files.STRAY.fullmatch(p.name)
      ]
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
    with self._secret() as secret:
      try:
        wrapped = path.read_bytes()
      except FileNotFoundError:
        return None
    self._used.add(path)
    key = kept.unwrap(secret, digest, wrapped)
    if key is None:
      raise kept.damaged(path)
    return key

  def _secret(self):
    return kept.storage_secret(self._storage)

  def _path(self, client, digest):
    return self._folder / client / f'{digest.hex()}.kept'
