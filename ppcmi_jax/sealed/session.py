"""The hardened channel: each message mixed, masked and sealed under new keys.

    mixing -> masking      on the accelerator, by keystreams of this message
                           alone, which the host makes
    sealing                on the host: one AES-256-GCM
    ledger                 counters: a message is sent once and believed once

A client's end has its own epoch key, the server's those of all clients. A
message of a later epoch is tried with the key that follows from ours; once it
opens, ours is replaced and erased (`epochs.follow`). Contributions are not
counted: the server keeps the key of each in a `vault` and reads it as often as
it trains, and a second one of the same name changes nothing.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from cryptography.hazmat.primitives import ciphers
from cryptography.hazmat.primitives.ciphers import algorithms

from ppcmi_jax import channel, keyed
from ppcmi_jax.keyring import epochs, ledger
from ppcmi_jax.sealed import (
  body,
  envelope,
  masking,
  mixing,
  sealing,
  vault,
)

MessageRejected = envelope.MessageRejected


class Party:
  """A client's epoch key and ledger, as one side has them on its disk.

  The key is read for every message: one that is rotated, erased or exchanged by
  others is so for a program that runs.

  Args:
    path: of the epoch key.

  Raises:
    ValueError: as `epochs.load` and `ledger.Ledger`.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self._path = path
    epochs.load(path)
    self.ledger = ledger.Ledger(path)

  @property
  def key(self) -> epochs.EpochKey:
    """The key now; ValueError as `epochs.load`."""
    return epochs.load(self._path)

  def key_of(self, epoch: int) -> epochs.EpochKey:
    """Returns our key, or one that follows; MessageRejected for no such."""
    key = self.key
    try:
      return epochs.ratchet(key, epoch)
    except ValueError:
      raise MessageRejected from None

  def believe(self, key: epochs.EpochKey, counter: int) -> None:
    """Notes a message that a key opened; MessageRejected if it is not new.

    The key comes before the counter: a ledger of a later epoch than its key's
    would let nothing be sent. A crash in between costs nothing, as the message
    can be opened again.
    """
    self.follow(key)
    if not self.ledger.accept(key.epoch, counter):
      raise MessageRejected

  def follow(self, key: epochs.EpochKey) -> None:
    """Goes on to the key of a message that opened.

    MessageRejected where it is over on the disk, or none that follows there.
    """
    if not epochs.follow(self._path, key):
      raise MessageRejected


def make(
  *,
  parties: Mapping[str, Party],
  model_id: str,
  wire_dtype: str = 'int8',
  kept: vault.Vault | None = None,
) -> channel.Channel:
  """Returns an end of the channel.

  Args:
    parties: {client: Party}.
    model_id: public name of the models, 1 to 32 characters; both ends agree.
    wire_dtype: a key of `masking.DTYPES`, both ways.
    kept: the server's vault; without one contributions are not opened.
  """

  def draft(route, like):
    if route.client not in parties:
      raise ValueError(
        f'client {route.client!r}: no key here, only of '
        f'{", ".join(map(repr, parties))}; enrol it, or import its key'
      )
    party = parties[route.client]
    key = party.key  # once, as it may go on to the next
    message = sealing.draft(
      key.key,
      **route._asdict(),
      epoch=key.epoch,
      model_id=model_id,
      dtype=wire_dtype,
      shapes={scale: z.shape for scale, z in like.items()},
      counter=party.ledger.reserve(key.epoch),
    )
    seal = functools.partial(sealing.seal, message)
    return channel.Draft(streams_of(message), seal)

  def try_key(data, header, key, like, **expected):
    expected = {
      'client': header.client,
      'direction': header.direction,
      'modality': header.modality,
    } | {name: v for name, v in expected.items() if v is not None}
    return sealing.open(
      data,
      key.key,
      **expected,
      epoch=header.epoch,
      model_id=model_id,
      dtype=wire_dtype,
      like=like,
    )

  def open_message(
    data, *, direction, modality, like, client=None, message_id=None
  ):
    header = envelope.read(data)
    if header.client not in parties:
      raise MessageRejected
    party = parties[header.client]
    expected = {
      'client': header.client if client is None else client,
      'direction': direction,
      'modality': modality,
    }
    if direction == 'contribution':
      return _opened(_contribution(data, header, party, expected, like))
    key = party.key_of(header.epoch)
    opened = try_key(data, header, key, like, **expected, message_id=message_id)
    party.believe(key, opened.header.counter)
    return _opened(opened)

  def _contribution(data, header, party, expected, like):
    if kept is None:
      raise MessageRejected
    own = kept.get(header.client, data)
    if own is not None:
      fixed = {'model_id': model_id, 'dtype': wire_dtype}
      return sealing.reopen(data, own, like=like, **expected, **fixed)
    key = party.key_of(header.epoch)
    opened = try_key(data, header, key, like, **expected)
    message_key = sealing.message_key(key.key, header)
    kept.put(header.client, data, message_key)
    party.follow(key)
    return opened

  def peek(data, *, owner, like):
    header = envelope.read(data)
    key = parties[owner].key_of(header.epoch)
    return _opened(try_key(data, header, key, like))

  def forget():
    for name in parties if kept is not None else ():
      kept.forget_others(name)

  return channel.Channel(
    'sealed',
    tuple(parties),
    codec(wire_dtype),
    draft,
    open_message,
    peek,
    forget,
  )


def _opened(opened: sealing.Opened) -> channel.Opened:
  header = opened.header
  return channel.Opened(
    header.client,
    header.message_id,
    next(iter(header.shapes.values()))[0],
    streams_of(opened),
    opened.words,
  )


def streams_of(message: sealing.Draft | sealing.Opened) -> np.ndarray:
  """Returns the keystreams that `codec` takes, uint32 [M].

  Those for mixing, then those for masking; of latents by sorted name. They are
  what `chacha` makes of the message's keys, from a library for the host, which
  is many times as fast there and spares an accelerator its longest loop.
  """
  header = message.header
  like = {
    name: jax.ShapeDtypeStruct(shape, np.float32)
    for name, shape in header.shapes.items()
  }
  sizes = _num_words(like, header.dtype)
  return np.concatenate(
    [
      _keystream(keys[name], count[name])
      for keys, count in zip((message.mix_keys, message.mask_keys), sizes)
      for name in sorted(keys)
    ]
  )


def _keystream(key, num_words):
  """Returns what `chacha.keystream` does, without JAX."""
  cipher = ciphers.Cipher(
    algorithms.ChaCha20(key.astype('<u4').tobytes(), bytes(16)), mode=None
  )
  stream = cipher.encryptor().update(bytes(4 * num_words))
  return np.frombuffer(stream, '<u4').astype(np.uint32, copy=False)


@functools.cache
def codec(wire_dtype: str) -> channel.Codec:
  """Returns what runs on the accelerator: mix and mask, and back.

  Keys are `streams_of` one message; what is covered is one array, uint32 [N]
  (see `body`). One codec for a dtype, so that what is compiled of it is shared.
  """
  transform = keyed.chain(mixing.mix(), masking.mask(wire_dtype))

  def cover(keys: jax.Array, latents: Mapping[str, Any]) -> jax.Array:
    latents = dict(latents)
    secret = _secret(keys, latents, wire_dtype)
    return body.join(transform.forward(secret, latents))

  def uncover(
    keys: jax.Array, covered: jax.Array, like: Mapping[str, Any]
  ) -> dict[str, jax.Array]:
    batch = body.batch(len(covered), like, dtype=wire_dtype)
    like = channel.batch_of(like, batch)
    shapes = {name: z.shape for name, z in like.items()}
    masked = body.split(covered, shapes, dtype=wire_dtype)
    return transform.inverse(_secret(keys, like, wire_dtype), masked)

  return channel.Codec(cover, uncover)


def _num_words(like, dtype):
  """Returns how long the keystreams are: of mixing, of masking, by name."""
  return (
    mixing.num_words(like),
    {name: masking.num_words(z.shape, dtype) for name, z in like.items()},
  )


def _secret(streams, like, dtype):
  """Returns what the transform's `init` makes of the keys of these streams."""
  counts = _num_words(like, dtype)
  expected = sum(sum(of.values()) for of in counts)
  if streams.shape != (expected,):
    raise ValueError(
      f'keystreams: expected {[expected]} words for these latents, found '
      f"{list(streams.shape)}; use the message's own"
    )
  parts, offset = [], 0
  for sizes in counts:
    parts.append({})
    for name in sorted(like):
      parts[-1][name] = streams[offset : offset + sizes[name]]
      offset += sizes[name]
  mix_streams, mask_streams = parts
  masks = {
    name: masking.Secret(stream, tuple(like[name].shape))
    for name, stream in mask_streams.items()
  }
  return mixing.draw(mix_streams, like), masks
