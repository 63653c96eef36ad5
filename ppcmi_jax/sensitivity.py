"""What a mask decoder makes of an error in each channel of its latents.

The server learns mask latents by their squared errors, and does not know the
decoder: to it all channels are alike, while the decoder hardly looks at some
and draws every outline from others. A client that sends its latents in units of
its decoder's sensitivity makes the summed squared error of latents an estimate
of that of the decoded class probabilities. The unit of channel c is the root
mean square of d p / d z_c, over masks, positions and pixels.

Axes: B batch, H height, W width, h, w a scale's, C channels, K classes.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from numpy.typing import ArrayLike

from ppcmi_jax import examples as examples_lib

BATCH = 16
NOISE = 0.5  # deviation of the latents, of each channel's own, as replies err
LEAST = 1e-3  # of the largest unit, for channels that the decoder ignores


def units(
  model: nn.Module, variables: Mapping[str, Any], masks: ArrayLike
) -> dict[str, np.ndarray]:
  """Returns the units of a mask autoencoder's latents.

  Deterministic: directions are drawn from a constant seed (Hutchinson's
  estimate of the squared norm, one direction of signs a mask).

  Args:
    model: an Autoencoder of K channels.
    variables: its variables, without units.
    masks: uint8 [N, H, W], some of the client's own, at least one.

  Returns:
    {scale: float32 [C]}, positive, such that latents in these units have a mean
    square deviation of one, over the channels of a scale and then the scales.
    All one where nothing can be told: the decoder says the same whatever the
    latents are, or these masks are all alike to it.
  """
  masks = np.asarray(masks)
  rows = np.arange(len(masks))
  squares, deviations = examples_lib.map_batches(
    functools.partial(_sensitivities(model), variables), (rows, masks), BATCH
  )
  unit = {k: np.sqrt(s.mean(0)) for k, s in squares.items()}
  largest = max(float(u.max()) for u in unit.values())
  unit = {k: np.maximum(u, LEAST * largest) for k, u in unit.items()}
  overall = np.mean(
    [np.mean(np.square(u) * deviations[k].mean(0)) for k, u in unit.items()]
  )
  if not 0 < overall < np.inf:
    return {k: np.ones_like(u) for k, u in unit.items()}
  return {k: np.float32(u / np.sqrt(overall)) for k, u in unit.items()}


@functools.cache
def _sensitivities(model):
  """Returns (variables, (row [B], mask [B, H, W])) -> squares, variances.

  Both are {scale: [B, C]}: of the gradient, and of the latents of the batch.
  """

  @jax.jit
  def function(variables, numbered):
    row, mask = numbered
    one_hot = jax.nn.one_hot(mask, model.channels)
    latents = model.apply(variables, one_hot, train=False, method='encode')
    variance = {k: jnp.var(z, (0, 1, 2)) for k, z in latents.items()}
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(
      row
    )

    def noisy(i, name):
      own = jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
      z = latents[name]
      noise = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(own)
      return z + NOISE * jnp.sqrt(variance[name]) * noise

    decode = lambda z: jax.nn.softmax(
      model.apply(variables, z, train=False, method='decode')
    )
    p, pull_back = jax.vjp(
      decode,
      {name: noisy(i, name) for i, name in enumerate(sorted(latents), 1)},
    )
    signs = jax.vmap(
      lambda key: jax.random.rademacher(key, p.shape[1:], jnp.float32)
    )(keys)
    (gradient,) = pull_back(signs)
    count = len(mask)
    return (
      {k: jnp.mean(jnp.square(g), (1, 2)) for k, g in gradient.items()},
      {k: jnp.tile(v, (count, 1)) for k, v in variance.items()},
    )

  return function
