"""The hardened channel: each message mixed, masked and sealed under new keys.

    mixing -> masking      on the accelerator, with keys of this message alone
    sealing                on the host: one AES-256-GCM
    ledger                 counters: a message is sent once and believed once

A client's end holds its own epoch key, the server's those of all clients. A
message of a later epoch is tried with the key that follows from ours; once it
opens, ours is replaced and erased (`epochs.rotate`). Contributions are not
counted: the server keeps the key of each in a `vault` and reads it as often as
it trains, and a second one of the same name changes nothing.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

import jax

from ppcmi_jax import channel
from ppcmi_jax.keyring import epochs, ledger
from ppcmi_jax.sealed import envelope, masking, mixing, sealing, vault

MessageRejected = envelope.MessageRejected
_MIX = mixing.mix()


class Party:
  """A client's epoch key and ledger, as one side holds them.

  Args:
    path: of the epoch key.

  Raises:
    ValueError: as `epochs.load` and `ledger.Ledger`.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self._path = path
    self.key = epochs.load(path)
    self.ledger = ledger.Ledger(path)

  def key_of(self, epoch: int) -> epochs.EpochKey:
    """Returns our key, or one that follows; MessageRejected for no such."""
    try:
      return epochs.ratchet(self.key, epoch)
    except ValueError:
      raise MessageRejected from None

  def believe(self, header: envelope.Header) -> None:
    """Notes a message that opened; MessageRejected if it is not new."""
    if not self.ledger.accept(header.epoch, header.counter):
      raise MessageRejected
    self.follow(header.epoch)

  def follow(self, epoch: int) -> None:
    """Goes on to the epoch of a message that opened."""
    if epoch > self.key.epoch:
      self.key = epochs.rotate(self._path, epoch)


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
    wire_dtype: 'float32', 'bfloat16', 'float16' or 'int8', both ways.
    kept: the server's vault; without one contributions are not opened.
  """

  def draft(route, like):
    if route.client not in parties:
      raise ValueError(
        f'client {route.client!r}: no key here, only of '
        f'{", ".join(map(repr, parties))}; enrol it, or import its key'
      )
    party = parties[route.client]
    message = sealing.draft(
      party.key.key,
      **route._asdict(),
      epoch=party.key.epoch,
      model_id=model_id,
      dtype=wire_dtype,
      shapes={scale: z.shape for scale, z in like.items()},
      counter=party.ledger.reserve(party.key.epoch),
    )
    keys = {'mix': message.mix_keys, 'mask': message.mask_keys}
    seal = lambda covered: sealing.seal(message, jax.device_get(covered))
    return channel.Draft(keys, seal)

  def try_key(data, header, party, like, **expected):
    key = party.key_of(header.epoch).key
    expected = {
      'client': header.client,
      'direction': header.direction,
      'modality': header.modality,
    } | {name: v for name, v in expected.items() if v is not None}
    return sealing.open(
      data,
      key,
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
    opened = try_key(
      data, header, party, like, **expected, message_id=message_id
    )
    party.believe(opened.header)
    return _opened(opened)

  def _contribution(data, header, party, expected, like):
    if kept is None:
      raise MessageRejected
    key = kept.get(data)
    if key is not None:
      fixed = {'model_id': model_id, 'dtype': wire_dtype}
      return sealing.reopen(data, key, like=like, **expected, **fixed)
    opened = try_key(data, header, party, like, **expected)
    epoch_key = party.key_of(header.epoch).key
    kept.put(data, sealing.message_key(epoch_key, header))
    party.follow(header.epoch)
    return opened

  def peek(data, *, owner, like):
    return _opened(try_key(data, envelope.read(data), parties[owner], like))

  return channel.Channel(
    'sealed', tuple(parties), codec(wire_dtype), draft, open_message, peek
  )


def _opened(opened: sealing.Opened) -> channel.Opened:
  header = opened.header
  return channel.Opened(
    header.client,
    header.message_id,
    next(iter(header.shapes.values()))[0],
    {'mix': opened.mix_keys, 'mask': opened.mask_keys},
    opened.masked,
  )


@functools.cache
def codec(wire_dtype: str) -> channel.Codec:
  """Returns what runs on the accelerator: mix and mask, and back.

  Keys are {'mix': {scale: uint32 [8]}, 'mask': likewise}, of one message. One
  codec for a dtype, so that what is compiled of it is shared.
  """

  def cover(keys: Any, latents: Mapping[str, Any]) -> Any:
    latents = dict(latents)
    mixed = _MIX.forward(_MIX.init(keys['mix'], latents), latents)
    return masking.mask(keys['mask'], mixed, dtype=wire_dtype)

  def uncover(keys: Any, covered: Any, like: Mapping[str, Any]) -> Any:
    batch = len(next(iter(covered.values()))['numbers'])
    like = channel.batch_of(like, batch)
    mixed = masking.unmask(keys['mask'], covered, like, dtype=wire_dtype)
    return _MIX.inverse(_MIX.init(keys['mix'], like), mixed)

  return channel.Codec(cover, uncover)
