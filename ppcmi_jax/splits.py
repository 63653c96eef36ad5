"""Which split each example is in, and the file that says so.

    subject = together(examples, mode='content')
    splits = split(examples, mode='content', subject=subject, seed=0)
    pathlib.Path('split.csv').write_text(split_csv(examples, splits))
    read_split('split.csv', examples)                       # the same again

What belongs together (a subject's slices, a video's frames) is never on two
sides; only 'blocks' and 'official' break that, and say so. N examples.
"""

import csv
import io
import os

import numpy as np

from ppcmi_jax import content_groups, official_draws
from ppcmi_jax import examples as examples_lib

MODES = ('subjects', 'blocks', 'content', 'csv', 'official')
COLUMNS = ['case', 'subject', 'site', 'split']

Examples = examples_lib.Examples


def subjects_are_known(examples: Examples, mode: str) -> bool:
  """Says whether the subjects of examples are more than names of images.

  Data without them make each image a subject, which 'content' and 'official'
  are for.
  """
  single = len(np.unique(examples.subject)) == len(examples.subject)
  return not (single and mode in ('content', 'official'))


def together(examples: Examples, mode: str) -> np.ndarray:
  """Returns the names [N] of what belongs together: subjects, or more.

  With 'content', and where subjects are not known, near-duplicate images and
  images of one subject are connected, and what is connected has the name of its
  first subject. Splits, clients and intervals go by these names.
  """
  if mode != 'content' and subjects_are_known(examples, mode):
    return examples.subject
  groups = content_groups.content_groups(
    examples.image, subject=examples.subject
  )
  return _least(examples.subject, groups)


def split(
  examples: Examples,
  *,
  mode: str,
  subject: np.ndarray | None = None,
  test_fraction: float = 0.2,
  valid_fraction: float = 0.1,
  seed: int = 0,
  path: str | os.PathLike | None = None,
  num_clients: int = 3,
  official_test: str = 'random',
  drop_empty: bool = False,
) -> np.ndarray:
  """Returns the split of each example: 'train', 'valid', 'test' or 'gap'.

  Args:
    examples: of any sites and subjects.
    mode: 'subjects' draws whole subjects within each site. 'content' draws what
      is `together`, where not all subjects are known. 'csv' reads a file.
      'blocks' holds out contiguous blocks inside each subject's
      volume (so it measures fit within subjects only): each stretch of about 28
      slices gives its middle to test, and the slices behind to validation, with
      a slice in no split between any two. 'official' draws as the published
      code does, see `official_draws`.
    test_fraction: share of subjects, or of slices, for testing.
    valid_fraction: likewise for validation.
    seed: of the draw; unused by 'blocks' and 'csv'.
    path: of the file, for 'csv'.
    num_clients, official_test: for 'official'; the latter is its `test`.
    drop_empty: for 'official', whether cases without foreground are in no
      split. They are judged at the examples' size, the published code at the
      full one.

  Raises:
    ValueError: an unknown mode, a subject at two sites, too few subjects of a
      site, or slices of a subject, for each split to have one, or what
      `read_split` and `official_draws.draw` raise.
  """
  for name in map(str, np.unique(examples.subject)):
    sites = np.unique(examples.site[examples.subject == name])
    if len(sites) > 1:
      raise ValueError(
        f'split: subject {name!r} is at the sites {", ".join(sites)}; a '
        'subject belongs to one: rename it where two share the name'
      )
  fractions = {'test': test_fraction, 'valid': valid_fraction}
  if mode == 'subjects':
    result = _draw(examples.site, examples.subject, mode, fractions, seed)
  elif mode == 'content':
    groups = together(examples, mode) if subject is None else subject
    result = _draw(
      # A group at two sites is drawn at the first.
      _least(examples.site, groups),
      groups,
      'groups of near-duplicate images',
      fractions,
      seed,
    )
  elif mode == 'blocks':
    result = _blocks(examples, fractions)
  elif mode == 'csv':
    if not path:
      raise ValueError(
        "split: split='csv' needs the path of a file, found none"
      )
    result = read_split(path, examples)
  elif mode == 'official':
    pixels = examples_lib.class_pixels(examples.mask)
    result = official_draws.draw(
      examples.case,
      examples.subject,
      pixels[:, 1:].any(axis=1) | (not drop_empty),
      num_clients=num_clients,
      test=official_test,
      test_fraction=test_fraction,
      valid_fraction=valid_fraction,
      seed=seed,
      unused=examples_lib.UNUSED,
    )
  else:
    raise ValueError(
      f'split: expected one of {", ".join(MODES)}, found {mode!r}'
    )
  for name in examples_lib.SPLITS:
    if name not in result:
      raise ValueError(
        f'split: {name!r} has no case of {len(result)}; use more cases, or '
        f'another split than {mode!r}'
      )
  return result


def _least(names, groups):
  """Returns for each example the first of the names in its group."""
  order = np.argsort(names, kind='stable')
  _, first, inverse = np.unique(
    groups[order], return_index=True, return_inverse=True
  )
  result = np.empty_like(names)
  result[order] = names[order][first][inverse]
  return result


def _count(fractions, total):
  """Returns how many of a total are for testing, and for validation."""
  return [max(1, round(fractions[k] * total)) for k in ('test', 'valid')]


def _draw(site, group, what, fractions, seed):
  """Draws whole groups, each of one site, within each site."""
  result = np.full(len(group), 'train', dtype='<U5')
  for here in map(str, np.unique(site)):
    groups = np.unique(group[site == here])
    np.random.default_rng([seed, len(groups)]).shuffle(groups)
    num_test, num_valid = _count(fractions, len(groups))
    if num_test + num_valid >= len(groups):
      raise ValueError(
        f'split: site {here!r} has {len(groups)} {what}, too few for train, '
        "valid and test; use more, or split='blocks' with volumes"
      )
    test, valid = np.split(groups, [num_test, num_test + num_valid])[:2]
    result[np.isin(group, test)] = 'test'
    result[np.isin(group, valid)] = 'valid'
  return result


def _blocks(examples, fractions):
  result = np.full(len(examples.case), 'train', dtype='<U5')
  gap = examples_lib.UNUSED
  for subject in map(str, np.unique(examples.subject)):
    rows = np.flatnonzero(examples.subject == subject)
    rows = rows[np.argsort(examples.position[rows])]
    for stretch in np.array_split(rows, max(1, round(len(rows) / 28))):
      num_test, num_valid = _count(fractions, len(stretch))
      start = len(stretch) // 2 - num_test // 2
      parts = ((1, gap), (num_test, 'test'), (1, gap), (num_valid, 'valid'),
               (1, gap))  # fmt: skip
      if start < 2 or start + num_test + num_valid + 3 > len(stretch):
        raise ValueError(
          f'split: subject {subject!r} has {len(rows)} slices, too few for '
          "train, valid and test blocks; use split='subjects'"
        )
      at = start - 1
      for count, name in parts:
        result[stretch[at : at + count]] = name
        at += count
  return result


def split_csv(examples: Examples, splits: np.ndarray) -> str:
  """Returns a CSV of case, subject, site and split, one row an example."""
  text = io.StringIO(newline='')
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(COLUMNS)
  writer.writerows(zip(examples.case, examples.subject, examples.site, splits))
  return text.getvalue()


def read_split(path: str | os.PathLike, examples: Examples) -> np.ndarray:
  """Returns the split that a file of `split_csv` gives each example.

  Args:
    path: of a CSV with the columns case, subject, site and split, in any order
      of the rows.
    examples: exactly those of the file.

  Raises:
    ValueError: the file cannot be read, a case is unknown, missing or there
      twice, a subject or site differs, or a split has no known name; names the
      line.
  """
  rows = {str(case): row for row, case in enumerate(examples.case)}
  result = np.full(len(rows), '', dtype='<U5')
  seen: dict[str, int] = {}
  try:
    with open(path, newline='', encoding='utf-8-sig') as file:
      reader = csv.DictReader(file)
      if reader.fieldnames != COLUMNS:
        raise ValueError(
          f'{path}: line 1: expected the columns {",".join(COLUMNS)}, found '
          f'{",".join(reader.fieldnames or ["nothing"])}'
        )
      for line in reader:
        try:
          row = _check_line(line, rows, seen, examples)
        except ValueError as error:
          raise ValueError(f'{path}: line {reader.line_num}: {error}') from None
        seen[line['case']], result[row] = reader.line_num, line['split']
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise ValueError(
      f'{path}: expected a CSV file of a split, found {error}'
    ) from error
  missing = examples.case[result == '']
  if missing.size:
    raise ValueError(
      f'{path}: {missing.size} cases of the data are missing, such as '
      f'{str(missing[0])!r}; add them, those in no split as '
      f'{examples_lib.UNUSED!r}'
    )
  return result


def _check_line(line, rows, seen, examples) -> int:
  """Returns the row of the example that a line is about."""
  if None in line or None in line.values():
    raise ValueError(f'expected {len(COLUMNS)} columns, found more or fewer')
  case, words = line['case'], (*examples_lib.SPLITS, examples_lib.UNUSED)
  if case not in rows:
    raise ValueError(
      f'the data have no case {case!r}; remove the line, or use the data set '
      'that the split was made for'
    )
  if case in seen:
    raise ValueError(f'the case {case!r} is in line {seen[case]} already')
  if line['split'] not in words:
    raise ValueError(
      f'split: expected one of {", ".join(words)}, found {line["split"]!r}'
    )
  for field in ('subject', 'site'):
    value = str(getattr(examples, field)[rows[case]])
    if line[field] != value:
      raise ValueError(
        f'the {field} of {case!r} is {value!r} in the data, found '
        f'{line[field]!r}'
      )
  return rows[case]
