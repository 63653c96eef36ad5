"""What latents become when less of them is sent, and how much that is.

  way            what is sent                                        size
  -------------  --------------------------------------------------  ---------
  mixed, b bits  latents mixed as `sealed` mixes them, which makes   always
                 their numbers Gaussian of unit variance; each       the same
                 rounded to 2^b levels, spaced as is best for such
                 (Max, IRE Trans. Inform. Theory 6(1), 1960)
  coded, step d  latents as they are, in multiples of d, by an       depends on
                 entropy coder that knows how often each multiple    the image
                 occurs in each channel of the training images
  ... alone      the finest scales, in float16; the mean of          always
                 training images in place of the others              the same
  s of the       so many principal components of each scale's        always
  channels       channels, as training images have them, in          the same
                 float16, or mixed and rounded

A step, and a component's weight, is in units of each channel's standard
deviation. A coder's messages tell by their length what is in the image; sealed,
they would have to be padded to the longest, which is given, too.

Axes: M images, h, w sides of a latent, C channels, K components.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppcmi_jax import examples
from ppcmi_jax.sealed import chacha, envelope, masking, mixing

Latents = Mapping[str, np.ndarray]
# latents [M, ...] -> the same as they arrive, and bytes [M] of what is sent.
Rounding = Callable[[Latents], tuple[dict[str, np.ndarray], np.ndarray]]

# Spacing of 2^b levels for a Gaussian of unit variance (Max 1960, table II; 8
# bits by the same condition).
SPACINGS = {
  8: 0.0308, 6: 0.1041, 5: 0.1881, 4: masking.SPACING, 3: 0.5860, 2: 0.9957,
}  # fmt: skip
STEPS = (0.25, 0.5, 1.0, 1.5, 2.0)
SHARES = {'3/4': 0.75, '1/2': 0.5, '1/4': 0.25}  # of channels
BATCH = 16


def ways(known: Latents) -> dict[str, Rounding]:
  """Returns {way: what it does to latents} of one client and direction.

  Args:
    known: {scale: [M, h, w, C]} of training images.
  """
  found = {f'mixed, {b} bits': mixed(b) for b in SPACINGS}
  deviation = {k: z.std((0, 1, 2)) for k, z in known.items()}
  least = max(float(d.max()) for d in deviation.values()) * 1e-6 + 1e-12
  units = {k: np.maximum(d, least) for k, d in deviation.items()}
  for step in STEPS:
    steps = {k: step * unit for k, unit in units.items()}
    found[f'coded, step {step:g}'] = coded(steps, known)
  fine_to_coarse = sorted(known, key=lambda name: -known[name].shape[1])
  for number in range(len(known) - 1, 0, -1):
    some = fine_to_coarse[:number]
    found[f'{" and ".join(some)} alone'] = alone(some, known)
  bases = components(known, units)
  for label, share in SHARES.items():
    way = f'{label} of the channels'
    found[way] = principal(share, bases, _halved)
    found[f'{way}, mixed, 4 bits'] = principal(share, bases, mixed(4))
  return found


def mixed(bits: int) -> Rounding:
  """Returns what rounds mixed latents to 2^bits levels, a key of SPACINGS."""
  through = functools.partial(_through, SPACINGS[bits], 2 ** (bits - 1))

  def apply(latents):
    arrived = examples.map_batches(through, latents, BATCH)
    size = sum(math.ceil(bits * z[0].size / 8) for z in latents.values())
    return arrived, np.full(count(latents), size)

  return apply


@jax.jit
def _through(spacing, half, latents):
  """Rounds mixed latents to 2 half levels, and unmixes them."""
  transform = mixing.mix()
  # Any key does: how numbers are rounded does not depend on it.
  key = chacha.key_words(bytes(chacha.KEY_BYTES))
  secret = transform.init(dict.fromkeys(latents, key), latents)

  def rounded(parts):
    level = jnp.floor(parts['values'] / spacing)
    level = jnp.clip(level, -half, half - 1) + 0.5
    return {**parts, 'values': spacing * level}

  covered = transform.forward(secret, latents)
  return transform.inverse(
    secret, {name: rounded(parts) for name, parts in covered.items()}
  )


def coded(steps: Mapping[str, np.ndarray], known: Latents) -> Rounding:
  """Returns what rounds to multiples, for a coder that learnt from `known`.

  An ideal coder is assumed, which spends -log2(p) bits on a multiple of
  frequency p (arithmetic coding comes within a few bits a message). Multiples
  outside those of training become the nearest of them.

  Args:
    steps: {scale: [C]}, positive.
    known: {scale: [M, h, w, C]} of training images.
  """
  ranges, costs = {}, {}
  for name, z in known.items():
    level = np.rint(z / steps[name]).astype(np.int64).reshape(-1, z.shape[-1])
    low, high = level.min(0), level.max(0)
    counts = np.zeros((level.shape[1], (high - low).max() + 1))
    for i, column in enumerate((level - low).T):
      counts[i] = np.bincount(column, minlength=counts.shape[1])
    # One more of each than was seen, so that none is impossible.
    counts += np.arange(counts.shape[1]) <= (high - low)[:, None]
    with np.errstate(divide='ignore'):
      costs[name] = -np.log2(counts / counts.sum(1, keepdims=True))
    ranges[name] = low, high

  def apply(latents):
    arrived, bits = {}, 0
    for name, z in latents.items():
      low, high = ranges[name]
      level = np.clip(np.rint(z / steps[name]), low, high).astype(np.int64)
      channel = np.arange(z.shape[-1])
      bits += costs[name][channel, level - low].sum((1, 2, 3))
      arrived[name] = np.float32(level * steps[name])
    return arrived, np.ceil(bits / 8)

  return apply


def alone(scales: Sequence[str], known: Latents) -> Rounding:
  """Returns what keeps some scales, and means of `known` for the others."""
  means = {k: z.mean((0, 1, 2), dtype=np.float64) for k, z in known.items()}

  def apply(latents):
    arrived = {
      name: z
      if name in scales
      else np.broadcast_to(np.float32(means[name]), z.shape)
      for name, z in latents.items()
    }
    return arrived, plain_bytes({name: latents[name] for name in scales})

  return apply


class Components(NamedTuple):
  """Principal components of one scale's channels, the strongest first.

  Attributes:
    unit: [C], positive, that channels are divided by before.
    mean: [C], of channels in these units.
    basis: [C, K], a component a column.
    limit: [K], twice the largest that training images have of each.
  """

  unit: np.ndarray
  mean: np.ndarray
  basis: np.ndarray
  limit: np.ndarray


def components(
  known: Latents, units: Mapping[str, np.ndarray]
) -> dict[str, Components]:
  """Returns the components of each scale.

  Args:
    known: {scale: [M, h, w, C]} of training images.
    units: {scale: [C]}, as in Components.
  """
  found = {}
  for name, z in known.items():
    flat = (z / units[name]).reshape(-1, z.shape[-1]).astype(np.float64)
    mean = flat.mean(0)
    _, vectors = np.linalg.eigh(np.atleast_2d(np.cov(flat, rowvar=False)))
    basis = vectors[:, ::-1]
    limit = 2 * np.abs((flat - mean) @ basis).max(0)
    found[name] = Components(units[name], mean, basis, limit)
  return found


def principal(
  share: float, bases: Mapping[str, Components], rounding: Rounding
) -> Rounding:
  """Returns what keeps some of each scale's components.

  Components beyond their limit become that.

  Args:
    share: of a scale's channels that are kept; above 0, at most 1.
    bases: {scale: its components}.
    rounding: of the components kept, {scale: [M, h, w, K]}.
  """
  kept = {}
  for name, (unit, mean, basis, limit) in bases.items():
    k = math.ceil(share * len(unit))
    kept[name] = Components(unit, mean, basis[:, :k], limit[:k])

  def apply(latents):
    parts = {}
    for name, (unit, mean, basis, limit) in kept.items():
      part = (latents[name] / unit - mean) @ basis
      parts[name] = np.float32(np.clip(part, -limit, limit))
    arrived, size = rounding(parts)
    back = {
      name: np.float32((arrived[name] @ basis.T + mean) * unit)
      for name, (unit, mean, basis, _) in kept.items()
    }
    return back, size

  return apply


def _halved(latents):
  arrived = {name: np.float16(z).astype('f4') for name, z in latents.items()}
  return arrived, plain_bytes(latents)


def plain_bytes(latents: Latents) -> np.ndarray:
  """Returns the bytes [M] of latents in float16."""
  numbers = sum(z[0].size for z in latents.values())
  return np.full(count(latents), envelope.BITS['float16'] // 8 * numbers)


def count(latents: Latents) -> int:
  """Returns M."""
  return len(next(iter(latents.values())))
