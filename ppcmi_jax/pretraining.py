"""Networks that start from those of another run.

A hospital with few cases is helped by a network that public or synthetic images
taught already. What it saw must not be tested on, and whoever else has it is
closer to reading the hospital's latents once a key has leaked: the table of
clients' messages opened by each other's decoders shows by how much.
"""

import csv
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
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
  """Raises ValueError if what is there learnt from what is tested."""
  own = _data_sets(config)
  for run in _runs_behind(path):
    if not all((run / name).exists() for name in ('config.json', 'split.csv')):
      logging.warning(
        '%s: nothing beside %s says what it was trained on; see to it that '
        'none of it is tested on here',
        field,
        run / 'checkpoints',
      )
      continue
    theirs = _data_sets(
      workdir_lib.read_object(run / 'config.json', 'restore it')
    )
    shared = dict(own.items() & theirs.items())
    with open(run / 'split.csv', newline='', encoding='utf-8') as file:
      rows = [row for row in csv.DictReader(file) if row['split'] != 'test']
    for column in ('case',) if data.within_subject else ('subject', 'case'):
      seen = {_named(row[column], theirs) for row in rows}
      tested = {
        _named(str(name), own)
        for parts in data.hospitals.values()
        for name in getattr(parts['test'], column)
      }
      both = sorted(name for name in tested & seen if name[0] in shared)
      if both:
        raise ValueError(
          f'{field}: expected a run that saw nothing of what is tested here, '
          f'found {len(both)} of {len(tested)} test {column}s in the training '
          f'and validation data of {run}, such as {both[0][1]!r}: scores would '
          'be too good; give both runs the same split, or take one of other '
          'data'
        )


def _runs_behind(path) -> Iterator[pathlib.Path]:
  """Yields the workdir of a checkpoint, and those that it began with."""
  run = path.parent.parent
  yield run
  if (run / 'config.json').exists():
    config = workdir_lib.read_object(run / 'config.json', 'restore it')
    for directory in filter(None, config.get('pretrained', {}).values()):
      yield from _runs_behind(pathlib.Path(directory).absolute())


def _data_sets(config) -> dict[str, int]:
  """Returns {data set: the seed that it is drawn from, where it is drawn}."""
  names, options = config['dataset'].split('+'), config['dataset_options']
  return {
    name: (options.get(name, {}) if len(names) > 1 else options).get('seed', 0)
    for name in names
  }


def _named(name, data_sets) -> tuple[str, str]:
  """Returns a case's or a subject's data set and its name there."""
  for data_set in data_sets if len(data_sets) > 1 else ():
    if name.startswith(f'{data_set}-'):
      return data_set, name.removeprefix(f'{data_set}-')
  return next(iter(data_sets)), name
