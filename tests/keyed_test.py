"""Tests of the keyed transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ppcmi_jax import keyed

SHAPES = {'s3': (2, 4, 3, 16), 'b': (2, 1, 2, 256)}
FULL = keyed.chain(keyed.orthogonal(), keyed.permutation(), keyed.shift())
TRANSFORMS = {
  'identity': keyed.chain(),
  'orthogonal': keyed.orthogonal(),
  'positions': keyed.permutation(),
  'channels': keyed.permutation('channels'),
  'shift': keyed.shift(0.5),
  'chain': FULL,
  'invert': keyed.invert(FULL),
}
# The largest error of a round trip that the module's docstring promises, with
# room for other shapes and machines in float32 (the goal is 1e-5).
ROUND_TRIP = {'float32': 1e-5, 'float16': 1e-3, 'bfloat16': 8e-3}


def latents_of(shapes=None, dtype='float32', seed=0):
  rng = np.random.default_rng(seed)
  return {
    name: jnp.asarray(rng.standard_normal(shape), dtype)
    for name, shape in (shapes or SHAPES).items()
  }


def relative_error(found, expected):
  return max(
    float(np.abs(np.float64(found[n]) - np.float64(z)).max() / abs(z).max())
    for n, z in expected.items()
  )


def assert_trees_equal(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope='module')
def secrets():
  like = jax.tree.map(jnp.zeros_like, latents_of())
  key = jax.random.key(7)
  return {name: t.init(key, like) for name, t in TRANSFORMS.items()}


@pytest.mark.parametrize(
  'name, dtype, jit',
  [
    *((name, 'float32', True) for name in TRANSFORMS),
    *((name, dtype, False) for name in TRANSFORMS for dtype in ROUND_TRIP),
    ('chain', 'bfloat16', True),
    ('chain', 'float16', True),
  ],
)
def test_inverse_undoes_forward_and_keeps_dtype(name, dtype, jit, secrets):
  maybe_jit = jax.jit if jit else lambda function: function
  transform, latents = TRANSFORMS[name], latents_of(dtype=dtype)
  protected = maybe_jit(transform.forward)(secrets[name], latents)
  recovered = maybe_jit(transform.inverse)(secrets[name], protected)
  for tree in (protected, recovered):
    assert {n: (z.shape, z.dtype) for n, z in tree.items()} == {
      n: (z.shape, z.dtype) for n, z in latents.items()
    }
  assert relative_error(recovered, latents) <= ROUND_TRIP[dtype]
  if name in ('identity', 'positions', 'channels'):
    assert_trees_equal(recovered, latents)
  if name != 'identity':
    assert relative_error(protected, latents) > 0.1


def test_forward_is_what_the_table_says(secrets):
  latents = latents_of()
  z = np.asarray(latents['s3'], np.float64)
  forward = {
    name: np.asarray(t.forward(secrets[name], latents)['s3'])
    for name, t in TRANSFORMS.items()
  }
  secret = {
    name: np.asarray(secrets[name]['s3'])
    for name in ('orthogonal', 'positions', 'channels', 'shift')
  }
  np.testing.assert_allclose(  # the official code's z @ Q.T
    forward['orthogonal'], z @ secret['orthogonal'].T, atol=1e-5
  )
  np.testing.assert_array_equal(
    forward['positions'].reshape(2, 12, 16),
    np.float32(z).reshape(2, 12, 16)[:, secret['positions']],
  )
  np.testing.assert_array_equal(
    forward['channels'], np.float32(z)[..., secret['channels']]
  )
  np.testing.assert_allclose(forward['shift'], z + secret['shift'], atol=1e-6)
  q, order, b = (np.asarray(part['s3']) for part in secrets['chain'])
  rotated = (z @ q.T).reshape(2, 12, 16)[:, order].reshape(z.shape)
  np.testing.assert_allclose(forward['chain'], rotated + b, atol=1e-5)


@pytest.mark.parametrize('shape', [(3, 4), (2, 5, 4), (2, 2, 3, 2, 4)])
def test_any_rank_from_two(shape):
  z = latents_of({'z': shape})['z']
  secret = FULL.init(jax.random.key(0), z)
  recovered = FULL.inverse(secret, FULL.forward(secret, z))
  assert relative_error({'z': recovered}, {'z': z}) <= 1e-5


def test_secrets_mirror_the_latents(secrets):
  for name in ('orthogonal', 'positions', 'channels', 'shift'):
    assert secrets[name].keys() == SHAPES.keys()
  found = {
    name: (secrets[name]['s3'].shape, str(secrets[name]['s3'].dtype))
    for name in ('orthogonal', 'positions', 'channels', 'shift')
  }
  assert found == {
    'orthogonal': ((16, 16), 'float32'),
    'positions': ((12,), 'int32'),
    'channels': ((16,), 'int32'),
    'shift': ((16,), 'float32'),
  }
  assert len(secrets['chain']) == 3 and secrets['identity'] == ()


def test_init_reads_shapes_and_dtypes_only(secrets):
  like = {n: jax.ShapeDtypeStruct(s, 'bfloat16') for n, s in SHAPES.items()}
  found = jax.jit(lambda key: FULL.init(key, like))(jax.random.key(7))
  expected = secrets['chain']
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_double_precision_keeps_its_dtype():
  with jax.enable_x64(True):
    z = {'z': jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)))}
    secret = FULL.init(jax.random.key(0), z)
    assert [str(part['z'].dtype) for part in secret] == [
      'float32',
      'int32',
      'float32',
    ]
    protected = FULL.forward(secret, z)
    assert protected['z'].dtype == jnp.float64
    assert relative_error(FULL.inverse(secret, protected), z) < 1e-6


def test_one_compilation_serves_all_secrets():
  num_traces = 0

  @jax.jit
  def forward(secret, z):
    nonlocal num_traces
    num_traces += 1
    return FULL.forward(secret, z)

  z = jnp.ones([1, 2, 4])
  for seed in range(3):
    forward(FULL.init(jax.random.key(seed), z), z)
  assert num_traces == 1


def test_vmap_over_clients():
  # One key a leaf, as a keyring would give, stacked over three clients.
  shapes = {'s3': (2, 2, 2, 4)}
  latents = [latents_of(shapes, seed=seed) for seed in range(3)]
  keys = {'s3': jax.random.split(jax.random.key(0), 3)}
  init = jax.vmap(lambda key: FULL.init(key, latents[0]))
  secrets = init(keys)
  stacked = jax.tree.map(lambda *z: jnp.stack(z), *latents)
  protected = jax.vmap(FULL.forward)(secrets, stacked)
  recovered = jax.vmap(FULL.inverse)(secrets, protected)
  assert relative_error(recovered, stacked) < 1e-5
  for client in range(3):
    key = jax.tree.map(lambda leaf: leaf[client], keys)  # noqa: B023
    expected = FULL.forward(FULL.init(key, latents[0]), latents[client])
    found = {'s3': protected['s3'][client]}
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize('name', ['orthogonal', 'positions'])
def test_gradient_of_half_the_squared_norm_is_the_latents(name, secrets):
  def half_squared_norm(latents):
    w = TRANSFORMS[name].forward(secrets[name], latents)
    return 0.5 * sum(jnp.sum(leaf**2) for leaf in w.values())

  latents = latents_of()
  assert relative_error(jax.grad(half_squared_norm)(latents), latents) < 1e-5


def test_cotangents_go_back_through_the_inverse_of_the_linear_part(secrets):
  # Of an isometry z -> A z + b, the transpose of A is its inverse.
  latents, cotangents = latents_of(), latents_of(seed=1)
  secret = secrets['chain']
  _, pull = jax.vjp(lambda z: FULL.forward(secret, z), latents)
  zero = jax.tree.map(jnp.zeros_like, secret[2])
  expected = FULL.inverse((*secret[:2], zero), cotangents)
  assert relative_error(pull(cotangents)[0], expected) < 1e-5
  # And of the shift's secret: the sum over samples and positions.
  gradient = jax.grad(
    lambda b: sum(
      jnp.vdot(cotangents[n], w)
      for n, w in FULL.forward((*secret[:2], b), latents).items()
    )
  )(secret[2])
  for name, z in cotangents.items():
    np.testing.assert_allclose(gradient[name], z.sum((0, 1, 2)), atol=1e-4)


@pytest.mark.parametrize('name', [n for n in TRANSFORMS if n != 'identity'])
def test_distances_between_positions_survive(name, secrets):
  # The weakness that the docstring states: sorted, since positions may move.
  z = latents_of()
  w = TRANSFORMS[name].forward(secrets[name], z)

  def distances(latents):
    points = np.asarray(latents['s3'], np.float64)[0].reshape(12, 16)
    return np.sort(scipy.spatial.distance.pdist(points))

  np.testing.assert_allclose(distances(w), distances(z), rtol=1e-5)


def test_a_tree_of_keys_gives_each_leaf_its_own():
  latents = latents_of()
  keys = dict(zip(SHAPES, jax.random.split(jax.random.key(1))))
  secret = FULL.init(keys, latents)
  for name in SHAPES:
    alone = FULL.init(keys[name], latents[name])
    for part, part_alone in zip(secret, alone):
      np.testing.assert_array_equal(part[name], part_alone)


def test_chain_applies_left_to_right_and_inverts_right_to_left():
  def affine(scale, offset):
    return keyed.leafwise(
      lambda key, like: (),
      lambda secret, z: scale * z + offset,
      lambda secret, w: (w - offset) / scale,
    )

  transform = keyed.chain(affine(2, 0), affine(1, 3))
  z = {'z': jnp.ones([1, 1])}
  secret = transform.init(jax.random.key(0), z)
  assert float(transform.forward(secret, z)['z'][0, 0]) == 2 * 1 + 3
  assert float(transform.inverse(secret, z)['z'][0, 0]) == (1 - 3) / 2
  back = keyed.invert(transform)
  assert float(back.forward(secret, z)['z'][0, 0]) == (1 - 3) / 2
  assert float(back.inverse(secret, z)['z'][0, 0]) == 2 * 1 + 3


def test_chain_shows_each_part_the_shapes_it_gets():
  halve = keyed.leafwise(
    lambda key, like: (),
    lambda secret, z: z.reshape(*z.shape[:-1], 2, z.shape[-1] // 2),
    lambda secret, w: w.reshape(*w.shape[:-2], -1),
  )
  transform = keyed.chain(halve, keyed.orthogonal(), keyed.permutation())
  z = latents_of({'z': (2, 3, 8)})
  secret = transform.init(jax.random.key(0), z)
  assert secret[1]['z'].shape == (4, 4) and secret[2]['z'].shape == (6,)
  recovered = transform.inverse(secret, transform.forward(secret, z))
  assert relative_error(recovered, z) < 1e-5


def test_keys_that_do_not_fold_come_one_a_part():
  words = {'z': jnp.arange(8, dtype=jnp.uint32)}
  same = lambda secret, latents: latents
  as_given = keyed.Transform(lambda key, like: key, same, same)
  z, key = latents_of({'z': (1, 2, 3)}), jax.random.key(0)
  chain = keyed.chain(keyed.orthogonal(), as_given)
  rotation, found = chain.init((key, words), z)
  assert found is words
  assert_trees_equal(rotation, keyed.orthogonal().init(key, z))
  expected = (
    'key: expected typed PRNG keys, or a tuple of 2, found a tuple of 3'
  )
  with pytest.raises(ValueError, match=expected):
    chain.init((key, words, words), z)
  # Keys of latents that are themselves a tuple are folded.
  pair = (jax.random.key(1), jax.random.key(2))
  folded = keyed.chain(as_given, as_given).init(pair, (z['z'], z['z']))
  assert len(set(map(str, jax.tree.leaves((pair, folded))))) == 6


def test_identity_returns_what_it_gets():
  identity, latents = keyed.chain(), latents_of()
  assert identity.init(jax.random.key(0), latents) == ()
  assert identity.forward((), latents) is latents
  assert identity.inverse((), latents) is latents
