"""Seed search: a transform drawn from an integer seed is tried seed by seed.

Threat. An eavesdropper sees one message, and knows the code that draws the
secret from a seed (as the official code does; its default is 42) or from a JAX
key made of an integer, which has 32 bits. It knows neither encoder nor image.

A latent ends in a ReLU, so many positions of a channel share its least value,
0. Under a wrong rotation no two positions tie; under the right one about half
of all do, whatever the shift, the order of positions, or the encoder (measured:
49.5 % against 0.8 %; all 2^32 seeds in about 500 hours of a core). The shift
need not come from the seed. The attack is this project's own.

Axes: S seeds, N messages, C channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ppcmi_jax import keyed
from ppcmi_jax.attacks import alignment


class Ranking(NamedTuple):
  """Seeds from the likeliest to the least likely.

  Attributes:
    seeds: int64 [S].
    scores: float32 [S], the share of values that tie, from 0 to 1.
  """

  seeds: np.ndarray
  scores: np.ndarray


def tie_share(latents: jax.Array, tolerance: float = 3e-3) -> jax.Array:
  """Returns the share of values that tie with their channel's least one.

  Args:
    latents: floating [..., C]; the least value is over all other axes, and does
      not count itself.
    tolerance: in standard deviations of the channel; above the wire's rounding.

  Returns:
    float32, the mean over channels.
  """
  z = latents.reshape(-1, latents.shape[-1])
  near = z <= z.min(axis=0) + tolerance * z.std(axis=0)
  return (jnp.mean(near.sum(axis=0)) - 1) / (len(z) - 1)


def search(
  transform: keyed.Transform,
  observed: alignment.Latents,
  seeds: ArrayLike,
  *,
  tolerance: float = 3e-3,
  batch_size: int = 64,
) -> Ranking:
  """Ranks seeds of a secret, `transform.init(jax.random.key(seed), like)`.

  Args:
    transform: the public algorithm.
    observed: {name: float [N, h, w, C]}, messages of one secret; all scales, as
      each scale's key depends on which there are.
    seeds: int [S], each from 0 to 2^32 - 1.
    tolerance: of `tie_share`.
    batch_size: seeds tried at a time.

  Returns:
    The ranking by the scale with the most positions (the others are never
    drawn); a score far above all others is the secret's seed.

  Raises:
    ValueError: a seed out of range.
  """
  seeds = np.asarray(seeds, np.int64)
  if seeds.ndim != 1 or np.any((seeds < 0) | (seeds >= 2**32)):
    raise ValueError(
      'seeds: expected [S] from 0 to 2^32 - 1, found shape '
      f'{list(seeds.shape)}; larger ones are the same keys'
    )
  largest = max(observed, key=lambda k: np.prod(np.shape(observed[k])[:-1]))
  messages = jax.tree.map(jnp.asarray, dict(observed))

  def score(seed):
    secret = transform.init(jax.random.key(seed), messages)
    latents = transform.inverse(secret, messages)
    return tie_share(latents[largest], tolerance)

  words = jnp.asarray(seeds.astype(np.uint32))
  run = jax.jit(lambda s: jax.lax.map(score, s, batch_size=batch_size))
  scores = np.asarray(run(words), np.float32)
  order = np.argsort(-scores, kind='stable')
  return Ranking(seeds[order], scores[order])
