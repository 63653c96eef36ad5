"""Keyed latent transforms: the secret maps between a client and the server.

A `Transform` is three pure functions. The algorithm is public and static; all
that is secret is a pytree of arrays that mirrors the latents, so it goes
through `jax.jit`, `jax.vmap` (over clients) and `jax.grad` like any other.

  part         secret of one leaf        forward            inverse
  -----------  ------------------------  -----------------  ------------------
  orthogonal   Q float32 [C, C], Haar    w_p = Q z_p        z_p = Q^T w_p
  permutation  i int32 [P] or [C]        w_p = z_{i(p)}     z_{i(p)} = w_p
  shift        b float32 [C], Gaussian   w_p = z_p + b      z_p = w_p - b
  chain(T, U)  (secret of T, of U)       w = U(T(z))        z = T^-1(U^-1(w))
  invert(T)    secret of T               w = T^-1(z)        z = T(w)

Axes: B batch, C channels (last), P positions (the product of all axes between
them); z_p is the vector of channels at position p. Latents are pytrees, mostly
dicts {'s3', 's4', 'b'}, of floating [B, H, W, C] arrays; any rank from 2 works.
The paper's transform is `chain(orthogonal(), shift())` (z' = Q z + b for every
position and scale; its code writes z @ Q.T + b); its abstract adds a
permutation, which none of its equations has.

**Obfuscation, no confidentiality.** Rotation, permutation and shift are
isometries: every distance between two positions survives them (a permutation
of positions reorders the distances and no more). One secret serves all samples
and positions, so one known image, or none, is enough to undo it, and the
64-bit JAX keys can be searched. The maps are here because research needs them.

Shapes and dtypes are kept. Arithmetic is float32 at least, with matmuls at
precision='highest', and each part rounds once to the latents' dtype. Largest
error of a round trip relative to the largest |z|, for standard normal latents
of the official shapes (eight draws, CPU):

  dtype     orthogonal  permutation  shift(1)  chain of the three
  --------  ----------  -----------  --------  ------------------
  float32   1.1e-6      0            1.2e-7    1.0e-6
  float16   4.3e-4      0            4.9e-4    4.9e-4
  bfloat16  3.6e-3      0            3.9e-3    4.1e-3

  >>> import jax
  >>> from ppcmi_jax import keyed
  >>> transform = keyed.chain(keyed.orthogonal(), keyed.shift())
  >>> latents = {'b': jax.numpy.ones([2, 4, 4, 3])}
  >>> secret = transform.init(jax.random.key(0), latents)
  >>> protected = jax.jit(transform.forward)(secret, latents)
  >>> protected['b'].shape
  (2, 4, 4, 3)
  >>> recovered = transform.inverse(secret, protected)
  >>> bool(abs(recovered['b'] - latents['b']).max() < 1e-5)
  True
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


class Transform(NamedTuple):
  """A keyed map of latents and its inverse; it holds no state.

  All three raise ValueError for latents of rank below 2 or (where there is
  arithmetic) no floating dtype, and for a key or secret that doesn't fit them.

  Attributes:
    init: (key, like) -> secret. Draws a secret; reads only the shapes and
      dtypes of `like`, so `jax.ShapeDtypeStruct` leaves do. `key` is one JAX
      PRNG key, split over the leaves, or a tree of keys that mirrors `like`,
      one for each leaf. Nobody else may consume it.
    forward: (secret, z) -> w.
    inverse: (secret, w) -> z.
  """

  init: Callable[[PyTree, PyTree], PyTree]
  forward: Callable[[PyTree, PyTree], PyTree]
  inverse: Callable[[PyTree, PyTree], PyTree]


def leafwise(
  init: Callable[[jax.Array, Any], PyTree],
  forward: Callable[[PyTree, jax.Array], jax.Array],
  inverse: Callable[[PyTree, jax.Array], jax.Array],
) -> Transform:
  """Lifts three functions of single arrays to pytrees of latents.

  Args:
    init: (key, like) -> secret of one leaf, itself any pytree of arrays.
    forward: (secret, z) -> w for one leaf.
    inverse: (secret, w) -> z for one leaf.

  Returns:
    A `Transform` whose secret is the tree of latents with each leaf replaced
    by that leaf's secret. The text of a ValueError from one of the three
    functions gets the leaf's name.
  """

  def init_tree(key, like):
    return _map(init, _leaf_keys(key, jax.tree.structure(like)), like)

  def lift(function):
    def apply(secret, latents):
      treedef = jax.tree.structure(latents)
      try:
        secrets = treedef.flatten_up_to(secret)
      except (ValueError, TypeError):
        found = jax.tree.structure(secret)
        raise _error('secret', f'a tree like {treedef}', found) from None
      return _map(function, secrets, jax.tree.map(jnp.asarray, latents))

    return apply

  return Transform(init_tree, lift(forward), lift(inverse))


def orthogonal() -> Transform:
  """Rotates the channels by a Haar-random orthogonal matrix, z' = Q z.

  The secret of a [B, ..., C] leaf is Q, float32 [C, C], from the QR of a
  Gaussian with the signs of R's diagonal fixed (Mezzadri 2007). The same Q
  serves every sample and position, any number of them. Half of all draws are
  reflections, det Q = -1.
  """

  def init(key, like):
    num_channels = _check_latents(like)[-1]
    return jax.random.orthogonal(key, num_channels, dtype=jnp.float32)

  def rotate(subscripts):
    def apply(q, z):
      num_channels = _check_latents(z)[-1]
      _check_secret('orthogonal', q, (num_channels,) * 2, jnp.floating)
      dtype = jnp.promote_types(z.dtype, jnp.float32)
      w = jnp.einsum(
        subscripts, z.astype(dtype), q.astype(dtype), precision='highest'
      )
      return w.astype(z.dtype)

    return apply

  return leafwise(init, rotate('...c,dc->...d'), rotate('...d,dc->...c'))


def permutation(
  axis: Literal['positions', 'channels'] = 'positions',
) -> Transform:
  """Gathers positions or channels in a random order, the same in each sample.

  The secret of a leaf is int32 [P] for axis='positions' (H W entries, in row
  order) and int32 [C] for axis='channels'. After a Haar rotation a permutation
  of channels adds nothing: the product is again a Haar rotation. The round trip
  is exact, bit by bit, in every dtype.

  Args:
    axis: 'positions' or 'channels'.

  Raises:
    ValueError: for any other `axis`.
  """
  if axis not in ('positions', 'channels'):
    expected = "'positions' or 'channels'"
    raise _error('permutation axis', expected, repr(axis), 'name one of them')

  def length(like):
    shape = _check_latents(like, floating=False)
    return math.prod(shape[1:-1]) if axis == 'positions' else shape[-1]

  def init(key, like):
    return jax.random.permutation(key, length(like)).astype(jnp.int32)

  def gather(order):
    def apply(secret, z):
      _check_secret('permutation', secret, (length(z),), jnp.integer)
      flat = z.reshape(z.shape[0], math.prod(z.shape[1:-1]), z.shape[-1])
      where = 1 if axis == 'positions' else 2
      return jnp.take(flat, order(secret), axis=where).reshape(z.shape)

    return apply

  return leafwise(init, gather(jnp.asarray), gather(jnp.argsort))


def shift(stddev: float = 1.0) -> Transform:
  """Adds a Gaussian vector of channels to every position, z' = z + b.

  The secret of a [B, ..., C] leaf is b, float32 [C]. The sum is rounded to the
  latents' dtype, so the error of a round trip grows with |b|.

  Args:
    stddev: standard deviation of b, in the units of the latents, at least 0.

  Raises:
    ValueError: for a negative or not finite `stddev`.
  """
  if not 0 <= stddev < math.inf:
    expected = 'a finite number of at least 0'
    raise _error('shift stddev', expected, stddev, 'the default is 1')

  def init(key, like):
    num_channels = _check_latents(like)[-1]
    return stddev * jax.random.normal(key, (num_channels,), jnp.float32)

  def add(sign):
    def apply(b, z):
      num_channels = _check_latents(z)[-1]
      _check_secret('shift', b, (num_channels,), jnp.floating)
      dtype = jnp.promote_types(z.dtype, jnp.float32)
      return (z.astype(dtype) + sign * b.astype(dtype)).astype(z.dtype)

    return apply

  return leafwise(init, add(1), add(-1))


def chain(*transforms: Transform) -> Transform:
  """Applies transforms from left to right, and inverts from right to left.

  `init` folds the part's index into every key, so parts never share one, and
  shows each part the shapes that the parts before it give (`jax.eval_shape`).
  Keys that JAX cannot fold, as those of `ppcmi_jax.sealed`, come as a tuple of
  what each part's `init` takes. The secret is the tuple of the parts' secrets.
  `chain()` is the identity.
  """

  def init(key, like):
    secrets = []
    for index, part in enumerate(transforms):
      if index:
        like = jax.eval_shape(transforms[index - 1].forward, secrets[-1], like)
      secrets.append(part.init(_part_key(key, index, len(transforms)), like))
    return tuple(secrets)

  def pair(secret):
    found = len(secret) if isinstance(secret, tuple | list) else 'no tuple'
    if found != len(transforms):
      raise _error('chain secret', f'{len(transforms)} parts', found)
    return list(zip(transforms, secret))

  def forward(secret, latents):
    for part, part_secret in pair(secret):
      latents = part.forward(part_secret, latents)
    return latents

  def inverse(secret, latents):
    for part, part_secret in reversed(pair(secret)):
      latents = part.inverse(part_secret, latents)
    return latents

  return Transform(init, forward, inverse)


def invert(transform: Transform) -> Transform:
  """Swaps forward and inverse of a transform that keeps shapes and dtypes."""
  return Transform(transform.init, transform.inverse, transform.forward)


def _map(function, firsts, latents):
  """Maps (first, leaf) -> result over a tree; errors name the leaf."""
  paths, treedef = jax.tree_util.tree_flatten_with_path(latents)
  results = []
  for first, (path, leaf) in zip(firsts, paths):
    try:
      results.append(function(first, leaf))
    except ValueError as error:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      raise ValueError(f'{name or "latents"}: {error}') from error
  return treedef.unflatten(results)


def _leaf_keys(key, treedef):
  """Returns one PRNG key for each leaf of the latents."""
  _check_keys(key)
  found = jax.tree.structure(key)
  if found == treedef:
    return jax.tree.leaves(key)
  if isinstance(key, jax.Array):
    return list(jax.random.split(key, treedef.num_leaves))
  todo = 'give one for each latent'
  raise _error('key', f'one PRNG key or a tree like {treedef}', found, todo)


def _part_key(key, index, count):
  """Returns what the part of a chain takes: its own of a tuple, or folded."""
  if isinstance(key, tuple) and not all(map(_is_key, jax.tree.leaves(key))):
    if len(key) != count:
      expected = f'typed PRNG keys, or a tuple of {count}'
      raise _error('key', expected, f'a tuple of {len(key)}', 'one a part')
    return key[index]
  _check_keys(key)
  return jax.tree.map(lambda leaf: jax.random.fold_in(leaf, index), key)


def _check_keys(key):
  for leaf in jax.tree.leaves(key):
    if not _is_key(leaf) or leaf.ndim:
      todo = 'use jax.random.key or keyring.prng_key; vmap over stacked keys'
      raise _error('key', 'typed PRNG keys of shape ()', _shown(leaf), todo)


def _is_key(leaf):
  dtype = getattr(leaf, 'dtype', np.dtype(object))
  return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _check_latents(latents, floating=True):
  """Returns the shape of one leaf, [B, ..., C]."""
  shape = tuple(latents.shape)
  if len(shape) < 2:
    raise _error('shape', '[B, ..., C]', list(shape), 'add the batch axis')
  if floating and not jnp.issubdtype(latents.dtype, jnp.floating):
    raise _error('dtype', 'a floating one', latents.dtype, 'cast the latents')
  return shape


def _check_secret(part, secret, shape, kind):
  dtype = getattr(secret, 'dtype', np.dtype(object))
  if not jnp.issubdtype(dtype, kind) or tuple(secret.shape) != shape:
    expected = f'{kind.__name__} {list(shape)}'
    raise _error(f'{part} secret', expected, _shown(secret))


def _shown(value):
  if hasattr(value, 'shape') and hasattr(value, 'dtype'):
    return f'{value.dtype} {list(value.shape)}'
  return type(value).__name__


def _error(name, expected, found, todo='use what init made for these latents'):
  return ValueError(f'{name}: expected {expected}, found {found}; {todo}')
