"""The data sets: one tensorflow-datasets builder a file, listed in `DATASETS`.

Contract of every builder: written in array_record, so that

  builder = DATASETS['abdomen'](data_dir=folder, file_format='array_record')
  builder.download_and_prepare()
  source = builder.as_data_source('all')

needs no TensorFlow. ('all' is tensorflow-datasets' reserved word for the union
of the splits: it can be read, but no builder may name a split so.) An example
is a dict of

* `image`: [H, W, C] in the case's own size and native dtype (uint8 0..255,
  int16 HU, or float32 in [0, 1]).
* `mask`: uint8 [H, W], indices into the class names.
* `spacing_mm`: float32 [2], pixel spacing in mm, row then column.
* `subject`, `site`, `case`: text (read back as bytes): the patient, the
  hospital or scanner, and a unique name of the example. Splits are by subject.
* `position`: int32, slice index inside the volume, in axial order.

`builder.info.metadata['classes']` names the classes, background first. What
comes from a folder of the user is built on `manual`.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from ppcmi_jax.datasets import (
  abdomen,
  cardiac,
  folder,
  fumpe,
  manual,
  nerve,
  phantom,
  psfh,
)

DATASETS = {
  'abdomen': abdomen.Abdomen,
  'cardiac': cardiac.Cardiac,
  'folder': folder.Folder,
  'fumpe': fumpe.Fumpe,
  'nerve': nerve.Nerve,
  'phantom': phantom.Phantom,
  'psfh': psfh.Psfh,
}

# The configuration class of builders that have one.
CONFIGS = {
  'cardiac': cardiac.CardiacConfig,
  'folder': folder.FolderConfig,
  'fumpe': fumpe.FumpeConfig,
  'nerve': nerve.NerveConfig,
  'phantom': phantom.PhantomConfig,
  'psfh': psfh.PsfhConfig,
}


def prepare(
  name: str,
  *,
  data_dir: str | os.PathLike | None = None,
  manual_dir: str | os.PathLike | None = None,
  options: Mapping[str, Any] | None = None,
  warn: Callable[[str], None] = logging.warning,
) -> Any:
  """Returns the builder of a data set, prepared now or before.

  Args:
    name: a key of `DATASETS`.
    data_dir: where prepared data live; tensorflow-datasets' default if None.
    manual_dir: folder of a data set that the user has.
    options: fields of the builder's configuration.
    warn: called with a line where files were skipped.

  Raises:
    ValueError: an unknown data set or option, damaged source files, or a folder
      that has changed since it was prepared.
  """
  if name not in DATASETS:
    raise ValueError(
      f'dataset: expected one of {", ".join(sorted(DATASETS))}, found {name!r}'
    )
  kwargs = {}
  options = dict(options or {})
  known = set()
  if name in CONFIGS:
    own = {f.name for f in dataclasses.fields(tfds.core.BuilderConfig)}
    known = {f.name for f in dataclasses.fields(CONFIGS[name])} - own
  is_manual = issubclass(DATASETS[name], manual.ManualBuilder)
  known = sorted(known - {'manual_dir'})
  unknown = sorted(set(options) - set(known))
  if unknown:
    raise ValueError(
      f'dataset_options: {name} has no option {", ".join(unknown)}; '
      f'it has: {", ".join(known) or "none"}'
    )
  if is_manual:
    if not manual_dir:
      raise ValueError(
        f'manual_dir: {name} is read from a folder that you have; name it with '
        '--config.manual_dir=FOLDER'
      )
    options['manual_dir'] = os.fspath(manual_dir)
  if name in CONFIGS:
    kwargs['config'] = CONFIGS[name](**options)
  logger = logging.get_absl_logger()
  logger.addFilter(_is_news)
  try:
    builder = DATASETS[name](data_dir=data_dir, **kwargs)
  finally:
    logger.removeFilter(_is_news)
  tfds.disable_progress_bar()  # it prints a bar for every shard
  is_new = not os.path.exists(builder.data_path)
  with _for_the_owner_only() if is_manual else contextlib.nullcontext():
    builder.download_and_prepare()
  if is_manual:
    if is_new:
      logging.warning(
        '%s: its images and masks now lie in %s, too, in clear and open to you '
        'alone; delete that folder with the data',
        name,
        builder.data_path,
      )
    skipped = manual.read_note(builder)['skipped']
    for record, reason in list(skipped.items())[:10]:
      warn(f'{name}: skipped {record}: {reason}')
    if skipped:
      warn(
        f'{name}: {len(skipped)} records were skipped; all of them: '
        f'{os.path.join(builder.data_path, manual.NOTE)}'
      )
  return builder


@contextlib.contextmanager
def _for_the_owner_only() -> Iterator[None]:
  before = os.umask(0o077)
  try:
    yield
  finally:
    os.umask(before)


def _is_news(record: Any) -> bool:
  # tensorflow-datasets warns of every configuration with options, as all are.
  return not str(record.msg).startswith('Using custom data configuration')
