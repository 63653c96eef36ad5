"""Quantised latents as uint32 words, masked by a ChaCha20 keystream.

The second layer of the protection `sealed`, a `keyed.Transform` whose keys are
uint32 [8] as those of `mixing`, on the accelerator, so that plain latents never
leave it. For each named latent x [B, ..., C] of a message:

  step      forward                              inverse
  --------  -----------------------------------  --------------------------
  quantise  v, s = x in `dtype`, its scale       x' = v s, (v + 1/2) s of int4
  pack      u = v as little-endian words         v = the first bytes of u
  mask      w = u + keystream(key) mod 2^32      u = w - keystream(key)

  dtype     v                                    s [B]      largest error of x'
  --------  -----------------------------------  ---------  -------------------
  float32   x                                    1          0
  bfloat16  x rounded to nearest                 1          2^-8 |x|
  float16   x rounded to nearest, |x| < 65520    1          2^-11 |x| or 2^-25
  int8      round(x / s) in -127 to 127          max|x|/127 s / 2
  int4      floor(x / s) in -8 to 7              0.3352 rms s / 2, |x| - 7.5 s

The 16 levels of int4 are spaced as is best for Gaussian numbers, which mixing
makes of latents (Max, IRE Trans. Inform. Theory 6(1), 1960, table II): they
lose 1.2 % of the power, and a rare number beyond them becomes the last one.

Quantising is the only step that loses anything; pack and mask are bit exact for
any bits, NaN payloads included, on every backend: words are integers all the
way and are never viewed as floats.

**A stream cipher: a key serves one message, or the difference of two messages
is in clear.** Masking hides and doesn't authenticate; `sealing` does. The
scales and norms are secret too: `sealing` encrypts them.

A latent with a NaN or infinity (after rounding) gets a NaN scale, which
`sealing` refuses to send: the host needs to see these numbers only.

  >>> import jax.numpy as jnp
  >>> from ppcmi_jax.sealed import chacha, masking
  >>> latents = {'b': {'values': jnp.ones([1, 2, 3]), 'norm': jnp.ones(1)}}
  >>> transform = masking.mask('int8')
  >>> secret = transform.init({'b': chacha.key_words(bytes(32))}, latents)
  >>> masked = transform.forward(secret, latents)
  >>> masked['b']['words'].dtype, masked['b']['words'].shape
  (dtype('uint32'), (2,))
  >>> transform.inverse(secret, masked)['b']['values'].tolist()
  [[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from ppcmi_jax import keyed
from ppcmi_jax.sealed import chacha, envelope, mixing

# What quantised numbers are held in; on the wire they take `envelope.BITS`.
DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': np.dtype(jnp.bfloat16),
  'float16': np.dtype(np.float16),
  'int8': np.dtype(np.int8),
  'int4': np.dtype(np.int8),
}
SPACING = 0.3352  # of int4's levels, over the root of the mean square

_error = functools.partial(
  envelope.error, todo='use what belongs to this message'
)


@struct.dataclass
class Secret:
  """What one message's key makes of one latent.

  Attributes:
    stream: uint32 [N], N as `num_words` says.
    shape: of the latent, (B, ..., C); static.
  """

  stream: jax.Array
  shape: tuple[int, ...] = struct.field(pytree_node=False)


def mask(dtype: str) -> keyed.Transform:
  """Returns the transform of a wire dtype; see the module's text.

  `init(keys, like)` takes {name: uint32 [8]}, for this message alone, and what
  `mixing` makes of the latents or its shapes: {name: {'values': floating
  [B, ..., C], 'norm': float32 [B]}}. `forward` takes the latter, too, and gives
  {name: {'words': uint32 [N], 'numbers': float32 [B, 2]}}, N as `num_words`
  says and the numbers an example's norm and scale, in clear; `inverse` takes
  these and gives float32 values and norms, all but the rounding of quantising.
  Values of float dtypes may be NaN or infinite if the sender, who holds the
  key, wants so: check before training on them. All are pure and work under
  `jit`. ValueErrors name the latent, those of a stream that is too short among
  them, as it would hide nothing.

  Args:
    dtype: one of DTYPES.

  Raises:
    ValueError: for another dtype.
  """
  _dtype(dtype)

  def size(_, mixed):
    return num_words(mixed['values'].shape, dtype)

  def init(keys, like):
    streams = chacha.keystreams(keys, mixing.by_name(size)(keys, like))
    return {
      name: Secret(stream, tuple(like[name]['values'].shape))
      for name, stream in streams.items()
    }

  def forward(secret, mixed):
    values, scale = quantise(mixed['values'], dtype)
    _check('values', values.shape, secret.shape)
    words = add(secret.stream, pack(values, dtype))
    norm = mixed['norm'].astype(jnp.float32)
    return {'words': words, 'numbers': jnp.stack([norm, scale], axis=-1)}

  def inverse(secret, masked):
    numbers, shape = masked['numbers'], secret.shape
    _check('numbers', numbers.shape, (shape[0], 2))
    values = unpack(subtract(secret.stream, masked['words']), shape, dtype)
    values = dequantise(values, numbers[:, 1], dtype)
    return {'values': values, 'norm': numbers[:, 0]}

  return keyed.Transform(init, mixing.by_name(forward), mixing.by_name(inverse))


def quantise(x: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
  """Rounds floating [B, ...] to a dtype; returns (values, scale float32 [B]).

  An all-zero example of integers has scale 0. ValueError for an unknown dtype.
  """
  target = _dtype(dtype)
  axes = tuple(range(1, x.ndim))
  x = x.astype(jnp.float32)
  if jnp.issubdtype(target, jnp.integer):
    largest = jnp.max(jnp.abs(x), axis=axes)
    scale = largest / 127
    if dtype == 'int4':
      shares = x / _divisor(largest, x.ndim)  # whose squares are no extremes
      rms = jnp.sqrt(jnp.mean(jnp.square(shares), axis=axes))
      scale = largest * (SPACING * rms)
    finite = jnp.isfinite(scale)
    x = jnp.nan_to_num(x / _divisor(scale, x.ndim))
    if dtype == 'int4':
      values = jnp.clip(jnp.floor(x), -8, 7).astype(target)
    else:
      values = jnp.clip(jnp.round(x), -127, 127).astype(target)
  else:
    values = x.astype(target)
    finite = jnp.all(jnp.isfinite(values), axis=axes)
    scale = jnp.ones_like(finite, jnp.float32)
  return values, jnp.where(finite, scale, jnp.nan)


def _divisor(scale, rank):
  """Returns [B, 1, ...]; infinite where a scale is 0, or flushed to it."""
  # NaN is no less than anything, and goes on to the result.
  scale = jnp.where(scale < jnp.finfo(jnp.float32).tiny, jnp.inf, scale)
  return scale.reshape(-1, *[1] * (rank - 1))


def dequantise(values: jax.Array, scale: jax.Array, dtype: str) -> jax.Array:
  """Returns float32 [B, ...] of `quantise`'s values and scale [B]."""
  scale = scale.reshape(-1, *[1] * (values.ndim - 1))
  middle = 0.5 if dtype == 'int4' else 0.0
  return (values.astype(jnp.float32) + middle) * scale


def pack(values: jax.Array, dtype: str) -> jax.Array:
  """Returns the bits of an array, in row order, as little-endian uint32 [N].

  Zeros fill the last word. Bits are kept, whatever number they are; of int4 the
  lower four of each.

  Raises:
    ValueError: for values not held as `dtype`'s are, or an unknown dtype.
  """
  target, width = _dtype(dtype), envelope.BITS[dtype]
  if values.dtype != target:
    raise _error('values', target.name, values.dtype.name)
  bits = lax.bitcast_convert_type(values, f'uint{8 * target.itemsize}')
  per_word = 32 // width
  bits = bits.reshape(-1).astype(jnp.uint32) & np.uint32(2**width - 1)
  bits = jnp.pad(bits, (0, -bits.size % per_word)).reshape(-1, per_word)
  # Shifts and not a widening bitcast: the order then is no backend's choice.
  shifts = width * jnp.arange(per_word, dtype=jnp.uint32)
  return jnp.sum(bits << shifts, axis=1, dtype=jnp.uint32)


def unpack(words: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
  """Undoes `pack`: uint32 [N] -> an array of a shape and dtype, bit by bit.

  Raises:
    ValueError: if N is not `num_words(shape, dtype)`, or for other words.
  """
  target = _dtype(dtype)
  _check_words(words)
  if words.size != num_words(shape, dtype):
    expected = f'{num_words(shape, dtype)} for {dtype} {list(shape)}'
    raise _error('words', expected, words.size)
  width, held = envelope.BITS[dtype], 8 * target.itemsize
  shifts = width * jnp.arange(32 // width, dtype=jnp.uint32)
  bits = (words[:, None] >> shifts).astype(f'uint{held}').reshape(-1)
  bits = bits[: math.prod(shape)].reshape(shape)
  values = lax.bitcast_convert_type(bits, target)
  if held == width:
    return values
  # The sign of the lower bits fills the upper ones.
  return (values << (held - width)) >> (held - width)


def num_words(shape: tuple[int, ...], dtype: str) -> int:
  """Returns how many uint32 words `pack` makes of an array."""
  _dtype(dtype)
  return envelope.num_words(shape, dtype)


def add(stream: jax.Array, words: jax.Array) -> jax.Array:
  """Adds a keystream to words, each uint32 [N], modulo 2^32.

  Raises:
    ValueError: for other words, or a stream of another length.
  """
  _check_words(words)
  _check('keystream', stream.shape, words.shape)
  return words + stream


def subtract(stream: jax.Array, words: jax.Array) -> jax.Array:
  """Undoes `add`; ValueError likewise."""
  _check_words(words)
  _check('keystream', stream.shape, words.shape)
  return words - stream


def _dtype(name):
  if name not in DTYPES:
    raise _error('dtype', f'one of {", ".join(DTYPES)}', repr(name))
  return DTYPES[name]


def _check_words(words):
  if words.dtype != jnp.uint32 or words.ndim != 1:
    raise _error('words', 'uint32 [N]', f'{words.dtype} {list(words.shape)}')


def _check(name, found, expected):
  if tuple(found) != tuple(expected):
    raise _error(name, list(expected), list(found))
