"""Tables of results, once, and as text, CSV, LaTeX or HTML.

>>> headers = 'client', 'Dice'
>>> table = Table('dice', 'Dice, test split', headers, [('A', 0.5)], 'n = 1')
>>> print(text(table))
Dice, test split
  client    Dice
--------  ------
       A   0.500
n = 1
"""

import csv as csv_lib
import html as html_lib
import io
import math
import re
import urllib.parse
from collections.abc import Sequence
from typing import Any, NamedTuple

import tabulate

_LATEX = {
  '&': r'\&',
  '%': r'\%',
  '$': r'\$',
  '#': r'\#',
  '_': r'\_',
  '{': r'\{',
  '}': r'\}',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  '\\': r'\textbackslash{}',
  '<': r'\textless{}',
  '>': r'\textgreater{}',
  '|': r'\textbar{}',
  '"': r'\textquotedbl{}',
  '\n': ' ',
}
# Controls, which HTML does not allow and terminals obey, and half characters,
# which no file can hold.
_FORBIDDEN = re.compile('[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]')
_NUMBER = re.compile(r'[-+]?\d+(\.\d*)?([eE][-+]?\d+)?', re.ASCII)


class Table(NamedTuple):
  """A table of a run.

  Attributes:
    name: of its files; no two tables of a run share it.
    title: a sentence: what, of what, measured how.
    headers: of the columns, with units; the first column names the rows.
    rows: cells: text, whole numbers, floats (NaN: undefined), or `Interval`.
    notes: what a reader has to know, below it.
  """

  name: str
  title: str
  headers: Sequence[str]
  rows: Sequence[Sequence[Any]]
  notes: str = ''


class Interval(NamedTuple):
  """A value with a 95 % interval; NaN bounds where it is undefined."""

  value: float
  low: float
  high: float


def show(cell: Any) -> str:
  """Returns a cell as people read it: three decimals, '-' for undefined.

  >>> show(0.25), show(Interval(0.5, 0.4, 0.6)), show(float('nan')), show(True)
  ('0.250', '0.500 (0.400 to 0.600)', '-', 'yes')
  """
  if isinstance(cell, Interval):
    low, high = map(_plain, cell[1:])
    if '' in (low, high):
      return show(cell.value)
    return f'{show(cell.value)} ({show(cell.low)} to {show(cell.high)})'
  cell = _python(cell)
  if cell is None:
    return '-'
  if isinstance(cell, bool):
    return 'yes' if cell else 'no'
  if isinstance(cell, float):
    return '-' if math.isnan(cell) else f'{cell:z.3f}'  # z: no -0.000
  return _clean(str(cell))


def text(table: Table) -> str:
  """Returns a table for the screen; ValueError as all of these."""
  _check(table)
  rows = [[show(cell) for cell in row] for row in table.rows]
  headers = [_clean(header) for header in table.headers]
  lines = [
    _clean(table.title),
    tabulate.tabulate(rows, headers, disable_numparse=True, stralign='right'),
    _clean(table.notes),
  ]
  return '\n'.join(line for line in lines if line)


def csv(table: Table) -> str:
  """Returns a table with every digit; an interval takes three columns.

  What is undefined is empty. Text that a spreadsheet would take for a formula
  gets an apostrophe in front.

  Raises:
    ValueError: a row of another length than the headers.
  """
  _check(table)
  columns = []
  for i, header in enumerate(table.headers):
    cells = [row[i] for row in table.rows]
    if any(isinstance(cell, Interval) for cell in cells):
      cells = [
        cell if isinstance(cell, Interval) else (cell, None, None)
        for cell in cells
      ]
      names = header, f'{header} low', f'{header} high'
      columns += [[name, *parts] for name, *parts in zip(names, *cells)]
    else:
      columns.append([header, *cells])
  buffer = io.StringIO()
  writer = csv_lib.writer(buffer, lineterminator='\n')
  writer.writerows([_plain(cell) for cell in row] for row in zip(*columns))
  return buffer.getvalue()


def latex(table: Table) -> str:
  r"""Returns a table environment; the document needs booktabs.

  Raises:
    ValueError: a row of another length than the headers.
  """
  _check(table)
  escape = lambda cell: ''.join(_LATEX.get(c, c) for c in show(cell))
  line = lambda cells: ' & '.join(map(escape, cells)) + r' \\'
  numeric = [is_numeric(table, i) for i in range(len(table.headers))]
  return '\n'.join(
    [
      r'\begin{table}',
      rf'\caption{{{escape(f"{table.title} {table.notes}".strip())}}}',
      rf'\label{{tab:{_quote(table.name).replace("%", "-")}}}',
      rf'\begin{{tabular}}{{{"".join("lr"[n] for n in numeric)}}}',
      r'\toprule',
      line(table.headers),
      r'\midrule',
      *map(line, table.rows),
      r'\bottomrule',
      r'\end{tabular}',
      r'\end{table}',
      '',
    ]
  )


def html(table: Table) -> str:
  """Returns a <figure>: the title, the <table> in a box that scrolls, notes.

  Everything is escaped. Numbers carry `data-value`, by which `page` sorts,
  and tables of more than ten columns the class `wide`: printed across.

  Raises:
    ValueError: a row of another length than the headers.
  """
  _check(table)
  name = 'table-' + _quote(table.name)
  kinds = [
    ' class="number"' if is_numeric(table, i) else ''
    for i in range(len(table.headers))
  ]
  head = ''.join(
    f'<th scope="col"{kind}>{escape_html(header)}</th>'
    for kind, header in zip(kinds, table.headers)
  )
  # Others stay on one line.
  long = lambda cell: ' class="long"' if len(show(cell)) > 32 else ''
  body = []
  for row in table.rows:
    first, *others = (
      f'{long(cell) or kind}{_order(cell)}>{escape_html(show(cell))}</'
      for kind, cell in zip(kinds, row)
    )
    cells = [f'<th scope="row"{first}th>', *(f'<td{x}td>' for x in others)]
    body.append(f'<tr>{"".join(cells)}</tr>')
  notes = table.notes and f'<p class="notes">{escape_html(table.notes)}</p>'
  kind = 'table wide' if len(table.headers) > 10 else 'table'
  return (
    f'<figure class="{kind}" id="{name}">'
    f'<figcaption id="{name}-title">{escape_html(table.title)}</figcaption>'
    f'<div class="scroll" role="region" tabindex="0" '
    f'aria-labelledby="{name}-title"><table aria-labelledby="{name}-title">\n'
    f'<thead><tr>{head}</tr></thead>\n<tbody>\n'
    + '\n'.join(body)
    + f'\n</tbody></table></div>{notes}</figure>'
  )


def escape_html(content: str) -> str:
  """Returns text that HTML shows as it is, in elements and quoted attributes.

  Control characters and half surrogates become the replacement character.

  >>> escape_html('<b a="1">')
  '&lt;b a=&quot;1&quot;&gt;'
  """
  return html_lib.escape(_clean(content))


def is_numeric(table: Table, column: int) -> bool:
  """Says whether a column other than the first holds numbers and no words."""
  cells = [row[column] for row in table.rows]
  defined = [cell for cell in cells if show(cell) != '-']
  return bool(column and defined and all(map(_order, defined)))


def _check(table: Table) -> None:
  for i, row in enumerate(table.rows):
    if len(row) != len(table.headers):
      raise ValueError(
        f'table {table.name!r}: row {i} must have a cell for each of '
        f'{len(table.headers)} headers, found {len(row)}'
      )


def _clean(content: str) -> str:
  return _FORBIDDEN.sub('\ufffd', content)


def _quote(name: str) -> str:
  """Returns a name as one word of ASCII, no two names as the same."""
  return urllib.parse.quote(_clean(name))


def _python(cell: Any) -> Any:
  """Returns the Python value of a scalar of NumPy or JAX."""
  return cell.item() if hasattr(cell, 'item') else cell


def _plain(cell: Any) -> str:
  cell = _python(cell)
  if cell is None or (isinstance(cell, float) and math.isnan(cell)):
    return ''
  if isinstance(cell, str) and not _NUMBER.fullmatch(cell):
    formula = len(cell) > 1 and cell[0] in '=+-@\t\r'
    return _clean(f"'{cell}" if formula else cell)
  return str(cell)


def _order(cell: Any) -> str:
  """Returns the attribute that says where a number sorts."""
  value = _python(cell.value if isinstance(cell, Interval) else cell)
  if isinstance(value, str) and _NUMBER.fullmatch(value):
    value = float(value)
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return ''
  if math.isnan(value):
    return ''
  shown = f'{value:.12g}' if math.isfinite(value) else f'{value}inity'.title()
  return f' data-value="{shown}"'


def number(value: float | None) -> float:
  """Returns a value of JSON, where None stands for NaN, as a number."""
  return math.nan if value is None else value
