"""What an attacker sees of latents under each protection, as numbers.

  protection            what crosses, and what an attacker makes of it
  --------------------  -------------------------------------------------------
  none                  the latents, rounded to the wire's dtype
  official              the official code's transform, which leaves positions
                        where they are; one secret for all messages, rounded
  klt                   the paper's, which permutes them, likewise
  official, fresh keys  either with a secret of its own for each message
  klt, fresh keys
  sealed                each example drafted, mixed, masked and sealed as a
                        message of its own; the ciphertext, read as numbers
  sealed, other images  sealed messages of other examples in the place of each:
                        what the same attack makes of nothing

Attacks (`attacks`) take all of them in the same shapes. A sealed message has no
more to show: its header is the same for all messages but for random bytes and
a counter, and its size depends on shapes alone.

  >>> import jax
  >>> latents = {'b': np.ones([2, 4, 4, 8], np.float32)}
  >>> seen = {name: observe(name, latents) for name in PROTECTIONS}
  >>> {seen[name]['b'].shape for name in PROTECTIONS}
  {(2, 4, 4, 8)}
  >>> bool(np.array_equal(*seen['klt']['b'])), seen['none']['b'].max().item()
  (True, 1.0)
  >>> bool(np.array_equal(*seen['sealed']['b']))
  False
"""

import math
import os
from collections.abc import Mapping

import jax
import numpy as np

from ppcmi_jax import examples as examples_lib
from ppcmi_jax import learners, wire
from ppcmi_jax.sealed import envelope, sealing, session

OTHERS = 'sealed, other images'
SEALED = ('sealed', OTHERS)
STATIC = ('official', 'klt')  # one secret for all messages
FRESH = tuple(f'{name}, fresh keys' for name in STATIC)  # one for each
IN_ORDER = ('none', STATIC[0], FRESH[0])  # leave positions where they are
PROTECTIONS = ('none', *STATIC, *FRESH, *SEALED)
SEALED_DTYPES = ('int8', 'int4', 'float16')
_BATCH = 16  # secrets drawn at a time, to bound memory

Latents = Mapping[str, np.ndarray]


def observe(
  protection: str,
  latents: Latents,
  *,
  seed: int = 0,
  wire_dtype: str = 'float16',
  sealed_dtype: str = 'int8',
) -> dict[str, np.ndarray]:
  """Protects each example as its own message and returns what is to be seen.

  Args:
    protection: one of PROTECTIONS.
    latents: {scale: float [N, h, w, C]}, all messages of one client.
    seed: of the secrets of the transforms, which are obfuscation only: a
      repeated call has the same secrets. Those of 'sealed' come from the
      operating system.
    wire_dtype: of `wire`, for all that is not sealed.
    sealed_dtype: one of SEALED_DTYPES, what sealing quantises to.

  Returns:
    {scale: float32 [N, h, w, C]}; sealed, uniform with mean 0 and
    variance 1, were they random.

  Raises:
    ValueError: an unknown protection or dtype, latents of other ranks.
  """
  if protection not in PROTECTIONS:
    raise ValueError(
      f'protection: expected one of {", ".join(PROTECTIONS)}, found '
      f'{protection!r}'
    )
  if wire_dtype not in wire.DTYPES or sealed_dtype not in SEALED_DTYPES:
    raise ValueError(
      f'dtypes: expected one of {", ".join(wire.DTYPES)} for the wire and of '
      f'{", ".join(SEALED_DTYPES)} if sealed, found {wire_dtype!r} and '
      f'{sealed_dtype!r}'
    )
  latents = {k: np.asarray(z, np.float32) for k, z in latents.items()}
  for name, z in latents.items():
    if z.ndim != 4 or not len(z):
      raise ValueError(
        f'{name}: expected [N, h, w, C] with N at least 1, found '
        f'{list(z.shape)}'
      )
  if protection == OTHERS:
    others = _others(len(next(iter(latents.values()))), seed)
    latents = {name: z[others] for name, z in latents.items()}
  if protection in SEALED:
    return _sealed(latents, sealed_dtype)
  transform = learners.TRANSFORMS[protection.partition(',')[0]]
  key = jax.random.key(seed)
  if protection in STATIC:
    secret = transform.init(key, latents)
    latents = jax.jit(transform.forward)(secret, latents)
  elif protection in FRESH:
    latents = _fresh(transform, key, latents)
  dtype = wire.DTYPES[wire_dtype]
  return {
    name: np.asarray(z).astype(dtype).astype(np.float32)
    for name, z in latents.items()
  }


def _others(count, seed):
  """Returns for each of N rows another, at random: no row's is its own."""
  order = np.random.default_rng(seed).permutation(count)
  others = np.empty_like(order)
  others[order] = np.roll(order, 1)
  return others


def _fresh(transform, key, latents):
  @jax.jit
  def protect(numbered):
    def one(pair):
      index, z = pair
      z = jax.tree.map(lambda a: a[None], z)
      secret = transform.init(jax.random.fold_in(key, index), z)
      return jax.tree.map(lambda a: a[0], transform.forward(secret, z))

    return jax.lax.map(one, numbered)

  count = len(next(iter(latents.values())))
  return examples_lib.map_batches(protect, (np.arange(count), latents), _BATCH)


def _sealed(latents, dtype):
  protect = jax.jit(session.codec(dtype).cover)
  key, rows = os.urandom(32), []
  shapes = {name: (1, *z.shape[1:]) for name, z in latents.items()}
  for i in range(len(next(iter(latents.values())))):
    draft = sealing.draft(
      key,
      client='victim',
      epoch=0,
      direction='query',
      modality='image',
      model_id='exposure',
      dtype=dtype,
      shapes=shapes,
      counter=i + 1,
    )
    z = {name: z[i : i + 1] for name, z in latents.items()}
    covered = protect(session.streams_of(draft), z)
    rows.append(read(sealing.seal(draft, covered)))
  return {name: np.concatenate([row[name] for row in rows]) for name in latents}


def read(message: bytes) -> dict[str, np.ndarray]:
  """Reads the ciphertext of a sealed message as uniform numbers.

  Args:
    message: what `sealing.seal` gave, of one of SEALED_DTYPES.

  Returns:
    {latent: float32 [B, ..., C]}, each stored number as an unsigned integer,
    shifted and scaled so that random bits have mean 0 and variance 1.

  Raises:
    sealed.envelope.MessageRejected: not a sealed message.
  """
  header = envelope.read(message)
  width = envelope.BITS[header.dtype]
  start, numbers = envelope.header_bytes(header), {}
  for name, shape in header.shapes.items():
    words = np.frombuffer(
      message, '<u4', envelope.num_words(shape, header.dtype), start
    )
    start += words.nbytes
    shifts = np.arange(0, 32, width, dtype=np.uint32)
    stored = (words[:, None] >> shifts) & np.uint32(2**width - 1)
    uniform = (stored.ravel()[: math.prod(shape)] + 0.5) / 2.0**width - 0.5
    numbers[name] = (uniform * np.sqrt(12)).astype(np.float32).reshape(shape)
  return numbers
