"""Tests of what a server keeps: erasing it, and listing it."""

import contextlib
import os

import keyring_calls
import pytest
from keyring_servers import (
  MESSAGES,
  Killed,
  assert_all_open,
  files_of,
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
