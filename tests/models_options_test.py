"""Tests of models/: options that networks share, and what each changes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import (
  TINY,
  abstract,
  check_normalisations,
  latents_of,
  shape,
  variables_of,
)

from ppcmi_jax.models import (
  autoencoder,
  fatnet,
  fused,
  ghostnet,
  mapping,
  unet,
)


@pytest.mark.parametrize(
  'model, x',
  [
    (
      autoencoder.Autoencoder(1, TINY, blocks=1, axis_name='batch'),
      shape(2, 32, 32, 1),
    ),
    (
      autoencoder.Autoencoder(
        1, TINY[:4], latent_widths=(2, 2, 2), full_size=True, axis_name='batch'
      ),
      shape(2, 32, 32, 1),
    ),
    (unet.UNet(2, width=2, depth=2, axis_name='batch'), shape(2, 8, 8, 1)),
    (mapping.MappingBlock(0.01, axis_name='batch'), latents_of()['s4']),
    (fused.FusedMapping((8, 8, 8), axis_name='batch'), latents_of()),
  ],
  ids=['autoencoder', 'full size', 'unet', 'mapping', 'fused'],
)
def test_every_normalisation_shares_its_statistics(model, x):
  check_normalisations(model, x)


@pytest.mark.parametrize(
  'make, x',
  [
    (functools.partial(mapping.MappingBlock, width=0.01), latents_of()['s4']),
    (functools.partial(fused.FusedMapping, widths=(4, 5, 6)), latents_of()),
  ],
)
def test_remat_changes_neither_parameters_nor_numbers(make, x):
  variables, found = variables_of(make(), x), []
  for remat in (False, True):
    model = make(remat=remat)

    def loss(params, model=model):
      outputs, updates = model.apply(
        {**variables, 'params': params},
        x,
        train=True,
        rngs={'dropout': jax.random.key(1)},
        mutable=['batch_stats'],
      )
      return sum(jnp.sum(z**2) for z in jax.tree.leaves(outputs)), updates

    shapes = jax.tree.structure(abstract(model, x)[1])
    assert shapes == jax.tree.structure(variables)
    traced = jax.jit(jax.value_and_grad(loss, has_aux=True)).trace(
      variables['params']
    )
    text = str(traced.jaxpr)
    assert ('checkpoint' in text or 'remat' in text) == remat
    found.append(traced.lower().compile()(variables['params']))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *found
  )


@pytest.mark.parametrize(
  'make, x',
  [
    (
      functools.partial(autoencoder.Autoencoder, channels=1, widths=TINY),
      np.float32(np.random.default_rng(0).uniform(size=(2, 32, 32, 1))),
    ),
    (functools.partial(mapping.MappingBlock, width=0.01), latents_of()['s4']),
    (functools.partial(fused.FusedMapping, widths=(4, 5, 6)), latents_of()),
    (
      functools.partial(fused.FusedMapping, widths=(4, 5, 6), norm='group'),
      latents_of(),
    ),
    *(
      (
        functools.partial(model, 2, **options),
        np.float32(np.random.default_rng(0).uniform(size=(2, 32, 32, 1))),
      )
      for model, options in (
        (unet.UNet, {'width': 4, 'depth': 2}),
        (ghostnet.GhostUNet, {'width': 4, 'depth': 2}),
        (
          fatnet.FATNet,
          {
            'width': 4,
            'blocks': (1, 1, 1, 1),
            'transformer_layers': 1,
            'transformer_dim': 6,
          },
        ),
      )
    ),
  ],
)
def test_bfloat16_is_inside_only(make, x):
  """Parameters, statistics and what leaves stay float32; all layers narrow."""
  variables = variables_of(make(), x)
  narrow = make(dtype=jnp.bfloat16)
  outputs, shapes = abstract(narrow, x)
  assert jax.tree.structure(shapes) == jax.tree.structure(variables)
  leaving = jax.tree.leaves((outputs, shapes))
  assert all(z.dtype == jnp.float32 for z in leaving)

  def apply(variables, x, model=narrow):
    return model.apply(
      variables,
      x,
      train=True,
      rngs={'dropout': jax.random.key(0)},
      mutable=['batch_stats'],
    )

  updates = jax.eval_shape(apply, variables, x)[1]
  assert all(z.dtype == jnp.float32 for z in jax.tree.leaves(updates))
  text = str(jax.make_jaxpr(apply)(variables, x))
  wide = re.findall(r':f32\S* = conv_general_dilated', text)
  assert 'bf16' in text and not wide

  found, expected = (
    jax.jit(functools.partial(model.apply, train=False))(variables, x)
    for model in (narrow, make())
  )
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    assert np.any(a != b)
    assert np.max(np.abs(a - b)) < 0.1 * np.max(np.abs(b))


def test_latents_leave_an_encoder_in_float32():
  model = autoencoder.Autoencoder(1, TINY, dtype=jnp.bfloat16)
  x = shape(2, 32, 32, 1)
  latents, _ = abstract(model, x, method='encode')
  assert all(z.dtype == jnp.float32 for z in latents.values())
