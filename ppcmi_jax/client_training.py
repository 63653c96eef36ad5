"""The clients' side of training: their autoencoders, or baselines.

What is trained here is independent of each other, and trained side by side.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from ppcmi_jax import (
  checkpoints,
  hospital_data,
  input_pipeline,
  learners,
  pretraining,
  processes,
  side_by_side,
  tasks,
  training,
)
from ppcmi_jax import (
  examples as examples_lib,
)
from ppcmi_jax import (
  workdir as workdir_lib,
)

Source = Callable[[], tasks.Variables]


def train_autoencoders(
  config: Any,
  workdir: workdir_lib.Workdir,
  data: hospital_data.Data,
  trainers: Mapping[str, training.Trainer],
  sources: Mapping[str, Source],
) -> int:
  """Trains every client's autoencoders.

  Args:
    config: of the run.
    workdir: of the run.
    data: of the run.
    trainers: {modality: of the autoencoder}.
    sources: of `pretrained`.

  Returns:
    How many networks that makes; titles count the server's as one more.
  """
  # Modalities in turn: two that begin together compile different programs.
  networks = list(itertools.product(data.hospitals, trainers))
  count = len(networks)

  def fit(devices, stopped, number):
    name, modality = networks[number]
    trainers[modality].fit(
      data.hospitals[name]['train'].arrays(),
      data.hospitals[name]['valid'].arrays(),
      seed=config.seed,
      directory=workdir.checkpoints(f'{modality}_{name}'),
      title=f'{number + 1}/{count + 1} {modality} autoencoder, client {name}',
      log=workdir.log,
      warn=logging.warning,
      pretrained=sources.get(modality),
      devices=devices,
      stopped=stopped,
    )

  side_by_side.run(
    [functools.partial(fit, number=i) for i in range(len(networks))],
    at_once=config.side_by_side,
  )
  return count


def train_baseline(
  config: Any, workdir: workdir_lib.Workdir, data: hospital_data.Data
) -> None:
  """Trains a baseline, on the pooled data or each client's own."""
  _, trainer = learners.baseline(config, num_classes=data.num_classes)
  sources = pretrained(config, workdir, data, {'segmentation': trainer})

  def fit(devices, stopped, task, names):
    pooled = {
      split: jax.tree.map(
        lambda *a: np.concatenate(a),
        *(data.hospitals[name][split].arrays() for name in names),
      )
      for split in ('train', 'valid')
    }
    # Repeated rows, so that each client weighs the same in the losses.
    order = {
      split: input_pipeline.balanced_order(
        np.repeat(
          range(len(names)),
          [len(data.hospitals[name][split].case) for name in names],
        )
      )
      for split in pooled
    }
    trainer.fit(
      pooled['train'],
      examples_lib.take(pooled['valid'], order['valid']),
      seed=config.seed,
      directory=workdir.checkpoints(task),
      title=f'{config.method}, data of {", ".join(names)}',
      log=workdir.log,
      warn=logging.warning,
      order=order['train'],
      pretrained=sources.get('segmentation'),
      devices=devices,
      stopped=stopped,
    )

  side_by_side.run(
    [
      functools.partial(fit, task=task, names=names)
      for task, names in baseline_groups(config, data).items()
    ],
    at_once=1 if config.pooled else config.side_by_side,
  )


def pretrained(
  config: Any,
  workdir: workdir_lib.Workdir,
  data: hospital_data.Data,
  trainers: Mapping[str, training.Trainer],
) -> dict[str, Source]:
  """Returns {network: what reads the variables to start from}.

  Those of which a training has yet to begin are read now, in process 0, so
  that an error comes before there are keys; a run that resumes needs none.

  Args:
    config: of the run.
    workdir: of the run.
    data: of the run.
    trainers: {network: its trainer}.

  Raises:
    ValueError: what cannot be started from, with its field.
  """
  sources = pretraining.sources(config, data, trainers)

  def trainings(network):
    if config.method in learners.BASELINES:
      return baseline_groups(config, data)
    return [f'{network}_{name}' for name in data.hospitals]

  def read():
    for network, source in sources.items():
      directories = map(workdir.checkpoints, trainings(network))
      if not all(map(checkpoints.exist, directories)):
        source()

  processes.first(read)
  return sources


def baseline_groups(
  config: Any, data: hospital_data.Data
) -> dict[str, list[str]]:
  """Returns {task: clients whose data it sees}."""
  names = list(data.hospitals)
  if config.pooled:
    return {'segmentation': names}
  return {f'segmentation_{name}': [name] for name in names}
