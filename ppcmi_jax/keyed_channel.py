"""The channel of the paper: a keyed transform of latents, carried by `wire`.

One secret a client and modality serves all messages. Nothing is encrypted or
authenticated: see `wire`, and the README on what `klt` does not promise.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ppcmi_jax import channel, keyed, wire


def make(
  *,
  transform: keyed.Transform,
  protection: str,
  secrets: Mapping[str, Mapping[str, Any]],
  key_ids: Mapping[str, str],
  wire_dtype: str = 'float16',
) -> channel.Channel:
  """Returns an end of the channel.

  Args:
    transform: public, such as `klt`'s chain.
    protection: what the wire header calls it.
    secrets: {client: {'image': ..., 'mask': ...}}, of the transform.
    key_ids: {client: public name of the secret}.
    wire_dtype: 'float32', 'bfloat16' or 'float16', of what is sent.
  """
  expected_of = lambda client: {
    'key_id': key_ids[client],
    'protection': protection,
  }

  def draft(route, like):
    del like
    if route.client not in secrets:
      raise _unknown(route.client, secrets)

    def seal(covered):
      message = wire.Message(
        **route._asdict(),
        **expected_of(route.client),
        latents=jax.device_get(covered),
      )
      return wire.encode(message, dtype=wire_dtype)

    return channel.Draft(secrets[route.client][route.modality], seal)

  def open_message(
    data, *, direction, modality, like, client=None, message_id=None
  ):
    message = wire.decode(data, like=like)
    if message.client not in secrets:
      raise _unknown(message.client, secrets)
    expected = {
      'client': client,
      'direction': direction,
      'modality': modality,
      'message_id': message_id,
      **expected_of(message.client),
    }
    for field, value in expected.items():
      found = getattr(message, field)
      if value is not None and found != value:
        raise ValueError(
          f'message of client {message.client!r}: {field} expected {value!r}, '
          f'found {found!r}; it belongs elsewhere and is not used'
        )
    return _opened(message, secrets[message.client])

  def peek(data, *, owner, like):
    return _opened(wire.decode(data, like=like), secrets[owner])

  return channel.Channel(
    protection, tuple(secrets), _codec(transform), draft, open_message, peek
  )


def _opened(message, secrets):
  return channel.Opened(
    message.client,
    message.message_id,
    len(next(iter(message.latents.values()))),
    secrets[message.modality],
    message.latents,
  )


@functools.cache
def _codec(transform):
  """One for a transform, so that what is compiled of it is shared."""

  def uncover(secret, covered, like):
    del like
    covered = jax.tree.map(lambda w: w.astype(jnp.float32), covered)
    return transform.inverse(secret, covered)

  return channel.Codec(transform.forward, uncover)


def _unknown(client, known):
  return ValueError(
    f'message: unknown client {client!r}; this side has keys of '
    f'{", ".join(map(repr, known))}'
  )
