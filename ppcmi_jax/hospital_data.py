"""The data of a run: read, split, and dealt to its hospitals."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from ppcmi_jax import channel, input_pipeline, partitions, processes, splits
from ppcmi_jax import examples as examples_lib
from ppcmi_jax import workdir as workdir_lib


class Data(NamedTuple):
  """The data of a run.

  Attributes:
    hospitals: {client: {split: Examples}}.
    class_names: background first.
    within_subject: whether test and training or validation share subjects, or
      near-duplicate images where subjects are not known.
    subjects_are_known: whether each subject is one, and not each image.
    table: who has what, as text.
  """

  hospitals: Mapping[str, Mapping[str, examples_lib.Examples]]
  class_names: tuple[str, ...]
  within_subject: bool
  subjects_are_known: bool
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


def load(config: Any, workdir: workdir_lib.Workdir) -> Data:
  """Reads, splits and partitions the data set that a configuration names.

  Raises:
    ValueError: an unknown data set or split, a split or client without data, or
      another split than what is there was trained by.
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
  names, subject, known = _split(config, examples)
  _keep_split(workdir, splits.split_csv(examples, names))
  examples = examples._replace(subject=subject)
  hospitals = partitions.partition(
    examples,
    names,
    mode=config.partition,
    num_clients=config.num_clients or None,
    alpha=config.dirichlet_alpha,
    seed=config.split_seed,
  )
  unknown = sorted(set(config.clients) - set(hospitals))
  if unknown:
    raise ValueError(
      f'clients: expected some of {", ".join(hospitals)}, found {unknown[0]!r}'
    )
  if config.clients:
    hospitals = {name: hospitals[name] for name in config.clients}
  for name in hospitals:
    if not channel.CLIENT.fullmatch(name):
      raise ValueError(
        f'site {name!r}: expected a name of up to 64 letters, digits and ._-, '
        'as it names files and stands in messages; rename the site'
      )
  learnt = np.isin(names, ('train', 'valid'))
  return Data(
    hospitals,
    class_names,
    within_subject=not set(subject[learnt]).isdisjoint(
      subject[names == 'test']
    ),
    subjects_are_known=known,
    table=partitions.table(hospitals, class_names),
  )


def _keep_split(workdir, text):
  """Writes split.csv; who has trained by another one is refused."""
  path = workdir.path / 'split.csv'
  is_trained = (workdir.path / 'checkpoints').exists()
  if is_trained and path.exists():
    before = path.read_text(encoding='utf-8').splitlines()
    differing = len(set(before) ^ set(text.splitlines()))
    if differing:
      raise ValueError(
        f'{path}: expected the cases and splits that this run was trained by, '
        f'found data that differ in {differing} lines, so that scores would be '
        'of cases it has seen; give it the data that it had, or choose another '
        '--workdir'
      )
  elif processes.is_first():
    workdir_lib.write_text(path, text)


def _split(config, examples) -> tuple[np.ndarray, np.ndarray, bool]:
  """Returns the split of each example, what is together, if subjects are known.

  Several data sets may differ in mode.
  """
  modes, data_sets = config.split.split('+'), config.dataset.split('+')
  if len(modes) not in (1, len(data_sets)):
    raise ValueError(
      f'split: expected one mode, or one for each of {config.dataset}, found '
      f'{config.split!r}'
    )
  result = np.empty(len(examples.case), '<U5')
  subject, known = examples.subject.copy(), True
  for mode, data_set in zip(modes, data_sets):
    rows = np.ones(len(result), bool)
    if len(modes) > 1:
      rows = np.char.startswith(examples.site, f'{data_set}-')
    part = examples_lib.take(examples, rows)
    subject[rows] = splits.together(part, mode)
    known &= splits.subjects_are_known(part, mode)
    result[rows] = splits.split(
      part,
      mode=mode,
      subject=subject[rows],
      test_fraction=config.test_fraction,
      valid_fraction=config.valid_fraction,
      seed=config.split_seed,
      path=config.split_path or None,
      num_clients=config.num_clients or 3,
      official_test=config.official_test,
      drop_empty=config.drop_empty,
    )
  return result, subject, known
