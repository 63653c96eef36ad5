"""Tests of the vault: keys of contributions, wrapped by the storage key."""

import os

import pytest

from ppcmi_jax import keyring
from ppcmi_jax.sealed import vault

KEY = bytes(range(32))


@pytest.fixture
def storage(tmp_path):
  path = tmp_path / 'server' / 'storage.key'
  keyring.create(path)
  return path


@pytest.fixture
def folder(tmp_path):
  return tmp_path / 'server' / 'kept'


def test_what_is_put_is_got_by_its_client_and_message_alone(storage, folder):
  vault.Vault(folder, storage).put('north', b'message', KEY)
  found = vault.Vault(folder, storage)
  assert found.get('north', b'message') == KEY
  assert found.get('south', b'message') is None
  assert found.get('north', b'other') is None
  (path,) = folder.rglob('*.kept')
  assert path.stat().st_mode & 0o777 == 0o600
  assert path.parent.stat().st_mode & 0o777 == 0o700
  assert KEY not in path.read_bytes()


def test_the_first_key_of_a_message_stays(storage, folder):
  kept = vault.Vault(folder, storage)
  kept.put('north', b'message', KEY)
  kept.put('north', b'message', bytes(32))
  assert kept.get('north', b'message') == KEY


def test_keys_that_nobody_used_are_forgotten(storage, folder):
  before = vault.Vault(folder, storage)
  for message in (b'used', b'unused'):
    before.put('north', message, KEY)
    before.put('south', message, KEY)
  (folder / 'north' / f'.new-{"0" * 16}').write_bytes(b'left by a crash')
  now = vault.Vault(folder, storage)
  now.get('north', b'used')
  now.put('north', b'new', KEY)
  now.forget_others('north')
  assert len(os.listdir(folder / 'north')) == 2
  assert now.get('north', b'unused') is None
  assert now.get('south', b'unused') == now.get('north', b'used') == KEY


@pytest.mark.parametrize('content', [b'', bytes(48), bytes(100)])
def test_damaged_keys_say_what_to_do(storage, folder, content):
  kept = vault.Vault(folder, storage)
  kept.put('north', b'message', KEY)
  (path,) = folder.rglob('*.kept')
  path.write_bytes(content)
  with pytest.raises(ValueError, match='erase --kept --client=north') as caught:
    kept.get('north', b'message')
  assert '\n' not in str(caught.value)


def test_another_storage_key_opens_nothing(storage, folder):
  vault.Vault(folder, storage).put('north', b'message', KEY)
  another = storage.with_name('another.key')
  keyring.create(another)
  with pytest.raises(ValueError, match='that the storage key wrapped'):
    vault.Vault(folder, another).get('north', b'message')


def test_the_storage_key_must_be_there_and_closed_to_others(tmp_path, folder):
  path = tmp_path / 'server' / 'storage.key'
  with pytest.raises(ValueError, match='to write it, found No such file'):
    vault.Vault(folder, path)
  path.parent.mkdir(mode=0o700)
  with pytest.raises(ValueError, match='expected a key file, found No such'):
    vault.Vault(folder, path)
  keyring.create(path)
  kept = vault.Vault(folder, path)
  path.parent.chmod(0o750)
  with pytest.raises(ValueError, match='expected mode 0700, found 0750'):
    kept.get('north', b'message')
