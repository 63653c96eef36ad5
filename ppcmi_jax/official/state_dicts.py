"""Official state_dicts as trees of variables, and back.

A table of each network says which of its keys is which leaf; shapes are those
of our own networks, so nothing else knows a width. In a state_dict a
convolution is [out, in, height, width], in a tree [height, width, in, out].
"""

import functools
import math
import statistics
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ppcmi_jax import keyed
from ppcmi_jax.models import autoencoder, mapping

# The only transform that the official code has. Its secret is (Qs, bs), each a
# dict of the scales.
TRANSFORM = keyed.chain(keyed.orthogonal(), keyed.shift())
# In the order of the files.
SCALES = ('b', 's3', 's4')
LAYERS = ('c1', 'c2', 'c3', 'ppm1', 'c4', 'c5', 'd1', 'd2', 'd3')
LAYERS += ('u1', 'u2', 'u3', 'ppm2')
_COUNTER = ('counter',)  # num_batches_tracked, which flax has not

Variables = Mapping[str, Any]
StateDict = Mapping[str, np.ndarray]


def autoencoder_from_state(
  state: StateDict, name: str = 'state_dict'
) -> tuple[Variables, Any]:
  """Returns (variables, secret or None) of an official autoencoder.

  Args:
    state: {key: array}, as `archive.read` returns them.
    name: what errors call it.

  Raises:
    ValueError: a key is missing or unknown, or an array has the wrong shape or
      dtype, or holds numbers that cannot be right.
  """
  table = _autoencoder_table(protected=any('.T_' in key for key in state))
  _check_names(f'{name}: expected an official autoencoder', table, state)
  tree = _to_tree(table, state)
  shapes = _autoencoder_shapes(**autoencoder_options(tree))
  _check_arrays(name, table, state, shapes)
  tree = _copy(tree)
  secret = tree.pop('secret', None)
  return tree, None if secret is None else (secret[0], secret[1])


def mapping_from_state(state: StateDict, name: str = 'state_dict') -> Variables:
  """Returns the variables of an official mapping network; raises as above."""
  table = _mapping_table()
  _check_names(f'{name}: expected an official mapping network', table, state)
  tree = _to_tree(table, state)
  shapes = _mapping_shapes(_latent_channels(tree), **mapping_options(tree))
  _check_arrays(name, table, state, shapes)
  return _copy(tree)


def state_from_autoencoder(
  variables: Variables, secret: Any = None
) -> dict[str, np.ndarray]:
  """Returns the official state_dict of an Autoencoder, in its order.

  Args:
    variables: of an Autoencoder with upsampling='bilinear'.
    secret: of `TRANSFORM`, or None.

  Raises:
    ValueError: the official code has no place for these variables or this
      secret, or they hold numbers that cannot be right.
  """
  if secret is not None:
    if not isinstance(secret, tuple | list) or len(secret) != 2:
      raise ValueError(
        'secret: expected the two parts of official.TRANSFORM, found another; '
        'the official code has no other transform'
      )
    variables = {**variables, 'secret': dict(enumerate(secret))}
  table = _autoencoder_table(protected=secret is not None)
  state = _to_state(table, variables)
  shapes = _autoencoder_shapes(**autoencoder_options(variables))
  _check_arrays('variables', table, state, shapes)
  return state


def state_from_mapping(variables: Variables) -> dict[str, np.ndarray]:
  """Returns the official state_dict of a MappingNetwork; raises as above."""
  table = _mapping_table()
  state = _to_state(table, variables)
  shapes = _mapping_shapes(
    _latent_channels(variables), **mapping_options(variables)
  )
  _check_arrays('variables', table, state, shapes)
  return state


def autoencoder_options(variables: Variables) -> dict[str, Any]:
  """Returns the arguments of the Autoencoder that variables belong to."""
  encoder, decoder = (variables['params'][n] for n in ('encoder', 'decoder'))
  widths = tuple(_width(encoder[f'stage{i}']) for i in range(1, 6))
  inputs = np.shape(decoder['up2']['conv']['kernel'])[2:3]
  return {
    'channels': _width(decoder['out']),
    'widths': widths,
    'skips': inputs != (widths[3],),
    'upsampling': 'bilinear',
  }


def mapping_options(variables: Variables) -> dict[str, Any]:
  """Returns the arguments of the MappingNetwork that variables belong to.

  The width is one of those that give these layers when rounded; the pooling,
  which no variable shows, is the official one.
  """
  block, low, high = variables['params']['block_b'], 0.0, math.inf
  for layer, features in (('c5', 1024), ('c4', 512), ('c2', 256), ('c1', 128)):
    found = _width((block[f'{layer}_conv'], block[f'{layer}_norm']))
    low = max(low, (found - 0.5) / features if found > 8 else 0.0)
    high = min(high, (found + 0.5) / features)
  return {'width': (low + high) / 2, 'pooling': 'official'}


def _conv(key, *path, bias=False):
  leaves = (
    {'weight': 'kernel', 'bias': 'bias'} if bias else {'weight': 'kernel'}
  )
  return {f'{key}.{k}': ('params', *path, leaf) for k, leaf in leaves.items()}


def _norm(key, *path):
  return {
    f'{key}.weight': ('params', *path, 'scale'),
    f'{key}.bias': ('params', *path, 'bias'),
    f'{key}.running_mean': ('batch_stats', *path, 'mean'),
    f'{key}.running_var': ('batch_stats', *path, 'var'),
    f'{key}.num_batches_tracked': _COUNTER,
  }


def _autoencoder_table(protected):
  """Returns {key: path} in the order of the official state_dict."""
  table = {}
  for i, key in enumerate(('e1', 'e2', 'e3', 'e4', 'b'), start=1):
    path = ('encoder', f'stage{i}')
    table |= _conv(f'encoderT.{key}.0', *path, 'conv')
    table |= _norm(f'encoderT.{key}.1', *path, 'norm')
  for scale in SCALES if protected else ():
    table[f'encoderT.T_{scale}.Q'] = ('secret', 0, scale)
    table[f'encoderT.T_{scale}.b'] = ('secret', 1, scale)
  for i in range(1, 5):
    path = ('decoder', f'up{i}')
    table |= _conv(f'decoder.up{i}.1.0', *path, 'conv')
    table |= _norm(f'decoder.up{i}.1.1', *path, 'norm')
  return table | _conv('decoder.out_conv', 'decoder', 'out', bias=True)


def _mapping_table():
  """Returns {key: path} in the order of the official state_dict."""
  table = {}
  for scale in SCALES:
    key, path = f'm{scale}', f'block_{scale}'
    for layer in LAYERS:
      if layer.startswith('ppm'):
        parts = {f'branches.{i}': f'branch{i}' for i in range(4)}
        for part, name in {**parts, 'final': 'final'}.items():
          part = f'{key}.{layer}.{part}'
          table |= _conv(f'{part}.0', path, layer, f'{name}_conv')
          table |= _norm(f'{part}.1', path, layer, f'{name}_norm')
      else:
        table |= _conv(f'{key}.{layer}.0', path, f'{layer}_conv', bias=True)
        table |= _norm(f'{key}.{layer}.2', path, f'{layer}_norm')
    table |= _conv(f'{key}.out', path, 'out', bias=True)
  return table


def _width(layer):
  """Returns the output channels that most arrays of a layer have."""
  widths = [(1, *np.shape(x))[-1] for x in jax.tree.leaves(layer)]
  return max(statistics.mode(widths), 1)


@functools.lru_cache(maxsize=8)
def _autoencoder_shapes(**options):
  """Returns {path: shape} of an Autoencoder and of its secret."""
  model, side = autoencoder.Autoencoder(**options), 2 ** len(options['widths'])
  x = jax.ShapeDtypeStruct((1, side, side, options['channels']), jnp.float32)

  def init(key, x):
    variables = model.init(key, x, train=False)
    latents = model.apply(variables, x, train=False, method='encode')
    secret = TRANSFORM.init(key, latents)
    return {**variables, 'secret': dict(enumerate(secret))}

  return _flat_shapes(init, x)


def _latent_channels(variables):
  blocks = [variables['params'][f'block_{scale}'] for scale in SCALES]
  return tuple(_width(block['out']) for block in blocks)


@functools.lru_cache(maxsize=8)
def _mapping_shapes(channels, **options):
  """Returns {path: shape} of a MappingNetwork of latents with channels."""
  model = mapping.MappingNetwork(**options)
  latents = {
    scale: jax.ShapeDtypeStruct((1, 1, 1, n), jnp.float32)
    for scale, n in zip(SCALES, channels)
  }
  return _flat_shapes(functools.partial(model.init, train=False), latents)


def _flat_shapes(init, like):
  tree = jax.eval_shape(init, jax.random.key(0), like)
  flat = traverse_util.flatten_dict(tree)
  return {path: leaf.shape for path, leaf in flat.items()}


def _to_tree(table, state):
  """Returns views of the arrays, of whatever shapes they are."""
  flat = {}
  for key, path in table.items():
    if path is not _COUNTER:
      x = state[key]
      is_kernel = path[-1] == 'kernel' and x.ndim == 4
      flat[path] = np.transpose(x, (2, 3, 1, 0)) if is_kernel else x
  return traverse_util.unflatten_dict(flat)


def _copy(tree):
  """Returns arrays of their own, once their shapes are known to be right."""
  return jax.tree.map(functools.partial(np.array, order='C'), tree)


def _to_state(table, variables):
  flat = traverse_util.flatten_dict(jax.device_get(variables))
  paths = [path for path in table.values() if path is not _COUNTER]
  _check_names(
    'variables: expected those of an official network',
    {'/'.join(map(str, path)): path for path in paths},
    {'/'.join(map(str, path)): path for path in flat},
  )
  state = {}
  for key, path in table.items():
    x = np.zeros((), np.int64) if path is _COUNTER else np.asarray(flat[path])
    is_kernel = path[-1] == 'kernel' and x.ndim == 4
    state[key] = np.transpose(x, (3, 2, 0, 1)) if is_kernel else x
  return state


def _check_names(what, expected, found):
  missing = [key for key in expected if key not in found]
  extra = [key for key in found if key not in expected]
  if missing or extra:
    listed = [
      f'{len(keys)} {kind} ({keys[0]!r:.80}{", ..." if keys[1:] else ""})'
      for kind, keys in (('missing', missing), ('unknown', extra))
      if keys
    ]
    raise ValueError(
      f'{what}, found {" and ".join(listed)} of {len(expected)} keys; '
      'autoencoders go to load_autoencoder, umn.pt to load_mapping, and what '
      'was trained with --use-ppm 0 has no counterpart here'
    )


def _check_arrays(name, table, state, shapes):
  """Raises ValueError unless a state_dict's arrays are those of a network."""
  for key, path in table.items():
    x, dtype, shape = state[key], np.float32, shapes.get(path, ())
    if path is _COUNTER:
      dtype = np.int64
    elif path[-1] == 'kernel':
      shape = tuple(shape[i] for i in (3, 2, 0, 1))
    if x.shape != shape:
      found, expected = list(x.shape), list(shape)
      todo = 'it is of another network'
    elif x.dtype != dtype:
      found, expected = x.dtype, np.dtype(dtype)
      todo = 'convert it first'
    elif not np.all(np.isfinite(x)):
      found, expected = 'NaN or infinity', 'finite numbers'
      todo = 'its training failed'
    elif path[-1] == 'var' and np.any(x < 0):
      found, expected = f'{x.min()}', 'variances of at least 0'
      todo = 'the file is damaged'
    elif path[:2] == ('secret', 0) and not _is_orthogonal(x):
      found, expected = 'another matrix', 'an orthogonal one'
      todo = 'the file is damaged'
    else:
      continue
    raise ValueError(
      f'{name}: {key}: expected {expected}, found {found}; {todo}'
    )


def _is_orthogonal(q):
  return np.max(np.abs(q @ q.T - np.eye(len(q)))) < 1e-3
