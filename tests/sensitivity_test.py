"""Tests of sensitivity: units of latents, from a decoder that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ppcmi_jax import sensitivity
from ppcmi_jax.models import autoencoder

GAINS = {'s3': (4.0, 1.0, 0.0), 'b': (0.5, 2.0, 1.0)}


class Linear(nn.Module):
  """Two scales of three channels; logits are their sums, by known gains."""

  channels: int = 2

  def encode(self, x, *, train):
    cells = x.reshape(len(x), 4, 2, 4, 2, 2).mean((2, 4))
    coarse = cells.reshape(len(x), 2, 2, 2, 2, 2).mean((2, 4))
    three = lambda z: jnp.concatenate([z, z[..., :1] * z[..., 1:]], -1)
    return {'s3': three(cells), 'b': three(coarse)}

  def decode(self, latents, *, train):
    total = jnp.zeros(())
    for name, times in (('s3', 2), ('b', 4)):
      value = latents[name] @ jnp.array(GAINS[name])
      total = total + value.repeat(times, 1).repeat(times, 2)
    return jnp.stack([total, -total], -1)


@pytest.fixture(scope='module')
def masks():
  return np.random.default_rng(0).integers(0, 2, (21, 8, 8)).astype(np.uint8)


@pytest.fixture(scope='module')
def units(masks):
  return sensitivity.units(Linear(), {}, masks)


def test_a_channel_weighs_as_the_decoder_weighs_it(units):
  for name, gains in GAINS.items():
    for unit, gain in zip(units[name], gains):
      if gain:
        expected = gain / gains[1]
        np.testing.assert_allclose(unit / units[name][1], expected, rtol=1e-4)


def test_a_coarse_cell_weighs_by_the_pixels_that_it_draws(units):
  # 16 pixels a cell of 'b', 4 of 's3'; gradients add as independent signs do.
  found = (units['b'][2] / GAINS['b'][2]) / (units['s3'][1] / GAINS['s3'][1])
  np.testing.assert_allclose(found, 2.0, rtol=0.1)


def test_an_ignored_channel_keeps_a_unit(units):
  assert units['s3'][2] > 0
  np.testing.assert_allclose(
    units['s3'][2], sensitivity.LEAST * max(u.max() for u in units.values())
  )


class Deaf(Linear):
  """Decodes to the same, whatever it is given."""

  def decode(self, latents, *, train):
    return 0 * super().decode(latents, train=train)


@pytest.mark.parametrize('model', [Deaf(), Linear()])
def test_where_nothing_can_be_told_all_units_are_one(model, masks):
  given = masks if isinstance(model, Deaf) else np.zeros_like(masks)
  for unit in sensitivity.units(model, {}, given).values():
    np.testing.assert_array_equal(unit, 1)
    assert unit.dtype == np.float32


def test_latents_in_their_units_deviate_by_one(units, masks):
  latents = Linear().encode(jax.nn.one_hot(masks, 2), train=False)
  squares = [
    np.mean(np.square(units[k]) * np.var(z, (0, 1, 2)))
    for k, z in latents.items()
  ]
  np.testing.assert_allclose(np.mean(squares), 1.0, rtol=0.1)


def test_they_are_the_same_each_time_however_many_masks(units, masks):
  for name, unit in sensitivity.units(Linear(), {}, masks).items():
    np.testing.assert_array_equal(unit, units[name])
  few = sensitivity.units(Linear(), {}, masks[:1])
  assert all(np.all(np.isfinite(u)) and np.all(u > 0) for u in few.values())


def test_an_autoencoder_measures_latents_in_its_units():
  widths = (2, 3, 4, 5, 6)
  model = autoencoder.Autoencoder(2, widths)
  x = np.float32(np.random.default_rng(1).uniform(size=(2, 32, 32, 2)))

  @jax.jit
  def run(units):
    variables = model.init(jax.random.key(0), x, train=False)
    own = {**variables, 'units': units}
    code = lambda v: model.apply(v, x, train=False, method='encode')
    decode = lambda v, z: model.apply(v, z, train=False, method='decode')
    return (
      code(variables), code(own), decode(variables, code(variables)),
      decode(own, code(own)), model.apply(own, x, train=False),
    )  # fmt: skip

  units = {
    name: np.linspace(0.1, 3.0, width, dtype=np.float32)
    for name, width in zip(('s3', 's4', 'b'), widths[2:])
  }
  plain, scaled, *outputs = run(units)
  for name, unit in units.items():
    np.testing.assert_allclose(scaled[name], plain[name] * unit, rtol=1e-6)
    assert np.any(plain[name])
  for output in outputs[1:]:
    np.testing.assert_allclose(output, outputs[0], rtol=1e-4, atol=1e-5)
