"""The training loop: checkpoints, resuming, early stopping.

A batch is a pure function of the step, and randomness of (seed, step), so a
run that was killed continues bit for bit: the state is all there is.
"""

import contextlib
import functools
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from ppcmi_jax import (
  checkpoints,
  input_pipeline,
  processes,
  tasks,
  train_step,
)
from ppcmi_jax import examples as examples_lib

# Examples at once in a validation, whose Dice is that of a batch: as many
# whatever the devices and microbatches, so that the loss is the same.
_VALIDATION_BATCH = 16
# From its last checkpoint the same training would come to the same.
_UNSTABLE = (
  'look for NaN in the data, or train anew with a lower learning rate and '
  'another --workdir'
)


class Trainer:
  """Trains one task on any number of data sets of the same shapes.

  The compiled functions are kept, so that N clients compile once.

  Args:
    task: what to learn.
    learning_rate, schedule, weight_decay: see `train_step.optimizer`.
    steps: steps to take.
    batch_size: over all devices of all processes; divisible by their number.
    eval_every: steps between validations; each is followed by a checkpoint.
    patience: validations without a smaller loss before stopping early.
    microbatches: parts that each device takes a batch in, where the whole does
      not fit into its memory (`train_step.make_train_step`).
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
    microbatches: int = 1,
  ):
    self._task, self._steps = task, steps
    self._batch_size, self._microbatches = batch_size, microbatches
    self._eval_every, self._patience = min(eval_every, steps), patience
    self._tx = train_step.optimizer(
      learning_rate=learning_rate,
      steps=steps,
      schedule=schedule,
      weight_decay=weight_decay,
    )
    self._init = jax.jit(
      functools.partial(train_step.init_state, task, self._tx)
    )
    self._train_step = functools.cache(
      functools.partial(
        train_step.make_train_step, task, self._tx, microbatches
      )
    )
    self._validation_loss = train_step.make_validation_loss(
      task, min(batch_size, _VALIDATION_BATCH)
    )

  def restore(
    self,
    sample,
    directory: str | pathlib.Path,
    *,
    warn: Callable[[str], None] = print,
    ended: bool = True,
  ) -> tasks.Variables:
    """Returns the best variables of a training of this network.

    Args:
      sample: one example of the training data, [1, ...] arrays.
      directory: of the task's checkpoints.
      warn: called with a line for each checkpoint that cannot be used.
      ended: whether only this training will do, at its end; otherwise any of
        the same network.

    Raises:
      ValueError: no checkpoint is whole and of this network, or the training
        has not ended.
    """
    directory = pathlib.Path(directory)
    state = None
    if directory.is_dir():
      keeper = checkpoints.Checkpoints(directory, warn=warn, read_only=True)
      state = keeper.restore(self.abstract_state(sample))
      keeper.close()
    if state is None:
      raise ValueError(
        f'{directory}: expected a checkpoint of this network, found none that '
        'is whole' + '; run train.py first' * ended
      )
    if ended and not self.is_done(state):
      raise ValueError(
        f'{directory}: training stopped at step {int(state.step)} of '
        f'{self._steps}; run train.py to continue it'
      )
    return state.best_variables

  def adopt(
    self, variables: tasks.Variables, sample, directory: str | pathlib.Path
  ) -> None:
    """Writes variables from elsewhere as the end of a training.

    Args:
      variables: of the task, float32.
      sample: one example of the training data, [1, ...] arrays.
      directory: of the task's checkpoints, without any.

    Raises:
      ValueError: they are not of the task's network; names the first array
        that differs and both shapes.
    """
    expected = self.abstract_state(sample)
    _check_same_network(variables, expected.variables)
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), expected)
    steps, variables = jnp.int32(self._steps), jax.device_put(variables)
    state = state._replace(
      step=steps,
      variables=variables,
      best_variables=variables,
      best_step=steps,
    )
    with contextlib.closing(checkpoints.Checkpoints(directory)) as keeper:
      keeper.save(self._steps, state)

  def is_done(self, state: train_step.TrainState) -> bool:
    """Says whether all steps were taken, or training stopped early."""
    stale = int(state.step) - int(state.best_step)
    return (
      int(state.step) >= self._steps
      or stale >= self._patience * self._eval_every
    )

  def abstract_state(self, batch) -> train_step.TrainState:
    """Returns the state's shapes and dtypes for data of a batch's shapes."""
    return jax.eval_shape(self._init, jax.random.key(0), batch)

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
    pretrained: Callable[[], tasks.Variables] | None = None,
    devices: train_step.Devices | None = None,
    stopped: Callable[[], bool] = lambda: False,
  ) -> train_step.TrainState:
    """Trains from the last checkpoint, or from the start, to the end.

    Args:
      train: a tree of arrays [N, ...] to draw batches from.
      valid: the same of the validation examples, at least one.
      seed: of initialisation, order and randomness; never of secrets.
      directory: of the task's checkpoints.
      title: for the progress bar and error messages.
      log: called with {'task', 'step', 'loss', 'valid_loss', 'seconds',
        'stepped', 'waited'} at each validation; seconds since the one before,
        or since the start, how many of them went by in steps, the first one's
        compilation included, and how many of those waiting for a batch.
      warn: called with a line for each damaged checkpoint.
      order: rows of `train` to draw from, with repeats; all once if None.
      pretrained: returns variables to start from, where there is no
        checkpoint yet; they are drawn from the seed if None.
      devices: those that train; by default all of all processes.
      stopped: asked before each step whether to end here, as if killed.

    Returns:
      The final state; `best_variables` are the ones to use.

    Raises:
      ValueError: the devices and microbatches don't divide the batch.
      FloatingPointError: the loss is not finite; names the step.
    """
    clock = time.monotonic()
    devices = tuple(devices or jax.devices())
    check_batch_size(self._batch_size, len(devices), self._microbatches)
    take_step = self._train_step(devices)
    # The 'rbg' generator compiles in a tenth of the time of the default one.
    init_key = jax.random.key(seed, impl='rbg')
    step_key = jax.device_put(
      jax.random.key(seed), train_step.sharding(devices)
    )
    order = (
      np.arange(len(jax.tree.leaves(train)[0])) if order is None else order
    )
    sample = examples_lib.take(train, np.arange(1))
    like = self.abstract_state(sample)
    keeper = processes.first(
      lambda: checkpoints.Checkpoints(directory, warn=warn)
    )

    def begin():
      state = keeper.restore(like, move_aside=True)
      if state is not None:
        return state
      state = self._init(init_key, sample)
      if pretrained is None:
        return state
      start = pretrained()
      return state._replace(
        variables=train_step.copy(start),
        best_variables=train_step.copy(start),
      )

    state = train_step.share(processes.first(begin), like, devices)
    losses, step, done, waited = [], int(state.step), self.is_done(state), 0.0
    shared = train_step.sharding(devices, 'batch')

    def batch_at(step):
      batch = input_pipeline.batch_at(
        train,
        step,
        order=order,
        batch_size=self._batch_size,
        seed=seed,
        parts=len(devices) // processes.count(),
      )
      return jax.device_put(batch, shared)

    batches = input_pipeline.ahead(batch_at, range(step, self._steps))
    with contextlib.ExitStack() as stack:
      stack.enter_context(contextlib.closing(batches))
      if keeper:
        stack.enter_context(contextlib.closing(keeper))
      bar = stack.enter_context(
        tqdm.tqdm(
          total=self._steps,
          initial=step,
          desc=title,
          unit='step',
          mininterval=1.0,
          dynamic_ncols=True,
          disable=not processes.is_first(),
        )
      )
      begun = time.monotonic()
      while not done and not stopped():
        start = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - start
        state, metrics = take_step(state, batch, step_key)
        processes.settle(metrics)
        losses.append(metrics['loss'])
        bar.update()
        step += 1
        if step % 20 == 0:
          bar.set_postfix({'loss': f'{float(losses[-1]):.4f}'}, refresh=False)
        if step % self._eval_every == 0 or step == self._steps:
          jax.block_until_ready(state)  # steps end later than their calls
          stepped = time.monotonic() - begun
          loss = self._validation_loss(state.variables, valid)
          state, row = _note(state, losses, loss, title)
          bar.set_postfix({k: f'{v:.4f}' for k, v in row.items()})
          state = train_step.replicate(state, devices)
          losses, seconds = [], time.monotonic() - clock
          clock += seconds
          row |= {'seconds': seconds, 'stepped': stepped, 'waited': waited}
          waited = 0.0
          if processes.is_first():
            log({'task': title, 'step': step, **row})
          if keeper:
            keeper.save(step, state)
          done, begun = self.is_done(state), time.monotonic()
    return state


def check_batch_size(
  batch_size: int,
  num_devices: int,
  microbatches: int = 1,
  *,
  name: str = 'batch_size',
) -> None:
  """Raises ValueError, with a name, unless a batch is shared out equally."""
  if batch_size % (num_devices * microbatches):
    several = f' times {microbatches} microbatches' * (microbatches > 1)
    raise ValueError(
      f'{name}: expected a multiple of the {num_devices} devices{several}, '
      f'found {batch_size}'
    )


def _note(
  state, losses, valid_loss, title
) -> tuple[train_step.TrainState, dict[str, float]]:
  """Returns the state with its best variables, and what there is to log."""
  step = int(state.step)
  losses = np.array(jax.device_get(losses))
  if not np.all(np.isfinite(losses)):
    first = step - len(losses) + int(np.argmin(np.isfinite(losses))) + 1
    raise FloatingPointError(
      f'{title}: the loss is not finite at step {first}; {_UNSTABLE}'
    )
  if not math.isfinite(valid_loss):
    raise FloatingPointError(
      f'{title}: the validation loss is not finite at step {step}; {_UNSTABLE}'
    )
  if valid_loss < float(state.best_loss):
    state = state._replace(
      best_variables=train_step.copy(state.variables),
      best_loss=np.float32(valid_loss),
      best_step=np.int32(step),
    )
  return state, {'loss': float(np.mean(losses)), 'valid_loss': valid_loss}


def _check_same_network(variables, expected):
  shapes = [
    {
      '/'.join(key.key for key in path): tuple(leaf.shape)
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    for tree in (expected, variables)
  ]
  for name in sorted({**shapes[0], **shapes[1]}):
    want, have = (listed.get(name, 'no such array') for listed in shapes)
    if want != have:
      raise ValueError(f'{name}: expected {want}, found {have}')
