"""Epoch keys: what a client and the server share, for a while.

    <client>.epoch    the key of the current epoch, mode 0600
    <client>.export   its copy on the way to the server, made by `enrol`
    <client>.ledger   counters of messages sent and seen
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

A ledger lets a message through once. The sender's counters are reserved on disk
before use, in blocks, so a crash skips some and repeats none; the receiver
writes a counter down, synced, before it says yes, and keeps the largest and
which of the WINDOW before it were seen (as in RFC 4303, section 3.4.3): a
message that lags behind more is refused, and memory is bounded. Messages
authenticate their counters, so these identify messages within an epoch.
A ledger restored from a backup, or made anew by importing a kept copy of an
export again, has forgotten what it saw: rotate.

Both files and their folder must be closed to others; POSIX systems only.

  >>> import pathlib
  >>> import tempfile
  >>> from ppcmi_jax.sealed import epochs
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path, export = epochs.enrol(f'{folder}/client', 'clinic-1')
  ...   received = epochs.import_key(f'{folder}/server', export)
  ...   epochs.rotate(path) == epochs.rotate(received)
  True
"""

import contextlib
import fcntl
import os
import re
import threading
from typing import NamedTuple

from ppcmi_jax import keyring
from ppcmi_jax.sealed import envelope

WINDOW = 1024
BLOCK = 64  # counters reserved at once; each costs two syncs of the disk
MAX_EPOCH = 2**32 - 1

_KEY = re.compile(
  rb'ppcmi_jax-epoch-v1 ([A-Za-z0-9][A-Za-z0-9._-]{0,63}) (0|[1-9][0-9]{0,9}) '
  rb'([0-9a-f]{64}) ([0-9a-f]{16})\n'
)
_LEDGER = re.compile(
  rb'ppcmi_jax-ledger-v1 ([0-9a-f]{8}) ([0-9a-f]{16}) ([0-9a-f]{16}) '
  rb'([0-9a-f]{%d})\n' % (WINDOW // 4)
)
_CLIENT = re.compile('[A-Za-z0-9][A-Za-z0-9._-]{0,63}')
_MAX_BYTES = 1024  # of our files


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


class _Counts(NamedTuple):
  """A ledger: `seen`'s bit i is set where counter `highest` - i was seen."""

  epoch: int
  reserved: int
  highest: int
  seen: int


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
  if not isinstance(client, str) or not _CLIENT.fullmatch(client):
    expected = '1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or a digit'
    raise _error('client', expected, ascii(client), 'choose such a name')
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
    ValueError: as `load` for the export, and if the client has a key here.
  """
  path = _install(folder, load(export))
  erase(export)
  return path


def load(path: str | os.PathLike[str]) -> EpochKey:
  """Reads an epoch key.

  Raises:
    ValueError: if the file is missing, unreadable or damaged, or it or its
      folder is open to group or others. The text never contains the key.
  """
  path = os.fspath(path)
  match = _KEY.fullmatch(_read(path, 'an epoch key'))
  todo = 'restore it, or enrol the client again'
  if not match:
    raise _error(ascii(path), 'an epoch key', 'bytes of another form', todo)
  client, epoch, key, written = (group.decode() for group in match.groups())
  found = EpochKey(client, int(epoch), bytes.fromhex(key))
  if found.epoch > MAX_EPOCH or found.key_id != written:
    expected = 'a key that fits its id, name and epoch'
    raise _error(ascii(path), expected, 'another', todo)
  return found


def ratchet(current: EpochKey, epoch: int) -> EpochKey:
  """Derives the key of a later epoch, or of this one; nothing is written.

  A receiver may so try a message of the next epoch, and `rotate` once it opens.

  Raises:
    ValueError: for an earlier epoch, or one more than 64 ahead.
  """
  if not current.epoch <= epoch <= min(current.epoch + 64, MAX_EPOCH):
    todo = 'keys of earlier epochs are gone for good'
    expected = f'an epoch from {current.epoch}, at most 64 later'
    raise _error('epoch', expected, epoch, todo)
  client, key = current.client, current.key
  for number in range(current.epoch + 1, epoch + 1):
    key = keyring.derive(key, 'epoch', client, str(number))
  return EpochKey(client, epoch, key)


def rotate(path: str | os.PathLike[str], epoch: int | None = None) -> EpochKey:
  """Goes on to a later epoch and erases the key of the one before.

  An export that still lies beside it is erased too: it would open everything.
  After a crash the file holds the old key or the new one, whole; the bytes of
  the old one may then still be on the disk.

  Args:
    path: of the key.
    epoch: to go on to; None means the next. The current one changes nothing.

  Returns:
    The new key.

  Raises:
    ValueError: as `load` and `ratchet`, and if a file can't be written.
  """
  path = os.fspath(path)
  with _locked(path):
    current = load(path)
    new = ratchet(current, current.epoch + 1 if epoch is None else epoch)
    export = f'{os.path.splitext(path)[0]}.export'
    if os.path.lexists(export):
      erase(export)
    if new.epoch != current.epoch:
      with _writing(path), open(path, 'r+b', buffering=0) as old:
        _replace(path, _key_line(new))
        _overwrite(old.fileno())
  return new


def erase(path: str | os.PathLike[str]) -> None:
  """Overwrites and unlinks a file of keys; best effort, as said above.

  Args:
    path: an epoch key, an export, or a key file of `keyring`.

  Raises:
    ValueError: if it is missing, a link, none of these, or can't be written.
  """
  path = os.fspath(path)
  todo = 'check the path'
  try:
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
  except (OSError, ValueError) as error:
    found = getattr(error, 'strerror', None) or str(error)
    raise _error(ascii(path), 'a file of keys', found, todo) from None
  with _writing(path):
    try:
      start = os.pread(file, 32, 0)
      if not start.startswith((b'ppcmi_jax-epoch-v1 ', b'ppcmi_jax-key-v1 ')):
        found = 'another file'
        raise _error(ascii(path), 'a file of keys', found, todo)
      _overwrite(file)
    finally:
      os.close(file)
    os.unlink(path)
    keyring.sync_folder(os.path.dirname(os.path.abspath(path)))


class Ledger:
  """The counters of messages that one side sent to and saw of the other.

  Several threads and processes may use one. The first message of a later epoch
  starts both counts anew.

  Args:
    path: of the epoch key beside it.

  Raises:
    ValueError: if there is none or it is damaged or open to others.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self._path = f'{os.path.splitext(os.fspath(path))[0]}.ledger'
    self._thread_lock = threading.Lock()
    self._block = (0, range(0))  # epoch, counters reserved and unused
    self._read()

  def reserve(self, epoch: int) -> int:
    """Returns a counter that no message of this epoch was sent with.

    Raises:
      ValueError: if a later epoch was used already, or nothing can be written.
    """
    with self._thread_lock:
      owner, counters = self._block
      if owner != epoch or not counters:
        with _locked(self._path):
          counts = self._of_epoch(epoch)
          if counts is None:
            todo = 'load the current key, or enrol again'
            raise _error('epoch', 'none before the last one', epoch, todo)
          last = counts.reserved + BLOCK
          self._write(counts._replace(reserved=last))
        counters = range(counts.reserved + 1, last + 1)
      self._block = (epoch, counters[1:])
      return counters[0]

  def accept(self, header: envelope.Header) -> None:
    """Notes a message that was opened, before anything is done with it.

    Raises:
      MessageRejected: if it was seen before, is older than the WINDOW knows, or
        belongs to an earlier epoch.
      ValueError: if nothing can be written.
    """
    with self._thread_lock, _locked(self._path):
      counts = self._of_epoch(header.epoch)
      if counts is None:
        raise envelope.MessageRejected
      age = counts.highest - header.counter
      if age < 0:
        # Of a far jump nothing older stays in the window.
        seen = counts.seen << -age if -age < WINDOW else 0
        seen, highest = (seen | 1) % 2**WINDOW, header.counter
      elif age >= WINDOW or counts.seen >> age & 1:
        raise envelope.MessageRejected
      else:
        seen, highest = counts.seen | 1 << age, counts.highest
      self._write(counts._replace(highest=highest, seen=seen))

  def _of_epoch(self, epoch):
    """Returns the counts of an epoch, or None where it has passed."""
    counts = self._read()
    if epoch > counts.epoch:
      return _Counts(epoch, 0, 0, 0)
    return counts if epoch == counts.epoch else None

  def _read(self):
    match = _LEDGER.fullmatch(_read(self._path, 'a ledger'))
    if not match:
      todo = 'enrol again: without it replays could pass'
      raise _error(ascii(self._path), 'a ledger', 'another form', todo)
    return _Counts(*(int(group, 16) for group in match.groups()))

  def _write(self, counts):
    with _writing(self._path):
      _replace(self._path, _ledger_line(counts))


def _install(folder, key):
  """Writes a new key and its ledger; returns the key's path."""
  stem = os.path.join(os.fspath(folder), key.client)
  path = f'{stem}.epoch'
  if os.path.lexists(path):
    todo = 'rotate it, or erase it and its ledger to enrol again'
    raise _error(ascii(path), 'no key of this client', 'one', todo)
  # A ledger whose key is gone counted messages of that key alone.
  with contextlib.suppress(FileNotFoundError):
    os.unlink(f'{stem}.ledger')
  _write_new(f'{stem}.ledger', _ledger_line(_Counts(key.epoch, 0, 0, 0)))
  _write_new(path, _key_line(key))
  return path


def _key_line(key):
  fields = (key.client, str(key.epoch), key.key.hex(), key.key_id)
  return f'ppcmi_jax-epoch-v1 {" ".join(fields)}\n'.encode()


def _ledger_line(counts):
  digits = (8, 16, 16, WINDOW // 4)
  fields = (f'{count:0{n}x}' for count, n in zip(counts, digits))
  return f'ppcmi_jax-ledger-v1 {" ".join(fields)}\n'.encode()


def _read(path, what):
  try:
    line, mode = keyring.read_private(path, _MAX_BYTES + 1)
    folder = os.path.dirname(os.path.abspath(path))
    folder_mode = os.stat(folder).st_mode & 0o777
  except (OSError, ValueError) as error:
    found = getattr(error, 'strerror', None) or str(error)
    todo = 'check the path, or enrol the client'
    raise _error(ascii(path), what, found, todo) from None
  if mode & 0o077:
    todo = 'run chmod 600 on it, and enrol again if others may have read it'
    raise _error(ascii(path), 'mode 0600', f'{mode:04o}', todo)
  if folder_mode & 0o077:
    todo = 'run chmod 700 on it'
    raise _error(ascii(folder), 'mode 0700', f'{folder_mode:04o}', todo)
  return line


def _write_new(path, line):
  try:
    keyring.write_new(path, line)
  except FileExistsError:
    todo = 'it is never overwritten: erase it first'
    raise _error(ascii(path), 'no file', 'one', todo) from None
  except (OSError, ValueError) as error:
    found = getattr(error, 'strerror', None) or str(error)
    todo = 'choose a folder you may write to'
    raise _error(ascii(path), 'to write a file', found, todo) from None


def _replace(path, line):
  """Puts a whole new file of mode 0600 in the place of another."""
  folder = os.path.dirname(os.path.abspath(path))
  temporary = os.path.join(folder, f'.new-{os.urandom(8).hex()}')
  file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
  try:
    with os.fdopen(file, 'wb') as stream:
      stream.write(line)
      stream.flush()
      os.fsync(file)
    os.replace(temporary, path)
  except OSError:
    os.unlink(temporary)
    raise
  keyring.sync_folder(folder)


def _overwrite(file):
  size = os.fstat(file).st_size
  os.pwrite(file, os.urandom(min(size, _MAX_BYTES)), 0)
  os.fsync(file)


@contextlib.contextmanager
def _writing(path):
  try:
    yield
  except OSError as error:
    todo = 'check who owns it and the free space'
    found = error.strerror
    raise _error(ascii(path), 'to write it', found, todo) from None


@contextlib.contextmanager
def _locked(path):
  """Holds a client's files; ends with the process at the latest."""
  name = f'{os.path.splitext(path)[0]}.lock'
  with _writing(name):
    file = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
  try:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
  finally:
    os.close(file)


def _error(name, expected, found, todo):
  return ValueError(f'{name}: expected {expected}, found {found}; {todo}')
