"""Networks that start from those of another run.

A hospital with few cases is helped by a network that public or synthetic images
taught already. What it saw must not be tested on, and whoever else has it is
closer to reading the hospital's latents once a key has leaked: the table of
clients' messages opened by each other's decoders shows by how much.
"""

import csv
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from ppcmi_jax import hospital_data, tasks, training
from ppcmi_jax import workdir as workdir_lib


def sources(
  config: Any,
  data: hospital_data.Data,
  trainers: Mapping[str, training.Trainer],
) -> dict[str, Callable[[], tasks.Variables]]:
  """Returns what reads the variables that networks start from, once each.

  It logs a warning where checkpoints are not in the workdir of a run, which
  would say what they were trained on, and raises ValueError where there is no
  whole checkpoint of the network, or it saw what is tested here.

  Args:
    config: of the run, with `pretrained`.
    data: of the run.
    trainers: {name: of a network}; names as `pretrained` has them.

  Returns:
    {name: () -> variables}, of those for which the configuration names
    checkpoints.
  """
  return {
    name: functools.cache(
      functools.partial(_load, name, directory, config, data, trainers[name])
    )
    for name, directory in config.pretrained.items()
    if directory
  }


def _load(name, directory, config, data, trainer):
  field, path = f'pretrained.{name}', pathlib.Path(directory).absolute()
  if not path.is_dir():
    raise ValueError(
      f'{field}: expected a folder of checkpoints, such as '
      f'RUN/checkpoints/{name}_CLIENT, found none at {directory}'
    )
  _check_unseen(field, path, config, data)
  try:
    return trainer.restore(
      data.sample(), path, warn=logging.warning, ended=False
    )
  except ValueError as error:
    raise ValueError(f'{field}: {error}') from None


def _check_unseen(field, path, config, data):
  """Raises ValueError if a run learnt from what is tested."""
  rows = _seen(path.parent.parent, config)
  if rows is None:
    logging.warning(
      '%s: nothing beside %s says what it was trained on; see to it that '
      'none of it is tested on here',
      field,
      path,
    )
    return
  for column in ('case',) if data.within_subject else ('subject', 'case'):
    tested = {
      str(name)
      for parts in data.hospitals.values()
      for name in getattr(parts['test'], column)
    }
    if both := sorted(tested & {row[column] for row in rows}):
      raise ValueError(
        f'{field}: expected a run that saw nothing of what is tested here, '
        f'found {len(both)} of {len(tested)} test {column}s in its training '
        f'and validation data, such as {both[0]!r}: scores would be too '
        'good; give both runs the same split, or take one of other data'
      )


def _seen(run, config) -> list[dict[str, str]] | None:
  """Returns the lines of `split.csv` that a run learnt from, of all clients.

  None if there are none to read; no lines if its data are others.
  """
  if not (run / 'config.json').exists() or not (run / 'split.csv').exists():
    return None
  other = workdir_lib.read_object(run / 'config.json', 'restore it')
  own = workdir_lib.essence(config.to_dict())
  data_set = ('dataset', 'dataset_options')
  if any(other.get(key) != own[key] for key in data_set):
    return []
  with open(run / 'split.csv', newline='', encoding='utf-8') as file:
    return [
      row for row in csv.DictReader(file) if row['split'] in ('train', 'valid')
    ]
