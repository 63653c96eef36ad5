"""The server: it answers protected queries, and reads contributions.

    reply = server.respond(state, message)

It holds the clients' transform secrets, and so sees their latents without
protection, as the paper designs it; it never holds an image, a mask, an
encoder or a decoder. Networks come in as arguments; the state is a pytree.
Axes: B batch, h height and w width of a scale, C channels, N clients.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppcmi_jax import keyed, wire


class ServerState(NamedTuple):
  """What the server knows.

  Attributes:
    variables: of the mapping network.
    secrets: {client: {'image': ..., 'mask': ...}}, of the keyed transform.
  """

  variables: Mapping[str, Any]
  secrets: Mapping[str, Mapping[str, Any]]


class Server(NamedTuple):
  """What the server does.

  respond: (state, query bytes) -> reply bytes. ValueError for a query that is
    damaged, from an unknown client, or under another key.
  """

  respond: Callable[[ServerState, bytes], bytes]


def make_server(
  *,
  predict: Callable[..., Mapping[str, jax.Array]],
  transform: keyed.Transform,
  key_ids: Mapping[str, str],
  latents: Mapping[str, Any] | None = None,
  protection: str = 'klt',
  wire_dtype: str = 'float16',
) -> Server:
  """Returns a server for the given clients.

  Args:
    predict: (variables, image latents {scale: [B, h, w, C]}, client [B] int32)
      -> mask latents (`tasks.mapping`). Clients are numbered as in key_ids.
    transform: the keyed transform, public.
    key_ids: {client: key id}.
    latents: shapes of image latents {scale: [B, h, w, C]} that a query must
      have, whatever its B; None takes any.
    protection: what the wire header must say, as 'klt'.
    wire_dtype: of replies.
  """
  numbers = {name: i for i, name in enumerate(key_ids)}

  @jax.jit
  def map_latents(variables, secrets, query, number):
    query = jax.tree.map(lambda w: w.astype(jnp.float32), query)
    z = transform.inverse(secrets['image'], query)
    client = jnp.full(_batch(z), number, jnp.int32)
    return transform.forward(secrets['mask'], predict(variables, z, client))

  def respond(state, query):
    message = wire.decode(query, like=latents)
    check_message(message, key_ids, protection, 'query', 'image')
    mapped = map_latents(
      state.variables,
      state.secrets[message.client],
      message.latents,
      numbers[message.client],
    )
    reply = message._replace(
      direction='reply', modality='mask', latents=jax.device_get(mapped)
    )
    return wire.encode(reply, dtype=wire_dtype)

  return Server(respond)


def _batch(latents: Mapping[str, Any]) -> int:
  return len(next(iter(latents.values())))


def check_message(
  message: wire.Message,
  key_ids: Mapping[str, str],
  protection: str,
  direction: str,
  modality: str,
) -> None:
  """Raises ValueError unless the header says what the server expects."""
  if message.client not in key_ids:
    raise ValueError(
      f'message: unknown client {message.client!r}; this server knows '
      f'{", ".join(map(repr, key_ids))}'
    )
  expected = {
    'key_id': key_ids[message.client],
    'protection': protection,
    'direction': direction,
    'modality': modality,
  }
  for field, value in expected.items():
    found = getattr(message, field)
    if found != value:
      raise ValueError(
        f'message of client {message.client!r}: {field} expected {value!r}, '
        f'found {found!r}'
      )


def read_contributions(
  paths: Sequence[pathlib.Path],
  *,
  transform: keyed.Transform,
  secrets: Mapping[str, Mapping[str, Any]],
  key_ids: Mapping[str, str],
  latents: Mapping[str, Mapping[str, Any]] | None = None,
  protection: str = 'klt',
) -> dict[str, Any]:
  """Reads training pairs from message files and undoes their protection.

  Args:
    paths: pairs of files '<name>.image.msg', '<name>.mask.msg', named by
      either.
    transform, key_ids, protection: as in `make_server`.
    secrets: as in ServerState.
    latents: {'image': ..., 'mask': ...}, shapes as in `make_server`.

  Returns:
    {'image': {scale: [M, h, w, C]}, 'mask': likewise, 'client': int32 [M]},
    latents in the dtype of the wire.

  Raises:
    ValueError: no files, a file without its pair, or a message that is
      damaged, of an unknown client or key; names the file.
  """
  inverse = jax.jit(transform.inverse)
  numbers = {name: i for i, name in enumerate(key_ids)}
  parts = []
  for stem in sorted({str(p).rsplit('.', 2)[0] for p in paths}):
    pair, message_ids = {}, set()
    for modality in ('image', 'mask'):
      path = pathlib.Path(f'{stem}.{modality}.msg')
      try:
        message = wire.decode(
          path.read_bytes(), like=latents and latents[modality]
        )
        check_message(message, key_ids, protection, 'contribution', modality)
        z = inverse(
          secrets[message.client][modality],
          jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), message.latents),
        )
      except FileNotFoundError:
        raise ValueError(f'{path}: missing; its pair is there') from None
      except ValueError as error:
        raise ValueError(
          f'{path}: {error}; delete the file and contribute again'
        ) from None
      pair[modality] = jax.tree.map(
        lambda z, w: np.asarray(z).astype(w.dtype), z, message.latents
      )
      message_ids.add((message.client, message.message_id, _batch(z)))
    if len(message_ids) > 1:
      raise ValueError(
        f'{stem}: the image and mask messages are not of one contribution; '
        'delete both and contribute again'
      )
    (client, _, count), *_ = message_ids
    pair['client'] = np.full(count, numbers[client], np.int32)
    parts.append(pair)
  if not parts:
    raise ValueError('no contributions: expected message files, found none')
  return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
