"""Trains a task with differential privacy: DP-SGD (arXiv 1607.00133).

Whoever receives the trained network learns little about any one unit of the
training data, measured by (epsilon, delta); `attacks.membership` measures the
same from below. The server, which trains, sees everything: this protects from
the network's users, not from the server.

Each step draws every unit independently with probability q (Poisson sampling,
what the accountant assumes; batches vary in size), clips the gradient of
each unit's mean loss to norm C, sums, adds N(0, (noise C)^2) to each
coordinate, and divides by the expected number of units.

The unit is what is protected. 'subject' hides whether a patient took part, with
all frames together: one clipped gradient for each subject. 'example' hides a
single frame only; of a patient with k frames it says at most k times epsilon
(and worse in delta), so it is no promise to patients.

What the guarantee does not cover: statistics of latents computed from the
training data (`tasks.Statistics`; take them from public data), the choice of
settings by looking at results, and a validation set. So there is no early
stopping here, and the last parameters are the result. Noise comes from JAX's
threefry with a 64-bit key, and floating-point noise has known subtleties
(Mironov, CCS 2012): a research tool.

The network must treat examples one by one: no BatchNorm. The fused mapping
network has norm='group'. The accountant is that of dp_accounting, which the
optional package jax-privacy brings.

  >>> print(Guarantee(2.0, 1e-5, 'subject', 1.1, 0.05, 800, 1.0, 200, ()))
  (2.000, 1e-05)-DP for one subject of 200, added or removed: noise 1.1, \
sampling rate 0.05, 800 steps, clipped at 1
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from ppcmi_jax import examples, tasks


class Guarantee(NamedTuple):
  """What a private training promises; print it.

  Attributes:
    epsilon, delta: of (epsilon, delta)-differential privacy.
    unit: 'subject' or 'example', that may be added or removed.
    noise_multiplier: standard deviation of the noise over clip_norm.
    sampling_rate: probability of a unit to be in a step's batch.
    steps: taken.
    clip_norm: largest norm of a unit's gradient.
    num_units: there were.
    notes: lines on what limits the guarantee.
  """

  epsilon: float
  delta: float
  unit: str
  noise_multiplier: float
  sampling_rate: float
  steps: int
  clip_norm: float
  num_units: int
  notes: tuple[str, ...]

  def __str__(self) -> str:
    lines = (
      f'({self.epsilon:.3f}, {self.delta:g})-DP for one {self.unit} of '
      f'{self.num_units}, added or removed: noise {self.noise_multiplier:g}, '
      f'sampling rate {self.sampling_rate:.3g}, {self.steps} steps, clipped at '
      f'{self.clip_norm:g}',
      *self.notes,
    )
    return '; '.join(lines)


def epsilon(
  *,
  noise_multiplier: float,
  num_units: int,
  expected_batch: int,
  steps: int,
  delta: float,
) -> float:
  """Returns epsilon of DP-SGD with Poisson sampling.

  By the privacy loss distributions of dp-accounting, one unit added or removed;
  infinite without noise.
  """
  if noise_multiplier == 0:
    return math.inf
  import dp_accounting  # optional, and slow to import

  accountant = dp_accounting.pld.PLDAccountant(
    dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
  )
  step = dp_accounting.PoissonSampledDpEvent(
    expected_batch / num_units, dp_accounting.GaussianDpEvent(noise_multiplier)
  )
  return float(accountant.compose(step, steps).get_epsilon(delta))


def noise_multiplier_for(
  target_epsilon: float,
  *,
  num_units: int,
  expected_batch: int,
  steps: int,
  delta: float,
) -> float:
  """Returns the least noise multiplier (within 0.01) that keeps to an epsilon.

  The result errs on the side of privacy.
  """
  of = lambda noise: epsilon(
    noise_multiplier=noise,
    num_units=num_units,
    expected_batch=expected_batch,
    steps=steps,
    delta=delta,
  )
  if target_epsilon <= 0:
    raise ValueError(
      f'target_epsilon: expected more than 0, found {target_epsilon}'
    )
  low, high = 0.0, 1.0
  while of(high) > target_epsilon:
    low, high = high, 2 * high
  while high - low > 0.01:
    middle = (low + high) / 2
    low, high = (
      (low, middle) if of(middle) <= target_epsilon else (middle, high)
    )
  return high


def fit(
  task: tasks.Task,
  train: Mapping[str, Any],
  *,
  subject: np.ndarray,
  steps: int,
  expected_batch: int,
  noise_multiplier: float,
  clip_norm: float,
  delta: float,
  learning_rate: float = 1e-3,
  unit: Literal['subject', 'example'] = 'subject',
  examples_per_unit: int = 4,
  microbatch: int = 16,
  seed: int | None = None,
) -> tuple[tasks.Variables, Guarantee]:
  """Trains a task by DP-SGD, with Adam on the privatised gradients.

  Args:
    task: what to learn, without batch statistics.
    train: a tree of arrays [N, ...].
    subject: [N], the name of each example's subject.
    steps: to take.
    expected_batch: units in a step's batch, on average.
    noise_multiplier: standard deviation of the noise over clip_norm; 0 trains
      without privacy.
    clip_norm: largest norm of a unit's gradient; about the median norm.
    delta: below one over the number of units.
    learning_rate: of Adam.
    unit: what is protected, see the module's docstring.
    examples_per_unit: examples of a subject that are used, chosen once; who
      has fewer has some repeated. Units of one example have one.
    microbatch: units whose gradients are in memory together.
    seed: of everything; None takes it from the operating system. Who knows it
      knows the noise, so a number is for experiments only.

  Returns:
    The task's variables after the last step, and what is promised of them.

  Raises:
    ValueError: batch statistics, an unknown unit, a delta that is no promise,
      or a batch larger than the data.
    FloatingPointError: the parameters are not finite.
    ModuleNotFoundError: without the optional package jax-privacy.
  """
  entropy = np.random.SeedSequence(seed)
  rng = np.random.default_rng(entropy)
  rows = _unit_rows(np.asarray(subject), unit, examples_per_unit, rng)
  if not 0 < delta < 1 / len(rows):
    raise ValueError(
      f'delta: expected above 0 and below one over the {len(rows)} units, '
      f'found {delta:g}; a tenth of that is usual'
    )
  if not 1 <= expected_batch <= len(rows):
    raise ValueError(
      f'expected_batch: expected 1 to the {len(rows)} units, found '
      f'{expected_batch}'
    )
  # Before hours of training: is the accountant there?
  promised = epsilon(
    noise_multiplier=noise_multiplier,
    num_units=len(rows),
    expected_batch=expected_batch,
    steps=steps,
    delta=delta,
  )
  # Initialisation and dropout are no secrets; 'rbg' compiles much faster.
  words = rng.integers(2**32, size=(3, 4), dtype=np.uint32)
  keys = [jax.random.wrap_key_data(w, impl='rbg') for w in words[:2]]
  noise_key = jax.random.wrap_key_data(words[2, :2])
  sample = examples.take(train, np.arange(1))
  if 'batch_stats' in jax.eval_shape(task.init, keys[0], sample):
    raise ValueError(
      'task: expected a network that treats examples one by one, found batch '
      "statistics; give the mapping network norm='group'"
    )
  variables = jax.jit(task.init)(keys[0], sample)
  params = variables['params']
  rest = {k: v for k, v in variables.items() if k != 'params'}

  def loss(params, batch, key, rest):
    return task.loss({**rest, 'params': params}, batch, key, train=True)[0]

  @jax.jit
  def accumulate(total, params, batch, present, key, rest):
    keys = jax.random.split(key, len(present))
    grads = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0, None))(
      params, batch, keys, rest
    )
    return jax.tree.map(jnp.add, total, clipped_sum(grads, present, clip_norm))

  @jax.jit
  def update(params, state, total, key):
    noisy = add_noise(total, noise_multiplier * clip_norm, key)
    grads = jax.tree.map(lambda g: g / expected_batch, noisy)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  tx = optax.adam(learning_rate)
  state, zero = tx.init(params), jax.tree.map(jnp.zeros_like, params)
  rate = expected_batch / len(rows)
  for step in range(steps):
    drawn = np.flatnonzero(rng.random(len(rows)) < rate)
    total, key = zero, jax.random.fold_in(keys[1], step)
    for start in range(0, len(drawn), microbatch):
      part = drawn[start : start + microbatch]
      batch = examples.take(train, rows[np.resize(part, microbatch)])
      present = np.arange(microbatch) < len(part)
      draw = jax.random.fold_in(key, start)
      total = accumulate(total, params, batch, present, draw, rest)
    params, state = update(
      params, state, total, jax.random.fold_in(noise_key, step)
    )
  if not all(bool(jnp.all(jnp.isfinite(p))) for p in jax.tree.leaves(params)):
    raise FloatingPointError(
      'the parameters are not finite; lower the learning rate'
    )

  notes = []
  if rest:
    notes.append(
      f'not covered: {", ".join(sorted(rest))}, which came with the task'
    )
  if seed is not None:
    notes.append('void for whoever knows the seed')
  return {**rest, 'params': params}, Guarantee(
    promised,
    delta,
    unit,
    noise_multiplier,
    rate,
    steps,
    clip_norm,
    len(rows),
    tuple(notes),
  )


def clipped_sum(grads: Any, present: jax.Array, clip_norm: float) -> Any:
  """Sums gradients [U, ...] of units, each clipped to a norm over all arrays.

  Args:
    grads: a tree of arrays [U, ...].
    present: bool [U], which units count; others are padding.
    clip_norm: the largest norm. A gradient with a NaN or infinity is left out:
      it must not spoil the sum, or the sum would tell of it.
  """
  squares = [
    jnp.sum(jnp.square(g.reshape(len(g), -1)), axis=1)
    for g in jax.tree.leaves(grads)
  ]
  norm = jnp.sqrt(sum(squares))
  counts = present & jnp.isfinite(norm)
  scale = jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-30))

  def add(g):
    across = (-1,) + (1,) * (g.ndim - 1)
    g = jnp.where(counts.reshape(across), g * scale.reshape(across), 0)
    return jnp.sum(g, axis=0)

  return jax.tree.map(add, grads)


def add_noise(total: Any, stddev: float, key: jax.Array) -> Any:
  """Adds independent normal noise to every number of a tree; consumes `key`."""
  flat, unravel = jax.flatten_util.ravel_pytree(total)
  noise = jax.random.normal(key, flat.shape, flat.dtype)
  return unravel(flat + stddev * noise)


def _unit_rows(subject, unit, examples_per_unit, rng):
  """Returns the rows of each unit's examples, int [U, G]."""
  if unit == 'example':
    return np.arange(len(subject))[:, None]
  if unit != 'subject':
    raise ValueError(f"unit: expected 'subject' or 'example', found {unit!r}")
  groups = [np.flatnonzero(subject == name) for name in np.unique(subject)]
  return np.stack(
    [np.resize(rng.permutation(rows), examples_per_unit) for rows in groups]
  )
