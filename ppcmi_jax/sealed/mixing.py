"""Keyed mixing of latents: spreads each number over its whole tensor.

The first layer of the protection `sealed`, a `keyed.Transform` whose keys are
uint32 [8] (256 bits, from HKDF) and serve one message. For each example alone,
of n = H W C numbers, with Z the tensor seen as a matrix [H W, C]:

  step       forward
  ---------  ------------------------------------------------------------------
  norm       r = ||Z|| / sqrt(n),  X_0 = Z / r     (X_0 = 0 and r = 0 for Z = 0)
  3 rounds   X_k = T(D_k * X_{k-1}[p_k][:, q_k])
  result     {'values': X_3 float32 [B, H, W, C], 'norm': r float32 [B]}

p_k (rows) and q_k (columns) are permutations, stable argsorts of ChaCha20
words, D_k has independent signs for all n numbers, and T is orthonormal along
each axis of the tensor: Hadamard (Sylvester's) where its size is a power of
two, DCT-II otherwise, as matmuls at precision='highest'; no padding. Without
the signs the rounds would be separable, and distances between rows survive.

**Incoherence, no secrecy.** Mixing makes any latents look like Gaussian noise
of unit variance, so that int8 on the wire loses 1.0 % of any latents at the
official shapes (unmixed: 0.8 to 4.5 %, by how uneven they are), and leaves no
distance between two positions as it was. It is linear (but for r), and alone it
is not secure: the claim of `sealed` rests on `masking` and `sealing`. `norm`
tells how strong a latent is, and belongs into the encrypted part of a message.

Each example of a batch takes its own stretch of the keystream, as if each were
a message with a key of its own, so distances between examples don't survive.
Two messages under one key do keep theirs: never use a key twice.

The round trip errs by at most 2e-6 of the largest |z| (float32; at the official
shapes 1e-7 to 6e-7). A tensor of rms below 1.2e-38 comes back as zeros,
whether a backend flushes denormals or not. One NaN or infinity makes `norm`
NaN, which `sealing` refuses, so the host need not see the latents to be sure.

  >>> import jax
  >>> from ppcmi_jax.sealed import chacha, mixing
  >>> transform = mixing.mix()
  >>> latents = {'b': jax.numpy.ones([2, 4, 4, 3])}
  >>> keys = {'b': chacha.key_words(bytes(32))}
  >>> secret = transform.init(keys, latents)
  >>> mixed = jax.jit(transform.forward)(secret, latents)
  >>> mixed['b']['norm'].tolist(), mixed['b']['values'].shape
  ([1.0, 1.0], (2, 4, 4, 3))
  >>> recovered = transform.inverse(secret, mixed)
  >>> bool(abs(recovered['b'] - latents['b']).max() < 2e-6)
  True
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ppcmi_jax import keyed
from ppcmi_jax.sealed import chacha, envelope

NUM_ROUNDS = 3

_MAX_HADAMARD = 16  # larger Hadamards are products of these, and dearer
_error = functools.partial(
  envelope.error, todo='use what init made for these latents'
)


class Secret(NamedTuple):
  """What one message's key makes of one latent [B, ..., C] of P positions.

  Attributes:
    rows: int32 [B, 3, P], permutations of positions.
    columns: int32 [B, 3, C], permutations of channels.
    signs: int8 [B, 3, P, C], +1 or -1.
  """

  rows: jax.Array
  columns: jax.Array
  signs: jax.Array


def mix() -> keyed.Transform:
  """Returns the transform; see the module's text.

  `init(keys, like)` takes a tree of uint32 [8] that mirrors `like`. `forward`
  takes latents of any floating dtype, [B, ..., C] with at least one example and
  no empty axis, and gives {'values', 'norm'} for each; `inverse` takes these
  and gives float32 latents. All are pure and work under `jit`; `init` and
  `forward` belong into one jitted function. ValueErrors name the latent.
  """
  return keyed.Transform(_init, by_name(_forward), by_name(_inverse))


def by_name(function: Callable[[Any, Any], Any]) -> Callable[..., dict]:
  """Lifts (key or secret, what is of one latent) to dicts of both by name.

  What it returns raises ValueError where these are no dicts or differ in names,
  and puts the latent's name before the function's own.
  """

  def apply(firsts, latents):
    if not isinstance(latents, dict) or not isinstance(firsts, dict):
      found = f'{type(firsts).__name__} and {type(latents).__name__}'
      raise _error('keys or secret, and latents', 'dicts', found)
    if firsts.keys() != latents.keys():
      raise _error('keys or secret', sorted(latents), sorted(firsts))
    results = {}
    for name, entry in latents.items():
      try:
        results[name] = function(firsts[name], entry)
      except ValueError as error:
        raise ValueError(f'{name}: {error}') from error
    return results

  return apply


def num_words(like: Mapping[str, Any]) -> dict[str, int]:
  """Returns how many words of its keystream `init` takes for each latent.

  Args:
    like: {name: array or ShapeDtypeStruct [B, ..., C]}.

  Raises:
    ValueError: for a shape or dtype that `forward` would refuse.
  """
  like = dict(like)
  return by_name(_count)(like, like)


def draw(
  streams: Mapping[str, jax.Array], like: Mapping[str, Any]
) -> dict[str, Secret]:
  """Returns what `init` makes of keys, given the first words of their streams.

  Args:
    streams: {name: uint32 [words]}, as many as `num_words` says.
    like: as for `init`.

  Raises:
    ValueError: for streams of other names or lengths.
  """
  return by_name(_draw)(dict(streams), dict(like))


def _init(keys, like):
  return draw(chacha.keystreams(keys, by_name(_count)(keys, like)), like)


def _count(_, like):
  return like.shape[0] * sum(_sizes(like))


def _sizes(like):
  """Returns how many words an example's rows, columns and signs take."""
  _, *sides, channels = _check_latents(like)
  positions = math.prod(sides)
  num_signs = -(-positions * channels // 32)  # words of 32
  return [n * NUM_ROUNDS for n in (positions, channels, num_signs)]


def _draw(stream, like):
  batch, *sides, channels = like.shape
  positions = math.prod(sides)
  sizes, expected = _sizes(like), (_count(None, like),)
  if stream.shape != expected:
    raise _error('keystream', list(expected), list(stream.shape))
  stream = stream.reshape(batch, -1)
  rows, columns, signs = jnp.split(stream, np.cumsum(sizes)[:-1], axis=1)
  order = lambda words: jnp.argsort(
    words.reshape(batch, NUM_ROUNDS, -1), axis=-1, stable=True
  ).astype(jnp.int32)
  bits = (signs[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
  bits = bits.reshape(batch, NUM_ROUNDS, -1)[..., : positions * channels]
  signs = (1 - 2 * bits.astype(jnp.int8)).reshape(
    batch, NUM_ROUNDS, positions, channels
  )
  return Secret(order(rows), order(columns), signs)


def _forward(secret, z):
  z = jnp.asarray(z)
  shape = _check_latents(z)
  _check_secret(secret, shape)
  return dict(zip(('values', 'norm'), jax.vmap(_mix_one)(secret, z)))


def _inverse(secret, mixed):
  if not isinstance(mixed, dict) or sorted(mixed) != ['norm', 'values']:
    raise _error('mixed latent', "a dict of 'values' and 'norm'", type(mixed))
  values, norm = jnp.asarray(mixed['values']), jnp.asarray(mixed['norm'])
  shape = _check_latents(values)
  _check_secret(secret, shape)
  if norm.shape != shape[:1]:
    raise _error('norm', f'[{shape[0]}]', list(norm.shape))
  return jax.vmap(_unmix_one)(secret, values, norm)


def _mix_one(secret, z):
  factors = _factors(z.shape)
  x, norm = _normalise(z.astype(jnp.float32))
  for rows, columns, signs in zip(*secret):
    x = _gather(x.reshape(signs.shape), rows, columns) * signs
    x = _transform(x, factors, inverse=False)
  return x.reshape(z.shape), norm


def _unmix_one(secret, values, norm):
  factors = _factors(values.shape)
  x = values.astype(jnp.float32)
  for rows, columns, signs in reversed(list(zip(*secret))):
    x = _transform(x, factors, inverse=True).reshape(signs.shape) * signs
    x = _gather(x, _inverted(rows), _inverted(columns))
  return x.reshape(values.shape) * norm.astype(jnp.float32)


def _normalise(z):
  """Returns z of unit rms, and the rms, which neither over- nor underflows."""
  smallest = jnp.finfo(jnp.float32).tiny
  largest = jnp.max(jnp.abs(z))
  # False for NaN too, so that NaN goes on to the norm. A root at a time: the
  # reciprocal of a large number is denormal, and XLA may divide by way of it.
  root = jnp.sqrt(jnp.where(largest < smallest, 1, largest))
  scaled = z * (1 / root) * (1 / root)
  rms = jnp.sqrt(jnp.mean(jnp.square(scaled)))
  norm = rms * root * root
  is_zero = norm < smallest
  x = jnp.where(is_zero, 0, scaled / jnp.where(is_zero, 1, rms))
  return x, jnp.where(is_zero, 0, norm)


def _transform(x, factors, inverse):
  """Applies the orthonormal matrices along the axes that the factors give."""
  for matrix in reversed(factors):
    matrix = jnp.asarray(matrix.T if inverse else matrix)
    # The last axis goes first; after all factors each is back in its place.
    x = lax.dot_general(
      matrix,
      x.reshape(-1, len(matrix)),
      (((1,), (1,)), ((), ())),
      precision='highest',
    )
  return x


def _factors(shape):
  """Returns the matrices whose Kronecker product is T, for one example.

  Sylvester's Hadamard matrix of 2^a is the Kronecker product of those of any
  split of a, across axes too, so the split changes only the cost.
  """
  matrices, exponent = [], 0
  for size in (*shape, None):
    if size is not None and size & (size - 1) == 0:
      exponent += size.bit_length() - 1
      continue
    while exponent:
      parts = -(-exponent // (_MAX_HADAMARD.bit_length() - 1))
      part = -(-exponent // parts)
      matrices.append(_hadamard(2**part))
      exponent -= part
    if size is not None:
      matrices.append(_dct(size))
  return matrices


@functools.cache
def _hadamard(size):
  matrix = np.ones([1, 1])
  while len(matrix) < size:
    matrix = np.kron([[1, 1], [1, -1]], matrix)
  return (matrix / math.sqrt(size)).astype(np.float32)


@functools.cache
def _dct(size):
  """Orthonormal DCT-II: row k is sqrt(2 / N) cos(pi (2 j + 1) k / (2 N))."""
  k, j = np.arange(size)[:, None], np.arange(size)
  matrix = math.sqrt(2 / size) * np.cos(math.pi * (2 * j + 1) * k / (2 * size))
  matrix[0] = math.sqrt(1 / size)
  return matrix.astype(np.float32)


def _gather(x, rows, columns):
  # init's permutations are in bounds; checking would cost a third more.
  return x.at[rows[:, None], columns].get(mode='promise_in_bounds')


def _inverted(order):
  places = jnp.arange(len(order), dtype=order.dtype)
  return jnp.zeros_like(order).at[order].set(places, unique_indices=True)


def _check_latents(latents):
  shape = tuple(latents.shape)
  if len(shape) < 2 or 0 in shape:
    raise _error('shape', '[B, ..., C], no axis empty', list(shape))
  if not jnp.issubdtype(latents.dtype, jnp.floating):
    raise _error('dtype', 'a floating one', latents.dtype)
  return shape


def _check_secret(secret, shape):
  batch, *_, channels = shape
  expected = (batch, NUM_ROUNDS, math.prod(shape[1:-1]), channels)
  found = getattr(getattr(secret, 'signs', None), 'shape', None)
  if not isinstance(secret, Secret) or found != expected:
    raise _error('secret', f'one of shape {expected}', found)
