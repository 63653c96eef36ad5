"""Tests of the counters of messages: each sent once, let through once."""

import concurrent.futures
import copy
import os
import pathlib

import hypothesis
import pytest
from hypothesis import strategies as st

from ppcmi_jax.keyring import epochs, files, ledger


@pytest.fixture
def path(tmp_path):
  """Returns the path of a client's key; its ledger lies beside it."""
  return epochs.enrol(tmp_path / 'client', 'clinic-1')[0]


def refuse(message, function, *args):
  """Checks for a ValueError of one line."""
  with pytest.raises(ValueError, match=message) as caught:
    function(*args)
  assert '\n' not in str(caught.value)


def test_counters_rise_and_survive_a_crash(path):
  counters = []
  for _ in range(3):  # each a process that is killed sooner or later
    counts = ledger.Ledger(path)
    counters += [counts.reserve(0) for _ in range(ledger.BLOCK + 3)]
  assert counters[: ledger.BLOCK + 3] == list(range(1, ledger.BLOCK + 4))
  assert counters == sorted(set(counters))


def test_two_sessions_never_share_a_counter(path):
  ledgers = [ledger.Ledger(path) for _ in range(2)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    counters = list(
      pool.map(lambda i: ledgers[i % 2].reserve(0), range(2 * ledger.BLOCK))
    )
  assert len(set(counters)) == len(counters)


def test_a_process_that_sent_nothing_for_long_is_still_believed(path, tmp_path):
  idle, busy = (ledger.Ledger(path) for _ in range(2))
  receiver, _ = epochs.enrol(tmp_path / 'other', 'clinic-1')
  seen = ledger.Ledger(receiver)
  assert seen.accept(0, idle.reserve(0))
  for _ in range(ledger.WINDOW + 100):
    last = busy.reserve(0)
  assert seen.accept(0, last)
  for _ in range(2 * ledger.BLOCK):
    assert seen.accept(0, idle.reserve(0))


def test_a_forked_process_has_counters_of_its_own(path, monkeypatch):
  counts = ledger.Ledger(path)
  counts.reserve(0)
  forked = copy.copy(counts)  # as a fork finds it
  ours = counts.reserve(0)
  monkeypatch.setattr(os, 'getpid', lambda: 0)
  assert forked.reserve(0) not in (1, ours)


def test_of_many_that_accept_one_message_one_succeeds(path):
  ledgers = [ledger.Ledger(path) for _ in range(4)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    accepted = pool.map(lambda counts: counts.accept(0, 5), ledgers)
    assert sum(accepted) == 1


def test_replays_are_refused_by_the_next_process_too(path):
  for counter in (1, 2, 5, 3):
    assert ledger.Ledger(path).accept(0, counter) is True
  for counter in (1, 2, 3, 5):
    assert ledger.Ledger(path).accept(0, counter) is False
  assert ledger.Ledger(path).accept(0, 4) is True


@hypothesis.given(
  st.lists(
    st.one_of(
      st.integers(1, 40),
      st.integers(ledger.WINDOW - 3, ledger.WINDOW + 45),
      st.integers(2**64 - 3, 2**64 - 1),
    ),
    max_size=12,
  )
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_the_window_is_that_of_a_set(tmp_path_factory, counters):
  """Against a memory of all counters, of which only the last WINDOW pass."""
  path, _ = epochs.enrol(tmp_path_factory.mktemp('client'), 'clinic-1')
  counts, seen = ledger.Ledger(path), set()
  for counter in counters:
    highest = max(seen, default=0)
    new = counter not in seen and counter > highest - ledger.WINDOW
    assert counts.accept(0, counter) is new
    if new:
      seen.add(counter)
  with open(f'{path[:-6]}.ledger') as file:
    assert len(file.read()) < 400  # however many were seen


def test_a_new_epoch_starts_anew_and_the_old_one_is_over(path):
  counts = ledger.Ledger(path)
  assert [counts.reserve(0), counts.reserve(0)] == [1, 2]
  assert counts.accept(0, 9) and counts.accept(1, 9)
  assert counts.reserve(1) == 1
  assert counts.accept(0, 10) is False
  refuse(
    'epoch: expected 1 or later, found 0; rotate',
    ledger.Ledger(path).reserve,
    0,
  )


def test_nothing_is_accepted_that_is_not_written_down(path, monkeypatch):
  counts = ledger.Ledger(path)
  with monkeypatch.context() as context:

    def fail(*_):
      raise OSError(28, 'No space left on device')

    context.setattr(os, 'pwrite', fail)
    refuse('found No space', counts.accept, 0, 1)
    refuse('found No space', counts.reserve, 0)
  assert counts.accept(0, 1)
  assert counts.reserve(0) == 1


def test_what_is_accepted_is_synced_before_the_answer(path, monkeypatch):
  events, sync, write = [], files._sync, os.pwrite
  monkeypatch.setattr(
    files, '_sync', lambda f: (events.append('sync'), sync(f))
  )
  monkeypatch.setattr(
    os, 'pwrite', lambda *args: (events.append('write'), write(*args))[1]
  )
  assert ledger.Ledger(path).accept(0, 1)
  assert events == ['write', 'sync']


def test_half_a_line_and_a_failed_sync_are_errors(path, monkeypatch):
  """The message is refused; whether its counter was kept, both are safe."""
  counts = ledger.Ledger(path)
  with monkeypatch.context() as context:
    context.setattr(os, 'pwrite', lambda *_: 7)
    refuse('found a part of the line', counts.accept, 0, 1)

  def fail(_):
    raise OSError(5, 'Input/output error')

  with monkeypatch.context() as context:
    context.setattr(files, '_sync', fail)
    refuse('found Input/output', counts.accept, 0, 2)
  assert counts.accept(0, 1) and counts.accept(0, 3)


def test_a_ledger_stays_one_file_of_one_length(path):
  """In place: shorter than a sector, closed to others, nothing beside it."""
  name = pathlib.Path(path).with_suffix('.ledger')
  before, names = name.stat(), sorted(name.parent.iterdir())
  counts = ledger.Ledger(path)
  assert counts.accept(0, 2**64 - 1) and counts.accept(2**32 - 1, 1)
  counts.reserve(2**32 - 1)
  after = name.stat()
  assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
  assert after.st_size == before.st_size < 512
  assert {*name.parent.iterdir()} - {name.with_suffix('.lock')} == {
    file for file in names if file.suffix != '.lock'
  }


@pytest.mark.parametrize('length', [3, 5, 600])
def test_only_a_line_of_the_same_length_is_put_in_place(tmp_path, length):
  path = tmp_path / 'file'
  path.write_bytes(bytes(600 if length == 600 else 4))
  with pytest.raises(OSError, match='another length'):
    files.rewrite(str(path), bytes([1]) * length)
  assert not any(path.read_bytes())


def test_a_damaged_or_lost_ledger_is_no_empty_one(path):
  name = f'{path[:-6]}.ledger'
  counts = ledger.Ledger(path)
  with open(name, 'r+') as file:
    file.truncate(50)
  refuse('expected a ledger', counts.accept, 0, 1)
  os.unlink(name)
  refuse('found No such file', counts.reserve, 0)
  refuse('found No such file', ledger.Ledger, path)


@pytest.mark.parametrize(
  'name, epoch, counter',
  [
    ('epoch', -1, 1),
    ('epoch', 2**32, 1),
    ('epoch', '0', 1),
    ('counter', 0, 0),
    ('counter', 0, 2**64),
    ('counter', 0, True),
  ],
)
def test_numbers_that_no_message_has_are_refused(path, name, epoch, counter):
  counts = ledger.Ledger(path)
  refuse(f'^{name}: expected [01] to', counts.accept, epoch, counter)
  if name == 'epoch':
    refuse('^epoch: expected 0 to', counts.reserve, epoch)
  assert counts.accept(0, 1)
