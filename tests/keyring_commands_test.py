"""Tests of `python -m ppcmi_jax.keyring`, as those who run hospitals use it."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import keyring_calls
import pytest

from ppcmi_jax import keyring
from ppcmi_jax.keyring import __main__ as commands
from ppcmi_jax.keyring import epochs

COMMANDS = ('enrol', 'import', 'storage', 'rotate', 'erase', 'show')


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
  monkeypatch.delenv(commands.VARIABLE, raising=False)


@pytest.fixture
def call(capsys, monkeypatch):
  return keyring_calls.caller(capsys, monkeypatch)


@pytest.fixture
def refuse(call):
  return keyring_calls.refuser(call)


@pytest.fixture
def folder(tmp_path):
  """Returns the folder of an enrolled client, with its export."""
  epochs.enrol(tmp_path / 'hospital', 'clinic-1')
  return tmp_path / 'hospital'


def carry(folder, to):
  to.mkdir(mode=0o700)
  return shutil.copy2(folder / 'clinic-1.export', to)


def test_a_key_s_life_in_processes_of_its_own(tmp_path):
  keys = []

  def run(line, **variables):
    done = subprocess.run(
      [sys.executable, *shlex.split(line)[1:]],
      cwd=tmp_path,
      env={**os.environ, **variables},
      capture_output=True,
      text=True,
    )
    assert (done.returncode, done.stderr) == (0, ''), line
    for file in tmp_path.rglob('*.e[px]*'):
      keys.append(epochs.load(file).key)
    for key in keys:
      assert key.hex() not in done.stdout.lower()
    return done.stdout

  enrolled = run(
    f'{commands.PROGRAM} enrol --folder=hospital --client=clinic-1'
  )
  carry(tmp_path / 'hospital', tmp_path / 'stick')
  printed = re.findall(r'^ +(python -m .*)', enrolled, re.MULTILINE)
  (importing, erasing) = printed  # what enrol said to do is what is done
  imported = run(
    importing.replace('FOLDER', 'server').replace('clinic', 'stick/clinic')
  )
  (key_id,) = re.findall(r'key id  (\w+) ', enrolled)
  assert f'key id  {key_id} ' in imported
  run(erasing)
  assert not list(tmp_path.rglob('*.export'))
  rotated = run(
    f'{commands.PROGRAM} rotate --client=clinic-1', PPCMI_JAX_SECRETS='hospital'
  )
  (line,) = re.findall(r'^ +(python -m .*)', rotated, re.MULTILINE)
  run(line.replace('FOLDER', 'server'))
  ours, theirs = (
    epochs.load(tmp_path / side / 'clinic-1.epoch')
    for side in ('hospital', 'server')
  )
  assert ours == theirs and ours.epoch == 1 and ours.key not in keys[:1]
  shown = run(f'{commands.PROGRAM} show --folder=server')
  assert re.search(f'clinic-1 +1 +{ours.key_id} +0600', shown)
  assert len(set(keys)) == 2


@pytest.mark.parametrize('name', ['', *COMMANDS])
def test_help_fits_a_terminal_and_names_what_it_is(capsys, name):
  with pytest.raises(SystemExit) as caught:
    commands.main([*name.split(), '--help'])
  out = capsys.readouterr().out
  assert caught.value.code == 0 and '--folder' in out
  assert max(map(len, out.splitlines())) <= 80
  assert all(command in out for command in COMMANDS if not name)


@pytest.mark.parametrize(
  'arguments, message',
  [
    ([], 'required: COMMAND'),
    (['frob'], "invalid choice: 'frob'"),
    (['show'], '--folder: expected .*PPCMI_JAX_SECRETS'),
    (['enrol', '--folder=x'], 'required: --client'),
    (['enrol', '--folder=x', '--cl=y'], 'required: --client'),
    (['enrol', '--folder=x', '--client=../y'], 'client: expected 1 to 64'),
    (['import', '--folder=x'], 'required: --export'),
    (['import', '--folder=x', '--export=y'], 'expected an epoch key, found No'),
    (['rotate', '--folder=x', '--client=y'], "x': expected a folder"),
    (['rotate', '--folder=x', '--client=y', '--epoch=z'], "int value: 'z'"),
    (['show', '--folder=x'], "x': expected a folder, found No such file"),
    (['show', '--folder=x\0'], 'expected a folder, found embedded null'),
    (['erase', '--folder=x'], 'either the PATH of a file or --client'),
    (['erase', 'x', '--client=y'], 'either the PATH of a file or --client'),
    (['erase', 'x', '--kept'], 'expected --client with --kept'),
    (['erase', '--folder=x', '--kept'], 'either the PATH of a file or --cl'),
    (['erase', '--folder=x', '--client=y', '--kept'], "x': expected a folder"),
    (['storage', '--folder=x', '--rotate'], "x': expected a folder, found No"),
    (['erase', 'x'], "'x': expected a file of keys, found No such file"),
  ],
)
def test_bad_arguments_are_one_line(
  tmp_path, monkeypatch, refuse, arguments, message
):
  monkeypatch.chdir(tmp_path)
  refuse(message, *arguments)
  assert not os.listdir(tmp_path)


def test_unknown_clients_are_told_from_known_ones(folder, refuse):
  files = sorted(os.listdir(folder))
  for command in ('rotate', 'erase'):
    message = r"--client: expected .*\(clinic-1\), found 'clinic-9'"
    refuse(message, command, f'--folder={folder}', '--client=clinic-9')
  assert sorted(os.listdir(folder)) == files


def test_folders_open_to_others_are_refused(folder, tmp_path, refuse):
  export = carry(folder, tmp_path / 'stick')
  os.chmod(folder, 0o750)
  files, here = sorted(os.listdir(folder)), f'--folder={folder}'
  for arguments in (
    ('enrol', here, '--client=clinic-2'),
    ('import', here, f'--export={export}'),
    ('rotate', here, '--client=clinic-1'),
    ('erase', here, '--client=clinic-1'),
    ('erase', here, '--client=clinic-1', '--kept'),
    ('storage', here),
    ('storage', here, '--rotate'),
    ('show', here),
  ):
    refuse("hospital': expected mode 0700, found 0750", *arguments)
  assert sorted(os.listdir(folder)) == files and os.path.exists(export)


def test_clients_are_not_enrolled_or_imported_twice(folder, tmp_path, refuse):
  export = carry(folder, tmp_path / 'stick')
  key = epochs.load(folder / 'clinic-1.epoch')
  refuse('found one', 'enrol', f'--folder={folder}', '--client=clinic-1')
  message = 'expected no key of this client, found one; rotate it, or erase'
  refuse(message, 'import', f'--folder={folder}', f'--export={export}')
  assert epochs.load(folder / 'clinic-1.epoch') == key == epochs.load(export)


def test_the_export_of_another_client_is_refused(
  folder, tmp_path, call, refuse
):
  export = folder / 'clinic-1.export'
  arguments = ('import', f'--folder={tmp_path / "server"}')
  arguments += (f'--export={export}',)
  message = "expected a key of client 'clinic-2', found one of 'clinic-1'"
  refuse(message, *arguments, '--client=clinic-2')
  assert export.exists() and not (tmp_path / 'server').exists()
  assert call(*arguments, '--client=clinic-1')[0] == 0 and not export.exists()


def test_an_export_that_can_not_be_erased_is_told(
  folder, tmp_path, monkeypatch, refuse
):
  def fail(*_):
    raise OSError(30, 'Read-only file system')

  monkeypatch.setattr(os, 'pwrite', fail)
  refuse(
    'Read-only .*its key was taken in: destroy this copy by other means',
    'import',
    f'--folder={tmp_path / "server"}',
    f'--export={folder / "clinic-1.export"}',
  )
  assert epochs.load(tmp_path / 'server' / 'clinic-1.epoch').epoch == 0


def test_rotating_to_an_epoch_twice_changes_nothing(folder, call):
  arguments = ('rotate', f'--folder={folder}', '--client=clinic-1')
  assert 'at epoch 3; the key of epoch 0' in call(*arguments, '--epoch=3')[1]
  key = epochs.load(folder / 'clinic-1.epoch')
  code, out, _ = call(*arguments, '--epoch=3')
  assert code == 0 and 'was at epoch 3 already' in out and key.key_id in out
  assert epochs.load(folder / 'clinic-1.epoch') == key


def test_erase_takes_the_export_alone_or_all_of_a_client(folder, call, refuse):
  epochs.enrol(folder, 'clinic-2')
  stray = folder / f'.new-{"0" * 16}'  # left by a crash
  shutil.copy2(folder / 'clinic-1.epoch', stray)
  assert call('erase', folder / 'clinic-1.export')[0] == 0
  assert epochs.load(folder / 'clinic-1.epoch') and stray.exists()
  for client in ('clinic-1', 'clinic-2'):
    assert call('erase', f'--folder={folder}', f'--client={client}')[0] == 0
    assert not list(folder.glob(f'{client}.e*')) and not stray.exists()
  refuse('which has none', 'erase', f'--folder={folder}', '--client=clinic-1')
  (folder / 'note.txt').write_text('precious')
  refuse('found another file', 'erase', folder / 'note.txt')


def test_the_server_makes_its_own_key_once(tmp_path, call, refuse):
  code, out, _ = call('storage', f'--folder={tmp_path / "server"}')
  path = tmp_path / 'server' / 'storage.key'
  assert code == 0 and keyring.key_id(keyring.load(path)) in out
  refuse('never overwritten', 'storage', f'--folder={path.parent}')


def test_show_lists_keys_and_what_needs_care(folder, call):
  epochs.enrol(folder, 'clinic-2.b')
  epochs.rotate(folder / 'clinic-2.b.epoch')
  storage = keyring.create(folder / 'storage.key')
  (folder / 'image.png').write_bytes(b'no key')
  code, out, _ = call('show', f'--folder={folder}')
  first = epochs.load(folder / 'clinic-1.epoch')
  other = epochs.load(folder / 'clinic-2.b.epoch')
  rows = [line.split() for line in out.splitlines()[2:6]]
  assert rows == [
    ['clinic-1', '0', first.key_id, '0600', 'clinic-1.epoch'],
    ['clinic-1', '0', first.key_id, '0600', 'clinic-1.export'],
    ['clinic-2.b', '1', other.key_id, '0600', 'clinic-2.b.epoch'],
    ['-', '-', keyring.key_id(storage), '0600', 'storage.key'],
  ]
  assert code == 0 and out.count('note: ') == 1
  assert 'note: clinic-1.export: a copy of a key, not erased yet' in out
  for key in (first.key, other.key, storage):
    assert key.hex() not in out


def test_show_says_what_is_wrong_with_a_file(folder, call):
  shutil.copy2(folder / 'clinic-1.export', folder / 'clinic-2.epoch')
  shutil.copy2(folder / 'clinic-1.export', folder / f'.new-{"0" * 16}')
  os.chmod(folder / 'clinic-1.epoch', 0o644)
  (folder / 'clinic-1.export').write_text('cut')
  code, out, _ = call('show', f'--folder={folder}')
  notes = [line for line in out.splitlines() if line.startswith('note: ')]
  assert code == 2 and len(notes) == 6
  for text in (
    '.new-0000000000000000: left by a crash',
    "clinic-1.epoch': expected mode 0600, found 0644",
    "clinic-1.export': expected an epoch key, found bytes of another form",
    'clinic-2.epoch: holds a key of client clinic-1',
    "clinic-2.ledger': expected a ledger, found No such file",
  ):
    assert sum(text in note for note in notes) == 1


@pytest.mark.parametrize(
  'content, found', [(None, 'No such file'), ('cut', 'another form')]
)
def test_show_says_that_a_ledger_is_missing_or_damaged(
  folder, call, content, found
):
  os.remove(folder / 'clinic-1.export')
  path = folder / 'clinic-1.ledger'
  path.unlink() if content is None else path.write_text(content)
  code, out, _ = call('show', f'--folder={folder}')
  assert code == 2 and out.count('note: ') == 1
  assert f"clinic-1.ledger': expected a ledger, found {found}" in out
  assert 'enrol the client again: without a ledger replays could pass' in out


@pytest.mark.parametrize('content', [b'', b'ppcmi_jax-ledger-v1 0000'])
def test_a_stray_without_a_key_is_noted_and_erased(folder, call, content):
  stray = folder / f'.new-{"0" * 16}'
  stray.write_bytes(content)
  stray.chmod(0o600)
  code, out, _ = call('show', f'--folder={folder}')
  assert code == 0 and f'{stray.name}: left by a crash, erase it' in out
  assert call('erase', stray)[0] == 0 and not stray.exists()


def test_show_of_no_keys_says_so(tmp_path, call):
  (tmp_path / 'empty').mkdir(mode=0o700)
  code, out, _ = call('show', f'--folder={tmp_path / "empty"}')
  assert (code, out) == (0, f'files of keys in {tmp_path / "empty"}: none\n')
