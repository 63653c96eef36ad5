"""Tests of workdir.py: one configuration a folder, files whole or not."""

import errno
import json
import os
import pathlib
import stat
import time

import pytest

from ppcmi_jax import workdir

CONFIG = {
  'seed': 1,
  'widths': (8, 16),
  'options': {'z': 3, 'a': 2},
  'name': 'a/b',
}


def refused(path, config=CONFIG, **kwargs):
  """The one line with which opening a folder is refused."""
  with pytest.raises(ValueError) as error:
    workdir.Workdir(path, config, **kwargs)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_a_new_folder_holds_its_configuration(tmp_path):
  folder = workdir.Workdir(tmp_path / 'runs' / 'one', CONFIG)
  text = (tmp_path / 'runs/one/config.json').read_text()
  assert json.loads(text) == json.loads(json.dumps(CONFIG))
  assert folder.path == tmp_path / 'runs/one'
  assert folder.secrets == folder.path / 'secrets'
  assert folder.checkpoints('mask_a') == folder.path / 'checkpoints/mask_a'
  assert folder.messages('a') == folder.path / 'messages/a'


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert workdir.Workdir('one', CONFIG).path == tmp_path / 'one'


def test_the_same_configuration_opens_again_and_keeps_what_is_there(tmp_path):
  first = workdir.Workdir(tmp_path, CONFIG)
  first.log({'loss': 0.5})
  logged = first.read_log()
  before = (tmp_path / 'config.json').stat().st_mtime_ns
  reordered = dict(reversed(CONFIG.items()))
  for config in (CONFIG, reordered, {**CONFIG, 'widths': [8, 16]}):
    for create in (True, False):
      workdir.Workdir(tmp_path, config, create=create)
  assert (tmp_path / 'config.json').stat().st_mtime_ns == before
  assert first.read_log() == logged and logged[0]['loss'] == 0.5


@pytest.mark.parametrize(
  'change, expected',
  [
    ({'seed': 2}, 'seed was 1, now 2'),
    ({'options': {'z': 4}}, "options was {'a': 2, 'z': 3}, now {'z': 4}"),
    ({'widths': (8,)}, 'widths was [8, 16], now [8]'),
    ({'new': 7}, 'new was not set, now 7'),
    ({'new': None}, 'new was not set, now None'),
    ({'seed': 2, 'name': 'c'}, "name was 'a/b', now 'c'; seed was 1, now 2"),
  ],
)
def test_another_configuration_is_refused_by_field(tmp_path, change, expected):
  workdir.Workdir(tmp_path, CONFIG).log({'loss': 0.5})
  before = (tmp_path / 'config.json').read_bytes()
  message = refused(tmp_path, {**CONFIG, **change})
  assert expected in message and str(tmp_path) in message
  assert 'choose another --workdir' in message
  assert (tmp_path / 'config.json').read_bytes() == before


OTHER = {**CONFIG, 'seed': 2}


def test_a_start_that_came_to_nothing_claims_no_folder(tmp_path):
  folder = workdir.Workdir(tmp_path, CONFIG)
  with folder.lock():
    (tmp_path / 'split.csv').write_text('case\n')
  refused(tmp_path, OTHER, create=False)
  workdir.Workdir(tmp_path, OTHER)
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 2
  # Whoever opened it before may not go on with what it no longer is.
  with pytest.raises(ValueError, match='seed was 2, now 1'), folder.lock():
    pass


@pytest.mark.parametrize(
  'made',
  ['secrets/a.key', 'checkpoints/x', 'messages/x', 'clients.json', 'eval/x'],
)
def test_what_was_made_of_a_configuration_keeps_it(tmp_path, made):
  workdir.Workdir(tmp_path, CONFIG)
  (tmp_path / made).parent.mkdir(exist_ok=True)
  (tmp_path / made).write_text('')
  assert 'seed was 1, now 2' in refused(tmp_path, OTHER)


def test_keys_elsewhere_keep_a_configuration_too(tmp_path, monkeypatch):
  monkeypatch.setenv('PPCMI_JAX_SECRETS_ROOT', str(tmp_path / 'keys'))
  folder = workdir.Workdir(tmp_path / 'run', CONFIG)
  (folder.secrets / 'a.key').write_text('')
  assert 'seed was 1, now 2' in refused(tmp_path / 'run', OTHER)


def test_a_start_under_way_keeps_its_configuration(tmp_path):
  before = workdir.Workdir(tmp_path, CONFIG)
  with before.lock():
    assert 'another process trains in it' in refused(tmp_path, OTHER)
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 1


def test_one_evaluation_at_a_time_beside_a_training(tmp_path):
  before = workdir.Workdir(tmp_path, CONFIG)
  with before.lock(), before.evaluation_lock():
    again = workdir.Workdir(tmp_path, CONFIG, create=False)
    with (
      pytest.raises(ValueError, match='another process evaluates in it'),
      again.evaluation_lock(),
    ):
      pass
  with again.evaluation_lock():
    pass


def test_a_field_that_is_gone_is_named(tmp_path):
  workdir.Workdir(tmp_path, CONFIG).log({'loss': 0.5})
  less = {k: v for k, v in CONFIG.items() if k != 'seed'}
  assert 'seed was 1, now not set' in refused(tmp_path, less)


@pytest.mark.parametrize(
  'content', [b'', b'{"seed": 1', b'\xff\xfe\x00', b'[]', b'null', b'3', b'"x"']
)
def test_a_damaged_configuration_is_refused(tmp_path, content):
  workdir.Workdir(tmp_path, CONFIG)
  (tmp_path / 'config.json').write_bytes(content)
  message = refused(tmp_path)
  assert str(tmp_path / 'config.json') in message and 'damaged' in message
  assert (tmp_path / 'config.json').read_bytes() == content


def test_evaluation_needs_a_run_and_makes_none(tmp_path):
  path = tmp_path / 'none'
  assert 'run train.py' in refused(path, create=False)
  assert not path.exists()
  tmp_path.joinpath('empty').mkdir()
  assert 'no config.json' in refused(tmp_path / 'empty', create=False)
  assert not any((tmp_path / 'empty').iterdir())


@pytest.mark.parametrize('at', ['run', 'run/secrets', 'above'])
def test_a_file_in_the_way_is_one_line(tmp_path, at):
  (tmp_path / at).parent.mkdir(exist_ok=True)
  (tmp_path / at).write_text('precious')
  path = tmp_path / ('above/run' if at == 'above' else 'run')
  message = refused(path)
  assert f'{path}: cannot be written to' in message
  assert (tmp_path / at).read_text() == 'precious'


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path, monkeypatch):
  # Permissions do not stop root, so the operating system's answer is feigned.
  def deny(*args, **kwargs):
    raise PermissionError(errno.EACCES, 'Permission denied')

  expected = 'cannot be written to (Permission denied)'
  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'mkdir', deny)
    assert expected in refused(tmp_path / 'new')
  workdir.Workdir(tmp_path / 'old', CONFIG)
  monkeypatch.setattr(os, 'access', lambda *args: False)
  assert expected in refused(tmp_path / 'old')


def full(*args):
  raise OSError(errno.ENOSPC, 'No space left on device')


def test_a_full_disk_leaves_no_half_configuration(tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', full)
    assert 'No space left on device' in refused(tmp_path / 'run')
  assert not (tmp_path / 'run/config.json').exists()
  workdir.Workdir(tmp_path / 'run', CONFIG)


@pytest.mark.parametrize('umask', [0o000, 0o022, 0o077])
def test_a_run_is_for_the_owner_only(tmp_path, umask):
  before = os.umask(umask)
  try:
    folder = workdir.Workdir(tmp_path / 'run', CONFIG)
  finally:
    os.umask(before)
  assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
  assert stat.S_IMODE(folder.secrets.stat().st_mode) == 0o700


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch, call):
  path = tmp_path / 'eval' / 'table.bin'
  workdir.write_bytes(path, b'old')
  with monkeypatch.context() as patch:
    patch.setattr(os, call, full)
    with pytest.raises(OSError, match='No space left'):
      workdir.write_bytes(path, b'new' * 1000)
  assert path.read_bytes() == b'old'
  workdir.write_bytes(path, b'new')
  assert path.read_bytes() == b'new'
  assert [p.name for p in path.parent.iterdir()] == ['table.bin']


def test_text_is_utf_8_and_metrics_are_lines(tmp_path):
  folder = workdir.Workdir(tmp_path, CONFIG)
  workdir.write_text(tmp_path / 'report' / 'a.md', 'Zürich ±1\n')
  assert (tmp_path / 'report/a.md').read_bytes() == 'Zürich ±1\n'.encode()
  rows = [{'step': 1, 'loss': 0.25}, {'step': 2, 'task': 'mapping'}]
  for row in rows:
    folder.log(row)
  file = tmp_path / 'metrics.jsonl'
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  assert [{k: v for k, v in x.items() if k != 'time'} for x in lines] == rows
  assert 0 <= time.time() - lines[0]['time'] < 60
  file.write_text(file.read_text() + '{"step": 3, "lo')  # cut short
  assert folder.read_log() == lines


def test_nothing_was_logged_before_the_first_line(tmp_path):
  assert workdir.Workdir(tmp_path, CONFIG).read_log() == []


def test_secrets_may_live_elsewhere(tmp_path, monkeypatch):
  monkeypatch.setenv('PPCMI_JAX_SECRETS_ROOT', str(tmp_path / 'safe' / 'keys'))
  folder = workdir.Workdir(tmp_path / 'run', {'seed': 0})
  secrets = folder.secrets
  assert secrets.parent == tmp_path / 'safe' / 'keys'
  assert secrets.name.startswith('run-')
  assert secrets.stat().st_mode & 0o777 == 0o700
  assert not (tmp_path / 'run' / 'secrets').exists()
  # Each run has its own, and finds it again wherever it is moved.
  assert workdir.Workdir(tmp_path / 'a/run', {}).secrets != secrets
  folder.path.rename(tmp_path / 'moved')
  again = workdir.Workdir(tmp_path / 'moved', {'seed': 0}, create=False)
  assert again.secrets == secrets


def test_how_many_train_at_once_is_no_part_of_a_run(tmp_path):
  workdir.Workdir(tmp_path, {'seed': 0, 'side_by_side': 3})
  workdir.Workdir(tmp_path, {'seed': 0, 'side_by_side': 1}, create=False)
  # Nor in a folder that says it.
  (tmp_path / 'config.json').write_text('{"seed": 0, "side_by_side": 2}')
  workdir.Workdir(tmp_path, {'seed': 0}, create=False)
