"""A hospital: it encodes and protects, contributes, and reveals.

    message, ticket = hospital.protect(state, image)      # to the server
    mask = hospital.reveal(state, reply, ticket)          # from the server

Images, masks, encoders and decoders never leave this module's side; what does
is bytes of `wire`. Networks come in as arguments; the state is a pytree. Axes:
B batch, H height, W width, C channels, K classes.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ppcmi_jax import images, keyed, wire


class ClientState(NamedTuple):
  """What a client knows.

  Attributes:
    image: variables of its image autoencoder.
    mask: variables of its mask autoencoder.
    secrets: {'image': ..., 'mask': ...}, of the keyed transform; arrays.
  """

  image: Mapping[str, Any]
  mask: Mapping[str, Any]
  secrets: Mapping[str, Any]


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
  reveal: (state, reply bytes, ticket) -> mask uint8 [B, H, W]. ValueError for
    a reply to another client, key or query, or one that is damaged.
  """

  protect: Callable[[ClientState, jax.Array], tuple[bytes, Ticket]]
  contribute: Callable[[ClientState, jax.Array, jax.Array], tuple[bytes, bytes]]
  reveal: Callable[[ClientState, bytes, Ticket], np.ndarray]


def make_client(
  *,
  name: str,
  key_id: str,
  image_model: nn.Module,
  mask_model: nn.Module,
  transform: keyed.Transform,
  latents: Mapping[str, Any] | None = None,
  protection: str = 'klt',
  wire_dtype: str = 'float16',
) -> Client:
  """Returns a client of the given networks and transform.

  Args:
    name: in every message.
    key_id: public name of the client's secret (`keyring.key_id`).
    image_model: an Autoencoder of the images' channels.
    mask_model: an Autoencoder of K channels.
    transform: the keyed transform, public; its secrets are in the state.
    latents: shapes of mask latents {scale: [B, h, w, C]} that a reply must
      have, whatever its B; None takes any.
    protection: what the wire header calls the transform, as 'klt'.
    wire_dtype: 'float32', 'bfloat16' or 'float16'.
  """

  @jax.jit
  def protect_image(state, image):
    z = image_model.apply(
      state.image, images.unit_image(image), train=False, method='encode'
    )
    return transform.forward(state.secrets['image'], z)

  @jax.jit
  def protect_mask(state, mask):
    one_hot = jax.nn.one_hot(mask, mask_model.channels)
    z = mask_model.apply(state.mask, one_hot, train=False, method='encode')
    return transform.forward(state.secrets['mask'], z)

  @jax.jit
  def reveal_mask(state, reply):
    reply = jax.tree.map(lambda w: w.astype(jnp.float32), reply)
    z = transform.inverse(state.secrets['mask'], reply)
    logits = mask_model.apply(state.mask, z, train=False, method='decode')
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

  def pack(protected, direction, modality, message_id):
    message = wire.Message(
      client=name,
      key_id=key_id,
      protection=protection,
      direction=direction,
      modality=modality,
      message_id=message_id,
      latents=jax.device_get(protected),
    )
    return wire.encode(message, dtype=wire_dtype)

  def protect(state, image):
    ticket = Ticket(os.urandom(16), len(image))
    protected = protect_image(state, image)
    return pack(protected, 'query', 'image', ticket.message_id), ticket

  def contribute(state, image, mask):
    _check_pair(image, mask, mask_model.channels)
    message_id = os.urandom(16)
    return (
      pack(protect_image(state, image), 'contribution', 'image', message_id),
      pack(protect_mask(state, mask), 'contribution', 'mask', message_id),
    )

  def reveal(state, reply, ticket):
    message = wire.decode(reply, like=latents)
    expected = {
      'client': name,
      'key_id': key_id,
      'protection': protection,
      'direction': 'reply',
      'modality': 'mask',
      'message_id': ticket.message_id,
    }
    for field, value in expected.items():
      found = getattr(message, field)
      if found != value:
        raise ValueError(
          f'reply: {field} expected {value!r}, found {found!r}; it answers '
          'another query or client and is not shown'
        )
    batch = len(next(iter(message.latents.values())))
    if batch != ticket.batch:
      raise ValueError(
        f'reply: expected masks of {ticket.batch} images, found {batch}'
      )
    return np.asarray(reveal_mask(state, message.latents))

  return Client(protect, contribute, reveal)


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
