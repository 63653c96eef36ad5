"""The hospitals and the server of one run: train them, restore them.

`train` plays the whole method in one process: every client trains its two
autoencoders and writes its contributions as message files; the server trains
the mapping network from those files alone. `restore` gives the trained
clients and server back. All of it resumes wherever it stopped.

It is also where a configuration ends: what is below gets keyword arguments.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tabulate
import tqdm
from absl import logging

from ppcmi_jax import (
  augmentation,
  evaluators,
  input_pipeline,
  keyed,
  keyring,
  models,
  tasks,
  training,
)
from ppcmi_jax import (
  client as client_lib,
)
from ppcmi_jax import (
  server as server_lib,
)
from ppcmi_jax import (
  workdir as workdir_lib,
)

METHODS = ('ppcmi_sf', 'unet')
MODALITIES = ('image', 'mask')
CONTRIBUTION_BATCH = 16  # pairs in one message

TRANSFORMS = {
  'klt': keyed.chain(keyed.orthogonal(), keyed.permutation(), keyed.shift()),
  'none': keyed.chain(),
}


class Data(NamedTuple):
  """The data of a run.

  Attributes:
    hospitals: {client: {split: Examples}}.
    class_names: background first.
    within_subject: whether test and training share subjects.
    table: who has what, as text.
  """

  hospitals: Mapping[str, Mapping[str, input_pipeline.Examples]]
  class_names: tuple[str, ...]
  within_subject: bool
  table: str


class Hospital(NamedTuple):
  """A trained client: its functions, its state, its autoencoders' predicts."""

  client: client_lib.Client
  state: client_lib.ClientState
  reconstruct_image: Callable[[Any], jax.Array]
  reconstruct_mask: Callable[[Any], jax.Array]


class Collaboration(NamedTuple):
  """What `restore` returns.

  Attributes:
    data: of the run.
    predict: {client: image [B, H, W, C] -> mask uint8 [B, H, W]}, through the
      whole protected path with ppcmi_sf.
    hospitals: {client: Hospital}; empty for a baseline.
    server, server_state: None for a baseline.
  """

  data: Data
  predict: Mapping[str, Callable[[Any], Any]]
  hospitals: Mapping[str, Hospital]
  server: server_lib.Server | None = None
  server_state: server_lib.ServerState | None = None


def load_data(config: Any, workdir: workdir_lib.Workdir) -> Data:
  """Reads, splits and partitions the data set that a configuration names.

  Raises:
    ValueError: an unknown data set or split, a split or client without data.
  """
  examples, class_names = input_pipeline.load(
    config.dataset,
    image_size=config.image_size,
    data_dir=config.data_dir or None,
    options=config.dataset_options,
  )
  splits = input_pipeline.split(
    examples,
    mode=config.split,
    test_fraction=config.test_fraction,
    valid_fraction=config.valid_fraction,
    seed=config.seed,
  )
  input_pipeline.write_split(workdir.path / 'split.csv', examples, splits)
  hospitals = input_pipeline.partition(examples, splits)
  rows = [
    [name, split, len(part.case), len(np.unique(part.subject))]
    for name, parts in hospitals.items()
    for split, part in parts.items()
  ]
  table = tabulate.tabulate(rows, ['client', 'split', 'cases', 'subjects'])
  return Data(hospitals, class_names, config.split == 'blocks', table)


class Learners(NamedTuple):
  """The models, tasks and trainers that a configuration describes."""

  image_model: Any
  mask_model: Any
  image: training.Trainer
  mask: training.Trainer
  image_task: tasks.Task
  mask_task: tasks.Task
  latents: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]


def _trainer(config, task, steps) -> training.Trainer:
  return training.Trainer(
    task,
    steps=steps,
    batch_size=config.batch_size,
    learning_rate=config.learning_rate,
    schedule=config.schedule,
    weight_decay=config.weight_decay,
    eval_every=config.eval_every,
    patience=config.patience,
  )


def _learners(config, data: Data) -> Learners:
  """Builds the clients' autoencoders; all clients share them, compiled once."""
  any_examples = next(iter(data.hospitals.values()))['train']
  num_classes, channels = len(data.class_names), any_examples.image.shape[-1]
  augment = dict(config.augment)
  autoencoder = functools.partial(
    models.MODELS['autoencoder'],
    widths=tuple(config.autoencoder_widths),
    skips=config.skips,
    axis_name='batch',
  )
  image_model = autoencoder(channels=channels)
  mask_model = autoencoder(channels=num_classes)
  image_task = tasks.image_reconstruction(
    image_model, official=config.official_losses, augment=augment
  )
  mask_task = tasks.mask_reconstruction(
    mask_model,
    num_classes=num_classes,
    official=config.official_losses,
    augment=augment,
    latent_noise=config.latent_noise,
    latent_mixing=config.latent_mixing,
  )

  def latents(model, channels):
    x = jnp.zeros((1, config.image_size, config.image_size, channels))
    return jax.eval_shape(
      lambda key: model.init_with_output(key, x, train=False, method='encode')[
        0
      ],
      jax.random.key(0),
    )

  return Learners(
    image_model,
    mask_model,
    _trainer(config, image_task, config.image_steps),
    _trainer(config, mask_task, config.mask_steps),
    image_task,
    mask_task,
    {
      'image': latents(image_model, channels),
      'mask': latents(mask_model, num_classes),
    },
  )


def _mapping(config, statistics) -> tuple[tasks.Task, training.Trainer]:
  if config.mapping not in ('mapping', 'fused_mapping'):
    raise ValueError(
      "mapping: expected 'mapping' or 'fused_mapping', found "
      f'{config.mapping!r}'
    )
  model = models.MODELS[config.mapping](
    relu=not config.standardise,
    axis_name='batch',
    **{
      k: tuple(v) if isinstance(v, (list, tuple)) else v
      for k, v in config.mapping_options.items()
    },
  )
  if not config.standardise:
    statistics = {'image': None, 'mask': None}
  task = tasks.mapping(
    model,
    image_statistics=statistics['image'],
    mask_statistics=statistics['mask'],
  )
  return task, _trainer(config, task, config.mapping_steps)


def _baseline(config, data: Data) -> tuple[tasks.Task, training.Trainer]:
  task = tasks.segmentation(
    models.MODELS['unet'](
      num_classes=len(data.class_names),
      width=config.unet_width,
      axis_name='batch',
    ),
    num_classes=len(data.class_names),
    augment=dict(config.augment),
  )
  return task, _trainer(config, task, config.unet_steps)


def _check(config) -> None:
  if config.method not in METHODS:
    raise ValueError(
      f'method: expected one of {", ".join(METHODS)}, found {config.method!r}'
    )
  if config.method == 'ppcmi_sf' and config.protection not in TRANSFORMS:
    raise ValueError(
      f'protection: expected one of {", ".join(TRANSFORMS)}, found '
      f'{config.protection!r}'
    )


def open_keys(
  workdir: workdir_lib.Workdir, names: list[str], *, create: bool
) -> tuple[dict[str, bytes], dict[str, str]]:
  """Returns the secret and the key id of each client.

  A client's secret is made once, from the operating system's randomness; its
  public id is noted in clients.json, so that a missing or another key file is
  refused ever after.

  Raises:
    ValueError: a key file is missing, damaged, open to others, or not the one
      that the run was started with.
  """
  path = workdir.path / 'clients.json'
  known = json.loads(path.read_text()) if path.exists() else {}
  secrets = {}
  for name in names:
    key_path = workdir.secrets / f'{name}.key'
    if create and name not in known and not key_path.exists():
      secrets[name] = keyring.create(key_path)
    else:
      secrets[name] = keyring.load(key_path, key_id=known.get(name))
  key_ids = {name: keyring.key_id(secret) for name, secret in secrets.items()}
  if key_ids != known:
    workdir.write_text(path, json.dumps(key_ids, indent=2) + '\n')
  return secrets, key_ids


def train(config: Any, path: str | pathlib.Path) -> None:
  """Trains the method that a configuration describes; resumes if stopped.

  Args:
    config: an ml_collections.ConfigDict, as configs/ have.
    path: of the workdir.

  Raises:
    ValueError: bad configuration, data, workdir or keys.
    FloatingPointError: a loss became NaN or infinite.
  """
  _check(config)
  workdir = workdir_lib.Workdir(path, config.to_dict())
  data = load_data(config, workdir)
  print(data.table, flush=True)
  if config.method == 'unet':
    _train_baseline(config, workdir, data)
  else:
    _train_ppcmi_sf(config, workdir, data)


def _train_baseline(config, workdir, data):
  _, trainer = _baseline(config, data)
  pooled = {
    split: jax.tree.map(
      lambda *a: np.concatenate(a),
      *(parts[split].arrays() for parts in data.hospitals.values()),
    )
    for split in ('train', 'valid')
  }
  clients = [len(parts['train'].case) for parts in data.hospitals.values()]
  trainer.fit(
    pooled['train'],
    pooled['valid'],
    seed=config.seed,
    directory=workdir.checkpoints('segmentation'),
    title='segmentation, pooled data',
    log=workdir.log,
    warn=logging.warning,
    order=input_pipeline.balanced_order(
      np.repeat(range(len(clients)), clients)
    ),
  )


def _train_ppcmi_sf(config, workdir, data):
  names = list(data.hospitals)
  secrets, key_ids = open_keys(workdir, names, create=True)
  learners = _learners(config, data)
  count = 2 * len(names) + 1
  for i, (name, parts) in enumerate(data.hospitals.items()):
    for j, modality in enumerate(MODALITIES):
      getattr(learners, modality).fit(
        parts['train'].arrays(),
        parts['valid'].arrays(),
        seed=config.seed,
        directory=workdir.checkpoints(f'{modality}_{name}'),
        title=f'{2 * i + j + 1}/{count} {modality} autoencoder, client {name}',
        log=workdir.log,
        warn=logging.warning,
      )
  for name, parts in data.hospitals.items():
    hospital = _hospital(
      config, workdir, data, learners, name, secrets, key_ids
    )
    _warn_of_lost_classes(data, name, parts, hospital)
    _contribute(config, workdir, name, parts, hospital)
  _train_mapping(
    config, workdir, learners, secrets, key_ids, f'{count}/{count}'
  )


def _hospital(config, workdir, data, learners, name, secrets, key_ids):
  sample = input_pipeline.take(
    data.hospitals[name]['train'].arrays(), np.arange(1)
  )
  variables = {
    modality: getattr(learners, modality).restore(
      sample,
      workdir.checkpoints(f'{modality}_{name}'),
      warn=logging.warning,
    )
    for modality in MODALITIES
  }
  transform = TRANSFORMS[config.protection]
  return Hospital(
    client=client_lib.make_client(
      name=name,
      key_id=key_ids[name],
      image_model=learners.image_model,
      mask_model=learners.mask_model,
      transform=transform,
      protection=config.protection,
      wire_dtype=config.wire_dtype,
    ),
    state=client_lib.ClientState(
      **variables,
      secrets=keyring.transform_secrets(
        transform.init, secrets[name], name, learners.latents
      ),
    ),
    reconstruct_image=functools.partial(
      jax.jit(learners.image_task.predict), variables['image']
    ),
    reconstruct_mask=functools.partial(
      jax.jit(learners.mask_task.predict), variables['mask']
    ),
  )


def _warn_of_lost_classes(data, name, parts, hospital):
  scores = evaluators.mask_reconstruction(
    hospital.reconstruct_mask, parts['train'], class_names=data.class_names
  )
  for class_name in data.class_names[1:]:
    if scores[class_name]['dice'] < 0.5:
      logging.warning(
        'client %s: its mask autoencoder lost the class %r (Dice %.2f on its '
        'own training masks); nothing downstream can bring it back: train it '
        'longer (mask_steps) or lower latent_noise and latent_mixing',
        name, class_name, scores[class_name]['dice'],
      )  # fmt: skip


def _contribute(config, workdir, name, parts, hospital):
  """Writes the client's message files, those that are not there yet.

  Training pairs are sent once as they are and `copies` times augmented;
  augmentation is drawn from (seed, round, first row).
  """
  options = dict(config.augment)
  augment = jax.jit(
    lambda keys, image, mask: augmentation.augment(
      keys, tasks.unit_image(image), mask, **options
    )
  )
  batches = [
    (split, turn, start)
    for split, turns in (('train', 1 + config.copies), ('valid', 1))
    for turn in range(turns)
    for start in range(0, len(parts[split].case), CONTRIBUTION_BATCH)
  ]
  folder = workdir.messages(name)
  for split, turn, start in tqdm.tqdm(
    batches, desc=f'contributions of client {name}', unit='message'
  ):
    stem = f'{split}-{turn:03d}-{start:06d}'
    paths = [folder / f'{stem}.{modality}.msg' for modality in MODALITIES]
    if all(path.exists() for path in paths):
      continue
    rows = slice(start, start + CONTRIBUTION_BATCH)
    image, mask = parts[split].image[rows], parts[split].mask[rows]
    if turn:
      key = jax.random.key(config.seed)
      for number in (turn, start):
        key = jax.random.fold_in(key, number)
      image, mask = augment(jax.random.split(key, len(image)), image, mask)
    messages = hospital.client.contribute(hospital.state, image, mask)
    for path, message in zip(paths, messages, strict=True):
      workdir.write_bytes(path, message)


def _train_mapping(config, workdir, learners, secrets, key_ids, count):
  """Trains the server's network from message files and transform secrets."""
  transform = TRANSFORMS[config.protection]
  server_secrets = {
    name: keyring.transform_secrets(
      transform.init, secret, name, learners.latents
    )
    for name, secret in secrets.items()
  }
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
      protection=config.protection,
    )
    for split in ('train', 'valid')
  }
  pairs = contributions['train']
  statistics = {
    modality: tasks.Statistics.of(
      pairs[modality], pairs['client'], len(key_ids)
    )
    for modality in MODALITIES
  }
  _, trainer = _mapping(config, statistics)
  trainer.fit(
    pairs,
    contributions['valid'],
    seed=config.seed,
    directory=workdir.checkpoints('mapping'),
    title=f'{count} mapping network, server',
    log=workdir.log,
    warn=logging.warning,
    order=input_pipeline.balanced_order(pairs['client']),
  )


def restore(config: Any, path: str | pathlib.Path) -> Collaboration:
  """Returns the trained clients and server of a workdir.

  Raises:
    ValueError: no such run, another configuration, training not finished, no
      whole checkpoint, or a missing or wrong key file.
  """
  _check(config)
  workdir = workdir_lib.Workdir(path, config.to_dict(), create=False)
  data = load_data(config, workdir)
  names = list(data.hospitals)
  sample = input_pipeline.take(
    data.hospitals[names[0]]['train'].arrays(), np.arange(1)
  )
  if config.method == 'unet':
    task, trainer = _baseline(config, data)
    variables = trainer.restore(
      sample, workdir.checkpoints('segmentation'), warn=logging.warning
    )
    predict = functools.partial(jax.jit(task.predict), variables)
    return Collaboration(data, dict.fromkeys(names, predict), {})

  secrets, key_ids = open_keys(workdir, names, create=False)
  learners = _learners(config, data)
  hospitals = {
    name: _hospital(config, workdir, data, learners, name, secrets, key_ids)
    for name in names
  }
  blank = {
    modality: tasks.Statistics(
      *(
        {
          s: np.ones((len(names), z.shape[-1]), np.float32)
          for s, z in like.items()
        }
        for _ in tasks.Statistics._fields
      )
    )
    for modality, like in learners.latents.items()
  }
  task, trainer = _mapping(config, blank)
  pair = jax.tree.map(lambda z: np.zeros(z.shape, z.dtype), learners.latents)
  pair['client'] = np.zeros(1, np.int32)
  server = server_lib.make_server(
    predict=task.predict,
    transform=TRANSFORMS[config.protection],
    key_ids=key_ids,
    protection=config.protection,
    wire_dtype=config.wire_dtype,
  )
  server_state = server_lib.ServerState(
    trainer.restore(pair, workdir.checkpoints('mapping'), warn=logging.warning),
    {name: hospital.state.secrets for name, hospital in hospitals.items()},
  )

  def predict(hospital, image):
    message, ticket = hospital.client.protect(hospital.state, image)
    reply = server.respond(server_state, message)
    return hospital.client.reveal(hospital.state, reply, ticket)

  return Collaboration(
    data,
    {
      name: functools.partial(predict, hospital)
      for name, hospital in hospitals.items()
    },
    hospitals,
    server,
    server_state,
  )
