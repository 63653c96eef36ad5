"""Trains a task with differential privacy: DP-SGD (arXiv 1607.00133).

Whoever receives the trained network learns little about any one unit of the
training data, measured by (epsilon, delta); `attacks.membership` measures the
same from below. The server, which trains, sees everything: this protects from
the network's users, not from the server.

Each step draws every unit independently with probability q (Poisson sampling,
what the accountant assumes; batches vary in size), clips the gradient of
each unit's mean loss to norm C, sums, adds N(0, (noise C)^2) to each
coordinate, and divides by the expected number of units. Nothing is kept before
the end: a training that was stopped starts again with new noise, and what was
never released costs no privacy. Networks that were released add up.

The unit is what is protected: a subject, that is whether a patient took part,
with all frames together, by one clipped gradient for each. Where a subject is
less than a patient, of one with k of them it says at most k times epsilon (and
worse in delta), so it is no promise to patients. `fit_mapping`'s is none: its
unit is one training image with its augmented copies, as the server, which
trains, is not told whose image it is.

What the guarantee does not cover: autoencoders that learnt from the same
images, the choice of settings by looking at results, and a validation set. So
there is no early stopping here, and the last parameters are the result. Noise
comes from JAX's threefry with a 64-bit key, and floating-point noise has known
subtleties (Mironov, CCS 2012): a research tool.

The network must treat examples one by one: no BatchNorm. The fused mapping
network has norm='group'. The accountant is that of dp_accounting, which the
optional package jax-privacy brings.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from ppcmi_jax import examples, privacy_guarantee, tasks


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
  examples_per_unit: int = 4,
  microbatch: int = 16,
  seed: int | None = None,
  title: str | None = None,
) -> tuple[tasks.Variables, privacy_guarantee.Guarantee]:
  """Trains a task by DP-SGD, with Adam on the privatised gradients.

  Args:
    task: what to learn, without batch statistics.
    train: a tree of arrays [N, ...].
    subject: [N], the name of each example's subject, the unit.
    steps: to take.
    expected_batch: units in a step's batch, on average.
    noise_multiplier: standard deviation of the noise over clip_norm; 0 trains
      without privacy.
    clip_norm: largest norm of a unit's gradient; about the median norm.
    delta: below one over the number of units.
    learning_rate: of Adam.
    examples_per_unit: examples of a subject in a step, at most, drawn anew each
      time; who has fewer has some repeated. Units of one example have one.
    microbatch: units whose gradients are in memory together.
    seed: of everything; None takes it from the operating system. Who knows it
      knows the noise, so a number is for experiments only.
    title: for a progress bar; none without.

  Returns:
    The task's variables after the last step, and what is promised of them.

  Raises:
    ValueError: batch statistics, a delta that is no promise,
      or a batch larger than the data.
    FloatingPointError: the parameters are not finite.
    ModuleNotFoundError: without the optional package jax-privacy.
  """
  entropy = np.random.SeedSequence(seed)
  rng = np.random.default_rng(entropy)
  subject = np.asarray(subject)
  rows = [np.flatnonzero(subject == name) for name in np.unique(subject)]
  size = min(examples_per_unit, max(map(len, rows)))
  privacy_guarantee.check_units(
    len(rows), expected_batch=expected_batch, delta=delta
  )
  # Before hours of training: is the accountant there?
  promised = privacy_guarantee.epsilon(
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
  tx = optax.adam(learning_rate)
  accumulate, update = _step(
    task, tx, clip_norm, noise_multiplier, expected_batch
  )
  state, zero = tx.init(params), jax.tree.map(jnp.zeros_like, params)
  rate = expected_batch / len(rows)
  for step in tqdm.trange(
    steps, desc=title, unit='step', mininterval=1.0, dynamic_ncols=True,
    disable=title is None,
  ):  # fmt: skip
    drawn = np.flatnonzero(rng.random(len(rows)) < rate)
    total, key = zero, jax.random.fold_in(keys[1], step)
    for start in range(0, len(drawn), microbatch):
      part = drawn[start : start + microbatch]
      chosen = [
        np.resize(rng.permutation(rows[unit_number]), size)
        for unit_number in np.resize(part, microbatch)
      ]
      batch = examples.take(train, np.stack(chosen))
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
  return {**rest, 'params': params}, privacy_guarantee.Guarantee(
    promised,
    delta,
    'subject',
    noise_multiplier,
    rate,
    steps,
    clip_norm,
    len(rows),
    tuple(notes),
  )


def _step(task, tx, clip_norm, noise_multiplier, expected_batch):
  """Returns a step's two parts: a microbatch's clipped sum, and the rest."""

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

  return accumulate, update


def fit_mapping(
  task: tasks.Task,
  pairs: Mapping[str, Any],
  *,
  source: np.ndarray,
  **options: Any,
) -> tuple[tasks.Variables, privacy_guarantee.Guarantee]:
  """Trains the server's network; an image with its copies is one unit.

  Args:
    task: `tasks.mapping` of a network without batch statistics.
    pairs: {'image': {scale: [M, h, w, C]}, 'mask': likewise}.
    source: int [M], the training image that a pair was made of.
    **options: of `fit`, but for the subject.

  Returns:
    As `fit`, with notes on what the server cannot promise.

  Raises:
    As `fit`.
  """
  variables, guarantee = fit(task, pairs, subject=source, **options)
  return variables, guarantee._replace(
    unit='training image (with all its augmented copies)',
    notes=(
      *guarantee.notes,
      'not per patient: of one with k training images it says at most k times '
      'this epsilon, at a worse delta',
      'with the autoencoders held fixed, which were made from the same images '
      'without noise',
      'against whoever uses or has the mapping network, not against the server',
    ),
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
