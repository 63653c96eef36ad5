"""The training loop: one pmapped step, checkpoints, early stopping.

A batch is a pure function of the step, and randomness of (seed, step), so a
run that was killed continues bit for bit: the state is all there is.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from ppcmi_jax import checkpoints, input_pipeline, tasks


class TrainState(NamedTuple):
  """Everything a task's training depends on; without a device axis.

  Attributes:
    step: int32, steps done.
    variables: the task's variables now.
    opt_state: the optimiser's state.
    best_variables: the variables of the smallest validation loss.
    best_loss: float32, that loss; infinity before the first validation.
    best_step: int32, its step.
  """

  step: jax.Array
  variables: tasks.Variables
  opt_state: Any
  best_variables: tasks.Variables
  best_loss: jax.Array
  best_step: jax.Array


def optimizer(
  *,
  learning_rate: float,
  steps: int,
  schedule: str = 'cosine',
  weight_decay: float = 0.0,
) -> optax.GradientTransformation:
  """Returns Adam with a constant rate, or AdamW with warm-up and cosine decay.

  Args:
    learning_rate: the largest rate.
    steps: length of the schedule.
    schedule: 'constant' (as the official code) or 'cosine', which warms up
      over the first twentieth.
    weight_decay: of AdamW, on kernels only.
  """
  if schedule == 'constant':
    rate = learning_rate
  elif schedule == 'cosine':
    rate = optax.warmup_cosine_decay_schedule(
      0.0, learning_rate, max(1, steps // 20), max(2, steps)
    )
  else:
    raise ValueError(
      f"schedule: expected 'constant' or 'cosine', found {schedule!r}"
    )
  kernels = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
  return optax.adamw(rate, weight_decay=weight_decay, mask=kernels)


def init_state(
  task: tasks.Task, tx: optax.GradientTransformation, key: jax.Array, batch
) -> TrainState:
  """Returns the state before the first step; jitted, for speed."""

  @jax.jit
  def init(key, batch):
    variables = task.init(key, batch)
    return TrainState(
      step=jnp.int32(0),
      variables=variables,
      opt_state=tx.init(variables['params']),
      best_variables=jax.tree.map(jnp.copy, variables),
      best_loss=jnp.float32(jnp.inf),
      best_step=jnp.int32(0),
    )

  return init(key, batch)


def make_train_step(task: tasks.Task, tx: optax.GradientTransformation):
  """Returns the pmapped step: (state, batch, key) -> state, metrics.

  A batch is [D, B/D, ...], D local devices. Gradients, metrics and batch statistics are averaged over the axis 'batch',
  all devices of all processes; models normalise over it too (axis_name).
  """

  def step(state, batch, key):
    key = jax.random.fold_in(key, state.step)

    def loss(params):
      return task.loss(
        {**state.variables, 'params': params}, batch, key, train=True
      )

    grads, (metrics, variables) = jax.grad(loss, has_aux=True)(
      state.variables['params']
    )
    moving = {k: v for k, v in variables.items() if k != 'params'}
    grads, metrics, moving = jax.lax.pmean((grads, metrics, moving), 'batch')
    updates, opt_state = tx.update(
      grads, state.opt_state, state.variables['params']
    )
    params = optax.apply_updates(state.variables['params'], updates)
    return state._replace(
      step=state.step + 1,
      variables={**moving, 'params': params},
      opt_state=opt_state,
    ), metrics

  return jax.pmap(
    step,
    axis_name='batch',
    in_axes=(None, 0, None),
    out_axes=None,
    donate_argnums=0,
  )


def make_validation_loss(task: tasks.Task, batch_size: int):
  """Returns (variables, arrays) -> mean loss over all examples, as a float."""

  @jax.jit
  def loss(variables, batch):
    return task.loss(variables, batch, jax.random.key(0), train=False)[0]

  def mean_loss(variables, arrays):
    count = len(jax.tree.leaves(arrays)[0])
    total = 0.0
    for start in range(0, count, batch_size):
      rows = np.arange(start, min(start + batch_size, count))
      batch = input_pipeline.take(arrays, rows)
      total += len(rows) * float(loss(variables, batch))
    return total / count

  return mean_loss


class Trainer:
  """Trains one task on any number of data sets of the same shapes.

  The compiled functions are kept, so that N clients compile once.

  Args:
    task: what to learn.
    learning_rate, schedule, weight_decay: see `optimizer`.
    steps: steps to take.
    batch_size: over all devices of all processes; divisible by their number.
    eval_every: steps between validations; each is followed by a checkpoint.
    patience: validations without a smaller loss before stopping early.
  """

  def __init__(
    self,
    task: tasks.Task,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    schedule: str = 'cosine',
    weight_decay: float = 0.0,
    eval_every: int = 100,
    patience: int = 10,
  ):
    if batch_size % jax.device_count():
      raise ValueError(
        f'batch_size: expected a multiple of the {jax.device_count()} devices, '
        f'found {batch_size}'
      )
    self._task, self._steps = task, steps
    self._batch_size = batch_size
    self._eval_every, self._patience = min(eval_every, steps), patience
    self._tx = optimizer(
      learning_rate=learning_rate,
      steps=steps,
      schedule=schedule,
      weight_decay=weight_decay,
    )
    self._train_step = make_train_step(task, self._tx)
    self._validation_loss = make_validation_loss(task, batch_size)

  @property
  def steps(self) -> int:
    return self._steps

  def restore(
    self,
    sample,
    directory: str | pathlib.Path,
    *,
    warn: Callable[[str], None] = print,
  ) -> tasks.Variables:
    """Returns the best variables of a training that has ended.

    Args:
      sample: one example of the training data, [1, ...] arrays.
      directory: of the task's checkpoints.
      warn: called with a line for each damaged checkpoint.

    Raises:
      ValueError: the training has not started, or has not ended.
    """
    directory = pathlib.Path(directory)
    state = None
    if directory.is_dir():
      keeper = checkpoints.Checkpoints(directory, warn=warn)
      state = keeper.restore(self.abstract_state(sample))
      keeper.close()
    if state is None:
      raise ValueError(f'{directory}: no whole checkpoint; run train.py first')
    if not self.is_done(state):
      raise ValueError(
        f'{directory}: training stopped at step {int(state.step)} of '
        f'{self._steps}; run train.py to continue it'
      )
    return state.best_variables

  def is_done(self, state: TrainState) -> bool:
    """Says whether all steps were taken, or training stopped early."""
    stale = int(state.step) - int(state.best_step)
    return (
      int(state.step) >= self._steps
      or stale >= self._patience * self._eval_every
    )

  def abstract_state(self, batch) -> TrainState:
    """Returns the state's shapes and dtypes for data of a batch's shapes."""
    return jax.eval_shape(
      functools.partial(init_state, self._task, self._tx),
      jax.random.key(0),
      batch,
    )

  def fit(
    self,
    train: Mapping[str, Any],
    valid: Mapping[str, Any],
    *,
    seed: int,
    directory: str | pathlib.Path,
    title: str = '',
    log: Callable[[dict], None] = lambda metrics: None,
    warn: Callable[[str], None] = print,
    order: np.ndarray | None = None,
  ) -> TrainState:
    """Trains from the last checkpoint, or from the start, to the end.

    Args:
      train: a tree of arrays [N, ...] to draw batches from.
      valid: the same of the validation examples, at least one.
      seed: of initialisation, order and randomness; never of secrets.
      directory: of the task's checkpoints.
      title: for the progress bar and error messages.
      log: called with {'step', 'loss', 'valid_loss', ...} at each validation.
      warn: called with a line for each damaged checkpoint.
      order: rows of `train` to draw from, with repeats; all once if None.

    Returns:
      The final state; `best_variables` are the ones to use.

    Raises:
      FloatingPointError: the loss is not finite; names the step.
    """
    keeper = checkpoints.Checkpoints(directory, warn=warn)
    init_key, step_key = jax.random.split(jax.random.key(seed))
    order = (
      np.arange(len(jax.tree.leaves(train)[0])) if order is None else order
    )
    sample = input_pipeline.take(train, np.arange(1))
    state = keeper.restore(self.abstract_state(sample))
    if state is None:
      state = init_state(self._task, self._tx, init_key, sample)
    losses = []
    bar = tqdm.tqdm(
      total=self._steps, initial=int(state.step), desc=title, unit='step',
      mininterval=1.0, dynamic_ncols=True,
    )  # fmt: skip
    step, done = int(state.step), self.is_done(state)
    while not done:
      batch = input_pipeline.batch_at(
        train, step, order=order, batch_size=self._batch_size, seed=seed
      )
      state, metrics = self._train_step(state, batch, step_key)
      losses.append(metrics['loss'])
      bar.update()
      step += 1
      if step % self._eval_every == 0 or step == self._steps:
        state = self._validate(state, losses, valid, title, bar, log)
        losses = []
        keeper.save(step, state)
        done = self.is_done(state)
    bar.close()
    keeper.close()
    return state

  def _validate(self, state, losses, valid, title, bar, log) -> TrainState:
    step = int(state.step)
    losses = np.array(jax.device_get(losses))
    if not np.all(np.isfinite(losses)):
      first = step - len(losses) + int(np.argmin(np.isfinite(losses))) + 1
      raise FloatingPointError(
        f'{title}: the loss is not finite at step {first}; lower the learning '
        'rate or look for NaN in the data, then start again: training '
        'continues from the last checkpoint'
      )
    valid_loss = self._validation_loss(state.variables, valid)
    if not math.isfinite(valid_loss):
      raise FloatingPointError(
        f'{title}: the validation loss is not finite at step {step}'
      )
    row = {'loss': float(np.mean(losses)), 'valid_loss': valid_loss}
    bar.set_postfix({k: f'{v:.4f}' for k, v in row.items()})
    log({'task': title, 'step': step, **row})
    if valid_loss < float(state.best_loss):
      state = state._replace(
        best_variables=jax.tree.map(jnp.copy, state.variables),
        best_loss=jnp.float32(valid_loss),
        best_step=jnp.int32(step),
      )
    return state
