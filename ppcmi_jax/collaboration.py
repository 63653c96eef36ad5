"""The hospitals and the server of one run: train them, restore them.

`train` plays the whole method in one process: every client trains its two
autoencoders and writes its contributions as message files; the server trains
the mapping network from those files alone. `restore` gives the trained
clients and server back. All of it resumes wherever it stopped.
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from absl import logging

from ppcmi_jax import (
  client_training,
  config_checks,
  contributions,
  enrolment,
  hospital_data,
  hospitals,
  images,
  learners,
  privacy_guarantee,
  processes,
  server_training,
  train_step,
)
from ppcmi_jax import (
  server as server_lib,
)
from ppcmi_jax import (
  workdir as workdir_lib,
)


class Connection(NamedTuple):
  """The parties of one wire dtype.

  Attributes:
    server: its functions.
    ask: (client, image [B, H, W, C], own=None) -> (mask uint8 [B, H, W], query
      bytes, reply bytes), the whole journey; `own` as `client.Client.reveal`.
  """

  server: server_lib.Server
  ask: Callable[..., tuple[Any, bytes, bytes]]


class Collaboration(NamedTuple):
  """What `restore` returns.

  Attributes:
    data: of the run.
    predict: {client: image [B, H, W, C] -> mask uint8 [B, H, W]}, through the
      whole protected path with ppcmi_sf.
    predict_fused: the same, fused with what the hospital itself says; of the
      clients whose image autoencoder was trained to segment.
    hospitals: {client: Hospital}; empty for a baseline.
    networks: {name: (function, variables, inputs)}, what computes, with inputs
      of batch 1, for its costs.
    latents: {modality: {scale: shape [1, h, w, C]}}; empty for a baseline.
    autoencoders: the clients' models and tasks; None for a baseline.
    server, server_state: its functions, and the variables of its mapping
      network; None for a baseline.
    connect: wire dtype -> Connection, the same networks and keys.
    guarantee: what DP-SGD promises of the mapping network, where it trained it.
  """

  data: hospital_data.Data
  predict: Mapping[str, Callable[[Any], Any]]
  predict_fused: Mapping[str, Callable[[Any], Any]]
  hospitals: Mapping[str, hospitals.Hospital]
  networks: Mapping[str, tuple[Callable[..., Any], Any, tuple[Any, ...]]]
  latents: Mapping[str, Mapping[str, Any]]
  autoencoders: learners.Learners | None = None
  server: server_lib.Server | None = None
  server_state: Any = None
  connect: Callable[[str], Connection] | None = None
  guarantee: privacy_guarantee.Guarantee | None = None


def train(config: Any, path: str | pathlib.Path) -> None:
  """Trains the method that a configuration describes; resumes if stopped.

  Args:
    config: an ml_collections.ConfigDict, as configs/ have.
    path: of the workdir.

  Raises:
    ValueError: bad configuration, data, workdir or keys.
    FloatingPointError: a loss became NaN or infinite.
  """
  train_step.meet()
  config_checks.check(config)
  config_checks.check_networks(config)
  workdir = processes.in_turn(
    lambda: workdir_lib.Workdir(path, config.to_dict())
  )
  processes.check_shared(workdir.path)
  with contextlib.ExitStack() as stack:
    processes.first(lambda: stack.enter_context(workdir.lock()))
    data = processes.in_turn(lambda: hospital_data.load(config, workdir))
    if processes.is_first():
      print(data.table, flush=True)
    if config.method in learners.BASELINES:
      client_training.train_baseline(config, workdir, data)
    else:
      _train_ppcmi_sf(config, workdir, data)


def _train_ppcmi_sf(config, workdir, data):
  if config.protection != 'sealed' and processes.is_first():
    logging.warning(learners.PROTECTION_NOTES[config.protection])
  names = list(data.hospitals)
  if config.dp.noise_multiplier:
    privacy_guarantee.check_units(
      sum(len(parts['train'].case) for parts in data.hospitals.values()),
      expected_batch=config.mapping_batch_size,
      delta=config.dp.delta,
    )
  autoencoders = learners.autoencoders(
    config, channels=data.channels, num_classes=data.num_classes
  )
  trainers = {'image': autoencoders.image, 'mask': autoencoders.mask}
  sources = client_training.pretrained(config, workdir, data, trainers)
  processes.first(lambda: enrolment.enrol(config, workdir, names))
  count = client_training.train_autoencoders(
    config, workdir, data, trainers, sources
  )
  processes.first(lambda: _contribute(config, workdir, data, autoencoders))
  server_training.train(
    config,
    workdir,
    names=names,
    latents=autoencoders.latents,
    title=f'{count + 1}/{count + 1} mapping network, server',
  )


def _contribute(config, workdir, data, autoencoders):
  for name, parts in data.hospitals.items():
    hospital = hospitals.restore_hospital(
      config, workdir, data, autoencoders, name
    )
    hospitals.warn_of_weak_classes(data, name, hospital)
    contributions.forget_old(workdir, name, hospital.state)
    contributions.write(
      config, workdir, name, parts, hospital.client, hospital.state
    )


def restore(config: Any, path: str | pathlib.Path) -> Collaboration:
  """Returns the trained clients and server of a workdir.

  Raises:
    ValueError: no such run, another configuration, training not finished, no
      whole checkpoint, a missing or wrong key file, or DP-SGD's promise
      missing or damaged.
  """
  config_checks.check(config)
  workdir = workdir_lib.Workdir(path, config.to_dict(), create=False)
  data = hospital_data.load(config, workdir)
  names = list(data.hospitals)
  if config.method in learners.BASELINES:
    task, trainer = learners.baseline(config, num_classes=data.num_classes)
    predict = {}
    groups = client_training.baseline_groups(config, data)
    for directory, group in groups.items():
      variables = trainer.restore(
        data.sample(), workdir.checkpoints(directory), warn=logging.warning
      )
      predict |= dict.fromkeys(
        group, functools.partial(jax.jit(task.predict), variables)
      )
    networks = {
      config.method: (task.predict, variables, (data.sample()['image'],))
    }
    return Collaboration(data, predict, {}, {}, networks, {})

  autoencoders = learners.autoencoders(
    config, channels=data.channels, num_classes=data.num_classes
  )
  trained = {
    name: hospitals.restore_hospital(config, workdir, data, autoencoders, name)
    for name in names
  }
  latents = autoencoders.latents
  pair = server_training.blank_pair(latents)
  task, trainer = learners.mapping(config)
  server_state = trainer.restore(
    pair, workdir.checkpoints('mapping'), warn=logging.warning
  )

  def connect(wire_dtype):
    options = {'latents': latents, 'wire_dtype': wire_dtype}
    clients = {
      name: hospitals.make_client(
        name,
        enrolment.client_channel(config, workdir, name, **options),
        autoencoders,
      )
      for name in names
    }
    server = server_lib.make_server(
      predict=task.predict,
      channel=enrolment.server_channel(config, workdir, names, **options),
      latents=latents,
    )

    def ask(name, image, own=None):
      state = trained[name].state
      query, ticket = clients[name].protect(state, image)
      reply = server.respond(server_state, query)
      mask = clients[name].reveal(state, reply, ticket, own)
      return mask, query, reply

    return Connection(server, ask)

  connection = connect(config.wire_dtype)

  def predict(name, image):
    return connection.ask(name, image)[0]

  def predict_fused(name, image):
    own = trained[name].segment_alone(image)
    return connection.ask(name, image, own)[0]

  return Collaboration(
    data,
    {name: functools.partial(predict, name) for name in names},
    {name: functools.partial(predict_fused, name) for name in names}
    if autoencoders.segment_alone
    else {},
    trained,
    _networks(autoencoders, task, pair, data, trained, server_state),
    latents,
    autoencoders,
    connection.server,
    server_state,
    connect,
    privacy_guarantee.Guarantee.read(workdir)
    if config.dp.noise_multiplier
    else None,
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
    'mapping network': (task.predict, server_state, (pair['image'],)),
    'mask decoder': (decode, half(state.mask, 'decoder'), (pair['mask'],)),
  }
