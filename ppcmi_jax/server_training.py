"""The server's side of training: its network, from message files and keys.

Nothing of a client is imported here: no image, mask, encoder or decoder.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from ppcmi_jax import (
  channel as channel_lib,
)
from ppcmi_jax import (
  checkpoints,
  enrolment,
  input_pipeline,
  learners,
  private_training,
  processes,
  wire,
)
from ppcmi_jax import (
  examples as examples_lib,
)
from ppcmi_jax import (
  server as server_lib,
)
from ppcmi_jax import (
  workdir as workdir_lib,
)


def train(
  config: Any,
  workdir: workdir_lib.Workdir,
  *,
  names: Sequence[str],
  latents: Mapping[str, Mapping[str, Any]],
  title: str,
) -> None:
  """Trains the server's network from message files and keys, nothing else.

  With noise (`config.dp`) it prints and writes what DP-SGD promises.

  Args:
    config: of the run.
    workdir: of the run; its messages/ are read.
    names: of the clients.
    latents: {modality: {scale: shape [B, h, w, C]}}.
    title: for the progress bar.

  Raises:
    ValueError: as `server.read_contributions` and `enrolment.server_channel`.
  """
  # Process 0 keeps the keys of what it opens first, and moves epochs on; the
  # others then only read what it kept.
  contributions = processes.in_turn(
    lambda: _read(config, workdir, names, latents)
  )
  pairs, valid = (contributions[split] for split in channel_lib.SPLITS)
  # Whose copy a pair is matters to privacy only, whose pair to how often.
  source, _ = pairs.pop('source'), valid.pop('source')
  of_client, of_valid = pairs.pop('client'), valid.pop('client')
  processes.check_equal('contributions', len(of_client))
  task, trainer = learners.mapping(config)
  if config.dp.noise_multiplier:
    processes.first(
      lambda: _fit_privately(
        config, workdir, task, trainer, pairs, source, title
      )
    )
    return
  trainer.fit(
    pairs,
    # Repeated rows, so that each client weighs the same in the loss.
    examples_lib.take(valid, input_pipeline.balanced_order(of_valid)),
    seed=config.seed,
    directory=workdir.checkpoints('mapping'),
    title=title,
    log=workdir.log,
    warn=logging.warning,
    order=input_pipeline.balanced_order(of_client),
  )


def _read(config, workdir, names, latents):
  """Returns {split: pairs}, as the message files have them.

  Raises ValueError where a client has none: a folder that is not there for the
  moment takes nothing back.
  """
  channel = enrolment.server_channel(config, workdir, names, latents)
  # As precise as what was sent; integers are none once they are unmixed.
  sent = config.wire_dtype
  dtype = sent if sent in wire.DTYPES else 'float16'
  paths = {name: list(workdir.messages(name).glob('*.msg')) for name in names}
  found = server_lib.read_contributions(
    [path for some in paths.values() for path in some],
    channel=channel,
    latents=latents,
    dtype=jnp.dtype(dtype),
  )
  for split, (number, name) in itertools.product(
    channel_lib.SPLITS, enumerate(channel.clients)
  ):
    if split not in found or number not in found[split]['client']:
      raise ValueError(
        f'{workdir.messages(name)}: expected contributions of client {name!r} '
        f'to {split!r}, found none among {len(paths[name])} files; let it '
        'contribute, or leave it out with --config.clients'
      )
  # A client that contributes anew takes back what it sent before: put back by
  # others, that opens no more once both sides have rotated.
  channel.forget()
  return found


def _fit_privately(config, workdir, task, trainer, pairs, source, title):
  """Trains by DP-SGD, unless that was done; a killed training starts again."""
  directory = workdir.checkpoints('mapping')
  sample = examples_lib.take(pairs, np.arange(1))
  keeper = checkpoints.Checkpoints(directory, warn=logging.warning)
  done = keeper.restore(trainer.abstract_state(sample), move_aside=True)
  keeper.close()
  if done is not None:
    return
  clock = time.monotonic()
  variables, guarantee = private_training.fit_mapping(
    task,
    pairs,
    source=source,
    steps=config.mapping_steps,
    expected_batch=config.mapping_batch_size,
    learning_rate=config.mapping_learning_rate,
    title=title,
    **config.dp,
  )
  # The promise comes first: no network may be there without it.
  guarantee.write(workdir)
  trainer.adopt(variables, sample, directory)
  seconds = time.monotonic() - clock
  workdir.log({'task': title, 'step': config.mapping_steps, 'seconds': seconds})
  print(f'Mapping network: {guarantee}', flush=True)


def blank_pair(latents: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a training pair of the mapping network, for shapes.

  Args:
    latents: {modality: {scale: shape [1, h, w, C]}}.
  """
  return jax.tree.map(lambda z: np.zeros(z.shape, z.dtype), dict(latents))
