"""The hospitals of a run: their data, keys, autoencoders and contributions."""

import functools
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from absl import logging

from ppcmi_jax import (
  augmentation,
  checkpoints,
  enrolment,
  evaluators,
  images,
  input_pipeline,
  learners,
  partitions,
  processes,
  sensitivity,
  splits,
)
from ppcmi_jax import (
  channel as channel_lib,
)
from ppcmi_jax import (
  client as client_lib,
)
from ppcmi_jax import (
  examples as examples_lib,
)
from ppcmi_jax import (
  workdir as workdir_lib,
)

MODALITIES = ('image', 'mask')
# Pairs in one message: as many as fit of these, as each size is compiled.
CONTRIBUTION_BATCHES = (16, 4, 1)


class Data(NamedTuple):
  """The data of a run.

  Attributes:
    hospitals: {client: {split: Examples}}.
    class_names: background first.
    within_subject: whether test and training share subjects.
    table: who has what, as text.
  """

  hospitals: Mapping[str, Mapping[str, examples_lib.Examples]]
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
    return examples_lib.take(first.arrays(), np.arange(1))


class Hospital(NamedTuple):
  """A trained client: what it does, and what it holds.

  Attributes:
    client: its functions.
    state: its autoencoders' variables.
    channel: its end, with its keys.
    reconstruct_image, reconstruct_mask: its autoencoders' predicts.
    segment_alone: image -> mask uint8, what it has without any server; None
      where its image autoencoder was not trained to segment.
  """

  client: client_lib.Client
  state: client_lib.ClientState
  channel: channel_lib.Channel
  reconstruct_image: Callable[[Any], jax.Array]
  reconstruct_mask: Callable[[Any], jax.Array]
  segment_alone: Callable[[Any], jax.Array] | None


def load_data(config: Any, workdir: workdir_lib.Workdir) -> Data:
  """Reads, splits and partitions the data set that a configuration names.

  Raises:
    ValueError: an unknown data set or split, a split or client without data.
  """
  examples, class_names = input_pipeline.load(
    config.dataset,
    image_size=config.image_size,
    data_dir=config.data_dir or None,
    manual_dir=config.manual_dir or None,
    options=config.dataset_options,
    channels=config.image_channels,
    window=config.window or None,
    warn=logging.warning,
  )
  names = _split(config, examples)
  if processes.is_first():
    splits.write_split(workdir.path / 'split.csv', examples, names)
  hospitals = partitions.partition(
    examples,
    names,
    mode=config.partition,
    num_clients=config.num_clients or None,
    alpha=config.dirichlet_alpha,
    seed=config.seed,
  )
  unknown = sorted(set(config.clients) - set(hospitals))
  if unknown:
    raise ValueError(
      f'clients: expected some of {", ".join(hospitals)}, found {unknown[0]!r}'
    )
  if config.clients:
    hospitals = {name: hospitals[name] for name in config.clients}
  for name in hospitals:
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9._-]{0,63}', name):
      raise ValueError(
        f'site {name!r}: expected a name of up to 64 letters, digits and ._-, '
        'as it names files and stands in messages; rename the site'
      )
  shared = {
    split: set(examples.subject[names == split].tolist())
    for split in ('train', 'test')
  }
  return Data(
    hospitals,
    class_names,
    within_subject=not shared['train'].isdisjoint(shared['test']),
    table=partitions.table(hospitals, class_names),
  )


def _split(config, examples) -> np.ndarray:
  """Returns the split of each example; several data sets may differ in mode."""
  modes, data_sets = config.split.split('+'), config.dataset.split('+')
  if len(modes) not in (1, len(data_sets)):
    raise ValueError(
      f'split: expected one mode, or one for each of {config.dataset}, found '
      f'{config.split!r}'
    )
  result = np.empty(len(examples.case), '<U5')
  for mode, data_set in zip(modes, data_sets):
    rows = np.ones(len(result), bool)
    if len(modes) > 1:
      rows = np.char.startswith(examples.site, f'{data_set}-')
    result[rows] = splits.split(
      examples_lib.take(examples, rows),
      mode=mode,
      test_fraction=config.test_fraction,
      valid_fraction=config.valid_fraction,
      seed=config.seed,
      path=config.split_path or None,
      num_clients=config.num_clients or 3,
      official_test=config.official_test,
      drop_empty=config.drop_empty,
    )
  return result


def restore_hospital(
  config: Any,
  workdir: workdir_lib.Workdir,
  data: Data,
  autoencoders: learners.Learners,
  name: str,
) -> Hospital:
  """Returns a client with its trained autoencoders and its keys.

  Raises:
    ValueError: an autoencoder is not trained, no checkpoint of it is whole, or
      a key is missing or unusable.
  """
  variables = {
    modality: getattr(autoencoders, modality).restore(
      data.sample(),
      workdir.checkpoints(f'{modality}_{name}'),
      warn=logging.warning,
    )
    for modality in MODALITIES
  }
  if config.sensitivity:
    variables['mask'] = {
      **variables['mask'],
      'units': sensitivity.units(
        autoencoders.mask_model,
        variables['mask'],
        data.hospitals[name]['train'].mask,
      ),
    }
  channel = enrolment.client_channel(
    config, workdir, name, autoencoders.latents
  )
  return Hospital(
    client=make_client(name, channel, autoencoders),
    state=client_lib.ClientState(**variables),
    channel=channel,
    reconstruct_image=functools.partial(
      jax.jit(autoencoders.image_task.predict), variables['image']
    ),
    reconstruct_mask=functools.partial(
      jax.jit(autoencoders.mask_task.predict), variables['mask']
    ),
    segment_alone=autoencoders.segment_alone
    and functools.partial(
      jax.jit(autoencoders.segment_alone), variables['image']
    ),
  )


def make_client(
  name: str, channel: channel_lib.Channel, autoencoders: learners.Learners
) -> client_lib.Client:
  """Returns the functions of a client, at its end of a channel."""
  return client_lib.make_client(
    name=name,
    channel=channel,
    image_model=autoencoders.image_model,
    mask_model=autoencoders.mask_model,
    latents=autoencoders.latents,
  )


def weak_classes(
  data: Data, name: str, scores: Mapping[str, Any], least: float = 0.95
) -> dict[str, float]:
  """Returns the classes that a mask autoencoder does not know well enough.

  A class counts where the client's training masks hold more than 1000 pixels
  of it; it is lost where its Dice is under 0.5.

  Args:
    data: of the run.
    name: of the client.
    scores: `evaluators.mask_reconstruction` of its training split.
    least: the Dice to be reached.

  Returns:
    {class name: Dice on the training masks}.
  """
  pixels = np.bincount(
    data.hospitals[name]['train'].mask.ravel(), minlength=data.num_classes
  )
  return {
    class_name: scores[class_name]['dice']
    for class_name, count in zip(data.class_names[1:], pixels[1:], strict=True)
    if count > 1000 and scores[class_name]['dice'] < least
  }


def describe_weak_class(name: str, class_name: str, dice: float) -> str:
  """Returns a warning of a class that `weak_classes` returned."""
  return (
    f'client {name}: its mask autoencoder '
    f'{"lost" if dice < 0.5 else "knows too little of"} the class '
    f'{class_name!r} (Dice {dice:.2f} on its own training masks); nothing '
    'downstream can bring it back: train it longer (mask_steps)'
  )


def warn_of_weak_classes(data: Data, name: str, hospital: Hospital) -> None:
  """Logs each class that a client's mask autoencoder cannot reproduce."""
  scores = evaluators.mask_reconstruction(
    hospital.reconstruct_mask,
    data.hospitals[name]['train'],
    class_names=data.class_names,
  )
  for class_name, dice in weak_classes(data, name, scores).items():
    logging.warning('%s', describe_weak_class(name, class_name, dice))


def forget_old_contributions(
  workdir: workdir_lib.Workdir, name: str, hospital: Hospital
) -> None:
  """Removes messages that other autoencoders than the client's now made.

  That happens where an autoencoder had to be trained anew. The mapping network
  learnt from them is moved aside, to be trained again.
  """
  folder = workdir.messages(name)
  note = folder / 'autoencoders.sha256'
  mask = {k: v for k, v in hospital.state.mask.items() if k != 'units'}
  digest = checkpoints.digest((hospital.state.image, mask))
  if note.exists() and note.read_text() == digest:
    return
  if note.exists():
    logging.warning(
      'client %s: its autoencoders have changed; it contributes again, and the '
      'mapping network is trained again',
      name,
    )
    for path in folder.glob('*.msg'):
      path.unlink()
    mapping = workdir.checkpoints('mapping')
    if mapping.exists():
      shutil.rmtree(mapping.with_name('mapping.old'), ignore_errors=True)
      mapping.rename(mapping.with_name('mapping.old'))
  workdir.write_bytes(note, digest.encode())


def contribute(
  config: Any,
  workdir: workdir_lib.Workdir,
  name: str,
  parts: Mapping[str, examples_lib.Examples],
  hospital: Hospital,
) -> None:
  """Writes the client's message files, those that are not there yet.

  Training pairs are sent once as they are and `copies` times augmented;
  augmentation is drawn from (seed, round, first row).
  """
  options = {**config.augment, 'probability': 1.0}
  augment = jax.jit(
    lambda keys, image, mask: augmentation.augment(
      keys, images.unit_image(image), mask, **options
    )
  )
  batches = [
    (split, turn, start, stop)
    for split, turns in (('train', 1 + config.copies), ('valid', 1))
    for turn in range(turns)
    for start, stop in _batches(len(parts[split].case))
  ]
  folder = workdir.messages(name)
  for split, turn, start, stop in tqdm.tqdm(
    batches, desc=f'contributions of client {name}', unit='message'
  ):
    stem = f'{split}-{turn:03d}-{start:06d}'
    paths = [folder / f'{stem}.{modality}.msg' for modality in MODALITIES]
    if all(path.exists() for path in paths):
      continue
    rows = slice(start, stop)
    image, mask = parts[split].image[rows], parts[split].mask[rows]
    if turn:
      key = jax.random.key(config.seed)
      for number in (turn, start):
        key = jax.random.fold_in(key, number)
      image, mask = augment(jax.random.split(key, len(image)), image, mask)
    messages = hospital.client.contribute(hospital.state, image, mask)
    for path, message in zip(paths, messages, strict=True):
      workdir.write_bytes(path, message)


def _batches(count: int) -> list[tuple[int, int]]:
  """Returns (start, stop) of messages that hold so many pairs together."""
  bounds, start = [], 0
  for size in CONTRIBUTION_BATCHES:
    while count - start >= size:
      bounds.append((start, start + size))
      start += size
  return bounds
