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

`builder.info.metadata['classes']` names the classes, background first.
"""

import os
from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds

from ppcmi_jax.datasets import abdomen, phantom

DATASETS = {
  'abdomen': abdomen.Abdomen,
  'phantom': phantom.Phantom,
}

# The configuration class of builders that have one.
CONFIGS = {'phantom': phantom.PhantomConfig}


def prepare(
  name: str,
  *,
  data_dir: str | os.PathLike | None = None,
  options: Mapping[str, Any] | None = None,
) -> Any:
  """Returns the builder of a data set, prepared now or before.

  Args:
    name: a key of `DATASETS`.
    data_dir: where prepared data live; tensorflow-datasets' default if None.
    options: fields of the builder's configuration.

  Raises:
    ValueError: an unknown data set or option, or damaged source files.
  """
  if name not in DATASETS:
    raise ValueError(
      f'dataset: expected one of {", ".join(sorted(DATASETS))}, found {name!r}'
    )
  kwargs = {}
  options = dict(options or {})
  known = CONFIGS[name].__dataclass_fields__ if name in CONFIGS else {}
  unknown = sorted(set(options) - set(known))
  if unknown:
    raise ValueError(
      f'dataset_options: {name} has no option {", ".join(unknown)}; '
      f'it has: {", ".join(known) or "none"}'
    )
  if name in CONFIGS:
    kwargs['config'] = CONFIGS[name](**options)
  builder = DATASETS[name](data_dir=data_dir, **kwargs)
  tfds.disable_progress_bar()  # it prints a bar for every shard
  builder.download_and_prepare()
  return builder
