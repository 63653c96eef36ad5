"""Trains an attacker's network, no further than its own held-out data allow.

The networks of this package begin as the attacker's prior (a mean image, a
mean mask) and learn what to add to it. The parameters kept are those of the
smallest held-out loss, the untrained ones among them: who learns nothing from
what was observed stays at the prior instead of memorising noise.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from ppcmi_jax import examples


def fit(
  loss: Callable[[Any, Any], jax.Array],
  params: Any,
  train: Any,
  valid: Any,
  *,
  steps: int = 2000,
  batch_size: int = 16,
  learning_rate: float = 1e-3,
  eval_every: int = 50,
  patience: int = 8,
  seed: int = 0,
) -> Any:
  """Minimises a loss by Adam with cosine decay and early stopping.

  Args:
    loss: (params, batch) -> the batch's mean loss; jitted here, for batches of
      one size.
    params: to begin with.
    train: a tree of arrays [N, ...] to draw batches from, without
      replacement within an epoch; N may be below batch_size, then all of it
      is the batch.
    valid: the same of held-out examples, at least one.
    steps: at most.
    batch_size: of training.
    learning_rate: the largest.
    eval_every: steps between looks at the held-out loss.
    patience: looks without a smaller loss before stopping.
    seed: of the order of the examples.

  Returns:
    The parameters of the smallest held-out loss.

  Raises:
    FloatingPointError: the loss is not finite.
  """
  count = len(jax.tree.leaves(train)[0])
  batch_size = min(batch_size, count)
  tx = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

  @jax.jit
  def step(params, state, batch):
    grads = jax.grad(loss)(params, batch)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(params, updates), state

  look = jax.jit(loss)

  def held_out(params):
    rows = np.arange(len(jax.tree.leaves(valid)[0]))
    parts = np.array_split(rows, -(-len(rows) // batch_size))
    total = sum(
      len(part) * float(look(params, examples.take(valid, part)))
      for part in parts
    )
    return total / len(rows)

  rng = np.random.default_rng(seed)
  best, best_loss, stale = params, held_out(params), 0
  state, order = tx.init(params), []
  for i in range(1, steps + 1):
    if len(order) < batch_size:
      order = rng.permutation(count)
    rows, order = order[:batch_size], order[batch_size:]
    params, state = step(params, state, examples.take(train, rows))
    if i % eval_every == 0 or i == steps:
      value, stale = held_out(params), stale + 1
      if not np.isfinite(value):
        raise FloatingPointError(
          f'the held-out loss is not finite at step {i}; lower the learning '
          'rate, or look for NaN in what was observed'
        )
      if value < best_loss:
        best, best_loss, stale = params, value, 0
      if stale >= patience:
        break
  return best
