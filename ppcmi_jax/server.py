"""The server: it answers protected queries, and reads contributions.

    reply = server.respond(variables, message)

It holds the clients' keys, and so sees their latents without protection, as the
paper designs it; it never holds an image, a mask, an encoder or a decoder.
Networks come in as arguments. Axes: B batch, h height and w width of a scale,
C channels, N clients.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ppcmi_jax import channel as channel_lib
from ppcmi_jax.keyring import files


class Server(NamedTuple):
  """What the server does.

  respond: (variables of the mapping network, query bytes) -> reply bytes.
    ValueError for a query that is damaged, from an unknown client, under
    another key, or, where the protection can tell, answered before.
  """

  respond: Callable[[Mapping[str, Any], bytes], bytes]


def make_server(
  *,
  predict: Callable[..., Mapping[str, jax.Array]],
  channel: channel_lib.Channel,
  latents: Mapping[str, Mapping[str, Any]],
) -> Server:
  """Returns a server for the clients that its channel has keys of.

  Args:
    predict: (variables, image latents {scale: [B, h, w, C]}) -> mask latents
      (`tasks.mapping`).
    channel: its end.
    latents: {'image': {scale: [B, h, w, C]}, 'mask': likewise}, arrays or
      ShapeDtypeStructs of any B, that queries must have and replies will have.
  """
  latents = {
    modality: channel_lib.batch_of(like, 1)
    for modality, like in latents.items()
  }

  @jax.jit
  def map_latents(variables, query_keys, covered, reply_keys):
    z = channel.codec.uncover(query_keys, covered, latents['image'])
    return channel.codec.cover(reply_keys, predict(variables, z))

  def respond(variables, query):
    opened = channel.open(
      query, direction='query', modality='image', like=latents['image']
    )
    route = channel_lib.Route(opened.client, 'reply', 'mask', opened.message_id)
    draft = channel.draft(
      route, channel_lib.batch_of(latents['mask'], opened.batch)
    )
    return draft.seal(
      map_latents(variables, opened.keys, opened.covered, draft.keys)
    )

  return Server(respond)


def read_contributions(
  paths: Sequence[pathlib.Path],
  *,
  channel: channel_lib.Channel,
  latents: Mapping[str, Mapping[str, Any]],
  dtype: Any = np.float32,
) -> dict[str, dict[str, Any]]:
  """Reads training pairs from message files and undoes their protection.

  Args:
    paths: pairs of files '<name>.image.msg', '<name>.mask.msg', named by
      either. What they are of is what the messages say (`channel.Origin`).
    channel, latents: as in `make_server`.
    dtype: to keep the latents in.

  Returns:
    {split: {'image': {scale: [M, h, w, C]}, 'mask': likewise, 'client': int32
    [M], 'source': int32 [M]}}, of the splits that there are contributions to.
    Pairs of one source are copies of one image of one client.

  Raises:
    ValueError: no files, a file without its pair, a pair that is there twice,
      or a message that is damaged, of an unknown client or key, or not of
      finite numbers; names the file.
  """
  uncover = {
    modality: _uncover(
      channel.codec, tuple(channel_lib.batch_of(like, 1).items())
    )
    for modality, like in latents.items()
  }
  parts, stems, sources = {}, {}, {}
  for stem in sorted({str(p).rsplit('.', 2)[0] for p in paths}):
    pair, pair_ids = {}, set()
    for modality in ('image', 'mask'):
      path = pathlib.Path(f'{stem}.{modality}.msg')
      try:
        opened = channel.open(
          _read(path),
          direction='contribution',
          modality=modality,
          like=latents[modality],
        )
        origin = channel_lib.Origin.of(opened.message_id)
        z = uncover[modality](opened.keys, opened.covered)
        pair[modality] = jax.tree.map(lambda z: _as_finite(z, dtype), z)
      except FileNotFoundError:
        raise ValueError(f'{path}: missing; its pair is there') from None
      except files.KeyFault as error:
        raise ValueError(f'{path}: {error}') from None
      except ValueError as error:
        raise ValueError(
          f'{path}: {error}; delete the file and contribute again'
        ) from None
      pair_ids.add((opened.client, opened.message_id, opened.batch))
    if len(pair_ids) > 1:
      raise ValueError(
        f'{stem}: the image and mask messages are not of one contribution; '
        'delete both and contribute again'
      )
    (pair_id,) = pair_ids
    if pair_id in stems:
      raise ValueError(
        f'{stem}: the same contribution as {stems[pair_id]}; delete one of them'
      )
    stems[pair_id] = stem
    client, _, count = pair_id
    number = channel.clients.index(client)
    pair['client'] = np.full(count, number, np.int32)
    images = [(client, origin.split, origin.row + i) for i in range(count)]
    pair['source'] = np.int32(
      [sources.setdefault(image, len(sources)) for image in images]
    )
    parts.setdefault(origin.split, []).append(pair)
  if not parts:
    raise ValueError('no contributions: expected message files, found none')
  return {
    split: jax.tree.map(lambda *arrays: np.concatenate(arrays), *pairs)
    for split, pairs in parts.items()
  }


def _read(path: pathlib.Path) -> bytes:
  size, most = path.stat().st_size, channel_lib.MAX_MESSAGE_BYTES
  if size > most:
    raise ValueError(f'expected at most {most} bytes, found {size}')
  return path.read_bytes()


@functools.cache
def _uncover(codec, latents):
  return jax.jit(functools.partial(codec.uncover, like=dict(latents)))


def _as_finite(z: jax.Array, dtype: Any) -> np.ndarray:
  z = np.asarray(z).astype(dtype)
  if not np.isfinite(z).all():
    raise ValueError(f'expected finite {np.dtype(dtype)} latents, found others')
  return z
