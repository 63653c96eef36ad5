"""Files of keys: of one line, whole after a crash, closed to others.

Modes and locks are those of POSIX systems. Nothing here quotes what a file
holds, and no file of keys is longer than MAX_BYTES.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from typing import Any

MAX_BYTES = 1024
STRAY = re.compile(r'\.new-[0-9a-f]{16}')  # a file that is being written
_SECTOR_BYTES = 512
_sync = getattr(os, 'fdatasync', os.fsync)  # missing on macOS


def write_new(path: str, line: bytes) -> None:
  """Writes a whole file of mode 0600, or raises OSError and leaves none.

  It never replaces a file (FileExistsError); missing folders get mode 0700.
  """
  folder = os.path.dirname(os.path.abspath(path))
  make_folders(folder)
  temporary = _write_temporary(folder, line)
  try:
    os.link(temporary, path)  # unlike rename, refuses to replace
  finally:
    destroy(temporary)
  sync_folder(folder)


def replace(path: str, line: bytes) -> None:
  """Puts a whole file of mode 0600 in the place of another, or raises OSError.

  The other's blocks are not overwritten.
  """
  folder = os.path.dirname(os.path.abspath(path))
  temporary = _write_temporary(folder, line)
  try:
    os.replace(temporary, path)
  except OSError:
    destroy(temporary)
    raise
  sync_folder(folder)


def supersede(path: str, line: bytes) -> None:
  """As `replace`, and then overwrites the blocks of the other.

  A crash leaves one of both in place, whole; the other's blocks may stay.
  """
  with open(path, 'r+b', buffering=0) as old:
    replace(path, line)
    overwrite(old.fileno())


def rewrite(path: str, line: bytes) -> None:
  """Puts a line over one of the same length, synced, or raises OSError.

  In place, which is one sync of the disk instead of `replace`'s two: the line
  is shorter than a sector, which disks write whole. Where syncing fails, the
  new line may be there all the same.
  """
  file = os.open(path, os.O_WRONLY)
  try:
    if os.fstat(file).st_size != len(line) or len(line) > _SECTOR_BYTES:
      raise OSError(errno.EINVAL, 'a line of another length')
    if os.pwrite(file, line, 0) != len(line):
      raise OSError(errno.EIO, 'a part of the line only')
    _sync(file)
  finally:
    os.close(file)


def overwrite(file: int) -> None:
  """Writes random bytes over those of an open file of keys, and syncs it."""
  size = os.fstat(file).st_size
  os.pwrite(file, os.urandom(min(size, MAX_BYTES)), 0)
  os.fsync(file)


def destroy(path: str) -> None:
  """Unlinks a file of keys, its bytes overwritten unless another name has them.

  A crash of `write_new` may leave a stray that is the key itself by a second
  name. Bytes that can't be overwritten, as on a broken disk, stay.
  """
  with contextlib.suppress(OSError):
    file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
      if os.fstat(file).st_nlink == 1:
        overwrite(file)
    finally:
      os.close(file)
  with contextlib.suppress(FileNotFoundError):
    os.unlink(path)


def sync_folder(folder: str) -> None:
  """Makes the names in a folder survive a crash, where that can be done."""
  # Some file systems can't sync folders; the key file itself is synced.
  with contextlib.suppress(OSError):
    file = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(file)
    finally:
      os.close(file)


def read_private(path: str, num_bytes: int) -> tuple[bytes, int]:
  """Returns the first bytes of a regular file and its permission bits.

  Raises:
    OSError: if it can't be read.
    ValueError: if it is no regular file.
  """
  # Without O_NONBLOCK opening a pipe would wait for a writer.
  file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
  try:
    mode = os.fstat(file).st_mode
    if not stat.S_ISREG(mode):
      raise ValueError('something that is no regular file')
    return os.read(file, num_bytes), stat.S_IMODE(mode)
  finally:
    os.close(file)


def check_folder(folder: str) -> None:
  """Raises ValueError unless a folder is there and closed to group and others.

  The mode of the files in it would not keep others from replacing them.
  """
  try:
    mode = os.stat(folder).st_mode
  except (OSError, ValueError) as found:
    todo = 'check the path'
    raise error(ascii(folder), 'a folder', reason(found), todo) from None
  if not stat.S_ISDIR(mode):
    raise error(ascii(folder), 'a folder', 'something else', 'check the path')
  if mode & 0o077:
    todo = 'run chmod 700 on it, or move the keys to a folder of their own'
    found = f'{stat.S_IMODE(mode):04o}'
    raise error(ascii(folder), 'mode 0700', found, todo)


def make_private_folder(folder: str) -> None:
  """Makes a missing folder; raises ValueError for one open to others."""
  folder = os.path.abspath(folder)
  with writing(folder):
    make_folders(folder)
  check_folder(folder)


def read_line(path: str, what: str, *, renew: str) -> bytes:
  """Reads a file of mode 0600 in a folder of 0700, or stricter.

  Args:
    path: of the file.
    what: it should be, for the errors: 'an epoch key'.
    renew: what to do where it is lost or others have read it, for the errors.

  Raises:
    ValueError: if it is missing or unreadable, or it or its folder is open to
      group or others.
  """
  try:
    line, mode = read_private(path, MAX_BYTES + 1)
  except (OSError, ValueError) as found:
    todo = f'check the path, or {renew}'
    raise error(ascii(path), what, reason(found), todo) from None
  if mode & 0o077:
    todo = f'run chmod 600 on it, and {renew} if others may have read it'
    raise error(ascii(path), 'mode 0600', f'{mode:04o}', todo)
  check_folder(os.path.dirname(os.path.abspath(path)))
  return line


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
  """Turns an OSError inside into a ValueError that names the file."""
  try:
    yield
  except OSError as found:
    todo = 'check who owns it and the free space'
    raise error(ascii(path), 'to write it', reason(found), todo) from None


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
  """Holds the files that share this one's stem; ends with the process at last.

  Raises:
    ValueError: if the lock's file can't be written.
  """
  import fcntl  # missing on Windows, where keys can still be derived

  name = f'{os.path.splitext(path)[0]}.lock'
  with writing(name):
    file = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
  try:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
  finally:
    # Closing would not do: a process forked meanwhile has the file open, too.
    fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def reason(found: Exception) -> str:
  """Returns why a call of the system failed, in one line."""
  text = getattr(found, 'strerror', None) or str(found)
  return ' '.join(text.split())


class KeyFault(ValueError):
  """Something is wrong with our own keys or counters, not with a message."""


def error(name: str, expected: Any, found: Any, todo: str) -> KeyFault:
  """Returns the error of one line: what, expected, found, what to do."""
  return KeyFault(f'{name}: expected {expected}, found {found}; {todo}')


def _write_temporary(folder, line):
  # A name of its own length: one longer than the file's might not be allowed.
  temporary = os.path.join(folder, f'.new-{os.urandom(8).hex()}')
  file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
  try:
    with os.fdopen(file, 'wb') as stream:
      os.fchmod(file, 0o600)  # whatever the umask left
      stream.write(line)
      stream.flush()
      os.fsync(file)
  except BaseException:
    destroy(temporary)
    raise
  return temporary


def make_folders(folder: str) -> None:
  """Makes a folder and those above it, mode 0700, or raises OSError."""
  # os.makedirs would give intermediate folders the default mode.
  if os.path.isdir(folder):
    return
  make_folders(os.path.dirname(folder))
  try:
    os.mkdir(folder, 0o700)
  except FileExistsError:
    if not os.path.isdir(folder):
      raise NotADirectoryError('a file where a folder should be') from None
  sync_folder(os.path.dirname(folder))
