"""Says which image of a user's folder lies with which mask.

    pairs = pairing.pair(
      pairing.list_folder(folder / 'images'),
      pairing.list_folder(folder / 'masks'),
      homes=('images/NAME.png', 'masks/NAME.png'),
    )
    records = pairing.to_records(pairs, folder, read_examples)

Only names are looked at. An image without mask, two files of one name or a file
that is no picture becomes a record that raises when it is read, so that the
user who chose to skip bad records has it skipped and listed, too.
"""

import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ppcmi_jax.datasets import manual, readers

# Compared in lower case; hidden files are ignored as well.
_IGNORED = ('__macosx', 'thumbs.db', 'desktop.ini')


class Pair(NamedTuple):
  """An image and its mask, or what is wrong with them.

  Attributes:
    key: what the two names share.
    image: path, or None where only the mask is there.
    mask: path, or None where only the image is there.
    problem: why there is no pair; '' if there is one.
  """

  key: str
  image: pathlib.Path | None
  mask: pathlib.Path | None
  problem: str = ''


def list_folder(folder: pathlib.Path) -> list[pathlib.Path]:
  """Lists what lies in a folder, sorted, but for what is no data.

  Ignored are hidden names ('._*' too), __MACOSX, Thumbs.db, desktop.ini, and
  files that begin with README or LICENSE and are no pictures.
  """

  def is_data(path):
    name = path.name.lower()
    about = name.startswith(('readme', 'license'))
    return not (
      name.startswith('.')
      or name in _IGNORED
      or (about and readers.suffix_of(name) not in readers.SUFFIXES)
    )

  return sorted(filter(is_data, folder.iterdir()))


def pair(
  images: Iterable[pathlib.Path],
  masks: Iterable[pathlib.Path],
  *,
  homes: tuple[str, str],
  suffixes: Sequence[str] = readers.SUFFIXES,
  image_key: Callable[[str], str | None] = readers.stem_of,
  mask_key: Callable[[str], str | None] = readers.stem_of,
) -> list[Pair]:
  """Pairs images with masks by what their names share.

  Args:
    images: paths.
    masks: paths.
    homes: where an image and a mask are looked for, in words.
    suffixes: those that are read.
    image_key: the name of an image -> what it shares with its mask; None if it
      is no name of an image.
    mask_key: likewise of a mask.

  Returns:
    What has a problem first, so that it shows at once; each part by key.
  """
  bad: list[Pair] = []
  groups: dict[str, tuple[list[pathlib.Path], list[pathlib.Path]]] = {}
  for which, paths, key_of in ((0, images, image_key), (1, masks, mask_key)):
    for path in paths:
      key = key_of(path.name)
      if path.is_dir():
        bad.append(Pair(path.name, path, None, 'a folder among the files'))
      elif readers.suffix_of(path) not in suffixes:
        bad.append(Pair(path.name, path, None, readers.not_a_picture(suffixes)))
      elif not key:
        reason = f'unexpected name; expected {homes[which]}'
        bad.append(Pair(path.name, path, None, reason))
      else:
        groups.setdefault(key, ([], []))[which].append(path)
  good: list[Pair] = []
  for key, (some_images, some_masks) in sorted(groups.items()):
    image, mask = ((some or [None])[0] for some in (some_images, some_masks))
    twice = max(some_images, some_masks, key=len)
    if len(twice) > 1:
      names = ', '.join(path.name for path in twice)
      reason = f'{len(twice)} files of one name ({names}); keep one'
      bad.append(Pair(key, twice[0], None, reason))
    elif mask is None:
      reason = f'image without mask; expected that of {key!r} as {homes[1]}'
      bad.append(Pair(key, image, None, reason))
    elif image is None:
      reason = f'mask without image; expected that of {key!r} as {homes[0]}'
      bad.append(Pair(key, None, mask, reason))
    else:
      good.append(Pair(key, image, mask))
  return bad + good


def to_records(
  pairs: Iterable[Pair],
  folder: pathlib.Path,
  read_examples: Callable[[Pair], Iterable[dict[str, Any]]],
) -> list[manual.Record]:
  """Makes a record of each pair; one with a problem raises it when read."""
  records = []
  for pair_ in pairs:
    name = (pair_.image or pair_.mask).relative_to(folder).as_posix()
    records.append(
      refused(name, pair_.problem)
      if pair_.problem
      else manual.Record(name, lambda pair_=pair_: read_examples(pair_))
    )
  return records


def refused(name: str, reason: str) -> manual.Record:
  """Makes a record that raises a ValueError when it is read."""

  def read_nothing():
    raise ValueError(reason)

  return manual.Record(name, read_nothing)


def and_then(
  records: list[manual.Record], report: Callable[[], None]
) -> list[manual.Record]:
  """Makes the last record call `report` after it was read."""
  if not records:
    return records

  def read_last(last=records[-1]):
    try:
      return list(last.read())
    finally:
      report()

  return [*records[:-1], records[-1]._replace(read=read_last)]


def read_pair(
  image: pathlib.Path,
  mask: pathlib.Path,
  reader: Callable[[pathlib.Path], Any] = readers.read,
) -> tuple[Any, Any]:
  """Reads an image and its mask; an error of the mask names the mask."""
  picture = reader(image)
  try:
    return picture, reader(mask)
  except (ValueError, OSError) as error:
    name = f'{mask.parent.name}/{mask.name}'
    raise ValueError(f'mask {name}: {error}') from error
