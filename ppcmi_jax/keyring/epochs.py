"""Epoch keys: what a client and the server share, for a while.

    <client>.epoch    the key of the current epoch, mode 0600
    <client>.export   its copy on the way to the server, made by `enrol`
    <client>.ledger   counters of messages sent and seen (`ledger`)
    <client>.lock     empty; held while a file changes

`enrol` draws 32 bytes and derives the key of epoch 0 from them, which it writes
twice: for the client, and to be carried to the server by a way that both trust,
where `import_key` takes it in. From then on both `rotate` at agreed times:

    K_0 = HKDF(root, 'epoch', client, '0')
    K_{e+1} = HKDF(K_e, 'epoch', client, str(e + 1))

(`keyring.derive`). The root is never written, and nothing older than K_e stays:
whoever steals the folder later reads the messages of that epoch and those
after it, none before. Nothing heals a theft but another enrolment.

**Erasing is best effort.** Files are overwritten with random bytes, synced and
unlinked, but flash memory, journals, snapshots and backups keep old blocks, and
Python keeps copies in memory. Encrypt the disk and keep secrets out of backups.

All files and their folder must be closed to others; POSIX systems only.

  >>> import pathlib
  >>> import tempfile
  >>> from ppcmi_jax.keyring import epochs
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path, export = epochs.enrol(f'{folder}/client', 'clinic-1')
  ...   received = epochs.import_key(f'{folder}/server', export)
  ...   epochs.rotate(path) == epochs.rotate(received)
  True
"""

import contextlib
import os
import re
from typing import NamedTuple

from ppcmi_jax import channel, keyring
from ppcmi_jax.keyring import files, ledger

_RENEW = 'enrol the client again'
_LINE = re.compile(
  rb'ppcmi_jax-epoch-v1 (%s) (0|[1-9][0-9]{0,9}) '
  rb'([0-9a-f]{64}) ([0-9a-f]{16})\n' % channel.CLIENT.pattern.encode()
)


class EpochKey(NamedTuple):
  """The key of one epoch.

  Attributes:
    client: whose.
    epoch: 0, 1, ...
    key: 32 bytes, for `sealing`.
  """

  client: str
  epoch: int
  key: bytes

  @property
  def key_id(self) -> str:
    """The key's public name, 16 hex digits."""
    labels = ('epoch key id', self.client, str(self.epoch))
    return keyring.derive(self.key, *labels, length=8).hex()

  def __repr__(self):
    return f'EpochKey({self.client}, epoch {self.epoch}, {self.key_id})'


def enrol(folder: str | os.PathLike[str], client: str) -> tuple[str, str]:
  """Makes a client's first epoch key.

  Args:
    folder: of the client's secrets; made with mode 0700 where it is missing.
    client: its name, 1 to 64 of A-Z a-z 0-9 . _ -.

  Returns:
    (path of the key, path of the copy to carry to the server and `erase`).

  Raises:
    ValueError: for another name, a client that is enrolled here, a folder open
      to others or one that can't be written.
  """
  if not isinstance(client, str) or not channel.CLIENT.fullmatch(client):
    expected = '1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or a digit'
    raise files.error('client', expected, ascii(client), 'choose such a name')
  files.make_private_folder(os.fspath(folder))
  root = os.urandom(keyring.SECRET_BYTES)
  first = EpochKey(client, 0, keyring.derive(root, 'epoch', client, '0'))
  del root
  export = os.path.join(os.fspath(folder), f'{client}.export')
  _write_new(export, _key_line(first))
  try:
    return _install(folder, first), export
  except ValueError:
    erase(export)
    raise


def import_key(
  folder: str | os.PathLike[str], export: str | os.PathLike[str]
) -> str:
  """Takes in the key that `enrol` exported, and erases the export.

  Args:
    folder: of the receiver's secrets, another than the client's own.
    export: the file that was carried here.

  Returns:
    The path of the key.

  Raises:
    ValueError: as `load` for the export, and if the client has a key here or
      the folder is open to others; or, with the key taken in, if the export
      can't be erased.
  """
  path = _install(folder, load(export))
  try:
    erase(export)
  except ValueError as error:
    text = f'{error}; its key was taken in: destroy this copy by other means'
    raise ValueError(text) from None
  return path


def load(path: str | os.PathLike[str]) -> EpochKey:
  """Reads an epoch key.

  Raises:
    ValueError: if the file is missing, unreadable or damaged, or it or its
      folder is open to group or others. The text never contains the key.
  """
  path = os.fspath(path)
  line = files.read_line(path, 'an epoch key', renew=_RENEW)
  match = _LINE.fullmatch(line)
  if not match:
    found = 'bytes of another form'
    raise files.error(ascii(path), 'an epoch key', found, _RENEW)
  client, epoch, key, written = (group.decode() for group in match.groups())
  found = EpochKey(client, int(epoch), bytes.fromhex(key))
  if found.epoch > ledger.MAX_EPOCH or found.key_id != written:
    expected = 'a key that fits its id, name and epoch'
    raise files.error(ascii(path), expected, 'another', _RENEW)
  return found


def ratchet(current: EpochKey, epoch: int) -> EpochKey:
  """Derives the key of a later epoch, or of this one; nothing is written.

  A receiver may so try a message of the next epoch, and `rotate` once it opens.

  Raises:
    ValueError: for an earlier epoch, or one more than 64 ahead.
  """
  if not current.epoch <= epoch <= min(current.epoch + 64, ledger.MAX_EPOCH):
    todo = 'keys of earlier epochs are gone for good'
    expected = f'an epoch from {current.epoch}, at most 64 later'
    raise files.error('epoch', expected, epoch, todo)
  client, key = current.client, current.key
  for number in range(current.epoch + 1, epoch + 1):
    key = keyring.derive(key, 'epoch', client, str(number))
  return EpochKey(client, epoch, key)


def rotate(path: str | os.PathLike[str], epoch: int | None = None) -> EpochKey:
  """Goes on to a later epoch and erases the key of the one before.

  An export that still lies beside it is erased too, and what a crash left of
  this client's keys: they would open everything. After a crash the file holds
  the old key or the new one, whole; the bytes of the old one may then still be
  on the disk.

  Args:
    path: of the key.
    epoch: to go on to; None means the next. The current one changes nothing.

  Returns:
    The new key.

  Raises:
    ValueError: as `load` and `ratchet`, and if a file can't be written.
  """
  path = os.fspath(path)
  with files.locked(path):
    current = load(path)
    return _go_on(path, current, current.epoch + 1 if epoch is None else epoch)


def follow(path: str | os.PathLike[str], key: EpochKey) -> bool:
  """As `rotate`, to a key that was derived before.

  Args:
    path: of the key.
    key: to go on to.

  Returns:
    Whether it is in the file now. False where that has gone on to a later epoch
    by then, or holds another key, as of a client that was enrolled again.

  Raises:
    ValueError: as `load`, and if a file can't be written.
  """
  path = os.fspath(path)
  if load(path) == key:
    return True
  with files.locked(path):
    current = load(path)
    try:
      follows = ratchet(current, key.epoch) == key
    except ValueError:  # too far ahead, or behind
      follows = False
    if follows:
      _go_on(path, current, key.epoch)
    return follows


def _go_on(path, current, epoch):
  new = ratchet(current, epoch)
  export = f'{os.path.splitext(path)[0]}.export'
  if os.path.lexists(export):
    erase(export)
  if new.epoch != current.epoch:
    with files.writing(path):
      files.supersede(path, _key_line(new))
  erase_strays(os.path.dirname(os.path.abspath(path)), current.client)
  return new


def erase_strays(folder: str | os.PathLike[str], client: str) -> None:
  """Erases what a crash left of a client's keys in a folder."""
  for name in os.listdir(folder):
    stray = os.path.join(folder, name)
    with contextlib.suppress(ValueError):  # another file, or half a key
      if files.STRAY.fullmatch(name) and load(stray).client == client:
        erase(stray)


def erase(path: str | os.PathLike[str]) -> None:
  """Overwrites and unlinks a file of keys; best effort, as said above.

  Args:
    path: an epoch key, an export, a key file of `keyring`, or what a crash left
      of one: a stray `.new-*`. Where that is a second name of a key, the key
      stays.

  Raises:
    ValueError: if it is missing, a link, none of these, or can't be written.
  """
  path = os.fspath(path)
  # Whoever goes on to the next epoch meanwhile would put that key here.
  is_epoch = path.endswith('.epoch') and os.path.lexists(path)
  with files.locked(path) if is_epoch else contextlib.nullcontext():
    _erase(path)


def _erase(path):
  todo = 'check the path'
  try:
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
  except (OSError, ValueError) as error:
    found = files.reason(error)
    raise files.error(ascii(path), 'a file of keys', found, todo) from None
  with files.writing(path):
    try:
      stray = files.STRAY.fullmatch(os.path.basename(path)) is not None
      start = os.pread(file, 32, 0)
      keys = (b'ppcmi_jax-epoch-v1 ', b'ppcmi_jax-key-v1 ')
      if not stray and not start.startswith(keys):
        found = 'another file'
        raise files.error(ascii(path), 'a file of keys', found, todo)
      if not stray or os.fstat(file).st_nlink == 1:
        files.overwrite(file)
    finally:
      os.close(file)
    os.unlink(path)
    files.sync_folder(os.path.dirname(os.path.abspath(path)))


def _install(folder, key):
  """Writes a new key and its ledger; returns the key's path."""
  files.make_private_folder(os.fspath(folder))
  path = os.path.join(os.fspath(folder), f'{key.client}.epoch')
  with files.locked(path):
    if os.path.lexists(path):
      todo = 'rotate it, or erase it to enrol again'
      raise files.error(ascii(path), 'no key of this client', 'one', todo)
    ledger.create(path, key.epoch)
    _write_new(path, _key_line(key))
  return path


def _key_line(key):
  fields = (key.client, str(key.epoch), key.key.hex(), key.key_id)
  return f'ppcmi_jax-epoch-v1 {" ".join(fields)}\n'.encode()


def _write_new(path, line):
  try:
    files.write_new(path, line)
  except FileExistsError:
    todo = 'it is never overwritten: erase it first'
    raise files.error(ascii(path), 'no file', 'one', todo) from None
  except (OSError, ValueError) as error:
    todo = 'choose a folder you may write to'
    found = files.reason(error)
    raise files.error(ascii(path), 'to write a file', found, todo) from None
