"""The counters of messages sent and seen, which let each through once.

The sender's counters are reserved on disk before use, in blocks, so a crash
skips some and repeats none; a block that others have left far behind, as they
sent more, is dropped, or the receiver's window would have passed it. The
receiver writes a counter down, synced, before it says yes, and keeps the
largest and which of the WINDOW before it were seen (as in RFC 4303, section
3.4.3): a message that lags behind more is refused, and memory is bounded.
Messages authenticate their counters, so these identify messages within an
epoch.

A ledger restored from a backup, or made anew by importing a kept copy of an
export again, has forgotten what it saw: rotate.

  >>> import tempfile
  >>> from ppcmi_jax.keyring import epochs, ledger
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path, _ = epochs.enrol(f'{folder}/client', 'clinic-1')
  ...   counts = ledger.Ledger(path)
  ...   counts.reserve(0), counts.accept(0, 7), counts.accept(0, 7)
  (1, True, False)
"""

import contextlib
import os
import re
import threading
from typing import NamedTuple

from ppcmi_jax.keyring import files

WINDOW = 1024
BLOCK = 64  # counters reserved at once; each costs a sync of the disk
MAX_EPOCH = 2**32 - 1
MAX_COUNTER = 2**64 - 1

_LINE = re.compile(
  rb'ppcmi_jax-ledger-v1 ([0-9a-f]{8}) ([0-9a-f]{16}) ([0-9a-f]{16}) '
  rb'([0-9a-f]{%d})\n' % (WINDOW // 4)
)


class _Counts(NamedTuple):
  """A ledger: `seen`'s bit i is set where counter `highest` - i was seen."""

  epoch: int
  reserved: int
  highest: int
  seen: int


class Ledger:
  """The counters of messages that one side sent to and saw of the other.

  Several threads and processes may use one, forked ones too. The first message
  of a later epoch starts both counts anew.

  Args:
    path: of the epoch key beside it.

  Raises:
    ValueError: if there is none or it is damaged or open to others.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self._path = _path_of(path)
    self._thread_lock = threading.Lock()
    self._block = (0, 0, range(0))  # process, epoch, counters yet unused
    self._read()

  def reserve(self, epoch: int) -> int:
    """Returns a counter that no message of this epoch was sent with, from 1.

    Raises:
      ValueError: if a later epoch was used already, or nothing can be written.
    """
    _check('epoch', epoch, 0, MAX_EPOCH)
    with self._thread_lock, files.locked(self._path):
      counts, known = self._of_epoch(epoch)
      if counts is None:
        todo = f'rotate the key to epoch {known}, or enrol again'
        raise files.error('epoch', f'{known} or later', epoch, todo)
      *owner, counters = self._block
      last = counts.reserved
      is_ours = owner == [os.getpid(), epoch] and len(counters) > 0
      # Beyond the last lie those of a ledger that this one took the place of.
      if not is_ours or not len(counters) <= last - counters[0] + 1 <= (
        WINDOW // 2
      ):
        counters = range(last + 1, last + 1 + BLOCK)
        self._write(counts._replace(reserved=counters[-1]))
      self._block = (os.getpid(), epoch, counters[1:])
      return counters[0]

  def accept(self, epoch: int, counter: int) -> bool:
    """Notes a message that was opened, before anything is done with it.

    Args:
      epoch, counter: what the message proved to be of; 0 to 2^32 - 1, and 1 to
        2^64 - 1.

    Returns:
      True for a new one, which is on the disk by then; False if it was seen
      before, is older than the WINDOW knows, or belongs to an earlier epoch.

    Raises:
      ValueError: for other numbers, or if nothing can be written.
    """
    _check('epoch', epoch, 0, MAX_EPOCH)
    _check('counter', counter, 1, MAX_COUNTER)
    with self._thread_lock, files.locked(self._path):
      counts, _ = self._of_epoch(epoch)
      if counts is None:
        return False
      age = counts.highest - counter
      if age < 0:
        # Of a far jump nothing older stays in the window.
        seen = counts.seen << -age if -age < WINDOW else 0
        seen, highest = (seen | 1) % 2**WINDOW, counter
      elif age >= WINDOW or counts.seen >> age & 1:
        return False
      else:
        seen, highest = counts.seen | 1 << age, counts.highest
      self._write(counts._replace(highest=highest, seen=seen))
      return True

  def _of_epoch(self, epoch):
    """Returns an epoch's counts, None where it has passed, and the last one."""
    counts = self._read()
    if epoch > counts.epoch:
      return _Counts(epoch, 0, 0, 0), epoch
    return counts if epoch == counts.epoch else None, counts.epoch

  def _read(self):
    renew = 'enrol the client again: without a ledger replays could pass'
    match = _LINE.fullmatch(
      files.read_line(self._path, 'a ledger', renew=renew)
    )
    if not match:
      raise files.error(ascii(self._path), 'a ledger', 'another form', renew)
    return _Counts(*(int(group, 16) for group in match.groups()))

  def _write(self, counts):
    with files.writing(self._path):
      files.rewrite(self._path, _line(counts))


def create(path: str | os.PathLike[str], epoch: int) -> None:
  """Writes the empty ledger of a new key, in the place of an earlier key's.

  Args:
    path: of the key, which is not there yet: a ledger without its key counted
      messages of that key alone.
    epoch: of the key.

  Raises:
    ValueError: if it can't be written.
  """
  name = _path_of(path)
  with files.writing(name):
    with contextlib.suppress(FileNotFoundError):
      os.unlink(name)
    files.write_new(name, _line(_Counts(epoch, 0, 0, 0)))


def _path_of(path):
  return f'{os.path.splitext(os.fspath(path))[0]}.ledger'


def _line(counts):
  digits = (8, 16, 16, WINDOW // 4)
  fields = (f'{count:0{n}x}' for count, n in zip(counts, digits, strict=True))
  return f'ppcmi_jax-ledger-v1 {" ".join(fields)}\n'.encode()


def _check(name, value, low, high):
  if type(value) is not int or not low <= value <= high:
    todo = "take it from the key, or from the opened message's header"
    raise files.error(name, f'{low} to {high}', ascii(value), todo)
