"""Tests of the baselines Ghost U-Net and FAT-Net, and of mapping unpooled."""

import collections
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from flax import linen as nn
from scipy import special

from ppcmi_jax.models import autoencoder, fatnet, ghostnet, mapping

TINY_GHOST = functools.partial(ghostnet.GhostUNet, width=8, depth=1)
TINY_FAT = functools.partial(
  fatnet.FATNet,
  width=4,
  blocks=(1, 1, 1, 1),
  transformer_layers=1,
  transformer_dim=6,
  fam_repeats=(1, 1, 2),
)


def shape(*dims):
  return jax.ShapeDtypeStruct(dims, jnp.float32)


def abstract(module, x, **kwargs):
  """Shapes of (outputs, variables), without computing anything."""
  init = functools.partial(module.init_with_output, **kwargs)
  return jax.eval_shape(init, jax.random.key(0), x)


def variables_of(module, x, **kwargs):
  """Random variables, all leaves of them; compiling an init takes long."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name, values = path[-1].key, rng.standard_normal(leaf.shape)
    if name == 'kernel':
      values *= np.sqrt(2 / math.prod(leaf.shape[:-1]))
    elif name == 'var':
      values = 1 + values**2
    else:
      values = 0.1 * values + (name == 'scale')
    return np.float32(values)

  tree = abstract(module, x, **kwargs)[1]
  return jax.tree_util.tree_map_with_path(draw, tree)


def sizes(module, x, **kwargs):
  """Numbers of parameters by the name of the outermost layer."""
  params = abstract(module, x, **kwargs)[1]['params']
  count = lambda tree: sum(math.prod(leaf.shape) for leaf in tree)
  return {name: count(jax.tree.leaves(tree)) for name, tree in params.items()}


def images(*dims, seed=0):
  return np.float32(np.random.default_rng(seed).uniform(size=dims))


def convolved(x, kernel, bias=0.0):
  """Convolves [B, H, W, C] by hand with [k, k, C, D], 'same' padding."""
  side, edge = kernel.shape[0], kernel.shape[0] // 2
  height, width = x.shape[1:3]
  padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
  return bias + sum(
    padded[:, i : i + height, j : j + width] @ kernel[i, j]
    for i, j in np.ndindex(side, side)
  )


def test_ghostnet_has_the_published_number_of_parameters():
  found = sizes(ghostnet.GhostUNet(3), shape(1, 32, 32, 3), train=False)
  assert sum(found.values()) == 16_944_483
  ups = [found[f'up{i}'] for i in range(4)]
  assert sum(ups) == 2_786_240  # as in the U-Net
  assert found['out'] == 195


def test_fatnet_has_the_published_number_of_parameters():
  found = sizes(fatnet.FATNet(3), shape(1, 32, 32, 3), train=False)
  part = lambda *names: sum(
    n for name, n in found.items() if name.startswith(names)
  )
  assert part('stem', 'stage') == 21_284_672  # ResNet-34 without its head
  assert part('transformer') == 5_338_368  # the 12 blocks of DeiT-tiny
  assert part('patch') == 147_648
  assert part('tokens', 'se', 'fuse') == 754_688
  assert part('fam') == 861_056
  assert part('decoder') == 325_248
  assert part('head', 'out') == 42_915
  assert sum(found.values()) == 28_754_595
  unused = fatnet.DecoderBlock(64)  # of the published code
  unused = sizes(unused, shape(1, 2, 2, 64), train=False)
  assert sum(found.values()) + sum(unused.values()) == 28_759_235


def test_sizes_of_the_methods_without_its_parts():
  x = shape(1, 32, 32, 3)
  found = sizes(autoencoder.Autoencoder(3, skips=False), x, train=False)
  assert sum(found.values()) == 785_699
  latents = {'s3': shape(1, 8, 8, 64), 's4': shape(1, 4, 4, 128)}
  latents['b'] = shape(1, 2, 2, 256)
  model = mapping.MappingNetwork(pooling='none')
  assert sum(sizes(model, latents, train=False).values()) == 55_633_536


@pytest.mark.parametrize('make', [ghostnet.GhostUNet, fatnet.FATNet])
@pytest.mark.parametrize(
  'height, width, channels', [(16, 16, 1), (224, 224, 3), (80, 208, 2)]
)
def test_any_multiple_of_16_is_segmented(make, height, width, channels):
  x = shape(2, height, width, channels)
  logits, _ = abstract(make(5), x, train=False)
  assert (logits.shape, logits.dtype) == ((2, height, width, 5), jnp.float32)


@pytest.mark.parametrize('make', [ghostnet.GhostUNet, fatnet.FATNet])
@pytest.mark.parametrize('dims', [(1, 24, 32, 1), (1, 32, 33, 3), (32, 32, 1)])
def test_other_sizes_are_refused(make, dims):
  with pytest.raises(ValueError, match='divisible by 16,') as error:
    abstract(make(2), shape(*dims), train=False)
  assert str(dims) in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'model, message',
  [
    (ghostnet.GhostUNet(2, width=5), 'features: expected an even number'),
    (TINY_FAT(2, width=5), 'width: expected an even number, found 5'),
    (TINY_FAT(2, blocks=(1, 1, 1)), r'blocks: .* found \(1, 1, 1\)'),
    (TINY_FAT(2, blocks=(1, 1, 0, 1)), 'blocks: expected four numbers'),
    (TINY_FAT(2, fam_repeats=(6, 4)), r'fam_repeats: .* found \(6, 4\)'),
    (TINY_FAT(2, transformer_dim=8), 'transformer_dim: expected a multiple'),
    (
      mapping.PyramidPooling(8, 'none'),
      "features: expected those of the input, 1, as pooling is 'none'",
    ),
  ],
)
def test_impossible_sizes_are_refused(model, message):
  with pytest.raises(ValueError, match=message) as error:
    abstract(model, shape(1, 32, 32, 1), train=False)
  assert '\n' not in str(error.value)


@pytest.fixture(scope='module', params=['ghostnet', 'fatnet'])
def applied(request):
  """A tiny network applied with and without train, and its gradients."""
  make = {'ghostnet': TINY_GHOST, 'fatnet': TINY_FAT}[request.param]
  model, x = make(3), images(2, 32, 32, 2)
  variables = variables_of(model, x, train=False)
  weights = np.random.default_rng(1).normal(size=(2, 32, 32, 3))

  def run(variables, x):
    def loss(params):
      tree = {**variables, 'params': params}
      logits, kept = model.apply(tree, x, train=False, mutable=['batch_stats'])
      return jnp.sum(weights * logits), (logits, kept)

    gradients, kept = jax.grad(loss, has_aux=True)(variables['params'])
    moved = model.apply(variables, x, train=True, mutable=['batch_stats'])
    return gradients, kept, moved

  # What runs once need not be fast: unoptimised, it compiles in half the time.
  compiled = jax.jit(
    run, compiler_options={'xla_backend_optimization_level': 0}
  )
  return variables, compiled(variables, x)


def test_gradients_reach_every_parameter(applied):
  # Without train, where BatchNorm would cancel the biases before it. A bias of
  # the keys shifts all scores of a query alike, which softmax cancels.
  _, (gradients, *_) = applied
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    name = jax.tree_util.keystr(path)
    assert np.all(np.isfinite(leaf)), name
    assert np.max(np.abs(leaf)) > 1e-3 or "['key']['bias']" in name, name


def test_only_training_moves_the_batch_statistics(applied):
  variables, (_, (kept_out, kept), (moved_out, moved)) = applied
  assert not np.allclose(kept_out, moved_out, atol=1e-2)
  for a, b, c in zip(
    jax.tree.leaves(variables['batch_stats']),
    jax.tree.leaves(kept['batch_stats']),
    jax.tree.leaves(moved['batch_stats']),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)


@pytest.mark.parametrize('make', [TINY_GHOST, TINY_FAT])
def test_every_normalisation_shares_its_statistics(make):
  model = make(2, axis_name='batch')
  tiny_models.check_normalisations(model, shape(2, 32, 32, 1))


def test_ghost_net_moves_with_the_image():
  model, x = TINY_GHOST(2), images(1, 64, 64, 1)
  variables = variables_of(model, x, train=False)
  apply = jax.jit(lambda x: model.apply(variables, x, train=False))
  before, inside = apply(x), slice(24, 40)
  for shift in (2, 1):  # the stride, and half of it
    moved = np.roll(x, shift, axis=(1, 2))
    after = np.roll(apply(moved), -shift, axis=(1, 2))
    assert shift % 2 != np.allclose(
      before[:, inside, inside], after[:, inside, inside], atol=1e-5
    )


def test_ghost_module_is_two_convolutions():
  x = images(2, 5, 7, 3) - 0.5
  module = ghostnet.GhostModule(8)
  variables = variables_of(module, x, train=False)
  params, stats = variables['params'], variables['batch_stats']

  def norm_relu(y, name):
    mean, var = stats[name]['mean'], stats[name]['var']
    y = (y - mean) / np.sqrt(var + 1e-5)
    return np.maximum(y * params[name]['scale'] + params[name]['bias'], 0)

  y = convolved(x, params['primary_conv']['kernel'])
  primary = norm_relu(y, 'primary_norm')
  ghosts = [
    convolved(primary[..., c : c + 1], params['ghost_conv']['kernel'][..., [c]])
    for c in range(4)
  ]
  ghosts = norm_relu(np.concatenate(ghosts, -1), 'ghost_norm')
  found = module.apply(variables, x, train=False)
  expected = np.concatenate([primary, ghosts], -1)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture(scope='module')
def transformer():
  module, x = fatnet.TransformerBlock(heads=2), images(2, 5, 6) - 0.5
  variables = variables_of(module, x)
  return (
    variables['params'],
    x,
    jax.jit(functools.partial(module.apply, variables)),
  )


def test_transformer_block_is_attention_and_a_perceptron(transformer):
  params, x, apply = transformer

  def norm(x, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)
    return x * params[name]['scale'] + params[name]['bias']

  z = norm(x, 'attention_norm')
  layers, out = params['attention'], 0.0
  for head in range(2):
    q, k, v = (
      z @ layers[name]['kernel'][:, head] + layers[name]['bias'][head]
      for name in ('query', 'key', 'value')
    )
    scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(3))
    mixed = scores / scores.sum(-1, keepdims=True) @ v
    out = out + mixed @ layers['out']['kernel'][head]
  y = x + out + layers['out']['bias']
  z = norm(y, 'dense_norm') @ params['expand']['kernel']
  z = z + params['expand']['bias']
  z = z * (1 + special.erf(z / np.sqrt(2))) / 2
  z = z @ params['contract']['kernel'] + params['contract']['bias']
  np.testing.assert_allclose(apply(x), y + z, atol=1e-5)


def test_transformer_knows_no_positions(transformer):
  _, x, apply = transformer
  order = np.array([3, 0, 4, 2, 1])
  np.testing.assert_allclose(apply(x[:, order]), apply(x)[:, order], atol=1e-5)
  alone = np.concatenate([apply(x[:, [i]]) for i in range(5)], axis=1)
  assert not np.allclose(alone, apply(x), atol=1e-2)  # tokens do see others


def test_adaptation_is_two_convolutions():
  x = images(2, 5, 7, 3) - 0.5
  module = fatnet.FeatureAdaptation()
  variables = variables_of(module, x)
  expected = sum(
    np.maximum(convolved(x, layer['kernel'], layer['bias']), 0)
    for layer in variables['params'].values()
  )
  assert {k.shape[0] for k in jax.tree.leaves(variables) if k.ndim == 4} == {
    1,
    3,
  }
  np.testing.assert_allclose(module.apply(variables, x), expected, atol=1e-5)


def test_squeeze_and_excitation_weighs_channels():
  x = images(2, 3, 5, 32)
  module = fatnet.SqueezeExcitation()
  variables = variables_of(module, x)
  squeeze, excite = (
    variables['params'][name]['kernel'] for name in ('squeeze', 'excite')
  )
  weight = np.maximum(x.mean((1, 2)) @ squeeze, 0) @ excite
  expected = x * special.expit(weight)[:, None, None]
  assert squeeze.shape == (32, 2)
  np.testing.assert_allclose(module.apply(variables, x), expected, atol=1e-5)


def test_what_fatnet_calls_on_what():
  calls = collections.defaultdict(list)

  def look(call, args, kwargs, context):
    calls[context.module.name].append(args[0].shape[1:])
    return call(*args, **kwargs)

  with nn.intercept_methods(look):
    model = TINY_FAT(2, fam_repeats=(6, 4, 2))
    _, variables = abstract(model, shape(1, 32, 64, 1), train=False)
  # Adaptation again and again, with one set of weights a skip.
  assert calls['fam1'] == [(16, 32, 4)] * 6
  assert calls['fam2'] == [(8, 16, 8)] * 4
  assert calls['fam3'] == [(4, 8, 16)] * 2
  assert sum(name.startswith('fam') for name in variables['params']) == 3
  assert calls['transformer0'] == [(2 * 4, 6)]
  assert calls['se'] == [(2, 4, 64)]
  decoded = [calls[f'decoder{i}'] for i in (3, 2, 1)]
  assert decoded == [[(2, 4, 32)], [(4, 8, 16)], [(8, 16, 8)]]
  assert calls['head_up'] == [(16, 32, 4)]


def test_a_mapping_without_pooling_skips_its_pyramids():
  module = mapping.MappingBlock(width=0.02, pooling='none')
  x = shape(2, 4, 4, 6)
  names = set(abstract(module, x, train=False)[1]['params'])
  pooled = mapping.MappingBlock(width=0.02)
  pooled = set(abstract(pooled, x, train=False)[1]['params'])
  assert pooled - names == {'ppm1', 'ppm2'} and names < pooled
  x = images(1, 3, 3, 4)
  pooling = mapping.PyramidPooling(4, 'none')
  np.testing.assert_array_equal(pooling.apply({}, x, train=True), x)
