"""Tests of the keyed transforms: secrets follow their distributions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ppcmi_jax import keyed


def haar_scores(q):
  """z-scores of what holds for Haar matrices [N, 5, 5]; normal if they are."""
  num_draws, n, _ = q.shape
  trace = np.trace(q, axis1=1, axis2=2)
  fixed = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
  samples = {
    'mean of an entry': (q[:, 0, 0], 0),
    'second moment': (q[:, 1, 2] ** 2, 1 / n),
    'fourth moment': (q[:, 2, 1] ** 4, 3 / (n * (n + 2))),
    'entries of one row': (
      q[:, 0, 0] ** 2 * q[:, 0, 1] ** 2,
      1 / (n * (n + 2)),
    ),
    'entries apart': (
      q[:, 0, 0] ** 2 * q[:, 1, 1] ** 2,
      (n + 1) / (n * (n - 1) * (n + 2)),
    ),
    'trace': (trace, 0),
    'trace, squared': (trace**2, 1),
    'trace, fourth power': (trace**4, 3),
    'trace of the square': (np.trace(q @ q, axis1=1, axis2=2), 1),
    'trace after a fixed rotation': (np.trace(fixed @ q, axis1=1, axis2=2), 0),
    'its square': (np.trace(fixed @ q, axis1=1, axis2=2) ** 2, 1),
    'determinant': (np.linalg.det(q), 0),
  }
  scores = {
    name: (x.mean() - mean) / (x.std() / np.sqrt(num_draws))
    for name, (x, mean) in samples.items()
  }
  # A coordinate of a uniform unit vector; by invariance also after `fixed`.
  beta = scipy.stats.beta((n - 1) / 2, (n - 1) / 2, loc=-1, scale=2)
  for name, x in (('entry', q[:, 0, 0]), ('rotated', (fixed @ q)[:, 0, 0])):
    p_value = scipy.stats.kstest(x, beta.cdf).pvalue
    scores[f'distribution, {name}'] = scipy.stats.norm.isf(p_value / 2)
  return scores


def test_orthogonal_is_haar():
  like = jax.ShapeDtypeStruct((1, 5), jnp.float32)
  keys = jax.random.split(jax.random.key(11), 20_000)
  init = keyed.orthogonal().init
  q = np.asarray(jax.jit(jax.vmap(lambda key: init(key, like)))(keys))
  eye = np.broadcast_to(np.eye(5), q.shape)
  np.testing.assert_allclose(q @ q.swapaxes(1, 2), eye, atol=1e-5)
  scores = haar_scores(np.float64(q))
  assert max(map(abs, scores.values())) < 5, scores
  # The same tests tell a QR whose signs nobody fixed.
  gaussian = np.random.default_rng(1).standard_normal(q.shape)
  scores = haar_scores(np.linalg.qr(gaussian)[0])
  assert max(map(abs, scores.values())) > 50, scores


def test_permutation_is_uniform():
  like = jax.ShapeDtypeStruct((1, 2, 2, 1), jnp.float32)
  keys = jax.random.split(jax.random.key(5), 24 * 400)
  init = keyed.permutation().init
  drawn = np.asarray(jax.jit(jax.vmap(lambda key: init(key, like)))(keys))
  counts = [
    np.sum(np.all(drawn == order, axis=1))
    for order in itertools.permutations(range(4))
  ]
  assert sum(counts) == len(keys)  # nothing but permutations
  assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_shift_is_gaussian():
  like = jax.ShapeDtypeStruct((1, 20_000), jnp.float32)
  b = keyed.shift(2.5).init(jax.random.key(3), like)
  assert scipy.stats.kstest(np.asarray(b) / 2.5, 'norm').pvalue > 1e-4


@pytest.mark.parametrize('is_tree', [False, True])
def test_no_two_draws_share_a_key(is_tree):
  # Leaves of one shape would be equal if two parts or leaves shared a key.
  like = {name: jax.ShapeDtypeStruct((1, 4), jnp.float32) for name in 'abc'}
  key = jax.random.key(0)
  if is_tree:
    key = dict(zip('abc', jax.random.split(key, 3)))
  shift = keyed.shift()
  nested = keyed.chain(shift, keyed.chain(shift, keyed.chain(shift)), shift)
  draws = [
    tuple(map(float, b)) for b in jax.tree.leaves(nested.init(key, like))
  ]
  assert len(draws) == 12 and len(set(draws)) == 12
