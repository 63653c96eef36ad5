"""Tests of models/: sizes, shapes, and what each network lets through."""

import fractions
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import SCALES, TINY, abstract, latents_of, shape, variables_of

from ppcmi_jax.models import (
  autoencoder,
  fused,
  layers,
  mapping,
  unet,
)


def num_parameters(module, x):
  leaves = jax.tree.leaves(abstract(module, x)[1]['params'])
  return sum(math.prod(leaf.shape) for leaf in leaves)


def shapes_of(tree):
  return {name: leaf.shape for name, leaf in tree.items()}


@pytest.mark.parametrize('channels, expected', [(3, 877_859), (1, 877_281)])
def test_autoencoder_has_the_published_number_of_parameters(channels, expected):
  model = autoencoder.Autoencoder(channels=channels)
  assert num_parameters(model, shape(1, 32, 32, channels)) == expected


@pytest.mark.parametrize('blocks', [0, 2])
@pytest.mark.parametrize('num_classes', [0, 3])
def test_blocks_and_classes_add_to_the_published_parts(blocks, num_classes):
  options = {'blocks': blocks, 'num_classes': num_classes}
  model = autoencoder.Autoencoder(1, TINY, **options)
  x = shape(2, 32, 32, 1)
  plain = autoencoder.Autoencoder(1, TINY)
  expected = num_parameters(plain, x)
  expected += blocks * sum(9 * w * w + 2 * w for w in TINY)
  expected += num_classes * (9 * TINY[0] + 1)
  parts, _ = abstract(model, x, method='reconstruct_and_segment')
  assert [part.shape[-1] for part in parts] == [1, num_classes]
  assert num_parameters(model, x) == expected
  latents, _ = abstract(model, x, method='encode')
  assert shapes_of(latents) == shapes_of(abstract(plain, x, method='encode')[0])


def test_four_stages_in_half_of_their_channels_are_as_many_numbers():
  x, widths, narrow = shape(2, 64, 96, 1), (16, 32, 64, 128), (16, 32, 64)
  model = autoencoder.Autoencoder(
    1, widths, latent_widths=narrow, full_size=True, blocks=1, num_classes=3
  )
  latents, _ = abstract(model, x, method='encode')
  assert shapes_of(latents) == {
    's3': (2, 16, 24, 16),
    's4': (2, 8, 12, 32),
    'b': (2, 4, 6, 64),
  }
  published, _ = abstract(autoencoder.Autoencoder(1), x, method='encode')
  for name, z in latents.items():
    assert z.size == published[name].size
  parts, _ = abstract(model, x, method='reconstruct_and_segment')
  assert [part.shape for part in parts] == [x.shape, (*x.shape[:3], 3)]
  # Encoder: a stage at full size and four, a residual behind each, narrowing.
  inputs, outputs = (1, 16, *widths[:3]), (16, *widths)
  expected = sum(9 * i * o + 2 * o for i, o in zip(inputs, outputs))
  expected += sum(9 * o * o + 2 * o for o in outputs)
  expected += sum(w * n + 2 * n for w, n in zip(widths[1:], narrow))
  # Decoder: bilinear, s4 and s3 beside the first two of four stages.
  inputs = (64, 128 + 32, 64 + 16, 32)
  expected += sum(9 * i * o + 2 * o for i, o in zip(inputs, widths[::-1]))
  expected += 9 * 16 * 4 + 4
  assert num_parameters(model, x) == expected


def test_mapping_has_the_published_number_of_parameters():
  latents = {'s3': shape(1, 8, 8, 64), 's4': shape(1, 4, 4, 128)}
  latents['b'] = shape(1, 2, 2, 256)
  model = mapping.MappingNetwork()
  assert num_parameters(model, latents) == 58_788_480


def test_unet_has_the_published_number_of_parameters():
  assert num_parameters(unet.UNet(3), shape(1, 32, 32, 3)) == 31_043_651


@pytest.mark.parametrize(
  'height, width', [(32, 32), (96, 96), (160, 160), (320, 320), (64, 160)]
)
@pytest.mark.parametrize('upsampling', ['bilinear', 'shuffle'])
def test_any_multiple_of_32_is_coded(height, width, upsampling):
  x = shape(2, height, width, 3)
  model = autoencoder.Autoencoder(channels=3, upsampling=upsampling)
  latents, _ = abstract(model, x, method='encode')
  assert shapes_of(latents) == {
    's3': (2, height // 8, width // 8, 64),
    's4': (2, height // 16, width // 16, 128),
    'b': (2, height // 32, width // 32, 256),
  }
  assert abstract(model, x)[0].shape == x.shape


@pytest.mark.parametrize(
  'model, unit, dims',
  [
    (autoencoder.Autoencoder(1), 32, (1, 16, 16, 1)),
    (autoencoder.Autoencoder(1), 32, (1, 33, 32, 1)),
    (autoencoder.Autoencoder(1), 32, (1, 64, 100, 1)),
    (autoencoder.Autoencoder(1), 32, (32, 32, 1)),
    (autoencoder.Autoencoder(1, (4, 4, 4, 4)), 16, (1, 24, 32, 1)),
    (unet.UNet(2, width=2), 16, (1, 24, 32, 1)),
    (unet.UNet(2, width=2, depth=2), 4, (1, 4, 6, 1)),
  ],
)
def test_other_sizes_are_refused(model, unit, dims):
  with pytest.raises(ValueError, match=f'divisible by {unit},') as error:
    abstract(model, shape(*dims))
  assert str(dims) in str(error.value)
  assert '\n' not in str(error.value)


def test_upsampling_is_bilinear_with_half_pixel_centres():
  x = np.array([[0.0, 4.0], [8.0, 20.0]], np.float32)
  along = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
  found = layers.upsample(jnp.stack([x, -x], -1)[None])
  assert found.shape == (1, 4, 4, 2)
  np.testing.assert_allclose(found[0, ..., 0], along @ x @ along.T, atol=1e-6)
  np.testing.assert_allclose(found[0, 0, :, 0], [0, 1, 3, 4], atol=1e-6)
  np.testing.assert_array_equal(found[..., 1], -found[..., 0])


def test_shuffling_makes_pixels_of_channels():
  x = np.random.default_rng(0).normal(size=(2, 3, 5, 8))
  found = layers.depth_to_space(x)
  assert found.shape == (2, 6, 10, 2)
  for row, column, channel in np.ndindex(6, 10, 2):
    part = 2 * (row % 2) + column % 2
    np.testing.assert_array_equal(
      found[:, row, column, channel],
      x[:, row // 2, column // 2, 2 * part + channel],
    )


def test_an_unknown_upsampling_is_refused():
  model = autoencoder.Autoencoder(channels=1, upsampling='nearest')
  with pytest.raises(ValueError, match="upsampling: expected 'bilinear' or"):
    abstract(model, shape(1, 32, 32, 1))


@pytest.fixture(scope='module')
def trained():
  """A tiny autoencoder, applied once with train=True and once without."""
  model = autoencoder.Autoencoder(channels=2, widths=TINY)
  x = np.float32(np.random.default_rng(1).uniform(size=(3, 32, 32, 2)))
  variables = variables_of(model, x)
  run = lambda train: model.apply(
    variables, x, train=train, mutable=['batch_stats']
  )
  outputs = jax.jit(lambda: (run(True), run(False)))()
  return model, variables, x, outputs


def test_only_training_moves_the_batch_statistics(trained):
  _, variables, _, ((trained_out, moved), (out, kept)) = trained
  before = jax.tree.leaves(variables['batch_stats'])
  for a, b, c in zip(
    before, jax.tree.leaves(moved), jax.tree.leaves(kept), strict=True
  ):
    assert not np.allclose(a, b)
    np.testing.assert_array_equal(a, c)
  assert not np.allclose(trained_out, out)


def test_statistics_move_a_tenth_of_the_way(trained):
  _, variables, x, ((_, moved), _) = trained
  kernel = variables['params']['encoder']['stage1']['conv']['kernel']
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  y = sum(
    padded[:, i : i + 32 : 2, j : j + 32 : 2] @ kernel[i, j]
    for i in range(3)
    for j in range(3)
  )
  stats = moved['batch_stats']['encoder']['stage1']['norm']
  np.testing.assert_allclose(stats['mean'], 0.1 * y.mean((0, 1, 2)), rtol=1e-4)
  np.testing.assert_allclose(
    stats['var'], 0.9 + 0.1 * y.var((0, 1, 2)), rtol=1e-4
  )


@pytest.mark.parametrize('skips', [True, False])
def test_the_decoder_sees_fine_latents_only_through_skips(skips):
  latents = latents_of()
  decoder = autoencoder.Decoder(2, TINY, skips)
  variables = variables_of(decoder, latents)
  decode = jax.jit(lambda z: decoder.apply(variables, z, train=False))
  before = decode(latents)
  for name in SCALES:
    changed = not np.allclose(before, decode({**latents, name: -latents[name]}))
    assert changed == (skips or name == 'b')


def test_pooling_matrix_is_adaptive_average_pooling():
  # Also where there are more cells than positions.
  cases = [(s, n) for s in mapping.POOL_SIZES for n in (2, 5, 9)]
  matrices = jax.jit(lambda: [mapping.pooling_matrix(*c) for c in cases])()
  for (size, length), matrix in zip(cases, matrices, strict=True):
    x = np.random.default_rng(length).normal(size=length)
    cell = fractions.Fraction(length, size)
    expected = [
      np.mean(x[math.floor(i * cell) : math.ceil((i + 1) * cell)])
      for i in range(size)
    ]
    assert matrix.shape == (size, length)
    found = np.asarray(matrix) @ x
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('pooling', ['pyramid', 'official'])
def test_only_the_pyramid_knows_where_things_are(pooling):
  # Branches that are constant in space commute with any order of positions.
  rng = np.random.default_rng(0)
  x = np.float32(rng.normal(size=(1, 6, 6, 16)))
  module = mapping.PyramidPooling(8, pooling)
  variables = variables_of(module, x)
  apply = jax.jit(lambda x: module.apply(variables, x, train=False))
  order = rng.permutation(36)
  shuffle = lambda x: np.reshape(x, (36, -1))[order]
  moved = apply(shuffle(x).reshape(x.shape)).reshape(36, -1)
  assert np.allclose(moved, shuffle(apply(x)), atol=1e-5) == (
    pooling == 'official'
  )


@pytest.mark.parametrize('pooling', ['pyramids', '', None])
def test_an_unknown_pooling_is_refused(pooling):
  model = mapping.MappingNetwork(width=0.1, pooling=pooling)
  with pytest.raises(ValueError, match="pooling: expected 'pyramid' or"):
    abstract(model, {'b': shape(1, 1, 1, 4)})


@pytest.mark.parametrize(
  'sides, smallest',
  [
    ((8, 8), (1, 1)),
    ((32, 32), (4, 4)),  # three times and no more
    ((20, 20), (5, 5)),
    ((5, 5), (5, 5)),
    ((1, 1), (1, 1)),
    ((6, 4), (3, 2)),
    ((8, 3), (8, 3)),  # one odd side is enough
  ],
)
def test_mapping_pools_while_both_sides_are_even(sides, smallest):
  block = mapping.MappingBlock(width=0.1)
  x = shape(2, *sides, 6)
  out, tree = abstract(block, x, capture_intermediates=True)
  assert out.shape == x.shape
  assert tree['intermediates']['d3_conv']['__call__'][0].shape[1:3] == smallest


@pytest.mark.parametrize(
  'model',
  [mapping.MappingNetwork(width=0.1), fused.FusedMapping(widths=(8, 8, 8))],
  ids=['published', 'fused'],
)
@pytest.mark.parametrize('height, width', [(1, 1), (5, 2)])
def test_mappings_keep_names_and_shapes(model, height, width):
  latents = {
    name: shape(2, height * f, width * f, c)
    for name, f, c in zip(SCALES, (4, 2, 1), TINY)
  }
  assert shapes_of(abstract(model, latents)[0]) == shapes_of(latents)


@pytest.mark.parametrize(
  'make, names, fuses',
  [
    (functools.partial(mapping.MappingNetwork, width=0.01), ('s4', 'b'), False),
    (functools.partial(fused.FusedMapping, widths=(8, 8, 8)), SCALES, True),
  ],
  ids=['published', 'fused'],
)
def test_which_output_depends_on_which_input(make, names, fuses):
  latents = {name: latents_of()[name] for name in names}
  variables = variables_of(make(), latents)
  apply = jax.jit(lambda z: make().apply(variables, z, train=False))
  before = apply(latents)
  for z in before.values():  # they end in a ReLU, as encoders do
    assert 0 <= z.min() < z.max()
  for source in names:
    after = apply({**latents, source: latents[source] + 1})
    for target in names:
      changed = not np.allclose(before[target], after[target], atol=1e-6)
      assert changed == (fuses or source == target), (source, target)


@pytest.mark.parametrize('depth, side', [(4, 16), (1, 6), (2, 4)])
def test_unet_keeps_the_size(depth, side):
  model = unet.UNet(5, width=2, depth=depth)
  logits, _ = abstract(model, shape(2, side, 2 * side, 1))
  assert logits.shape == (2, side, 2 * side, 5)
