"""Tests of epoch keys: enrolment, rotation, erasure."""

import os
import re
import shutil
import stat
import threading

import pytest

from ppcmi_jax import keyring
from ppcmi_jax.keyring import epochs, files, ledger


def mode_of(path):
  return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def enrolled(tmp_path):
  """Returns the paths of a client's key and of its export."""
  return epochs.enrol(tmp_path / 'secrets' / 'client', 'clinic-1')


def refuse(message, function, *args):
  """Checks for a ValueError of one line that shows no key."""
  with pytest.raises(ValueError, match=message) as caught:
    function(*args)
  text = str(caught.value)
  assert '\n' not in text and not re.search('[0-9a-f]{64}', text)
  return caught.value


def test_both_sides_hold_one_key_in_private_files(enrolled, tmp_path):
  path, export = enrolled
  folder = tmp_path / 'secrets'
  assert mode_of(folder) == mode_of(folder / 'client') == 0o700
  received = epochs.import_key(folder / 'server', export)
  assert epochs.load(path) == epochs.load(received)
  assert epochs.load(path).epoch == 0 and len(epochs.load(path).key) == 32
  assert not os.path.exists(export)
  names = {file.name for file in folder.rglob('*') if file.is_file()}
  assert names == {f'clinic-1.{end}' for end in ('epoch', 'ledger', 'lock')}
  for file in folder.rglob('*.*'):
    assert mode_of(file) == 0o600


def test_every_enrolment_draws_another_key(tmp_path):
  keys = [
    epochs.load(epochs.enrol(tmp_path / str(i), 'clinic-1')[0]).key
    for i in range(3)
  ]
  assert len(set(keys)) == 3


def test_the_root_is_never_written(tmp_path, monkeypatch):
  drawn, urandom = [], os.urandom

  def draw(num_bytes):
    drawn.append(urandom(num_bytes))
    return drawn[-1]

  monkeypatch.setattr(os, 'urandom', draw)
  path, _ = epochs.enrol(tmp_path / 'client', 'clinic-1')
  (root,) = (value for value in drawn if len(value) == 32)
  key = keyring.derive(root, 'epoch', 'clinic-1', '0')
  assert epochs.load(path) == epochs.EpochKey('clinic-1', 0, key)
  for file in (tmp_path / 'client').iterdir():
    assert root.hex() not in file.read_text() and root not in file.read_bytes()


def test_rotation_is_the_ratchet_of_the_docstring(enrolled):
  path, _ = enrolled
  first = epochs.load(path)
  expected = keyring.derive(first.key, 'epoch', 'clinic-1', '1')
  assert epochs.rotate(path) == epochs.EpochKey('clinic-1', 1, expected)
  assert epochs.load(path).key == expected
  third = epochs.rotate(path, 3)
  assert third == epochs.ratchet(first, 3) and third.epoch == 3
  assert epochs.rotate(path, 3) == epochs.load(path) == third
  assert len({epochs.ratchet(first, e).key for e in range(5)}) == 5
  assert len({epochs.ratchet(first, e).key_id for e in range(5)}) == 5


def test_nothing_older_stays_after_rotation(enrolled):
  path, export = enrolled
  first = epochs.load(path)
  with open(path, 'rb') as old, open(export, 'rb') as copy:
    epochs.rotate(path)
    assert not os.path.exists(export)
    for file in (old, copy):  # the blocks of the unlinked files
      assert first.key.hex().encode() not in file.read()
  folder = os.path.dirname(path)
  for name in os.listdir(folder):
    with open(os.path.join(folder, name), 'rb') as file:
      assert first.key.hex().encode() not in file.read()


def test_a_crash_while_rotating_keeps_a_whole_key(enrolled, monkeypatch):
  path, _ = enrolled
  first = epochs.load(path)
  with monkeypatch.context() as context:

    def fail(*_):
      raise OSError(28, 'No space left on device')

    context.setattr(os, 'replace', fail)
    refuse('to write it, found No space', epochs.rotate, path)
  assert not [n for n in os.listdir(os.path.dirname(path)) if '.new' in n]
  assert epochs.load(path) == first
  assert epochs.rotate(path) == epochs.ratchet(first, 1)


def test_what_could_not_be_written_is_overwritten(enrolled, monkeypatch):
  """A key that comes to nothing is the next one all the same."""
  path, _ = enrolled
  following = epochs.ratchet(epochs.load(path), 1).key.hex().encode()
  folder, opened = os.path.dirname(path), []

  def fail(temporary, _):
    opened.append(os.open(temporary, os.O_RDONLY))
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'replace', fail)
  refuse('found No space', epochs.rotate, path)
  (file,) = opened
  assert following not in os.read(file, 1024)
  os.close(file)
  assert not [name for name in os.listdir(folder) if '.new' in name]


@pytest.mark.parametrize('kill', [1, 2])
def test_a_stray_of_a_crash_is_no_way_to_lose_the_key(
  tmp_path, monkeypatch, kill
):
  """It may be a second name of the key's own bytes."""
  unlink, left = os.unlink, [kill]

  def crash(path, **options):
    if '.new-' in str(path):
      left[0] -= 1
      if not left[0]:
        raise KeyboardInterrupt
    unlink(path, **options)

  with monkeypatch.context() as context:
    context.setattr(os, 'unlink', crash)
    with pytest.raises(KeyboardInterrupt):
      epochs.enrol(tmp_path / 'client', 'clinic-1')
      keyring.create(tmp_path / 'client' / 'storage.key')
  keys = [p for p in (tmp_path / 'client').iterdir() if p.suffix == '.export']
  (stray,) = (tmp_path / 'client').glob('.new-*')
  before = [path.read_bytes() for path in keys]
  epochs.erase(stray)
  assert not stray.exists()
  assert [path.read_bytes() for path in keys] == before


def test_rotation_erases_what_a_crash_left_of_earlier_keys(enrolled, tmp_path):
  path, _ = enrolled
  folder = tmp_path / 'secrets' / 'client'
  other, _ = epochs.enrol(folder, 'clinic-2')
  first, also = folder / f'.new-{"0" * 16}', folder / f'.new-{"1" * 16}'
  shutil.copy2(path, first)
  shutil.copy2(other, also)
  epochs.rotate(path)
  assert not first.exists() and also.exists()
  epochs.rotate(other)
  assert not also.exists()


def test_a_key_that_has_gone_on_stays_where_it_is(enrolled):
  path, _ = enrolled
  first = epochs.load(path)
  third = epochs.rotate(path, 3)
  assert not epochs.follow(path, epochs.ratchet(first, 1))
  assert epochs.follow(path, third) and epochs.load(path) == third
  fourth = epochs.ratchet(first, 4)
  assert not epochs.follow(path, fourth._replace(key=bytes(32)))
  assert not epochs.follow(path, epochs.ratchet(fourth, 68))
  assert epochs.follow(path, fourth) and epochs.load(path) == fourth


def test_a_key_is_not_erased_while_it_goes_on(enrolled):
  """Else the next one would be written where it was."""
  path, _ = enrolled
  erasing = threading.Thread(target=epochs.erase, args=[path])
  with files.locked(path):
    erasing.start()
    erasing.join(0.2)
    assert erasing.is_alive() and os.path.exists(path)
  erasing.join(10)
  assert not os.path.exists(path)


def test_a_lock_is_free_though_a_forked_process_has_its_file(
  enrolled, monkeypatch
):
  path, _ = enrolled
  with monkeypatch.context() as context:
    context.setattr(os, 'close', lambda file: None)  # one of two
    with files.locked(path):
      pass
  waiting = threading.Thread(target=epochs.rotate, args=[path], daemon=True)
  waiting.start()
  waiting.join(10)
  assert epochs.load(path).epoch == 1


@pytest.mark.parametrize('epoch', [0, 2 + 65, -1])
def test_no_way_back_and_no_endless_way_forward(enrolled, epoch):
  path, _ = enrolled
  epochs.rotate(path, 2)
  refuse('epoch: expected an epoch from 2', epochs.rotate, path, epoch)
  assert epochs.load(path).epoch == 2


def test_erase_overwrites_and_unlinks(enrolled):
  path, export = enrolled
  key = epochs.load(path).key.hex().encode()
  with open(path, 'rb') as file:
    epochs.erase(path)
    assert key not in file.read() and not os.path.exists(path)
  refuse('found No such file', epochs.erase, path)
  assert epochs.load(export).epoch == 0
  folder = os.path.dirname(path)
  secret = os.path.join(folder, 'clinic-1.key')
  keyring.create(secret)
  epochs.erase(secret)
  assert not os.path.exists(secret)


def test_erase_spares_what_is_no_key(enrolled, tmp_path):
  path, _ = enrolled
  other = tmp_path / 'image.png'
  other.write_bytes(b'precious')
  link = tmp_path / 'link'
  link.symlink_to(path)
  refuse('found another file', epochs.erase, other)
  refuse('a file of keys', epochs.erase, link)
  refuse('a file of keys', epochs.erase, tmp_path)
  assert other.read_bytes() == b'precious' and epochs.load(path)


def test_enrolled_clients_are_not_enrolled_again(enrolled, tmp_path):
  path, export = enrolled
  key = epochs.load(path)
  folder = os.path.dirname(path)
  refuse('expected no file, found one', epochs.enrol, folder, 'clinic-1')
  epochs.erase(export)
  refuse('no key of this client', epochs.enrol, folder, 'clinic-1')
  assert epochs.load(path) == key and not os.path.exists(export)
  epochs.erase(path)
  assert epochs.load(epochs.enrol(folder, 'clinic-1')[0]) != key


def test_import_keeps_what_it_cannot_take(enrolled, tmp_path):
  path, export = enrolled
  refuse(
    'no key of this client', epochs.import_key, os.path.dirname(path), export
  )
  assert epochs.load(export) == epochs.load(path)


@pytest.mark.parametrize('name', ['', '../x', 'a b', 'x' * 65, None])
def test_names_that_are_no_file_names_are_refused(tmp_path, name):
  refuse('client: expected', epochs.enrol, tmp_path, name)


def damaged(text, how):
  client, epoch, key, key_id = text.split()[1:]
  return {
    'empty': '',
    'cut': text[:-10],
    'longer': text + 'x',
    'binary': 'é' * 2000,
    'client': text.replace(client, 'clinic-2'),
    'epoch': text.replace(f' {epoch} ', ' 1 '),
    'large epoch': text.replace(f' {epoch} ', ' 9999999999 '),
    'key': text.replace(key, '0' * 64),
    'key id': text.replace(key_id, '0' * 16),
  }[how]


HOW = (
  'empty',
  'cut',
  'longer',
  'binary',
  'client',
  'epoch',
  'large epoch',
  'key',
  'key id',
)


@pytest.mark.parametrize('how', HOW)
def test_damaged_keys_are_refused(enrolled, how):
  path, _ = enrolled
  with open(path) as file:
    text = file.read()
  with open(path, 'w') as file:
    file.write(damaged(text, how))
  for function in (epochs.load, epochs.rotate):
    refuse('; enrol the client again$', function, path)


def test_files_and_folders_open_to_others_are_refused(enrolled):
  path, _ = enrolled
  os.chmod(path, 0o640)
  refuse('expected mode 0600, found 0640', epochs.load, path)
  os.chmod(path, 0o600)
  folder = os.path.dirname(path)
  os.chmod(folder, 0o755)
  for function in (epochs.load, epochs.rotate, ledger.Ledger):
    refuse('expected mode 0700, found 0755', function, path)
  os.chmod(folder, 0o700)
  assert epochs.load(path)


def test_missing_files_are_named(tmp_path):
  path = tmp_path / 'clinic-1.epoch'
  for function in (epochs.load, epochs.rotate, ledger.Ledger):
    refuse('found No such file', function, path)


def test_keys_are_not_shown(enrolled):
  key = epochs.load(enrolled[0])
  assert repr(key) == f'EpochKey(clinic-1, epoch 0, {key.key_id})'
