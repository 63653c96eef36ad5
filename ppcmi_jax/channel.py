"""What carries latents between a client and the server, whatever protects them.

A `Channel` is one side's end: it holds keys, draws nonces and counts messages,
on the host; its `Codec` is the part that runs on the accelerator, two functions
of arrays that anybody may jit together with a network.

    draft = channel.draft(route, like)                 # host: a message's keys
    data = draft.seal(codec.cover(draft.keys, latents))  # device, then host

    opened = channel.open(data, direction='query', modality='image', like=like)
    latents = codec.uncover(opened.keys, opened.covered, like)

Two kinds exist: `keyed_channel` for the transforms of `keyed` (klt, none), and
`sealed.session` for the hardened protection. Latents are {scale: [B, h, w, C]}.

What both formats of messages, `wire` and `sealed.envelope`, may say of where
they belong stands here too, and how much they may hold.
"""

import os
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

CLIENT = re.compile('[A-Za-z0-9][A-Za-z0-9._-]{0,63}')  # safe in file names
LATENT = re.compile('[A-Za-z0-9_]{1,16}')
# Sealed headers have the places in these two, and this rank's dimensions.
DIRECTIONS = ('query', 'reply', 'contribution')
MODALITIES = ('image', 'mask')
SPLITS = ('train', 'valid')
MAX_RANK = 5
MAX_LATENTS = 8
MAX_MESSAGE_BYTES = 2**30
_ORIGIN = struct.Struct('>BHI')


class Route(NamedTuple):
  """Where a message belongs.

  Attributes:
    client: whose keys protect it, whatever its direction; matches CLIENT.
    direction: one of DIRECTIONS.
    modality: one of MODALITIES.
    message_id: 16 bytes; a reply carries its query's, a pair shares one.
  """

  client: str
  direction: str
  modality: str
  message_id: bytes


class Origin(NamedTuple):
  """Which pairs a contribution is of.

  Its message id says so, which a protection proves with the rest; the name of
  its file proves nothing.

  Attributes:
    split: one of SPLITS: what they are for.
    turn: 0 for pairs as they are, from 1 for augmented copies; below 2^16.
    row: of the first of them in the client's split; below 2^32.
  """

  split: str
  turn: int
  row: int

  def draw_id(self) -> bytes:
    """Returns a message id, 16 bytes, that says this and is like no other."""
    place = _ORIGIN.pack(SPLITS.index(self.split), self.turn, self.row)
    return place + os.urandom(16 - _ORIGIN.size)

  @classmethod
  def of(cls, message_id: bytes) -> 'Origin':
    """Returns what an id says; ValueError if that is nothing."""
    split, turn, row = _ORIGIN.unpack_from(message_id)
    if split >= len(SPLITS):
      raise ValueError(
        f'message id: expected one of a contribution to {" or ".join(SPLITS)}, '
        f'found {message_id.hex()}'
      )
    return cls(SPLITS[split], turn, row)


class Draft(NamedTuple):
  """A message about to be sent.

  Attributes:
    keys: a pytree, for `Codec.cover`.
    seal: what `cover` gave -> the message, bytes. Call it once.
  """

  keys: Any
  seal: Callable[[Any], bytes]

  def __repr__(self):  # keys are secret
    return 'Draft(...)'


class Opened(NamedTuple):
  """A message that was believed.

  Attributes:
    client: whose.
    message_id: 16 bytes.
    batch: B, the number of examples.
    keys, covered: pytrees, for `Codec.uncover`.
  """

  client: str
  message_id: bytes
  batch: int
  keys: Any
  covered: Any

  def __repr__(self):
    return f'Opened({self.client!r}, {self.message_id.hex()}, {self.batch})'


class Codec(NamedTuple):
  """The part of a channel that runs on the accelerator; hashable and pure.

  cover: (keys, latents) -> a pytree of arrays, for `Draft.seal`.
  uncover: (keys, covered, like) -> latents, float32; `like` gives the shapes,
    of any B.
  """

  cover: Callable[[Any, Mapping[str, Any]], Any]
  uncover: Callable[[Any, Any, Mapping[str, Any]], dict[str, Any]]


class Channel(NamedTuple):
  """One side's end of a channel.

  Attributes:
    protection: its name, as configurations and reports have it.
    clients: whose keys it holds; the server numbers clients in this order.
    codec: see `Codec`.
    draft: (Route, like) -> Draft, of latents that look like {scale: array or
      ShapeDtypeStruct [B, h, w, C]}. ValueError for a client that it has no
      keys of.
    open: (data, *, direction, modality, like, client=None, message_id=None) ->
      Opened. `like` gives names and shapes but B; None for a client or message
      id takes any. ValueError for all else, and for a
      message that was opened before where the protection can tell.
    peek: (data, *, owner, like) -> Opened: tries a message with the keys of a
      client, whoever's it is, and doesn't note it. For measurements of what a
      key gives away; ValueError where the protection withholds it.
    forget: () -> None: what it keeps of contributions that it has not opened
      since it was made, as their clients took them back; by default nothing.
  """

  protection: str
  clients: tuple[str, ...]
  codec: Codec
  draft: Callable[[Route, Mapping[str, Any]], Draft]
  open: Callable[..., Opened]
  peek: Callable[..., Opened]
  forget: Callable[[], None] = lambda: None


def batch_of(latents: Mapping[str, Any], batch: int) -> dict[str, Any]:
  """Returns what latents of another B look like, by `ShapeDtypeStruct`.

  Args:
    latents: {scale: array or ShapeDtypeStruct [B, h, w, C]}.
    batch: the new B.
  """
  return {
    scale: jax.ShapeDtypeStruct((batch, *z.shape[1:]), jnp.float32)
    for scale, z in latents.items()
  }
