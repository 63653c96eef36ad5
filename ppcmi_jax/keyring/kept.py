"""The keys of contributions that a server keeps, under a key of its own.

    storage.key                                   its secret (`keyring`)
    storage.lock                                  empty; held while any of
                                                  these changes
    kept/<client>/<SHA-256 of message, hex>.kept  the message's key, wrapped

Wrapped is: encrypted by AES-256-GCM under a key that is derived from the
storage secret and the message's digest. `sealed.vault` fills this folder; here
is what people do to it, none of which needs a message.

`rotate` draws another storage secret. Stopped anywhere it has lost nothing, and
goes on when it is called again, by what it finds:

    storage-next.key   the new secret; some kept keys are under it, others under
                       that in storage.key, and both are needed
    storage-old.key    the old one: all are under that in storage.key, and this
                       is to be destroyed

  >>> import pathlib
  >>> import tempfile
  >>> from ppcmi_jax import keyring
  >>> from ppcmi_jax.keyring import kept
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   old = keyring.create(f'{folder}/storage.key')
  ...   kept.rotate(folder), keyring.load(f'{folder}/storage.key') == old
  (0, False)
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

from cryptography import exceptions
from cryptography.hazmat.primitives.ciphers import aead

from ppcmi_jax import keyring
from ppcmi_jax.keyring import files

STORAGE = 'storage.key'
FOLDER = 'kept'
UNFINISHED = ('storage-next.key', 'storage-old.key')
FINISH = 'run `python -m ppcmi_jax.keyring storage --rotate` to finish it'

_NEXT, _OLD = UNFINISHED
_KEPT = re.compile(r'[0-9a-f]{64}\.kept')
_IV = bytes(12)  # each wrapping key encrypts one key, always the same


def wrap(secret: bytes, digest: bytes, key: bytes) -> bytes:
  """Returns a message's 32-byte key, wrapped by a storage secret.

  Args:
    secret: 32 bytes.
    digest: SHA-256 of the message.
    key: 32 bytes.
  """
  return _cipher(secret, digest).encrypt(_IV, key, digest)


def unwrap(secret: bytes, digest: bytes, wrapped: bytes) -> bytes | None:
  """Undoes `wrap`; None if it is damaged or of another secret or message."""
  try:
    return _cipher(secret, digest).decrypt(_IV, wrapped, digest)
  except exceptions.InvalidTag:
    return None


@contextlib.contextmanager
def storage_secret(path: str | os.PathLike[str]) -> Iterator[bytes]:
  """Gives the secret of a storage key, which nobody rotates meanwhile.

  Raises:
    ValueError: as `keyring.load`, and if a rotation was stopped on its way.
  """
  path = pathlib.Path(path)
  with files.locked(str(path)):
    if path.with_name(_NEXT).exists():
      expected = 'a storage key that all is under'
      found = 'a rotation that was stopped'
      raise files.error(ascii(str(path)), expected, found, FINISH)
    yield keyring.load(path)


def of_clients(
  folder: str | os.PathLike[str],
) -> dict[str, list[pathlib.Path]]:
  """Returns {client: files of its kept keys}, of those who have any.

  Args:
    folder: of the server's keys.
  """
  found = {client: paths for client, (paths, _) in _found(folder).items()}
  return {client: paths for client, paths in found.items() if paths}


def erase(folder: str | os.PathLike[str], client: str) -> int:
  """Erases what a server keeps of a client, best effort as `epochs.erase`.

  Args:
    folder: of the server's keys.
    client: whose.

  Returns:
    The number of kept keys that were erased.

  Raises:
    ValueError: for another folder, one that is open to others, a client of whom
      nothing is kept, or a file that can't be erased.
  """
  folder = pathlib.Path(folder)
  files.check_folder(str(folder))
  if not any((folder / name).exists() for name in (STORAGE, FOLDER)):
    todo = "name the server's folder"
    expected, found = f'{STORAGE} or {FOLDER}/ in it', 'neither'
    raise files.error(ascii(str(folder)), expected, found, todo)
  with files.locked(str(folder / STORAGE)):
    known = _found(folder)
    paths, strays = known.get(client, ((), ()))
    if not paths and not strays:
      expected = f'a client of whom keys are kept in {str(folder / FOLDER)!r}'
      expected += f' ({", ".join(of_clients(folder)) or "where none are"})'
      todo = 'check the name and the folder'
      raise files.error('client', expected, ascii(client), todo)
    _destroy((*strays, *paths))
    of_client = folder / FOLDER / client
    files.sync_folder(str(of_client))
    with contextlib.suppress(OSError):  # something else is in it
      of_client.rmdir()
  return len(paths)


def rotate(folder: str | os.PathLike[str]) -> int:
  """Makes another storage key, wraps all kept keys anew, erases the old one.

  Or goes on with that where it was stopped. Programs that are running go on
  with the new key. Erasing is best effort, as of `epochs.erase`.

  Args:
    folder: of the server's keys.

  Returns:
    The number of kept keys, all of which are under the new key.

  Raises:
    ValueError: if the folder or a key in it is open to others, missing or
      damaged, with nothing changed; or if a file can't be written.
  """
  folder = pathlib.Path(folder)
  files.check_folder(str(folder))
  path, new, old = (folder / name for name in (STORAGE, *UNFINISHED))
  if not path.exists():
    todo = 'check the folder, or make one: `storage` without --rotate'
    raise files.error(ascii(str(path)), 'the storage key', 'none', todo)
  with files.locked(str(path)):
    found = _found(folder).values()
    paths = [path for some, _ in found for path in some]
    # What crashes left of kept keys is under the old one, and nobody's.
    _destroy([stray for _, some in found for stray in some])
    has_begun = old.exists() and not os.path.samefile(path, old)
    if new.exists() or not has_begun:
      _rewrap(paths, path, new)
      with files.writing(str(old)):
        # A link, so that there is a storage.key at any moment.
        with contextlib.suppress(FileExistsError):
          os.link(path, old)
        files.sync_folder(str(folder))
        os.replace(new, path)
        files.sync_folder(str(folder))
    # A stop may have left random bytes, which `epochs.erase` would refuse.
    with files.writing(str(old)):
      with open(old, 'r+b', buffering=0) as file:
        files.overwrite(file.fileno())
      os.unlink(old)
      files.sync_folder(str(folder))
  return len(paths)


def damaged(path: str | os.PathLike[str]) -> files.KeyFault:
  """Returns the error of a kept key that the storage key does not open."""
  client = pathlib.Path(path).parent.name
  return files.error(
    ascii(os.fspath(path)),
    'a key that the storage key wrapped',
    'other bytes',
    f'erase what is kept of {client} (`python -m ppcmi_jax.keyring erase '
    f'--kept --client={client}`), and let it contribute again',
  )


def _rewrap(paths, storage, new):
  """Wraps kept keys by the secret in `new`, which is made where it is not."""
  secrets = [keyring.load(p) for p in (storage, new) if p.exists()]
  keys = {path: _unwrapped(path, secrets) for path in paths}  # before it writes
  secret = keyring.load(new) if new.exists() else keyring.create(new)
  # Here and below: what was written before a stop may not be on the disk yet.
  files.sync_folder(str(new.parent))
  for path, key in keys.items():
    with files.writing(str(path)):
      wrapped = wrap(secret, _digest(path), key)
      if path.read_bytes() != wrapped:  # otherwise done before it was stopped
        files.supersede(str(path), wrapped)
  for folder in {path.parent for path in paths}:
    files.sync_folder(str(folder))


def _unwrapped(path, secrets):
  wrapped = path.read_bytes()
  for secret in secrets:
    key = unwrap(secret, _digest(path), wrapped)
    if key is not None:
      return key
  raise damaged(path)


def _found(folder):
  """Returns {client: (files of its kept keys, what crashes left of such)}."""
  found = {}
  for of_client in sorted(pathlib.Path(folder, FOLDER).glob('*/')):
    paths = sorted(of_client.iterdir())
    found[of_client.name] = tuple(
      [path for path in paths if pattern.fullmatch(path.name)]
      for pattern in (_KEPT, files.STRAY)
    )
  return found


def _destroy(paths):
  for path in paths:
    with files.writing(str(path)):
      files.destroy(str(path))


def _digest(path):
  return bytes.fromhex(path.stem)


def _cipher(secret, digest):
  return aead.AESGCM(keyring.derive(secret, 'vault', salt=digest))
