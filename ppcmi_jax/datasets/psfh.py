"""Serves transperineal ultrasound frames: FH-PS-AOP (4000) and PSFHS (1358).

Pubic symphysis and fetal head in frames of videos, from Zenodo 7851339 and
10969427 (CC BY 4.0), in the folder `manual_dir` or one folder inside it:

    image_mha/00001.mha      3 planes of 256 x 256 uint8, all the same
    label_mha/00001.mha      0 background, 1 pubic symphysis, 2 fetal head

What the files do not say:

* Which frames are of one patient. Each frame is its own subject here, so a
  split cannot keep frames of one video together, and scores on held-out frames
  are likely to flatter.
* How large a pixel is: the spacing in the headers is not trustworthy and is
  stored as (1, 1), so distances on this data set are in pixels.
* Which hospital: the site is '1'.

The two collections may share frames, and a user may merge their folders, so
frames of exactly the same pixels are found (`PsfhConfig.duplicates`). They are
listed in duplicates.json beside the prepared data, as are their masks where
they contradict each other.
"""

import dataclasses
import hashlib
import json
import pathlib

import numpy as np
from absl import logging

from ppcmi_jax.datasets import manual, pairing, readers

CLASSES = ('background', 'pubic symphysis', 'fetal head')
DUPLICATES = ('drop', 'keep')
HOMES = ('image_mha', 'label_mha')
LISTING = 'duplicates.json'


@dataclasses.dataclass(eq=False, kw_only=True)
class PsfhConfig(manual.ManualConfig):
  """Says how FH-PS-AOP or PSFHS is read.

  Attributes:
    duplicates: 'drop' keeps the first, by name, of frames with the same pixels;
      'keep' keeps all, as one subject, so that no split parts them.
  """

  duplicates: str = 'drop'

  def __post_init__(self):
    if self.duplicates not in DUPLICATES:
      raise ValueError(
        f'duplicates: expected one of {", ".join(DUPLICATES)}, found '
        f'{self.duplicates!r}'
      )
    super().__post_init__()


class Psfh(manual.ManualBuilder, skip_registration=True):
  """Builds the frames in the order of their names; see the module docstring.

  Example: image uint8 [256, 256, 1], mask uint8 [256, 256] (indices into
  `CLASSES`), spacing_mm (1, 1) for unknown, subject and case the name of the
  file, site '1', position 0.
  """

  DESCRIPTION = (
    'Transperineal ultrasound frames with pubic symphysis and fetal head '
    '(FH-PS-AOP, PSFHS), read from a folder of the user.'
  )

  @property
  def classes(self) -> tuple[str, ...]:
    """Returns `CLASSES`."""
    return CLASSES

  def records(self, folder: pathlib.Path) -> list[manual.Record]:
    """Lists one record a frame; see the base class.

    Raises:
      ValueError: no folders image_mha and label_mha, or several.
    """
    home = find_home(folder)
    pairs = pairing.pair(
      *(pairing.list_folder(home / name) for name in HOMES),
      homes=tuple(f'{name}/NAME.mha' for name in HOMES),
      suffixes=('.mha',),
    )
    seen: dict[str, tuple[str, str]] = {}  # pixels -> the case, its mask
    found: list[dict[str, str | bool]] = []

    def read_examples(pair):
      image, mask = pairing.read_pair(pair.image, pair.mask, readers.read_frame)
      # Checked before it is remembered: the copy of a bad frame may be good.
      example = manual.checked(
        {
          'image': image,
          'mask': mask,
          'spacing_mm': (1, 1),
          'subject': pair.key,
          'site': '1',
          'case': pair.key,
          'position': 0,
        },
        self.classes,
        self.DTYPE,
        self.CHANNELS,
      )
      labels = _digest(example['mask'])
      first, its_labels = seen.setdefault(
        _digest(example['image']), (pair.key, labels)
      )
      if first == pair.key:
        return [example]
      found.append(
        {'case': pair.key, 'of': first, 'contradicts': labels != its_labels}
      )
      if self.builder_config.duplicates == 'drop':
        return []
      return [{**example, 'subject': first}]

    def report():
      if not found:
        return
      path = pathlib.Path(self.data_path) / LISTING
      path.write_text(json.dumps(found, indent=1))
      logging.warning(
        '%s', describe(found, self.builder_config.duplicates, len(pairs))
      )

    return pairing.and_then(
      pairing.to_records(pairs, folder, read_examples), report
    )


def find_home(folder: pathlib.Path) -> pathlib.Path:
  """Returns the folder that holds image_mha and label_mha.

  Raises:
    ValueError: none, or several, of `folder` and the folders inside it do.
  """
  inside = [path for path in pairing.list_folder(folder) if path.is_dir()]
  homes = []
  for place in (folder, *inside):
    missing = [name for name in HOMES if not (place / name).is_dir()]
    if len(missing) == 1:
      raise ValueError(
        f'{place}: expected the folders {" and ".join(HOMES)}, found no '
        f'{missing[0]}'
      )
    if not missing:
      homes.append(place)
  if len(homes) != 1:
    names = ', '.join(home.name for home in homes)
    raise ValueError(
      f'{folder}: expected the folders {" and ".join(HOMES)} there or in one '
      f'folder inside it, found {"them in " + names if names else "none"}'
    )
  return homes[0]


def describe(
  found: list[dict[str, str | bool]], duplicates: str, num_frames: int
) -> str:
  """Says in one line which frames are there twice.

  Args:
    found: dicts of 'case', 'of' (the first with these pixels) and 'contradicts'
      (their masks differ).
    duplicates: what was done with them, one of `DUPLICATES`.
    num_frames: how many there are in all.
  """

  def some(entries):
    names = [f'{entry["case"]} of {entry["of"]}' for entry in entries[:10]]
    return ', '.join(names) + (', ...' if len(entries) > 10 else '')

  done = {'drop': 'dropped', 'keep': 'kept'}[duplicates]
  contradicting = [entry for entry in found if entry['contradicts']]
  line = (
    f'psfh: {done} {len(found)} of {num_frames} frames that have exactly the '
    f'pixels of another ({some(found)})'
  )
  if contradicting:
    line += (
      f'; the masks of {len(contradicting)} contradict those of the other '
      f'({some(contradicting)})'
    )
  return f'{line}; all of them: {LISTING} beside the prepared data'


def _digest(array: np.ndarray) -> str:
  head = str(array.shape).encode()
  return hashlib.sha256(
    head + np.ascontiguousarray(array).tobytes()
  ).hexdigest()
