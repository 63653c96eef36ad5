"""The clients' side of training: their autoencoders, or baselines.

What is trained here is independent of each other, and trained side by side.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from ppcmi_jax import (
  examples as examples_lib,
)
from ppcmi_jax import (
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
  workdir as workdir_lib,
)


def train_autoencoders(
  config: Any,
  workdir: workdir_lib.Workdir,
  data: hospital_data.Data,
  trainers: Mapping[str, training.Trainer],
  started: Mapping[str, tasks.Variables],
) -> int:
  """Trains every client's autoencoders.

  Args:
    config: of the run.
    workdir: of the run.
    data: of the run.
    trainers: {modality: of the autoencoder}.
    started: what `pretrained` found.

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
      pretrained=started.get(modality),
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
  found = pretrained(config, data, {'segmentation': trainer})

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
      pretrained=found.get('segmentation'),
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
  data: hospital_data.Data,
  trainers: Mapping[str, training.Trainer],
) -> dict[str, tasks.Variables]:
  """Returns {network: variables to start from}, in process 0; {} elsewhere."""
  load = lambda: pretraining.load(config, data, trainers)
  return processes.first(load) or {}


def baseline_groups(
  config: Any, data: hospital_data.Data
) -> dict[str, list[str]]:
  """Returns {task: clients whose data it sees}."""
  names = list(data.hospitals)
  if config.pooled:
    return {'segmentation': names}
  return {f'segmentation_{name}': [name] for name in names}
