"""What computes: networks answering, and networks learning.

Weights are random: no time depends on them. The steps are those of training,
augmentation on the device included; the input pipeline and the transfer of
batches (`host`) are not.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from benchmarks import sizes as sizes_lib
from ppcmi_jax import learners, tasks, train_step

ACCELERATOR_STEPS = 20


def variables_of(task: tasks.Task, batch: Any) -> tasks.Variables:
  """Returns a task's variables, random kernels; without compiling its init."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(task.init, jax.random.key(0), batch)

  def draw(path, like):
    names = [str(getattr(key, 'key', key)) for key in path]
    if names[-1] == 'kernel':
      fan_in = math.prod(like.shape[:-1])
      drawn = rng.standard_normal(like.shape, np.float32)
      return jnp.asarray(drawn / np.sqrt(np.float32(fan_in)))
    ones = names[-1] in ('scale', 'var') or 'std' in names
    return jnp.full(like.shape, float(ones), like.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def latents_of(shapes: Any, batch: int) -> dict[str, jax.Array]:
  """Returns positive noise as latents {scale: [B, h, w, C]} of shapes."""
  rng = np.random.default_rng(0)
  return {
    name: jnp.asarray(
      rng.uniform(size=(batch, *like.shape[1:])).astype(np.float32)
    )
    for name, like in shapes.items()
  }


def mapping_task(size: sizes_lib.Size, config: Any = None) -> tasks.Task:
  """Returns the server's task."""
  return learners.mapping(config or size.method())[0]


def mapping_batch(size: sizes_lib.Size, batch: int) -> dict[str, Any]:
  """Returns training pairs of latents."""
  latents = size.learners().latents
  return {
    'image': latents_of(latents['image'], batch),
    'mask': latents_of(latents['mask'], batch),
  }


def networks(size: sizes_lib.Size) -> Iterator[measure.Case]:
  """Yields the inference of each network."""
  parts = size.learners()

  def encode(variables, image):
    return parts.image_model.apply(
      variables, image / 255, train=False, method='encode'
    )

  def decode(variables, latents):
    logits = parts.mask_model.apply(
      variables, latents, train=False, method='decode'
    )
    return jnp.argmax(logits, -1).astype(jnp.uint8)

  sample = size.pairs(1)
  mapping = mapping_task(size)
  trained = {
    'image encoder': (encode, variables_of(parts.image_task, sample)),
    'mapping': (
      mapping.predict,
      variables_of(mapping, mapping_batch(size, 1)),
    ),
    'mask decoder': (decode, variables_of(parts.mask_task, sample)),
  }
  for batch in size.batches:
    inputs = {
      'image encoder': (size.images(batch),),
      'mapping': (latents_of(parts.latents['image'], batch),),
      'mask decoder': (latents_of(parts.latents['mask'], batch),),
    }
    for name, (function, variables) in trained.items():
      yield measure.jitted(
        name, function, variables, *inputs[name], batch=batch
      )
  for method in learners.BASELINES:
    task, _ = learners.baseline(
      size.config(method), num_classes=size.num_classes
    )
    variables = variables_of(task, {'image': size.images(1)})
    for batch in size.batches:
      yield measure.jitted(
        method, task.predict, variables, size.images(batch), batch=batch
      )


def steps(size: sizes_lib.Size) -> Iterator[measure.Case]:
  """Yields a training step of each network, as `train.py` takes it."""
  for name in size.steps or STEPS:
    yield step(name, *STEPS[name](size), calls=_calls())


def _autoencoder_step(size, modality):
  config, parts = size.method(), size.learners()
  count = size.step_batch or config.autoencoder_batch_size
  task = getattr(parts, f'{modality}_task')
  return task, optimizer(config), size.pairs(count)


def _mapping_step(size):
  config = size.method()
  count = size.step_batch or config.mapping_batch_size
  return mapping_task(size), optimizer(config), mapping_batch(size, count)


def _baseline_step(size, method):
  config = size.config(method)
  task, _ = learners.baseline(config, num_classes=size.num_classes)
  count = size.step_batch or config.baseline_batch_size
  return task, optimizer(config), size.pairs(count)


# Name -> what gives task, optimiser and batch of a size.
STEPS = {
  'image autoencoder': functools.partial(_autoencoder_step, modality='image'),
  'mask autoencoder': functools.partial(_autoencoder_step, modality='mask'),
  'mapping': _mapping_step,
  **{
    method: functools.partial(_baseline_step, method=method)
    for method in learners.BASELINES
  },
}


def memory(size: sizes_lib.Size) -> Iterator[measure.Case]:
  """Yields training steps in ways that trade time for memory."""
  config = size.method()
  count = size.step_batch or config.mapping_batch_size
  train, batch = optimizer(config), mapping_batch(size, count)
  for remat in (False, True):
    config.mapping_remat = remat
    task = mapping_task(size, config=config)
    for parts in (1, 4):
      name = f'mapping, {parts} microbatches' + ', remat' * remat
      yield step(name, task, train, batch, microbatches=parts, calls=_calls())
  for parts in (1, 4):
    name = f'unet, {parts} microbatches'
    yield step(
      name,
      *_baseline_step(size, 'unet'),
      microbatches=parts,
      calls=_calls(),
    )


def _calls():
  """Returns how many steps in a row; an accelerator gets the next one early."""
  return 1 if jax.default_backend() == 'cpu' else ACCELERATOR_STEPS


def optimizer(config: Any) -> optax.GradientTransformation:
  """Returns the optimiser of a configuration, somewhere in its schedule."""
  return train_step.optimizer(
    learning_rate=1e-3,
    steps=1000,
    schedule=config.schedule,
    weight_decay=config.weight_decay,
  )


def step(
  name: str,
  task: tasks.Task,
  tx: optax.GradientTransformation,
  batch: dict[str, Any],
  variables: tasks.Variables | None = None,
  microbatches: int = 1,
  calls: int = 1,
) -> measure.Case:
  """Returns the case of one training step.

  Args:
    name: of the stage, which gives the metrics.
    task: to be trained.
    tx: its optimiser, some Adam.
    batch: without 'slot', [B, ...].
    variables: to begin with; random ones if None.
    microbatches: parts that a device takes its share in.
    calls: steps in a row, the times being those of one.

  Raises:
    ValueError: the devices can't share the batch.
  """
  count = len(jax.tree.leaves(batch)[0])
  devices = jax.local_device_count()
  if count % (devices * microbatches):
    raise ValueError(
      f'step_batch: expected a multiple of {devices} devices times '
      f'{microbatches} microbatches, found {count}'
    )
  batch = {**batch, 'slot': np.arange(count, dtype=np.int32)}
  sample = jax.tree.map(lambda x: x[:1], batch)
  init = functools.partial(train_step.init_state, task, tx)
  # Zeros, as every state of Adam begins; compiling `init` would take longer
  # than all that is measured.
  state = jax.tree.map(
    lambda like: jnp.zeros(like.shape, like.dtype),
    jax.eval_shape(init, jax.random.key(0), sample),
  )._replace(variables=variables or variables_of(task, sample))
  state = train_step.replicate(state)
  batch = jax.tree.map(
    lambda x: np.reshape(x, (devices, count // devices, *x.shape[1:])), batch
  )
  # Where training has it before the step, too.
  place = functools.partial(train_step.sharding, jax.devices())
  batch = jax.device_put(batch, place('batch'))
  train = train_step.make_train_step(task, tx, microbatches)
  key = jax.device_put(jax.random.key(0), place())
  cost = measure.cost(train, state, batch, key)
  # XLA counts the turns of a loop once.
  cost = cost._replace(
    flops=cost.flops * microbatches, bytes=cost.bytes * microbatches
  )
  kept = [state]

  def run(_):
    for _ in range(calls):
      kept[0], metrics = train(kept[0], batch, key)
    return metrics

  return measure.Case([(name, run)], count, {name: cost}, calls=calls)
