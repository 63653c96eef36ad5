"""One training step: the state, the optimiser, all that is pmapped.

The batch is shared among all devices; the state has no device axis.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ppcmi_jax import examples as examples_lib
from ppcmi_jax import processes, tasks

Devices = Sequence[jax.Device]


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
    weight_decay: of AdamW, on kernels only; unused by 'constant'.
  """
  if schedule == 'constant':
    return optax.adam(learning_rate)
  if schedule != 'cosine':
    raise ValueError(
      f"schedule: expected 'constant' or 'cosine', found {schedule!r}"
    )
  warmup = max(1, steps // 20)
  rate = optax.warmup_cosine_decay_schedule(
    learning_rate / warmup, learning_rate, warmup, max(2, steps)
  )
  kernels = lambda params: jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )
  return optax.adamw(rate, weight_decay=weight_decay, mask=kernels)


def meet() -> None:
  """Joins the devices of all processes, while all are here.

  CPUs' do it at their first sum otherwise, which waits for half a minute only:
  less than one process may compile for longer than another.
  """
  if processes.count() == 1:
    return
  total = jax.pmap(lambda x: jax.lax.psum(x, 'batch'), axis_name='batch')
  jax.block_until_ready(total(np.zeros(jax.local_device_count(), np.float32)))


def init_state(
  task: tasks.Task, tx: optax.GradientTransformation, key: jax.Array, batch
) -> TrainState:
  """Returns the state before the first step; slow unless jitted."""
  variables = task.init(key, batch)
  return TrainState(
    step=jnp.int32(0),
    variables=variables,
    opt_state=tx.init(variables['params']),
    best_variables=jax.tree.map(jnp.copy, variables),
    best_loss=jnp.float32(jnp.inf),
    best_step=jnp.int32(0),
  )


@jax.jit
def copy(variables: tasks.Variables) -> tasks.Variables:
  """Returns arrays of their own, which the next step does not take over."""
  return jax.tree.map(jnp.copy, variables)


def replicate(state: TrainState, devices: Devices | None = None) -> TrainState:
  """Places a state as the train step returns it, which costs nothing.

  A state that lies elsewhere, new, restored or changed between steps, makes XLA
  compile the step once more.

  Args:
    state: without a device axis.
    devices: those of the step; by default all of all processes.
  """
  mesh = jax.sharding.Mesh(np.array(devices or jax.devices()), ('batch',))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  if processes.count() == 1:
    return jax.device_put(state, everywhere)

  def place(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      own = [shard.data for shard in x.addressable_shards]
      return jax.make_array_from_single_device_arrays(x.shape, everywhere, own)
    values = np.asarray(x)
    return jax.make_array_from_callback(
      values.shape, everywhere, lambda index: values[index]
    )

  return jax.tree.map(place, state)


def share(
  state: TrainState | None, like: TrainState, devices: Devices
) -> TrainState:
  """Places process 0's state, on all processes.

  Args:
    state: in process 0.
    like: its shapes and dtypes.
    devices: those of the step.
  """
  if processes.count() > 1:
    if not processes.is_first():
      state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    state = processes.broadcast(jax.device_get(state))
  return replicate(state, devices)


def sharding(devices: Devices, *axes: str) -> jax.sharding.NamedSharding:
  """Returns where the train step takes arguments from, without moving them.

  It is of this process' devices alone: each process puts there what it feeds.

  Args:
    devices: those of the step, of all processes.
    *axes: 'batch' for a batch [D, B/D, ...]; nothing for a key.
  """
  own = [d for d in devices if d.process_index == jax.process_index()]
  mesh = jax.sharding.Mesh(np.array(own), ('batch',))
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def make_train_step(
  task: tasks.Task,
  tx: optax.GradientTransformation,
  microbatches: int = 1,
  devices: Devices | None = None,
):
  """Returns the pmapped step: (state, batch, key) -> state, metrics.

  A batch is [D, B/D, ...], D local devices. Gradients, metrics and batch
  statistics are averaged over the axis 'batch', all devices that share it;
  models normalise over it too (their axis_name), and Dice is taken over it.

  Args:
    task: what to learn.
    tx: the optimiser.
    microbatches: parts that a device takes its share of the batch in, one after
      the other, to hold the activations of one part only. Their gradients and
      metrics are averaged. That is the gradient of the whole where the loss is
      a mean over examples; BatchNorm normalises each part by itself and moves
      its running statistics once a part, and a Dice term is that of a part.
      For accelerators: on CPUs XLA's convolutions in a loop take 20 times as
      long, and without the loop no memory is saved.
    devices: that share a batch; by default all of all processes.
  """

  def grad_of(variables, batch, key):
    def loss(params):
      return task.loss({**variables, 'params': params}, batch, key, train=True)

    grads, (metrics, variables) = jax.grad(loss, has_aux=True)(
      variables['params']
    )
    return grads, metrics, variables

  def grad_of_parts(variables, batch, key):
    parts = jax.tree.map(
      lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch
    )

    def add(carry, part):
      total, variables = carry
      *found, variables = grad_of(variables, part, key)
      return (jax.tree.map(jnp.add, total, found), variables), None

    first = jax.tree.map(lambda x: x[0], parts)
    like = jax.eval_shape(grad_of, variables, first, key)[:2]
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), list(like))
    (total, variables), _ = jax.lax.scan(add, (zero, variables), parts)
    mean = jax.tree.map(lambda x: x / microbatches, total)
    return *mean, variables

  def step(state, batch, key):
    key = jax.random.fold_in(key, state.step)
    take = grad_of if microbatches == 1 else grad_of_parts
    grads, metrics, variables = take(state.variables, batch, key)
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
    devices=devices,
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
    if processes.count() > 1:  # each computes the loss of its own batches
      variables = jax.tree.map(lambda x: x.addressable_data(0), variables)
    starts = range(0, count, batch_size)
    for start in starts[jax.process_index() :: processes.count()]:
      rows = np.arange(start, min(start + batch_size, count))
      batch = examples_lib.take(arrays, rows)
      total += len(rows) * float(loss(variables, batch))
    return processes.total(total) / count

  return mean_loss
