"""The hospitals and the server of one run: train them, restore them.

`train` plays the whole method in one process: every client trains its two
autoencoders and writes its contributions as message files; the server trains
the mapping network from those files alone. `restore` gives the trained
clients and server back. All of it resumes wherever it stopped.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from ppcmi_jax import (
  examples as examples_lib,
)
from ppcmi_jax import (
  hospitals,
  images,
  input_pipeline,
  key_store,
  keyring,
  learners,
  tasks,
)
from ppcmi_jax import (
  server as server_lib,
)
from ppcmi_jax import (
  workdir as workdir_lib,
)


class Collaboration(NamedTuple):
  """What `restore` returns.

  Attributes:
    data: of the run.
    predict: {client: image [B, H, W, C] -> mask uint8 [B, H, W]}, through the
      whole protected path with ppcmi_sf.
    hospitals: {client: Hospital}; empty for a baseline.
    networks: {name: (function, variables, inputs)}, what computes, with inputs
      of batch 1, for its costs.
    server, server_state: None for a baseline.
  """

  data: hospitals.Data
  predict: Mapping[str, Callable[[Any], Any]]
  hospitals: Mapping[str, hospitals.Hospital]
  networks: Mapping[str, tuple[Callable[..., Any], Any, tuple[Any, ...]]]
  server: server_lib.Server | None = None
  server_state: server_lib.ServerState | None = None


def train(config: Any, path: str | pathlib.Path) -> None:
  """Trains the method that a configuration describes; resumes if stopped.

  Args:
    config: an ml_collections.ConfigDict, as configs/ have.
    path: of the workdir.

  Raises:
    ValueError: bad configuration, data, workdir or keys.
    FloatingPointError: a loss became NaN or infinite.
  """
  learners.check(config)
  workdir = workdir_lib.Workdir(path, config.to_dict())
  with workdir.lock():
    data = hospitals.load_data(config, workdir)
    print(data.table, flush=True)
    if config.method in learners.BASELINES:
      _train_baseline(config, workdir, data)
    else:
      _train_ppcmi_sf(config, workdir, data)


def _train_baseline(config, workdir, data):
  _, trainer = learners.baseline(config, num_classes=data.num_classes)
  for task, names in _baseline_groups(config, data).items():
    pooled = {
      split: jax.tree.map(
        lambda *a: np.concatenate(a),
        *(data.hospitals[name][split].arrays() for name in names),
      )
      for split in ('train', 'valid')
    }
    sizes = [len(data.hospitals[name]['train'].case) for name in names]
    trainer.fit(
      pooled['train'],
      pooled['valid'],
      seed=config.seed,
      directory=workdir.checkpoints(task),
      title=f'{config.method}, data of {", ".join(names)}',
      log=workdir.log,
      warn=logging.warning,
      order=input_pipeline.balanced_order(np.repeat(range(len(sizes)), sizes)),
    )


def _baseline_groups(config, data) -> dict[str, list[str]]:
  """Returns {task: clients whose data it sees}."""
  names = list(data.hospitals)
  if config.pooled:
    return {'segmentation': names}
  return {f'segmentation_{name}': [name] for name in names}


def _train_ppcmi_sf(config, workdir, data):
  names = list(data.hospitals)
  secrets, _ = key_store.open_keys(workdir, names, create=True)
  autoencoders = learners.autoencoders(
    config, channels=data.channels, num_classes=data.num_classes
  )
  count = 2 * len(names) + 1
  for i, (name, parts) in enumerate(data.hospitals.items()):
    for j, modality in enumerate(hospitals.MODALITIES):
      getattr(autoencoders, modality).fit(
        parts['train'].arrays(),
        parts['valid'].arrays(),
        seed=config.seed,
        directory=workdir.checkpoints(f'{modality}_{name}'),
        title=f'{2 * i + j + 1}/{count} {modality} autoencoder, client {name}',
        log=workdir.log,
        warn=logging.warning,
      )
  for name, parts in data.hospitals.items():
    hospital = hospitals.restore_hospital(
      config, workdir, data, autoencoders, name, secrets[name]
    )
    hospitals.warn_of_weak_classes(data, name, hospital)
    hospitals.forget_old_contributions(workdir, name, hospital)
    hospitals.contribute(config, workdir, name, parts, hospital)
  train_mapping(
    config,
    workdir,
    latents=autoencoders.latents,
    secrets=secrets,
    title=f'{count}/{count} mapping network, server',
  )


def train_mapping(
  config: Any,
  workdir: workdir_lib.Workdir,
  *,
  latents: Mapping[str, Mapping[str, Any]],
  secrets: Mapping[str, bytes],
  title: str,
) -> None:
  """Trains the server's network from message files and secrets, nothing else.

  Args:
    config: of the run.
    workdir: of the run; its messages/ are read.
    latents: {modality: {scale: shape [B, h, w, C]}}.
    secrets: {client: its 32 bytes}.
    title: for the progress bar.

  Raises:
    ValueError: as `server.read_contributions`.
  """
  transform = learners.TRANSFORMS[config.protection]
  server_secrets = {
    name: key_store.transform_secrets(
      workdir, transform.init, secret, name, config.protection, latents
    )
    for name, secret in secrets.items()
  }
  key_ids = {name: keyring.key_id(secret) for name, secret in secrets.items()}
  contributions = {
    split: server_lib.read_contributions(
      [
        path
        for name in key_ids
        for path in workdir.messages(name).glob(f'{split}-*.msg')
      ],
      transform=transform,
      secrets=server_secrets,
      key_ids=key_ids,
      latents=latents,
      protection=config.protection,
    )
    for split in ('train', 'valid')
  }
  pairs = contributions['train']
  statistics = {
    modality: tasks.Statistics.of(
      pairs[modality], pairs['client'], len(key_ids)
    )
    for modality in hospitals.MODALITIES
  }
  _, trainer = learners.mapping(config, statistics)
  valid = contributions['valid']
  trainer.fit(
    pairs,
    # Repeated rows, so that each client weighs the same in the loss.
    examples_lib.take(valid, input_pipeline.balanced_order(valid['client'])),
    seed=config.seed,
    directory=workdir.checkpoints('mapping'),
    title=title,
    log=workdir.log,
    warn=logging.warning,
    order=input_pipeline.balanced_order(pairs['client']),
  )


def blank_pair(latents: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a training pair of the mapping network, for shapes.

  Args:
    latents: {modality: {scale: shape [1, h, w, C]}}.
  """
  pair = jax.tree.map(lambda z: np.zeros(z.shape, z.dtype), dict(latents))
  return {**pair, 'client': np.zeros(1, np.int32)}


def restore(config: Any, path: str | pathlib.Path) -> Collaboration:
  """Returns the trained clients and server of a workdir.

  Raises:
    ValueError: no such run, another configuration, training not finished, no
      whole checkpoint, or a missing or wrong key file.
  """
  learners.check(config)
  workdir = workdir_lib.Workdir(path, config.to_dict(), create=False)
  data = hospitals.load_data(config, workdir)
  names = list(data.hospitals)
  if config.method in learners.BASELINES:
    task, trainer = learners.baseline(config, num_classes=data.num_classes)
    predict = {}
    for directory, group in _baseline_groups(config, data).items():
      variables = trainer.restore(
        data.sample(), workdir.checkpoints(directory), warn=logging.warning
      )
      predict |= dict.fromkeys(
        group, functools.partial(jax.jit(task.predict), variables)
      )
    networks = {
      config.method: (task.predict, variables, (data.sample()['image'],))
    }
    return Collaboration(data, predict, {}, networks)

  secrets, key_ids = key_store.open_keys(workdir, names, create=False)
  autoencoders = learners.autoencoders(
    config, channels=data.channels, num_classes=data.num_classes
  )
  trained = {
    name: hospitals.restore_hospital(
      config, workdir, data, autoencoders, name, secrets[name]
    )
    for name in names
  }
  latents = autoencoders.latents
  pair = blank_pair(latents)
  task, trainer = learners.mapping(
    config,
    {
      modality: tasks.Statistics.zeros(like, len(names))
      for modality, like in latents.items()
    },
  )
  server = server_lib.make_server(
    predict=task.predict,
    transform=learners.TRANSFORMS[config.protection],
    key_ids=key_ids,
    latents=latents['image'],
    protection=config.protection,
    wire_dtype=config.wire_dtype,
  )
  server_state = server_lib.ServerState(
    trainer.restore(
      pair,
      workdir.checkpoints('mapping'),
      warn=logging.warning,
    ),
    {name: hospital.state.secrets for name, hospital in trained.items()},
  )

  def predict(hospital, image):
    message, ticket = hospital.client.protect(hospital.state, image)
    reply = server.respond(server_state, message)
    return hospital.client.reveal(hospital.state, reply, ticket)

  return Collaboration(
    data,
    {
      name: functools.partial(predict, hospital)
      for name, hospital in trained.items()
    },
    trained,
    _networks(autoencoders, task, pair, data, trained, server_state),
    server,
    server_state,
  )


def _networks(autoencoders, task, pair, data, trained, server_state):
  state = next(iter(trained.values())).state

  def half(variables, name):
    return {kind: {name: tree[name]} for kind, tree in variables.items()}

  def encode(variables, image):
    image = images.unit_image(image)
    return autoencoders.image_model.apply(
      variables, image, train=False, method='encode'
    )

  def decode(variables, latents):
    return autoencoders.mask_model.apply(
      variables, latents, train=False, method='decode'
    )

  return {
    'image encoder': (
      encode,
      half(state.image, 'encoder'),
      (data.sample()['image'],),
    ),
    'mapping network': (
      task.predict,
      server_state.variables,
      (pair['image'], pair['client']),
    ),
    'mask decoder': (decode, half(state.mask, 'decoder'), (pair['mask'],)),
  }
