"""Builders of data sets that lie in a folder of the user: what they share.

Such a builder says how to list the folder and how to read what it listed; this
module walks the list with a progress bar, checks every example, names the file
that is wrong, and either stops there or, where the user chose so, skips and
lists it. What was prepared is found again without the folder; where the folder
is there and has changed, that is said.

    builder = Psfh(data_dir=..., config=PsfhConfig(manual_dir='/data/psfh'))
    builder.download_and_prepare()
    source = builder.as_data_source('all')
"""

import abc
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
import tqdm

ON_ERROR = ('stop', 'skip')
NOTE = 'source.json'  # beside the prepared data


class Record(NamedTuple):
  """What is read at once: a pair of files, or a volume.

  Attributes:
    name: what messages call it: the path of its image, inside the folder.
    read: returns its examples as the package's contract says; raises a
      ValueError, an OSError or what a reading library raises.
  """

  name: str
  read: Callable[[], Iterable[dict[str, Any]]]


@dataclasses.dataclass(eq=False, kw_only=True)
class ManualConfig(tfds.core.BuilderConfig):
  """Says which folder is read, and how; its name encodes all of it.

  Attributes:
    manual_dir: the folder.
    on_error: 'stop' at the first bad record, or 'skip' and list them.
  """

  name: str = ''
  manual_dir: str = ''
  on_error: str = 'stop'

  def __post_init__(self):
    if self.on_error not in ON_ERROR:
      raise ValueError(
        f'on_error: expected one of {", ".join(ON_ERROR)}, found '
        f'{self.on_error!r}'
      )
    self.manual_dir = os.path.abspath(self.manual_dir or '.')
    fields = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(type(self))
      if field.name not in _BASE_FIELDS
    }
    text = json.dumps(fields, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    self.name = f'from_{digest[:12]}'


_BASE_FIELDS = {f.name for f in dataclasses.fields(tfds.core.BuilderConfig)}


class ManualBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """An abstract builder; a data set gives the constants and `records`.

  Every example is checked: shapes, dtype, finite numbers, known labels, a case
  name of its own.
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar[dict[str, str]] = {'1.0.0': 'First release.'}
  DESCRIPTION: ClassVar[str]
  DTYPE: ClassVar[Any] = np.uint8
  CHANNELS: ClassVar[int] = 1

  def __init__(self, *, file_format: Any = 'array_record', **kwargs: Any):
    # The default of tensorflow-datasets needs TensorFlow to be read.
    super().__init__(file_format=file_format, **kwargs)

  @property
  @abc.abstractmethod
  def classes(self) -> tuple[str, ...]:
    """Returns the names of the classes, background first."""

  @abc.abstractmethod
  def records(self, folder: pathlib.Path) -> list[Record]:
    """Lists what a folder holds, in a fixed order, without reading it.

    Raises:
      ValueError: nothing there, an image without mask, a mask without image.
    """

  def _info(self) -> tfds.core.DatasetInfo:
    def plane(dtype, *channels):
      return tfds.features.Tensor(
        shape=(None, None, *channels), dtype=dtype, encoding='zlib'
      )

    return tfds.core.DatasetInfo(
      builder=self,
      description=self.DESCRIPTION,
      features=tfds.features.FeaturesDict(
        {
          'image': plane(self.DTYPE, self.CHANNELS),
          'mask': plane(np.uint8),
          'spacing_mm': tfds.features.Tensor(shape=(2,), dtype=np.float32),
          'subject': tfds.features.Text(),
          'site': tfds.features.Text(),
          'case': tfds.features.Text(),
          'position': tfds.features.Scalar(np.int32),
        }
      ),
      metadata=tfds.core.MetadataDict({'classes': list(self.classes)}),
      disable_shuffling=True,
    )

  def _shard_iterators_per_split(self, dl_manager: Any):
    del dl_manager  # nothing is downloaded
    # The other base class of builders keeps up to 1 GiB of examples in memory,
    # and beyond that needs TensorFlow.
    return {'train': [lambda: _Stream(self._generate_examples())]}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    folder = pathlib.Path(self.builder_config.manual_dir)
    before = fingerprint(folder)
    records = self.records(folder)
    if not records:
      raise ValueError(f'{folder}: expected images and masks, found none')
    cases: set[str] = set()
    skipped: dict[str, str] = {}
    for record in tqdm.tqdm(records, desc=f'preparing {self.name}'):
      try:
        # Whole or not at all: half a volume is worse than none.
        examples = [
          checked(example, self.classes, self.DTYPE, self.CHANNELS)
          for example in record.read()
        ]
        names = [example['case'] for example in examples]
        twice = sorted(cases.intersection(names)) or [
          name for name in names if names.count(name) > 1
        ]
        if twice:
          raise ValueError(
            f'the case {twice[0]!r} is there already; rename one of the two'
          )
      except MemoryError:
        raise
      except Exception as error:  # reading libraries raise many kinds
        reason = one_line(error)
        if self.builder_config.on_error == 'stop':
          raise ValueError(
            f'{folder / record.name}: {reason}; mend or remove it, or list '
            "such files and go on with dataset_options.on_error='skip'"
          ) from error
        skipped[record.name] = reason
        continue
      for example in examples:
        yield len(cases), example
        cases.add(example['case'])
    if not cases and not skipped:
      raise ValueError(
        f'{folder}: the options leave out all of {len(records)} records'
      )
    if not cases:
      name, reason = next(iter(skipped.items()))
      raise ValueError(
        f'{folder}: none of {len(records)} records can be used; the first, '
        f'{name}: {reason}'
      )
    # Generation happens in a temporary folder, which is then renamed.
    note = {'folder': str(folder), **before, 'skipped': skipped}
    (pathlib.Path(self.data_path) / NOTE).write_text(json.dumps(note, indent=1))


class _Stream:
  """Iterates over examples once, and is copied without keeping them.

  tensorflow-datasets copies what it writes in order to count it; by
  `itertools.tee`, which asks for `__copy__` and else keeps every example.
  """

  def __init__(self, examples: Iterable[Any]):
    self._examples, self._count = iter(examples), 0

  def __iter__(self) -> '_Stream':
    return self

  def __next__(self) -> Any:
    example = next(self._examples)
    self._count += 1
    return example

  def __copy__(self) -> Iterator[None]:
    return (None for start in [self] for _ in range(start._count))


def checked(
  example: dict[str, Any], classes: tuple[str, ...], dtype: Any, channels: int
) -> dict[str, Any]:
  """Returns an example as it is stored.

  Args:
    example: as the package's contract says; `image` may be [H, W], and `mask`
      of any dtype with whole numbers.
    classes: names, background first.
    dtype: of the image.
    channels: of the image.

  Raises:
    ValueError: it breaks the contract; says how.
  """
  image, mask = np.asarray(example['image']), np.asarray(example['mask'])
  if image.ndim == 2:
    image = image[..., None]
  if image.ndim != 3 or image.shape[-1] != channels:
    raise ValueError(
      f'image: expected a plane [H, W] of {channels} channels, found shape '
      f'{list(image.shape)}'
    )
  if mask.shape != image.shape[:2]:
    raise ValueError(
      f'image and mask: expected the same size, found {list(image.shape[:2])} '
      f'and {list(mask.shape)}'
    )
  if 0 in mask.shape:
    raise ValueError(f'image: expected pixels, found {list(mask.shape)}')
  if image.dtype != dtype:
    raise ValueError(
      f'image: expected {np.dtype(dtype).name}, found {image.dtype}'
    )
  for what, array in (('image', image), ('mask', mask)):
    if not np.all(np.isfinite(array)):
      raise ValueError(
        f'{what}: expected finite numbers, found NaN or infinity'
      )
  labels = np.unique(mask)
  unknown = labels[~np.isin(labels, np.arange(len(classes)))]
  if unknown.size:
    raise ValueError(
      f'mask: unknown label {unknown[0]}; expected 0 to {len(classes) - 1} '
      f'({", ".join(classes)})'
    )
  spacing_mm = np.asarray(example['spacing_mm'], np.float32)
  if spacing_mm.shape != (2,) or not np.all(
    np.isfinite(spacing_mm) & (spacing_mm > 0)
  ):
    raise ValueError(
      f'spacing_mm: expected two positive numbers, found {spacing_mm.tolist()}'
    )
  return {
    **example,
    'image': image,
    'mask': mask.astype(np.uint8),
    'spacing_mm': spacing_mm,
    'position': int(example['position']),
  }


def fingerprint(folder: pathlib.Path) -> dict[str, Any]:
  """Returns what tells a changed folder: a count, bytes, and a digest.

  The digest is of names, sizes and times of change; no file is read, and hidden
  ones do not count.

  Raises:
    ValueError: there is no such folder.
  """
  if not folder.is_dir():
    raise ValueError(
      f'{folder}: expected the folder of the data set, found none; name it '
      'with --config.manual_dir'
    )
  sha, count, size = hashlib.sha256(), 0, 0
  for path in sorted(folder.rglob('*')):
    if path.is_file() and not path.name.startswith('.'):
      stat = path.stat()
      name = path.relative_to(folder).as_posix()
      sha.update(f'{name}\n{stat.st_size} {int(stat.st_mtime)}\n'.encode())
      count, size = count + 1, size + stat.st_size
  return {'files': count, 'bytes': size, 'sha256': sha.hexdigest()}


def one_line(error: Exception) -> str:
  """Returns what an error says, without its line breaks; its type if nothing.

  >>> one_line(ValueError('found\\n  nothing'))
  'found nothing'
  """
  return ' '.join(str(error).split()) or type(error).__name__


def natural_key(name: str) -> list[tuple[bool, int, str]]:
  """Returns what sorts names as people do, by the numbers in them.

  >>> sorted(['IM10', 'IM2', 'IM1'], key=natural_key)
  ['IM1', 'IM2', 'IM10']
  """
  return [
    (part.isdecimal(), int(part) if part.isdecimal() else 0, part)
    for part in re.split(r'(\d+)', name)
  ]


def read_note(builder: ManualBuilder) -> dict[str, Any]:
  """Returns what was noted when a builder's data were prepared.

  Raises:
    ValueError: the note is damaged, or the folder is there and has changed.
  """
  path = pathlib.Path(builder.data_path) / NOTE
  remedy = f'delete {builder.data_path} to prepare it anew'
  try:
    note = json.loads(path.read_text())
    if not isinstance(note['skipped'], dict):
      raise ValueError
  except (OSError, ValueError, KeyError, TypeError):
    raise ValueError(f'{path}: missing or damaged; {remedy}') from None
  folder = pathlib.Path(builder.builder_config.manual_dir)
  if folder.is_dir():
    now = fingerprint(folder)
    if now['sha256'] != note['sha256']:
      raise ValueError(
        f'{folder}: has changed since it was prepared ({note["files"]} files '
        f'of {note["bytes"]} bytes then, {now["files"]} of {now["bytes"]} '
        f'now); {remedy}'
      )
  return note
