"""What a client contributes to the server's training: its message files."""

import shutil
from collections.abc import Mapping
from typing import Any

import jax
import tqdm
from absl import logging

from ppcmi_jax import augmentation, channel, checkpoints, images
from ppcmi_jax import client as client_lib
from ppcmi_jax import examples as examples_lib
from ppcmi_jax import workdir as workdir_lib

# Pairs in one message: as many as fit of these, as each size is compiled.
BATCHES = (16, 4, 1)


def forget_old(
  workdir: workdir_lib.Workdir, name: str, state: client_lib.ClientState
) -> None:
  """Removes messages that other autoencoders than the client's now made.

  That happens where an autoencoder had to be trained anew. The mapping network
  learnt from them is moved aside, to be trained again.
  """
  folder = workdir.messages(name)
  note = folder / 'autoencoders.sha256'
  digest = checkpoints.digest((state.image, state.mask))
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
  workdir_lib.write_bytes(note, digest.encode())


def write(
  config: Any,
  workdir: workdir_lib.Workdir,
  name: str,
  parts: Mapping[str, examples_lib.Examples],
  client: client_lib.Client,
  state: client_lib.ClientState,
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
    for split, turns in zip(channel.SPLITS, (1 + config.copies, 1))
    for turn in range(turns)
    for start, stop in _batches(len(parts[split].case))
  ]
  folder = workdir.messages(name)
  for split, turn, start, stop in tqdm.tqdm(
    batches, desc=f'contributions of client {name}', unit='message'
  ):
    stem = f'{split}-{turn:03d}-{start:06d}'
    paths = [
      folder / f'{stem}.{modality}.msg' for modality in client_lib.MODALITIES
    ]
    if all(path.exists() for path in paths):
      continue
    rows = slice(start, stop)
    image, mask = parts[split].image[rows], parts[split].mask[rows]
    if turn:
      key = jax.random.key(config.seed)
      for number in (turn, start):
        key = jax.random.fold_in(key, number)
      image, mask = augment(jax.random.split(key, len(image)), image, mask)
    origin = channel.Origin(split, turn, start)
    messages = client.contribute(state, image, mask, origin)
    for path, message in zip(paths, messages, strict=True):
      workdir_lib.write_bytes(path, message)


def _batches(count: int) -> list[tuple[int, int]]:
  """Returns (start, stop) of messages that hold so many pairs together."""
  bounds, start = [], 0
  for size in BATCHES:
    while count - start >= size:
      bounds.append((start, start + size))
      start += size
  return bounds
