"""A hospital: it encodes and protects, contributes, and reveals.

    message, ticket = hospital.protect(state, image)      # to the server
    mask = hospital.reveal(state, reply, ticket)          # from the server

Images, masks, encoders and decoders never leave this module's side; what does
is bytes of its `channel`. Networks come in as arguments; the state is a pytree.
Axes: B batch, H height, W width, C channels, K classes.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ppcmi_jax import channel as channel_lib
from ppcmi_jax import images


class ClientState(NamedTuple):
  """What a client has learnt.

  Attributes:
    image: variables of its image autoencoder.
    mask: variables of its mask autoencoder.
  """

  image: Mapping[str, Any]
  mask: Mapping[str, Any]


MODALITIES = ClientState._fields  # what a client has an autoencoder of


class Ticket(NamedTuple):
  """Binds a reply to the query that it answers; kept by the client.

  Attributes:
    message_id: 16 bytes of the query.
    batch: number of images in it.
  """

  message_id: bytes
  batch: int


class Client(NamedTuple):
  """The three things a client does.

  protect: (state, image [B, H, W, C] float in [0, 1] or uint8) ->
    (message bytes, Ticket). Draws a message id from the operating system.
  contribute: (state, image, mask [B, H, W] integer) -> (image message bytes,
    mask message bytes), a training pair that shares one message id.
  reveal: (state, reply bytes, ticket, own=None) -> mask uint8 [B, H, W], what
    the server says; with `own`, what the hospital itself says, float class
    probabilities [B, H, W, K], the likeliest classes by the mean of both (late
    fusion). ValueError for a reply to another client, key or query, or one that
    is damaged.
  """

  protect: Callable[[ClientState, jax.Array], tuple[bytes, Ticket]]
  contribute: Callable[
    [ClientState, jax.Array, jax.Array, channel_lib.Origin],
    tuple[bytes, bytes],
  ]
  reveal: Callable[..., np.ndarray]


def make_client(
  *,
  name: str,
  channel: channel_lib.Channel,
  image_model: nn.Module,
  mask_model: nn.Module,
  latents: Mapping[str, Mapping[str, Any]],
) -> Client:
  """Returns a client of the given networks and channel.

  Args:
    name: in every message.
    channel: its end, with keys of this client.
    image_model: an Autoencoder of the images' channels.
    mask_model: an Autoencoder of K channels.
    latents: {'image': {scale: [B, h, w, C]}, 'mask': likewise}, arrays or
      ShapeDtypeStructs of any B, for the size of images that the client has.
  """
  latents = {
    modality: channel_lib.batch_of(like, 1)
    for modality, like in latents.items()
  }
  compiled = _compile(
    channel.codec,
    image_model,
    mask_model,
    tuple(sorted(latents['mask'].items())),
  )

  def send(make, variables, value, direction, modality, message_id):
    route = channel_lib.Route(name, direction, modality, message_id)
    like = channel_lib.batch_of(latents[modality], len(value))
    draft = channel.draft(route, like)
    return draft.seal(make(variables, draft.keys, value))

  def protect(state, image):
    ticket = Ticket(os.urandom(16), len(image))
    make, message_id = compiled.protect_image, ticket.message_id
    return send(make, state.image, image, 'query', 'image', message_id), ticket

  def contribute(state, image, mask, origin):
    _check_pair(image, mask, mask_model.channels)
    message_id = origin.draw_id()
    kind = 'contribution'
    return (
      send(
        compiled.protect_image, state.image, image, kind, 'image', message_id
      ),
      send(compiled.protect_mask, state.mask, mask, kind, 'mask', message_id),
    )

  def reveal(state, reply, ticket, own=None):
    opened = channel.open(
      reply,
      direction='reply',
      modality='mask',
      client=name,
      message_id=ticket.message_id,
      like=latents['mask'],
    )
    if opened.batch != ticket.batch:
      raise ValueError(
        f'reply: expected masks of {ticket.batch} images, found {opened.batch}'
      )
    return np.asarray(
      compiled.reveal_mask(state.mask, opened.keys, opened.covered, own)
    )

  return Client(protect, contribute, reveal)


class _Compiled(NamedTuple):
  """What runs on the accelerator, one program each.

  protect_image: (variables, keys, image) -> what the channel covers.
  protect_mask: (variables, keys, mask) -> likewise.
  reveal_mask: (variables, keys, covered, own probabilities or None) -> mask
    uint8 [B, H, W].
  """

  protect_image: Callable[..., Any]
  protect_mask: Callable[..., Any]
  reveal_mask: Callable[..., jax.Array]


@functools.cache
def _compile(codec, image_model, mask_model, mask_latents) -> _Compiled:
  """All clients of the same networks and codec share what is compiled."""

  @jax.jit
  def protect_image(variables, keys, image):
    z = image_model.apply(
      variables, images.unit_image(image), train=False, method='encode'
    )
    return codec.cover(keys, z)

  @jax.jit
  def protect_mask(variables, keys, mask):
    one_hot = jax.nn.one_hot(mask, mask_model.channels)
    z = mask_model.apply(variables, one_hot, train=False, method='encode')
    return codec.cover(keys, z)

  @jax.jit
  def reveal_mask(variables, keys, covered, own):
    z = codec.uncover(keys, covered, dict(mask_latents))
    classes = mask_model.apply(variables, z, train=False, method='decode')
    if own is not None:
      if own.shape != classes.shape:
        raise ValueError(
          f'own: expected probabilities {classes.shape}, found {own.shape}'
        )
      classes = jax.nn.softmax(classes) + own
    return jnp.argmax(classes, axis=-1).astype(jnp.uint8)

  return _Compiled(protect_image, protect_mask, reveal_mask)


def _check_pair(image: Any, mask: Any, num_classes: int) -> None:
  if image.shape[:3] != mask.shape:
    raise ValueError(
      f'mask: expected one of each image {image.shape[:3]}, found {mask.shape}'
    )
  mask = np.asarray(mask)
  outside = mask[(mask < 0) | (mask >= num_classes)]
  if outside.size:
    raise ValueError(
      f'mask: expected classes 0 to {num_classes - 1}, found {outside[0]}; '
      'train with as many classes as the masks have'
    )
