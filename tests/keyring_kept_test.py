"""Tests of what a server keeps: erasing it, and rotating its own key."""

import contextlib
import hashlib
import os
import re
import threading

import pytest

from ppcmi_jax import keyring
from ppcmi_jax.keyring import __main__ as commands
from ppcmi_jax.keyring import epochs, kept
from ppcmi_jax.sealed import vault

MESSAGES = {'north': [b'n0', b'n1', b'n2'], 'south': [b's0']}


def key_of(message):
  return hashlib.sha256(b'key of ' + message).digest()


@pytest.fixture
def server(tmp_path):
  """Returns the folder of a server that keeps keys of two clients."""
  folder = tmp_path / 'server'
  keyring.create(folder / 'storage.key')
  for client, messages in MESSAGES.items():
    for message in messages:
      vault_of(folder).put(client, message, key_of(message))
  return folder


def vault_of(folder):
  return vault.Vault(folder / 'kept', folder / 'storage.key')


def assert_all_open(folder, clients=tuple(MESSAGES)):
  for client in clients:
    for message in MESSAGES[client]:
      assert vault_of(folder).get(client, message) == key_of(message)


def files_of(folder):
  return {
    path.relative_to(folder): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file() and path.suffix != '.lock'
  }


@pytest.fixture
def call(capsys, monkeypatch):
  """Returns a function: arguments -> (exit code, stdout, stderr)."""
  monkeypatch.delenv(commands.VARIABLE, raising=False)

  def run(*arguments):
    code = commands.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()

  return run


@pytest.fixture
def refuse(call):
  """Returns a function that checks for one line on stderr and exit code 2."""

  def run(message, *arguments):
    code, out, err = call(*arguments)
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert err.startswith('keyring: ') and re.search(message, err)
    assert not re.search('[0-9a-f]{64} ', err)

  return run


# Erasing what is kept.


def test_what_is_kept_of_one_client_is_overwritten_and_gone(server, call):
  folder = server / 'kept' / 'north'
  paths = sorted(folder.iterdir())
  stray = folder / f'.new-{"0" * 16}'  # left by a crash
  stray.write_bytes(b'w' * 48)
  before = [path.read_bytes() for path in (*paths, stray)]
  with contextlib.ExitStack() as stack:
    blocks = [stack.enter_context(p.open('rb')) for p in (*paths, stray)]
    code, out, _ = call(
      'erase', f'--folder={server}', '--client=north', '--kept'
    )
    after = [file.read() for file in blocks]
  assert code == 0 and 'erased: 3 kept keys' in out and 'backups may' in out
  for one, other in zip(before, after, strict=True):
    assert len(one) == len(other) and one != other
  assert not folder.exists()
  assert vault_of(server).get('north', b'n0') is None
  assert_all_open(server, ['south'])


def test_the_key_of_the_client_stays_and_is_told(server, tmp_path, call):
  _, export = epochs.enrol(tmp_path / 'hospital', 'north')
  epochs.import_key(server, export)
  here = (f'--folder={server}', '--client=north')
  _, out, _ = call('erase', *here, '--kept')
  assert f'still here: {server / "north.epoch"}' in out
  assert epochs.load(server / 'north.epoch')
  assert call('erase', *here)[0] == 0
  assert not (server / 'north.epoch').exists()


def test_the_key_alone_is_erased_without_kept(server, tmp_path, call):
  _, export = epochs.enrol(tmp_path / 'hospital', 'north')
  epochs.import_key(server, export)
  assert call('erase', f'--folder={server}', '--client=north')[0] == 0
  assert_all_open(server)


def test_kept_keys_are_erased_though_the_storage_key_is_lost(server, call):
  (server / 'storage.key').unlink()
  for client in MESSAGES:
    arguments = (f'--folder={server}', f'--client={client}', '--kept')
    assert call('erase', *arguments)[0] == 0
  assert not list(server.rglob('*.kept'))


@pytest.mark.parametrize('client', ['west', '', '..', '../kept/north', 'n\0'])
def test_clients_of_whom_nothing_is_kept_are_refused(server, refuse, client):
  before = files_of(server)
  message = r'client: expected a client of whom .*\(north, south\), found '
  here = f'--folder={server}'
  refuse(message, 'erase', here, f'--client={client}', '--kept')
  assert files_of(server) == before


def test_other_folders_are_refused(server, tmp_path, refuse):
  epochs.enrol(tmp_path / 'hospital', 'north')
  arguments = ('--client=north', '--kept')
  message = "hospital': expected storage.key or kept/ in it, found neither; na"
  refuse(message, 'erase', f'--folder={tmp_path / "hospital"}', *arguments)
  assert epochs.load(tmp_path / 'hospital' / 'north.epoch')
  message = "kept': expected storage.key or kept/ in it"
  refuse(message, 'erase', f'--folder={server / "kept"}', *arguments)
  kept.erase(server, 'north')
  message = r"\(south\), found 'north'"
  refuse(message, 'erase', f'--folder={server}', *arguments)
  kept.erase(server, 'south')
  refuse('where none are', 'erase', f'--folder={server}', *arguments)
  (server / 'kept').rmdir()
  refuse('where none are', 'erase', f'--folder={server}', *arguments)


def test_what_else_lies_in_the_folder_is_spared(server):
  note = server / 'kept' / 'north' / 'note.txt'
  note.write_text('precious')
  assert kept.erase(server, 'north') == 3
  assert list(note.parent.iterdir()) == [note]


def test_what_a_crash_left_is_erased_and_rotated_away_too(server):
  stray = server / 'kept' / 'north' / f'.new-{"0" * 16}'
  stray.write_bytes(bytes(48))
  assert kept.rotate(server) == 4 and not stray.exists()
  for path in stray.parent.iterdir():
    path.unlink()
  stray.write_bytes(bytes(48))  # all that is left of this client
  assert kept.erase(server, 'north') == 0 and not stray.exists()


def test_a_kill_while_erasing_leaves_what_can_be_erased(server, monkeypatch):
  stray = server / 'kept' / 'north' / f'.new-{"0" * 16}'
  stray.write_bytes(bytes(48))
  for number in range(100):
    with monkeypatch.context() as context:
      kill_at(context, number)
      try:
        kept.erase(server, 'north')
        break
      except Killed:
        pass
      except ValueError:  # nothing is left but to make the folder go
        break
  assert number > 5 and not list(server.rglob('kept/north/*'))
  assert_all_open(server, ['south'])


def test_the_key_in_use_is_never_the_old_one(server):
  """As after a kill before the new key took its place, and its loss."""
  before = keyring.load(server / 'storage.key')
  os.link(server / 'storage.key', server / 'storage-old.key')
  assert kept.rotate(server) == 4
  assert keyring.load(server / 'storage.key') != before
  assert not (server / 'storage-old.key').exists()
  assert_all_open(server)


def test_a_file_that_can_not_be_erased_is_named(server, monkeypatch, refuse):
  def fail(*_):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(os, 'unlink', fail)
  arguments = (f'--folder={server}', '--client=south', '--kept')
  refuse('kept.: expected to write it, found Permission', 'erase', *arguments)


# Listing.


def test_show_counts_what_is_kept(server, call):
  code, out, _ = call('show', f'--folder={server}')
  assert code == 0 and 'note: ' not in out
  assert 'kept of client north: 3 keys of contributions\n' in out
  assert 'kept of client south: 1 keys of contributions\n' in out


def test_show_says_that_the_storage_key_is_missing(server, call):
  (server / 'storage.key').unlink()
  code, out, _ = call('show', f'--folder={server}')
  assert code == 2 and 'note: storage.key: missing, so what is kept' in out


@pytest.mark.parametrize('name', kept.UNFINISHED)
def test_show_says_that_a_rotation_was_stopped(server, call, name):
  keyring.create(server / name)
  code, out, _ = call('show', f'--folder={server}')
  assert code == 2 and f'note: {name}: a rotation was stopped; run `' in out


# Rotating the storage key.


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


def test_a_server_that_keeps_nothing_rotates_too(tmp_path):
  old = keyring.create(tmp_path / 'server' / 'storage.key')
  assert kept.rotate(tmp_path / 'server') == 0
  assert keyring.load(tmp_path / 'server' / 'storage.key') != old
  assert files_of(tmp_path / 'server').keys() == {
    (tmp_path / 'storage.key').relative_to(tmp_path)
  }


class Killed(BaseException):
  """Stands for a killed process: what it would still have done is not done."""


CALLS = ('fdopen', 'pwrite', 'fsync', 'link', 'replace', 'unlink', 'fchmod')


def kill_at(monkeypatch, number):
  """Makes this call to the system, and all that would follow, not happen."""
  left = [number]

  def counted(call):
    def run(*args, **kwargs):
      left[0] -= 1
      if left[0] < 0:
        raise Killed
      return call(*args, **kwargs)

    return run

  for name in CALLS:
    monkeypatch.setattr(os, name, counted(getattr(os, name)))


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
