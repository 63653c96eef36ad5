"""What protects and carries latents, without the networks around it."""

from collections.abc import Iterator

import jax

from benchmarks import measure, networks
from benchmarks import sizes as sizes_lib
from ppcmi_jax import learners, wire
from ppcmi_jax.sealed import masking, mixing, sealing

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
  dtype, key, mix = config.wire_dtype, bytes(32), mixing.mix()
  shapes = {name: z.shape for name, z in latents.items()}
  prepare = jax.jit(lambda keys: mix.init(keys, latents))
  forward, inverse = jax.jit(mix.forward), jax.jit(mix.inverse)
  mask = jax.jit(lambda keys, z: masking.mask(keys, z, dtype=dtype))
  unmask = jax.jit(
    lambda keys, masked: masking.unmask(keys, masked, latents, dtype=dtype)
  )

  def draft(_):
    return sealing.draft(key, **ROUTE, dtype=dtype, shapes=shapes, counter=1)

  def draw(draft):
    return draft, prepare(draft.mix_keys)

  def mix_latents(sent):
    draft, secret = sent
    return draft, forward(secret, latents)

  def mask_latents(sent):
    draft, mixed = sent
    return draft, mask(draft.mask_keys, mixed)

  def seal(sent):
    return sealing.seal(*sent)

  def open_message(data):
    return sealing.open(data, key, **ROUTE, dtype=dtype)

  def unmask_latents(opened):
    return opened, unmask(opened.mask_keys, opened.masked)

  def unmix_latents(found):
    opened, mixed = found
    return inverse(prepare(opened.mix_keys), mixed)

  return measure.Case(
    [
      ('sealed: derive keys', draft),
      ('sealed: draw the mix', draw),
      ('sealed: mix', mix_latents),
      ('sealed: mask', mask_latents),
      ('sealed: seal', seal),
      ('sealed: open', open_message),
      ('sealed: unmask', unmask_latents),
      ('sealed: draw and unmix', unmix_latents),
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
