"""Trains a task with differential privacy: DP-SGD (arXiv 1607.00133).

Whoever receives the trained network learns little about any one unit of the
training data, measured by (epsilon, delta); `attacks.membership` measures the
same from below. The server, which trains, sees everything: this protects from
the network's users, not from the server.

Each step draws every unit independently with probability q (Poisson sampling,
what the accountant assumes; batches vary in size), clips the gradient of
each unit's mean loss to norm C, sums, adds N(0, (noise C)^2) to each
coordinate, and divides by the expected number of units. Drawing, clipping and
noise are the optional package jax-privacy's. Nothing is kept before the end: a
training that was stopped starts again with new noise, and what was never
released costs no privacy. Networks that were released add up.

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
network has norm='group'.
"""

from collections.abc import Mapping
from typing import Any

import jax
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
    examples_per_unit: examples of a subject in a step, at most, the next of its
      own in turn; who has fewer has some repeated. Units of one example have
      one.
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
  counts = np.unique(subject, return_counts=True)[1]
  num_units, size = len(counts), min(examples_per_unit, int(counts.max()))
  privacy_guarantee.check_units(
    num_units, expected_batch=expected_batch, delta=delta
  )
  # Before hours of training: is the accountant there?
  promised = privacy_guarantee.epsilon(
    noise_multiplier=noise_multiplier,
    num_units=num_units,
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
  rate = expected_batch / num_units
  accumulate, noise, batches = _mechanism(
    task,
    rate=rate,
    steps=steps,
    examples_per_unit=size,
    clip_norm=clip_norm,
    stddev=noise_multiplier * clip_norm,
    noise_key=noise_key,
  )
  mean, adam = optax.scale(1 / expected_batch), optax.adam(learning_rate)
  tx = optax.chain(noise, mean, adam)

  @jax.jit
  def update(params, state, total):
    updates, state = tx.update(total, state, params)
    return optax.apply_updates(params, updates), state

  state, zero = tx.init(params), jax.tree.map(jnp.zeros_like, params)
  progress = tqdm.tqdm(
    batches.batch_iterator(subject, rng),
    total=steps, desc=title, unit='step', mininterval=1.0, dynamic_ncols=True,
    disable=title is None,
  )  # fmt: skip
  for step, drawn in enumerate(progress):
    total, key = zero, jax.random.fold_in(keys[1], step)
    for start in range(0, len(drawn), microbatch):
      part = drawn[start : start + microbatch]
      batch = examples.take(train, np.resize(part, (microbatch, size)))
      padding = np.arange(microbatch) >= len(part)
      draw = jax.random.fold_in(key, start)
      total = accumulate(total, params, batch, draw, rest, padding)
    params, state = update(params, state, total)
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
    num_units,
    tuple(notes),
  )


def _mechanism(
  task, *, rate, steps, examples_per_unit, clip_norm, stddev, noise_key
):
  """Returns a microbatch's clipped sum, the noise on it, and who is drawn."""
  import jax_privacy  # optional, and slow to import

  def loss(params, batch, key, rest):
    return task.loss({**rest, 'params': params}, batch, key, train=True)[0]

  clipped = jax_privacy.clipped_grad(
    loss, l2_clip_norm=clip_norm, keep_batch_dim=False, prng_argnum=2
  )

  @jax.jit
  def accumulate(total, params, batch, key, rest, padding):
    found = clipped(params, batch, key, rest, is_padding_example=padding)
    return jax.tree.map(jnp.add, total, found)

  noise = jax_privacy.noise_addition.gaussian_privatizer(
    stddev=stddev, prng_key=noise_key
  )
  selection = jax_privacy.batch_selection
  batches = selection.UserSelectionStrategy(
    selection.CyclicPoissonSampling(
      rate, steps, partition_type=selection.PartitionType.INDEPENDENT
    ),
    examples_per_unit,
    shuffle_per_user=True,
  )
  return accumulate, noise, batches


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
