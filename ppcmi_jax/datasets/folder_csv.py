"""Reads a list of images and masks, and of whom they are, from a CSV.

    image,mask,subject,site
    scans/a1.png,outlines/a1.png,patient-a,north
    scans/a2.png,outlines/a2.png,patient-a,north

The columns image and mask hold paths inside the folder, separated by '/'. The
columns subject and site may be missing: each image is then a subject of its
own, and the site is '1'. UTF-8, separated by commas.
"""

import csv
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from ppcmi_jax.datasets import manual, pairing, readers

COLUMNS = ('image', 'mask', 'subject', 'site')


class Row(NamedTuple):
  """Files that belong together, and whose they are.

  Attributes:
    case: the path of the image inside the folder, without suffix.
    image: path.
    mask: path.
    subject: the patient.
    site: the hospital.
  """

  case: str
  image: pathlib.Path
  mask: pathlib.Path
  subject: str
  site: str


def read(folder: pathlib.Path, name: str) -> list[Row | manual.Record]:
  """Reads a list.

  Args:
    folder: what `name`, and the paths in the list, are relative to.
    name: of the list.

  Returns:
    For each line with a mistake (a missing file, an image that stands there
    twice, a subject at two sites, ...) a record that raises it, naming the
    line; then the rows.

  Raises:
    ValueError: no such file, no CSV, or unknown or missing columns.
  """
  bad: list[manual.Record] = []
  good: list[Row] = []
  lines: dict[str, int] = {}
  sites: dict[str, tuple[str, int]] = {}
  try:
    with open(
      find(folder, 'csv', name), newline='', encoding='utf-8-sig'
    ) as file:
      reader = csv.DictReader(file, strict=True)
      columns = [column.strip() for column in reader.fieldnames or ()]
      if (
        len(set(columns)) != len(columns)
        or not set(columns) <= set(COLUMNS)
        or not set(columns) >= set(COLUMNS[:2])
      ):
        raise ValueError(
          'line 1: expected the columns image, mask and, if wanted, subject '
          f'and site, separated by commas; found {", ".join(columns) or "none"}'
        )
      reader.fieldnames = columns
      for cells in reader:
        line = reader.line_num
        try:
          row = _to_row(cells, folder, columns)
          if row.case in lines:
            raise ValueError(
              f'image: {row.case} stands in line {lines[row.case]} already'
            )
          site, where = sites.get(row.subject, (row.site, line))
          if site != row.site:
            raise ValueError(
              f'subject {row.subject!r} is at the site {row.site!r} here and '
              f'at {site!r} in line {where}; a subject belongs to one site'
            )
        except ValueError as error:
          bad.append(pairing.refused(f'{name}, line {line}', str(error)))
          continue
        lines[row.case], sites[row.subject] = line, (site, where)
        good.append(row)
  except (csv.Error, ValueError) as error:
    raise ValueError(f'{folder / name}: {error}') from error
  return [*bad, *good]


def find(folder: pathlib.Path, what: str, name: str) -> pathlib.Path:
  """Returns the path of a file inside a folder.

  Args:
    folder: the folder.
    what: what messages call the file.
    name: path of the file, relative to the folder.

  Raises:
    ValueError: it is not there, or not inside the folder, where changes of it
      would go unnoticed.
  """
  inside = pathlib.PurePosixPath(name)
  if inside.is_absolute() or '..' in inside.parts:
    raise ValueError(f'{what}: expected a path inside the folder, found {name}')
  if not (folder / inside).is_file():
    raise ValueError(f'{what}: there is no file {name}')
  return folder / inside


def _to_row(
  cells: dict[str, str], folder: pathlib.Path, columns: Sequence[str]
) -> Row:
  """Returns a row of the list, with files that are there."""
  if None in cells or None in cells.values():
    raise ValueError(f'expected {len(columns)} cells, found more or fewer')
  cells = {column: cell.strip() for column, cell in cells.items()}
  for column, cell in cells.items():
    if not cell:
      raise ValueError(f'{column}: expected a value, found an empty cell')
  image, mask = (find(folder, what, cells[what]) for what in COLUMNS[:2])
  inside = image.relative_to(folder)
  case = inside.with_name(readers.stem_of(inside)).as_posix()
  return Row(
    case=case,
    image=image,
    mask=mask,
    subject=cells.get('subject', case),
    site=cells.get('site', '1'),
  )
