"""The hospitals of a run: their data, keys, autoencoders and contributions."""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import tabulate
import tqdm
from absl import logging

from ppcmi_jax import (
  augmentation,
  evaluators,
  input_pipeline,
  keyring,
  learners,
  tasks,
)
from ppcmi_jax import (
  client as client_lib,
)
from ppcmi_jax import (
  workdir as workdir_lib,
)

MODALITIES = ('image', 'mask')
CONTRIBUTION_BATCH = 16  # pairs in one message


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

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @property
  def channels(self) -> int:
    return next(iter(self.hospitals.values()))['train'].image.shape[-1]

  def sample(self) -> dict[str, np.ndarray]:
    """Returns one training example, for shapes: image and mask [1, ...]."""
    first = next(iter(self.hospitals.values()))['train']
    return input_pipeline.take(first.arrays(), np.arange(1))


class Hospital(NamedTuple):
  """A trained client: its functions, its state, its autoencoders' predicts."""

  client: client_lib.Client
  state: client_lib.ClientState
  reconstruct_image: Callable[[Any], jax.Array]
  reconstruct_mask: Callable[[Any], jax.Array]


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


def restore_hospital(
  config: Any,
  workdir: workdir_lib.Workdir,
  data: Data,
  autoencoders: learners.Learners,
  name: str,
  secret: bytes,
) -> Hospital:
  """Returns a client with its trained autoencoders and its secret.

  Raises:
    ValueError: an autoencoder is not trained, or no checkpoint of it is whole.
  """
  variables = {
    modality: getattr(autoencoders, modality).restore(
      data.sample(),
      workdir.checkpoints(f'{modality}_{name}'),
      warn=logging.warning,
    )
    for modality in MODALITIES
  }
  transform = learners.TRANSFORMS[config.protection]
  return Hospital(
    client=client_lib.make_client(
      name=name,
      key_id=keyring.key_id(secret),
      image_model=autoencoders.image_model,
      mask_model=autoencoders.mask_model,
      transform=transform,
      protection=config.protection,
      wire_dtype=config.wire_dtype,
    ),
    state=client_lib.ClientState(
      **variables,
      secrets=keyring.transform_secrets(
        transform.init, secret, name, autoencoders.latents
      ),
    ),
    reconstruct_image=functools.partial(
      jax.jit(autoencoders.image_task.predict), variables['image']
    ),
    reconstruct_mask=functools.partial(
      jax.jit(autoencoders.mask_task.predict), variables['mask']
    ),
  )


def warn_of_lost_classes(data: Data, name: str, hospital: Hospital) -> None:
  """Logs each class that a client's mask autoencoder cannot reproduce."""
  scores = evaluators.mask_reconstruction(
    hospital.reconstruct_mask,
    data.hospitals[name]['train'],
    class_names=data.class_names,
  )
  for class_name in data.class_names[1:]:
    if scores[class_name]['dice'] < 0.5:
      logging.warning(
        'client %s: its mask autoencoder lost the class %r (Dice %.2f on its '
        'own training masks); nothing downstream can bring it back: train it '
        'longer (mask_steps) or lower latent_noise and latent_mixing',
        name, class_name, scores[class_name]['dice'],
      )  # fmt: skip


def contribute(
  config: Any,
  workdir: workdir_lib.Workdir,
  name: str,
  parts: Mapping[str, input_pipeline.Examples],
  hospital: Hospital,
) -> None:
  """Writes the client's message files, those that are not there yet.

  Training pairs are sent once as they are and `copies` times augmented;
  augmentation is drawn from (seed, round, first row).
  """
  options = {**config.augment, 'probability': 1.0}
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
