"""Tests of rotating the storage key of a server."""

import os
import threading

import keyring_calls
import pytest
from keyring_servers import (
  Killed,
  assert_all_open,
  files_of,
  key_of,
  kill_at,
  make_server,
  vault_of,
)

from ppcmi_jax import keyring
from ppcmi_jax.keyring import epochs, kept


@pytest.fixture
def server(tmp_path):
  return make_server(tmp_path / 'server')


@pytest.fixture
def call(capsys, monkeypatch):
  return keyring_calls.caller(capsys, monkeypatch)


@pytest.fixture
def refuse(call):
  # Names of kept keys are digests.
  return keyring_calls.refuser(call, '[0-9a-f]{64} ')


def test_rotation_makes_another_key_that_opens_all(server, call):
  before, old = files_of(server), keyring.load(server / 'storage.key')
  running = vault_of(server)
  with open(server / 'storage.key', 'rb') as blocks:
    code, out, _ = call('storage', f'--folder={server}', '--rotate')
    assert old.hex().encode() not in blocks.read()
  new, after = keyring.load(server / 'storage.key'), files_of(server)
  assert code == 0 and keyring.key_id(new) in out and '4 keys' in out
  assert new != old and new.hex() not in out
  assert after.keys() == before.keys()
  assert all(after[name] != content for name, content in before.items())
  for path in server.rglob('*.*'):
    assert path.stat().st_mode & 0o077 == 0
  assert_all_open(server)
  assert running.get('north', b'n0') == key_of(b'n0')
  running.put('north', b'later', key_of(b'later'))
  assert vault_of(server).get('north', b'later') == key_of(b'later')


def test_what_a_crash_left_is_erased_and_rotated_away_too(server):
  stray = server / 'kept' / 'north' / f'.new-{"0" * 16}'
  stray.write_bytes(bytes(48))
  assert kept.rotate(server) == 4 and not stray.exists()
  for path in stray.parent.iterdir():
    path.unlink()
  stray.write_bytes(bytes(48))  # all that is left of this client
  assert kept.erase(server, 'north') == 0 and not stray.exists()


def test_the_key_in_use_is_never_the_old_one(server):
  """As after a kill before the new key took its place, and its loss."""
  before = keyring.load(server / 'storage.key')
  os.link(server / 'storage.key', server / 'storage-old.key')
  assert kept.rotate(server) == 4
  assert keyring.load(server / 'storage.key') != before
  assert not (server / 'storage-old.key').exists()
  assert_all_open(server)


def test_a_server_that_keeps_nothing_rotates_too(tmp_path):
  old = keyring.create(tmp_path / 'server' / 'storage.key')
  assert kept.rotate(tmp_path / 'server') == 0
  assert keyring.load(tmp_path / 'server' / 'storage.key') != old
  assert files_of(tmp_path / 'server').keys() == {
    (tmp_path / 'storage.key').relative_to(tmp_path)
  }


def test_a_kill_at_any_moment_loses_nothing(server, tmp_path, monkeypatch):
  """Every call that changes a disk is the first that a run does not make."""
  start = files_of(server)
  old = keyring.load(server / 'storage.key')
  halves = set()
  for number in range(200):
    folder = tmp_path / f'run{number}'
    for name, content in start.items():
      (folder / name).parent.mkdir(0o700, parents=True, exist_ok=True)
      (folder / name).write_bytes(content)
      (folder / name).chmod(0o600)
    with monkeypatch.context() as context:
      kill_at(context, number)
      try:
        kept.rotate(folder)
        break
      except Killed:
        pass
    halves.add(
      tuple(
        (folder / name).exists() for name in ('storage.key', *kept.UNFINISHED)
      )
    )
    if (folder / 'storage-next.key').exists():
      with pytest.raises(ValueError, match='a rotation that was stopped; run'):
        vault_of(folder)
    else:
      assert_all_open(folder)
    kept.rotate(folder)
    assert_all_open(folder)
    assert keyring.load(folder / 'storage.key') != old
    names = {n for n in files_of(folder) if not n.name.startswith('.new-')}
    assert names == start.keys()
    for content in files_of(folder).values():
      assert old.hex().encode() not in content
  assert 25 < number < 199
  assert halves == {
    (True, False, False),
    (True, True, False),
    (True, True, True),
    (True, False, True),
  }


def test_a_stopped_rotation_is_finished_and_no_other_begun(server, monkeypatch):
  with monkeypatch.context() as context:

    def kill(*_):
      raise Killed

    context.setattr(kept.files, 'overwrite', kill)
    with pytest.raises(Killed):
      kept.rotate(server)
  next_key = keyring.load(server / 'storage-next.key')
  assert kept.rotate(server) == 4
  assert keyring.load(server / 'storage.key') == next_key


def test_a_full_disk_is_one_line_and_goes_on_later(
  server, call, refuse, monkeypatch
):
  arguments = ('storage', f'--folder={server}', '--rotate')
  with monkeypatch.context() as context:

    def fail(*_):
      raise OSError(28, 'No space left on device')

    context.setattr(os, 'replace', fail)
    refuse('to write it, found No space', *arguments)
  assert call(*arguments)[0] == 0
  assert_all_open(server)


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'renamed', 'other key'])
def test_damaged_kept_keys_stop_a_rotation_before_it_begins(
  server, refuse, damage
):
  path = sorted((server / 'kept' / 'north').iterdir())[1]
  line = path.read_bytes()
  if damage == 'renamed':
    path.rename(path.with_name(f'{"0" * 64}.kept'))
  elif damage == 'other key':
    (server / 'storage.key').unlink()
    keyring.create(server / 'storage.key')
  else:
    flipped = bytes([line[0] ^ 1]) + line[1:]
    path.write_bytes(line[:-1] if damage == 'cut' else flipped)
  before = files_of(server)
  message = 'the storage key wrapped, found other bytes; erase .*--client=north'
  refuse(message, 'storage', f'--folder={server}', '--rotate')
  assert files_of(server) == before


def test_a_rotation_needs_a_storage_key(server, tmp_path, refuse):
  epochs.enrol(tmp_path / 'hospital', 'north')
  for folder in (tmp_path / 'hospital', server / 'kept'):
    before = files_of(folder)
    message = "storage.key': expected the storage key, found none; check"
    refuse(message, 'storage', f'--folder={folder}', '--rotate')
    assert files_of(folder) == before
  os.chmod(server / 'storage.key', 0o640)
  message = "storage.key': expected mode 0600, found 0640"
  refuse(message, 'storage', f'--folder={server}', '--rotate')


def test_nothing_is_kept_or_rotated_while_a_key_is_rotated(server, monkeypatch):
  """Whoever comes meanwhile waits, and meets the new key."""
  late = vault_of(server)
  threads = [
    threading.Thread(target=late.put, args=('north', b'late', bytes(32))),
    threading.Thread(target=kept.rotate, args=(server,)),
  ]
  rewrap = kept._rewrap

  def slow(*args):
    if not threads[0].ident:
      for thread in threads:
        thread.start()
      for thread in threads:
        thread.join(0.2)
        assert thread.is_alive()
    rewrap(*args)

  monkeypatch.setattr(kept, '_rewrap', slow)
  kept.rotate(server)
  for thread in threads:
    thread.join()
  assert late.get('north', b'late') == bytes(32)
  assert_all_open(server)
