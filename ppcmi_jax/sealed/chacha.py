"""ChaCha20 in JAX: keystreams of uint32 words, on whatever accelerator runs.

The stream cipher of RFC 8439 (sections 2.1 to 2.4), over all blocks at once.
Words are what the RFC serialises little-endian, so the words' little-endian
bytes are the RFC's keystream; on the device no bytes are needed at all. All is
integer arithmetic modulo 2^32: bit exact on every backend, eager, under `jit`
and under `vmap` (over keys, nonces or counters).

Keys come from `keyring.derive`, 256 bits each, never from JAX's generators. A
key and nonce must serve one message only. Code compiled by XLA promises no
constant time; ChaCha20 has no table or branch that depends on the key.

  >>> from ppcmi_jax.sealed import chacha
  >>> key = chacha.key_words(bytes(32))
  >>> [hex(word) for word in chacha.keystream(key, 2)]  # RFC 8439, A.1, 1
  ['0xade0b876', '0x903df1a0']
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ppcmi_jax.sealed import envelope

KEY_BYTES = 32
BLOCK_WORDS = 16
MAX_WORDS = 2**28  # 1 GiB; one XLA array of blocks, far below 2^32 blocks

_CONSTANTS = np.frombuffer(b'expand 32-byte k', '<u4').astype(np.uint32)
_error = functools.partial(envelope.error, todo='use chacha.key_words')


def key_words(key: bytes) -> np.ndarray:
  """Returns a 32-byte key as uint32 [8]; ValueError for another length."""
  if not isinstance(key, bytes) or len(key) != KEY_BYTES:
    found = len(key) if isinstance(key, bytes) else type(key).__name__
    raise _error('key', f'{KEY_BYTES} bytes', found, todo='use keyring.derive')
  return np.frombuffer(key, '<u4').astype(np.uint32)


def blocks(
  key: jax.Array, counters: jax.Array, nonce: jax.Array | None = None
) -> jax.Array:
  """Computes key stream blocks (RFC 8439, section 2.3).

  Args:
    key: uint32 [8], or [N, 8] for a key a block.
    counters: uint32 [N], the number of each block.
    nonce: uint32 [3]; None means zeros, right where the key serves once.

  Returns:
    uint32 [N, 16].

  Raises:
    ValueError: for another dtype or shape.
  """
  nonce = jnp.zeros(3, jnp.uint32) if nonce is None else nonce
  key, counters, nonce = map(_as_words, (key, counters, nonce))
  if counters.ndim != 1:
    raise _error('counters', 'uint32 [N]', list(counters.shape))
  if key.shape not in ((8,), (*counters.shape, 8)):
    raise _error('key', 'uint32 [8], or [N, 8]', list(key.shape))
  if nonce.shape != (3,):
    raise _error('nonce', 'uint32 [3]', list(nonce.shape))
  count = len(counters)
  # The RFC's matrix by its rows, so that a quarter round takes all columns.
  start = (
    jnp.broadcast_to(jnp.asarray(_CONSTANTS)[:, None], (4, count)),
    *jnp.split(jnp.broadcast_to(key, (count, 8)).T, 2),
    jnp.stack([counters, *jnp.broadcast_to(nonce[:, None], (3, count))]),
  )
  # A loop: unrolled, XLA takes many times as long to compile and to run.
  rows = lax.fori_loop(0, 10, _double_round, start)
  return jnp.concatenate([a + b for a, b in zip(rows, start)]).T


def keystream(
  key: jax.Array, num_words: int, nonce: jax.Array | None = None
) -> jax.Array:
  """Returns the first words of a keystream, blocks counted from 0.

  Args:
    key: uint32 [8].
    num_words: at most MAX_WORDS; static.
    nonce: uint32 [3]; None means zeros.

  Returns:
    uint32 [num_words].

  Raises:
    ValueError: for more words, or a key or nonce of another form.
  """
  if not 0 <= num_words <= MAX_WORDS:
    expected = f'0 to {MAX_WORDS}'
    raise _error('num_words', expected, num_words, todo='send smaller batches')
  counters = jnp.arange(-(-num_words // BLOCK_WORDS), dtype=jnp.uint32)
  return blocks(key, counters, nonce).reshape(-1)[:num_words]


def keystreams(
  keys: Mapping[str, jax.Array], num_words: Mapping[str, int]
) -> dict[str, jax.Array]:
  """Returns the keystreams of several keys, in one loop.

  The same as `keystream` of each; XLA compiles a loop once instead of often.

  Args:
    keys: {name: uint32 [8]}.
    num_words: {name: words wanted}, at most MAX_WORDS together; static.

  Returns:
    {name: uint32 [words]}.

  Raises:
    ValueError: as `keystream`.
  """
  if sum(num_words.values()) > MAX_WORDS:
    expected = f'0 to {MAX_WORDS}'
    total = sum(num_words.values())
    raise _error('num_words', expected, total, todo='send smaller batches')
  sizes = [-(-num_words[name] // BLOCK_WORDS) for name in keys]
  counters = np.concatenate([np.arange(n, dtype=np.uint32) for n in sizes])
  each = []
  for name, n in zip(keys, sizes):
    key = jnp.asarray(keys[name])
    if (key.dtype, key.shape) != (jnp.uint32, (8,)):
      found = f'{key.dtype} {list(key.shape)}'
      raise _error(f'{name}: key', 'uint32 [8]', found)
    each.append(jnp.broadcast_to(key, (n, 8)))
  found = blocks(jnp.concatenate(each), counters)
  parts = jnp.split(found, np.cumsum(sizes)[:-1])
  return {
    name: part.reshape(-1)[: num_words[name]] for name, part in zip(keys, parts)
  }


def _double_round(_, rows):
  a, b, c, d = _quarter_rounds(*rows)
  # Each diagonal becomes a column.
  b, c, d = (jnp.roll(row, -n, axis=0) for n, row in enumerate((b, c, d), 1))
  a, b, c, d = _quarter_rounds(a, b, c, d)
  return a, *(jnp.roll(row, n, axis=0) for n, row in enumerate((b, c, d), 1))


def _quarter_rounds(a, b, c, d):
  """RFC 8439, section 2.1, of rows [4, N]."""
  rotated = lambda word, bits: (word << bits) | (word >> (32 - bits))
  for first, second in ((16, 12), (8, 7)):
    a = a + b
    d = rotated(d ^ a, first)
    c = c + d
    b = rotated(b ^ c, second)
  return a, b, c, d


def _as_words(value):
  value = jnp.asarray(value)
  if value.dtype != jnp.uint32:
    raise _error('key, counters and nonce', 'uint32', value.dtype)
  return value
