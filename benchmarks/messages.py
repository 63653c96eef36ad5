"""What protects and carries latents, without the networks around it."""

import functools
from collections.abc import Iterator

import jax

from benchmarks import measure, networks
from benchmarks import sizes as sizes_lib
from ppcmi_jax import learners, wire
from ppcmi_jax.sealed import sealing, session

ROUTE = {
  'client': 'A',
  'epoch': 0,
  'direction': 'query',
  'modality': 'image',
  'model_id': 'benchmark',
}


def transform(size: sizes_lib.Size) -> Iterator[measure.Case]:
  """Yields the two protections: static klt, and the layers of sealed."""
  config = size.method()
  like = size.learners().latents['image']
  klt = learners.TRANSFORMS['klt']
  secret = jax.jit(lambda key: klt.init(key, like))(jax.random.key(0))
  for batch in size.batches:
    latents = networks.latents_of(like, batch)
    for name, function in (('forward', klt.forward), ('inverse', klt.inverse)):
      yield measure.jitted(
        f'klt {name}', function, secret, latents, batch=batch
      )
    yield _sealed(latents, config, batch)


def _sealed(latents, config, batch) -> measure.Case:
  """Returns the case of a message's way from latents to bytes and back.

  Each message has keys of its own, so each repeat draws and derives them.
  """
  dtype, key = config.wire_dtype, bytes(32)
  shapes = {name: z.shape for name, z in latents.items()}
  codec = session.codec(dtype)
  cover = jax.jit(codec.cover)
  uncover = jax.jit(functools.partial(codec.uncover, like=latents))

  def draft(_):
    made = sealing.draft(key, **ROUTE, dtype=dtype, shapes=shapes, counter=1)
    return made, session.streams_of(made)

  def cover_latents(sent):
    draft, streams = sent
    return draft, cover(streams, latents)

  def seal(sent):
    return sealing.seal(*sent)

  def open_message(data):
    opened = sealing.open(data, key, **ROUTE, dtype=dtype)
    return session.streams_of(opened), opened.words

  def uncover_latents(opened):
    return uncover(*opened)

  return measure.Case(
    [
      ('sealed: derive keys and streams', draft),
      ('sealed: mix and mask', cover_latents),
      ('sealed: seal', seal),
      ('sealed: open', open_message),
      ('sealed: unmask and unmix', uncover_latents),
    ],
    batch,
    total='sealed: there and back',
  )


def carry(size: sizes_lib.Size) -> Iterator[measure.Case]:
  """Yields the wire of keyed transforms: latents to bytes and back."""
  like = size.learners().latents['image']
  for batch in size.batches:
    message = wire.Message(
      client='A',
      key_id='0' * 16,
      protection='klt',
      direction='query',
      modality='image',
      message_id=bytes(16),
      latents=jax.device_get(networks.latents_of(like, batch)),
    )
    yield measure.Case(
      [
        ('encode, float16', lambda m: wire.encode(m, dtype='float16')),
        ('decode', lambda data: wire.decode(data, like=like)),
      ],
      batch,
      query=message,
    )
