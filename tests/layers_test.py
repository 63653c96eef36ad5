"""Tests of models/layers.py: each layer against the one that it replaces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ppcmi_jax.models import layers

TOLERANCES = {jnp.float32: 1e-6, jnp.bfloat16: 2e-2}


def normal(*dims, dtype=jnp.float32, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal(dims), dtype)


def value_and_gradients(function, gradient_of, *args):
  value, pull = jax.vjp(function, *args)
  return value, pull(gradient_of(value))


def outcomes(found, expected, *args):
  """Values and gradients of two functions, for one random cotangent."""
  draw = lambda y: normal(*y.shape, dtype=y.dtype, seed=1)
  both = jax.jit(
    lambda *args: [
      value_and_gradients(function, draw, *args)
      for function in (found, expected)
    ]
  )
  found, expected = (jax.tree.leaves(tree) for tree in both(*args))
  assert [x.dtype for x in found] == [x.dtype for x in expected]
  return zip(found, expected, strict=True)


def assert_close(found, expected, *args, scale):
  for a, b in outcomes(found, expected, *args):
    a, b = np.float32(a), np.float32(b)
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=0, atol=scale * np.max(np.abs(b)))


def assert_same_layer(found, expected, x, *, scale):
  """The same parameters from the same key, values and gradients."""
  variables = [m.init(jax.random.key(3), x) for m in (found, expected)]
  assert jax.tree.structure(variables[0]) == jax.tree.structure(variables[1])
  for a, b in zip(*map(jax.tree.leaves, variables), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
  variables = jax.tree.map(
    lambda leaf: normal(*leaf.shape, dtype=x.dtype), variables[0]
  )
  assert_close(found.apply, expected.apply, variables, x, scale=scale)


@pytest.mark.parametrize(
  'height, width, size, strides',
  [(1, 1, 3, 1), (2, 2, 3, 1), (1, 4, 3, 1), (2, 2, 3, 2), (5, 2, 7, 2),
   (3, 4, 3, 1), (4, 6, 3, 2)],
)  # fmt: skip
@pytest.mark.parametrize('dtype, scale', TOLERANCES.items())
def test_convolution_is_that_of_linen(
  dtype, scale, height, width, size, strides
):
  options = {'strides': strides, 'dtype': dtype}
  assert_same_layer(
    layers.conv(5, (size, size), padding=size // 2, **options),
    nn.Conv(5, (size, size), padding=size // 2, **options),
    normal(2, height, width, 6, dtype=dtype),
    scale=scale,
  )


def test_no_convolution_is_larger_than_its_image():
  # For these XLA's CPU backend has no quick kernel.
  jaxpr = lambda side: str(
    jax.make_jaxpr(
      lambda x: layers.conv(5).init_with_output(jax.random.key(0), x)[0]
    )(normal(2, side, side, 6))
  )
  assert 'conv_general_dilated' not in jaxpr(2)
  assert 'conv_general_dilated' in jaxpr(3)


@pytest.mark.parametrize('dtype, scale', TOLERANCES.items())
def test_transposed_convolution_is_that_of_linen(dtype, scale):
  assert_same_layer(
    layers.ConvTranspose2x2(5),
    nn.ConvTranspose(5, (2, 2), strides=(2, 2)),
    normal(3, 4, 5, 6, dtype=dtype),
    scale=scale,
  )


def test_parameters_decide_the_type_of_mixed_operands():
  x = normal(1, 2, 2, 3, dtype=jnp.bfloat16)
  for layer in (
    layers.ConvTranspose2x2(2),
    layers.DepthwiseConv3x3(),
  ):
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert {y.dtype, *(v.dtype for v in jax.tree.leaves(variables))} == {
      jnp.dtype(jnp.float32)
    }


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('height, width', [(6, 8), (7, 5)])
def test_max_pool_is_that_of_linen_to_the_bit(dtype, height, width):
  # Few values, zeros of both signs among them, so that most windows tie.
  values = np.random.default_rng(0).integers(-1, 2, (3, height, width, 5))
  x = jnp.asarray(values, dtype) * normal(3, 1, 1, 5, dtype=dtype)
  pool = lambda x: nn.max_pool(x, (2, 2), strides=(2, 2))
  for a, b in outcomes(layers.max_pool, pool, x):
    np.testing.assert_array_equal(np.float32(a), np.float32(b))


def test_max_pool_sends_a_tie_to_the_first_maximum():
  gradient = jax.grad(lambda x: jnp.sum(layers.max_pool(x)))
  found = gradient(jnp.array([[0.0, 2, 1, 1], [2, 2, 1, 1]])[None, ..., None])
  assert found[0, ..., 0].tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]


def test_max_pool_has_a_gradient_for_each_example():
  x = normal(3, 1, 4, 4, 2)
  gradient = jax.grad(lambda x: jnp.sum(layers.max_pool(x) ** 2))
  found = jax.jit(jax.vmap(gradient))(x)
  np.testing.assert_array_equal(found[:, 0], gradient(x[:, 0]))


@pytest.mark.parametrize('dtype, scale', TOLERANCES.items())
def test_depthwise_convolution_is_that_of_linen(dtype, scale):
  assert_same_layer(
    layers.DepthwiseConv3x3(),
    nn.Conv(6, (3, 3), padding=1, feature_group_count=6, use_bias=False),
    normal(3, 4, 5, 6, dtype=dtype),
    scale=scale,
  )


@pytest.mark.parametrize('dtype, scale', TOLERANCES.items())
@pytest.mark.parametrize('height, width', [(4, 5), (1, 2)])
def test_upsampling_is_that_of_jax_image(dtype, scale, height, width):
  shape = (3, 2 * height, 2 * width, 5)
  assert_close(
    layers.upsample,
    lambda x: jax.image.resize(x, shape, method='bilinear'),
    normal(3, height, width, 5, dtype=dtype),
    scale=scale,
  )
