"""Latents standardised for each client and channel.

Axes: M, B examples, h, w sides of a latent, C channels.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Statistics(NamedTuple):
  """Mean and standard deviation of latents: dicts {scale: [N clients, C]}."""

  mean: Mapping[str, jax.Array]
  std: Mapping[str, jax.Array]

  @classmethod
  def of(cls, latents, client, num_clients):
    """Returns the statistics of latents {scale: [M, h, w, C]} of clients [M].

    A hundredth of a client's overall deviation is added to each channel's, so
    that a channel that is nearly constant is not blown up.
    """
    mean, std = {}, {}
    for name, z in latents.items():
      parts = [
        np.asarray(z[client == i], np.float32) for i in range(num_clients)
      ]
      # In float32 a million positions would round the sums by percents.
      axes, exact = (0, 1, 2), np.float64
      mean[name] = np.float32([p.mean(axes, exact) for p in parts])
      std[name] = np.float32(
        [p.std(axes, exact) + 0.01 * p.std(None, exact) + 1e-6 for p in parts]
      )
    return cls(mean, std)

  @classmethod
  def zeros(cls, latents, num_clients):
    """Returns statistics of the right shapes, to restore a checkpoint into."""
    blank = {
      name: np.zeros((num_clients, z.shape[-1]), np.float32)
      for name, z in latents.items()
    }
    return cls(blank, blank)

  def standardise(self, latents, client):
    """Returns latents less the mean, over the std, of clients [B]."""
    return {
      name: (z - self.mean[name][client][:, None, None])
      / self.std[name][client][:, None, None]
      for name, z in latents.items()
    }

  def weights(self, client):
    """Returns {scale: [B, 1, 1, C]}: what undoes the standardisation's effect.

    A squared error of standardised latents, so weighed, is that of latents in
    their own units, times one number a client: the mean over scales is one.
    """
    squares = {name: jnp.square(std) for name, std in self.std.items()}
    mean = sum(jnp.mean(s, -1) for s in squares.values()) / len(squares)
    return {
      name: (s / mean[:, None])[client][:, None, None]
      for name, s in squares.items()
    }

  def restore(self, latents, client):
    """Undoes `standardise`."""
    return {
      name: z * self.std[name][client][:, None, None]
      + self.mean[name][client][:, None, None]
      for name, z in latents.items()
    }
