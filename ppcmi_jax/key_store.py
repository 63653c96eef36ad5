"""The secrets folder of a run: key files, and the transforms' drawn secrets.

    secrets/<client>.key          the client's 256-bit secret (`keyring`)
    secrets/<client>.<name>.npz   the arrays of a keyed transform, once drawn

What is drawn from a JAX key may differ between releases and settings of JAX,
so the arrays are kept beside the key they were drawn from, with the same file
mode, and never drawn twice. A client's public key id stands in clients.json,
so that a missing or another key file is refused ever after.
"""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ppcmi_jax import keyring
from ppcmi_jax import workdir as workdir_lib

CLIENTS = 'clients.json'


def known_clients(workdir: workdir_lib.Workdir) -> dict[str, str]:
  """Returns {client: key id, or 'sealed'}; ValueError for a damaged file."""
  path = workdir.path / CLIENTS
  return workdir_lib.read_object(path, 'restore it') if path.exists() else {}


def open_keys(
  workdir: workdir_lib.Workdir, names: list[str], *, create: bool
) -> tuple[dict[str, bytes], dict[str, str]]:
  """Returns the secret and the key id of each client.

  Args:
    workdir: of the run.
    names: of the clients.
    create: whether a client that the run does not know yet gets a new secret,
      from the operating system's randomness.

  Raises:
    ValueError: a key file is missing, damaged, open to others, or not the one
      that the run was started with.
  """
  known, secrets = known_clients(workdir), {}
  for name in names:
    key_path = workdir.secrets / f'{name}.key'
    if create and name not in known and not key_path.exists():
      secrets[name] = keyring.create(key_path)
    else:
      secrets[name] = keyring.load(key_path, key_id=known.get(name))
  key_ids = {name: keyring.key_id(secret) for name, secret in secrets.items()}
  if create and not key_ids.items() <= known.items():
    text = json.dumps(known | key_ids, indent=2) + '\n'
    workdir_lib.write_text(workdir.path / CLIENTS, text)
  return secrets, key_ids


def keep_transform_secrets(
  workdir: workdir_lib.Workdir,
  arrays: Any,
  secret: bytes,
  client: str,
  protection: str,
) -> None:
  """Writes a transform's secrets, to be found by `kept_secrets`.

  Args:
    workdir: of the run.
    arrays: {modality: secrets of the transform}, drawn, or from elsewhere.
    secret, client, protection: as of `kept_secrets`.
  """
  buffer = io.BytesIO()
  leaves = jax.device_get(jax.tree.leaves(arrays))
  np.savez(
    buffer,
    key_id=np.array(keyring.key_id(secret)),
    **{f'leaf{i}': leaf for i, leaf in enumerate(leaves)},
  )
  path = _path(workdir, client, protection)
  workdir_lib.write_bytes(path, buffer.getvalue(), mode=0o600)


def _path(workdir, client, protection):
  return workdir.secrets / f'{client}.{protection}.npz'


def kept_secrets(
  workdir: workdir_lib.Workdir,
  init: Callable[[Any, Any], Any],
  secret: bytes,
  client: str,
  protection: str,
  latents: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
  """Returns a transform's secrets of a client, drawn now or before.

  Args:
    workdir: of the run.
    init: the transform's `init`.
    secret: the client's 32 bytes.
    client: its name.
    protection: the transform's name, a part of the file's.
    latents: {modality: {scale: shape}}, see `keyring.draw_secrets`.

  Raises:
    ValueError: the file is damaged, or was drawn from another key or for
      latents of other shapes.
  """

  def draw():
    return keyring.draw_secrets(init, secret, client, latents)

  leaves, tree = jax.tree.flatten(jax.eval_shape(draw))
  if not leaves:
    return draw()
  path = _path(workdir, client, protection)
  key_id = keyring.key_id(secret)
  if not path.exists():
    keep_transform_secrets(workdir, draw(), secret, client, protection)
  try:
    with np.load(path, allow_pickle=False) as file:
      found_id = str(file['key_id'])
      drawn = [file[f'leaf{i}'] for i in range(len(leaves))]
  except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
    raise ValueError(
      f'{path}: damaged ({type(error).__name__}); restore it from a copy'
    ) from None
  fits = all(
    (a.shape, a.dtype) == (b.shape, b.dtype)
    for a, b in zip(drawn, leaves, strict=True)
  )
  if found_id != key_id or not fits:
    raise ValueError(
      f'{path}: drawn from key {found_id} for other latents or another key '
      f'than {key_id}; restore the file that belongs to this run'
    )
  return jax.tree.unflatten(tree, drawn)
