"""A server that keeps keys of contributions, and ends of it, for its tests."""

import hashlib
import os

from ppcmi_jax import keyring
from ppcmi_jax.sealed import vault

MESSAGES = {'north': [b'n0', b'n1', b'n2'], 'south': [b's0']}


def key_of(message):
  return hashlib.sha256(b'key of ' + message).digest()


def make_server(folder):
  """Makes the folder of a server that keeps keys of two clients."""
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
