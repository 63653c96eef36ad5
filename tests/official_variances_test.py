"""Tests of official/: running variances, unbiased as in PyTorch."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn

from ppcmi_jax import official


class Norm(nn.Module):
  """A lone BatchNorm, with PyTorch's numbers."""

  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, *, train):
    return nn.BatchNorm(
      not train, momentum=0.9, axis_name=self.axis_name, name='norm'
    )(x)


def moved(variables, x, axis_name=None, train=True):
  model = Norm(axis_name)
  run = lambda x: model.apply(
    variables, x, train=train, mutable=['batch_stats']
  )[1]
  return official.unbiased_variance(run)(x)['batch_stats']['norm']


def test_running_variances_are_unbiased_over_all_devices():
  x = np.float32(np.random.default_rng(0).normal(size=(2, 3, 2, 2, 5)))
  init = official.unbiased_variance(functools.partial(Norm().init, train=True))
  variables = init(jax.random.key(0), x[0])
  np.testing.assert_array_equal(variables['batch_stats']['norm']['var'], 1)
  flat = x.reshape(-1, 5)
  expected = 0.9 + 0.1 * flat.var(axis=0, ddof=1)
  found = moved(variables, x.reshape(6, 2, 2, 5))
  np.testing.assert_allclose(found['var'], expected, rtol=1e-6)
  np.testing.assert_allclose(found['mean'], 0.1 * flat.mean(0), atol=1e-7)
  run = functools.partial(moved, variables, axis_name='batch')
  found = jax.vmap(run, axis_name='batch')(x)
  np.testing.assert_allclose(found['var'], [expected] * 2, rtol=1e-6)


def test_variances_are_left_alone_outside_training_and_outside_the_call():
  x = np.float32(np.random.default_rng(0).normal(size=(3, 1, 1, 2)))
  variables = Norm().init(jax.random.key(0), x, train=False)
  np.testing.assert_array_equal(moved(variables, x, train=False)['var'], 1)
  moved(variables, x)
  plain = Norm().apply(variables, x, train=True, mutable=['batch_stats'])[1]
  np.testing.assert_allclose(
    plain['batch_stats']['norm']['var'],
    0.9 + 0.1 * x.var((0, 1, 2)),
    rtol=1e-6,
  )


def test_one_value_a_channel_is_refused():
  x = np.ones((1, 1, 1, 2), np.float32)
  variables = Norm().init(jax.random.key(0), x, train=False)
  with pytest.raises(ValueError, match='norm: expected more than one value'):
    moved(variables, x)
