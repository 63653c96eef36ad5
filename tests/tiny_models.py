"""Shapes, variables and latents of tiny models, for the tests of models/."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

TINY = (2, 3, 4, 5, 6)
SCALES = ('s3', 's4', 'b')


def shape(*dims):
  return jax.ShapeDtypeStruct(dims, jnp.float32)


def abstract(module, x, **kwargs):
  """Shapes of (outputs, variables), without computing anything."""
  init = functools.partial(module.init_with_output, train=False, **kwargs)
  return jax.eval_shape(init, jax.random.key(0), x)


def variables_of(module, x, seed=0):
  """Random variables; drawn by numpy, as compiling an init takes long."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key == 'kernel':
      scale = np.sqrt(2 / math.prod(leaf.shape[:-1]))
      return np.float32(scale * rng.standard_normal(leaf.shape))
    return np.full(leaf.shape, path[-1].key in ('scale', 'var'), np.float32)

  return jax.tree_util.tree_map_with_path(draw, abstract(module, x)[1])


def latents_of(widths=TINY[2:], side=4, batch=2, seed=0):
  rng = np.random.default_rng(seed)
  sides = (side, side // 2, side // 4)
  return {
    name: np.float32(rng.uniform(size=(batch, s, s, c)))
    for name, s, c in zip(SCALES, sides, widths)
  }


def check_normalisations(model, x):
  """Asserts that each BatchNorm of a model shares its statistics.

  One layer without axis_name would make devices drift apart, silently.
  """
  seen = {}

  def look(call, args, kwargs, context):
    norm = context.module
    if isinstance(norm, nn.BatchNorm):
      assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)  # as PyTorch's
      seen.setdefault(norm.path, []).append(
        (norm.axis_name, norm.use_running_average)
      )
    return call(*args, **kwargs)

  run = lambda v, x: model.apply(
    v,
    x,
    train=True,
    rngs={'dropout': jax.random.key(0)},
    mutable=['batch_stats'],
  )
  sharded = jax.tree.map(lambda leaf: shape(2, *leaf.shape), x)
  with nn.intercept_methods(look):
    _, variables = abstract(model, x)
    jax.eval_shape(
      jax.vmap(run, in_axes=(None, 0), axis_name='batch'), variables, sharded
    )
  assert len(seen) * 2 == len(jax.tree.leaves(variables['batch_stats']))
  for found in seen.values():
    assert found == [('batch', True), ('batch', False)]
