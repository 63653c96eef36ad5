"""The keys of a run, and the channels that they make between its parties.

    secrets/<client>.key                 klt, official: the client's secret
    secrets/<client>.<protection>.npz    what was drawn from it
    secrets/clients/<client>.epoch       sealed: the client's key of the epoch
    secrets/server/<client>.epoch        the server's copy of it
    secrets/server/storage.key           of the keys in kept/<client>/, those of
                                         contributions that the server keeps

Here, in one process, the server reads the clients' key files, or has their
exports carried to it at once. Between machines people do that, with
`python -m ppcmi_jax.keyring`. clients.json in the workdir says whose keys must
be there, so that a lost one is noticed and never replaced silently.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ppcmi_jax import channel, key_store, keyed_channel, keyring, learners
from ppcmi_jax import workdir as workdir_lib
from ppcmi_jax.keyring import epochs, kept
from ppcmi_jax.sealed import session, vault

Latents = Mapping[str, Mapping[str, Any]]


def enrol(config: Any, workdir: workdir_lib.Workdir, names: Sequence[str]):
  """Makes keys for the clients that the run does not know yet.

  Raises:
    ValueError: a key of a client that it knows is missing or unusable.
  """
  if config.protection != 'sealed':
    key_store.open_keys(workdir, list(names), create=True)
    return
  known = key_store.known_clients(workdir)
  storage = _server(workdir) / kept.STORAGE
  if not storage.exists() and not known:
    keyring.create(storage)
  for name in names:
    if name not in known:
      _enrol(workdir, name)
  known |= dict.fromkeys(names, 'sealed')
  text = json.dumps(known, indent=2) + '\n'
  workdir_lib.write_text(workdir.path / key_store.CLIENTS, text)
  for name in names:
    _parties(_clients(workdir), [name])
  _parties(_server(workdir), names)


def _enrol(workdir, name):
  """Makes a client's key and carries it over, wherever that was stopped."""
  key, export = (
    _clients(workdir) / f'{name}.{suffix}' for suffix in ('epoch', 'export')
  )
  received = _server(workdir) / f'{name}.epoch'
  if not key.exists():
    if received.exists():
      raise ValueError(
        f'{key}: expected the key that {received} is a copy of, found none; '
        'erase the copy to enrol the client again'
      )
    if export.exists():  # of a key that was never finished
      epochs.erase(export)
    epochs.enrol(key.parent, name)
  if not export.exists():
    return
  if not received.exists():
    epochs.import_key(received.parent, export)
    return
  carried, there = epochs.load(export), epochs.load(received)
  if carried.epoch == there.epoch and carried.key_id != there.key_id:
    raise ValueError(
      f'{export}: expected the key that the server has of client {name!r}, '
      f'{there.key_id}, found {carried.key_id}; erase one of them'
    )
  epochs.erase(export)


def client_channel(
  config: Any,
  workdir: workdir_lib.Workdir,
  name: str,
  latents: Latents,
  *,
  wire_dtype: str | None = None,
) -> channel.Channel:
  """Returns a client's end.

  Args:
    config: of the run.
    workdir: of the run.
    name: of the client.
    latents: {modality: {scale: array or ShapeDtypeStruct [B, h, w, C]}}.
    wire_dtype: another than the configuration's.

  Raises:
    ValueError: a key is missing, damaged, open to others or another client's.
  """
  wire_dtype = wire_dtype or config.wire_dtype
  if config.protection == 'sealed':
    return session.make(
      parties=_parties(_clients(workdir), [name]),
      model_id=_model_id(workdir),
      wire_dtype=wire_dtype,
    )
  return _keyed(config, workdir, [name], latents, wire_dtype)


def server_channel(
  config: Any,
  workdir: workdir_lib.Workdir,
  names: Sequence[str],
  latents: Latents,
  *,
  wire_dtype: str | None = None,
) -> channel.Channel:
  """Returns the server's end, for the clients of these names; as above."""
  wire_dtype = wire_dtype or config.wire_dtype
  if config.protection == 'sealed':
    folder = _server(workdir)
    return session.make(
      parties=_parties(folder, names),
      model_id=_model_id(workdir),
      wire_dtype=wire_dtype,
      kept=vault.Vault(folder / kept.FOLDER, folder / kept.STORAGE),
    )
  return _keyed(config, workdir, names, latents, wire_dtype)


def transform_secrets(
  config: Any,
  workdir: workdir_lib.Workdir,
  names: Sequence[str],
  latents: Latents,
) -> dict[str, dict[str, Any]]:
  """Returns {client: {modality: secret of the keyed transform}}.

  Raises:
    ValueError: a key is missing, damaged or not the one of this run.
  """
  secrets, _ = key_store.open_keys(workdir, list(names), create=False)
  init = learners.TRANSFORMS[config.protection].init
  return {
    name: key_store.kept_secrets(
      workdir, init, secrets[name], name, config.protection, latents
    )
    for name in names
  }


def _keyed(config, workdir, names, latents, wire_dtype):
  _, key_ids = key_store.open_keys(workdir, list(names), create=False)
  return keyed_channel.make(
    transform=learners.TRANSFORMS[config.protection],
    protection=config.protection,
    secrets=transform_secrets(config, workdir, names, latents),
    key_ids=key_ids,
    wire_dtype=wire_dtype,
  )


def _parties(folder: pathlib.Path, names) -> dict[str, session.Party]:
  parties = {}
  for name in names:
    path = folder / f'{name}.epoch'
    parties[name] = session.Party(path)
    found = parties[name].key.client
    if found != name:
      raise ValueError(
        f'{path}: expected the key of client {name!r}, found that of '
        f'{found!r}; rename it, or erase it and enrol {name!r} again'
      )
  return parties


def _clients(workdir):
  return workdir.secrets / 'clients'


def _server(workdir):
  return workdir.secrets / 'server'


def _model_id(workdir) -> str:
  """Names the networks by the configuration that they are made from."""
  config = (workdir.path / 'config.json').read_bytes()
  return hashlib.sha256(config).hexdigest()[:32]
