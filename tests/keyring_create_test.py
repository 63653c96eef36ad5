"""Tests of creating key files: whole, private, and over no other file."""

import concurrent.futures
import os
import pathlib
import stat
import threading

import pytest

from ppcmi_jax import keyring


def mode_of(path):
  return stat.S_IMODE(os.stat(path).st_mode)


def test_create_writes_what_load_reads(tmp_path):
  path = tmp_path / 'a' / 'b' / 'clinic.key'
  secret = keyring.create(path)
  assert len(secret) == 32 and keyring.load(str(path)) == secret
  assert keyring.load(path, key_id=keyring.key_id(secret)) == secret
  line = f'ppcmi_jax-key-v1 {secret.hex()} {keyring.key_id(secret)}\n'
  assert path.read_text() == line
  assert os.listdir(path.parent) == ['clinic.key']  # no temporary file
  assert keyring.create(tmp_path / 'other.key') != secret


@pytest.mark.parametrize('umask', [0, 0o022, 0o077])
def test_modes_whatever_the_umask(tmp_path, umask):
  before = os.umask(umask)
  try:
    keyring.create(tmp_path / 'made' / 'too' / 'k')
  finally:
    os.umask(before)
  assert mode_of(tmp_path / 'made/too/k') == 0o600
  for folder in ('made', 'made/too'):
    assert mode_of(tmp_path / folder) == 0o700


def test_create_takes_a_relative_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert keyring.create('k') == keyring.load('k')


@pytest.mark.parametrize(
  'kind', ['file', 'empty', 'folder', 'link', 'dangling']
)
def test_create_never_overwrites(tmp_path, kind):
  path = tmp_path / 'k'
  if kind in ('file', 'empty'):
    path.write_text('precious' if kind == 'file' else '')
  elif kind == 'folder':
    path.mkdir()
  else:
    (tmp_path / 'target').write_text('precious') if kind == 'link' else None
    path.symlink_to(tmp_path / 'target')
  before = sorted(os.listdir(tmp_path))
  with pytest.raises(
    ValueError, match="k': expected no file, found one; it is"
  ):
    keyring.create(path)
  assert sorted(os.listdir(tmp_path)) == before
  if kind in ('file', 'link'):
    assert path.read_text() == 'precious'


def test_of_concurrent_creators_one_wins(tmp_path):
  path, barrier = tmp_path / 'new' / 'folders' / 'k', threading.Barrier(8)

  def create(_):
    barrier.wait()
    try:
      return keyring.create(path)
    except ValueError as error:
      assert 'expected no file, found one' in str(error)

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    secrets = [secret for secret in pool.map(create, range(8)) if secret]
  assert secrets == [keyring.load(path)]
  assert os.listdir(path.parent) == ['k']


class Crash(BaseException):
  """Stands for a killed process: no handler of `create` may meet it."""


@pytest.mark.parametrize('call', ['fchmod', 'fsync', 'link'])
def test_a_crash_leaves_no_file(tmp_path, monkeypatch, call):
  def crash(*_):
    raise Crash

  monkeypatch.setattr(keyring.os, call, crash)
  monkeypatch.setattr(keyring.os, 'unlink', lambda path: None)  # no clean-up
  with pytest.raises(Crash):
    keyring.create(tmp_path / 'k')
  (stray,) = os.listdir(tmp_path)
  assert stray.startswith('.new-') and mode_of(tmp_path / stray) == 0o600
  monkeypatch.undo()
  assert keyring.create(tmp_path / 'k') == keyring.load(tmp_path / 'k')


def test_the_file_is_whole_and_synced_before_it_gets_its_name(
  tmp_path, monkeypatch
):
  events = []
  real_link, real_sync = os.link, os.fsync

  def sync(file):
    events.append('folder' if stat.S_ISDIR(os.fstat(file).st_mode) else 'file')
    real_sync(file)

  def link(source, target):
    events.append('link')
    assert len(pathlib.Path(source).read_bytes()) == 99
    real_link(source, target)

  monkeypatch.setattr(keyring.os, 'fsync', sync)
  monkeypatch.setattr(keyring.os, 'link', link)
  keyring.create(tmp_path / 'k')
  assert events == ['file', 'link', 'folder']


@pytest.mark.parametrize(
  'name, found',
  [
    ('file/k', 'a file where a folder should be'),
    ('x' * 300, 'File name too long'),
    ('nul\0', 'embedded null'),
  ],
)
def test_create_says_why_it_can_not_write(tmp_path, name, found):
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match=f'to write a file, found.*{found}'):
    keyring.create(tmp_path / name)
  assert os.listdir(tmp_path) == ['file']


def test_create_needs_hard_links(tmp_path, monkeypatch):
  def refuse(*_):
    raise PermissionError(1, 'Operation not permitted')

  monkeypatch.setattr(keyring.os, 'link', refuse)
  with pytest.raises(
    ValueError, match=r'Operation not permitted; .*hard links'
  ):
    keyring.create(tmp_path / 'k')
  assert os.listdir(tmp_path) == []
