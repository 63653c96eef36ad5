"""Heat maps of scores, such as of what one client makes of another's data."""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import cm, colors, patches

from ppcmi_jax import tables
from ppcmi_jax.figures import sheets

CELL_MM = (8.0, 15.0)  # the least and the most of a cell's side
MAX_LABEL_MM = 30.0


def draw_matrix(
  path: str | os.PathLike,
  matrix: Mapping[str, Mapping[str, float | None]],
  *,
  value_label: str,
  title: str = '',
) -> bool:
  """Draws a heat map of pairs of clients, with its values.

  The sheet grows wider where there are too many columns.

  Args:
    path: the file to write, .png, .pdf or .svg; folders are made.
    matrix: {client that encodes: {client that decodes: value from 0, dark, to
      1}}; None, NaN and what is missing are hatched.
    value_label: what the colours are, with unit, along their bar.
    title: above the picture.

  Returns:
    Whether there was anything to draw; without a cell no file is written.

  Raises:
    ValueError: a file name of another format.
  """
  path = sheets.check_path(path)
  rows = list(matrix)
  columns = list(dict.fromkeys(j for row in matrix.values() for j in row))
  if not columns:
    return False
  width_mm = sheets.WIDTH_MM
  sheet = sheets.Sheet(width_mm=width_mm)
  texts = {
    (i, j): f'{matrix[i][j]:.2f}'
    for i in rows
    for j in columns
    if math.isfinite(tables.number(matrix[i].get(j)))
  }
  least_mm = max(
    [CELL_MM[0], *(sheet.measure_mm(text) + 1.5 for text in texts.values())]
  )
  names_mm = min(MAX_LABEL_MM, max(sheet.measure_mm(name) for name in rows))
  bar_mm = 14.0 + sheets.LINE_MM  # with its numbers and its label
  left_mm = sheets.MARGIN_MM + sheets.LINE_MM + 1 + names_mm + 1
  fixed_mm = left_mm + bar_mm + sheets.MARGIN_MM
  cell_mm = min(CELL_MM[1], (width_mm - fixed_mm) / len(columns))
  if cell_mm < least_mm:
    cell_mm, width_mm = least_mm, fixed_mm + least_mm * len(columns)
  sheet = sheets.Sheet(width_mm=width_mm, title=title)
  wide_mm, tall_mm = cell_mm * len(columns), cell_mm * len(rows)

  heads_mm = [sheet.measure_mm(name) for name in columns]
  upright = max(heads_mm) > cell_mm - 1
  head_mm = min(MAX_LABEL_MM, max(heads_mm)) if upright else sheets.LINE_MM
  half_line = sheets.LINE_MM / 2
  centre_mm = left_mm + wide_mm / 2
  sheet.text(centre_mm, sheet.top_mm + half_line, 'decoder of', ha='center')
  sheet.top_mm += sheets.LINE_MM + head_mm + 1.5
  for k, name in enumerate(columns):
    sheet.text(
      left_mm + (k + 0.5) * cell_mm,
      sheet.top_mm - 0.8,
      sheet.shorten(name, width_mm=head_mm if upright else cell_mm),
      rotation=90 if upright else 0,
      ha='center',
      va='bottom',
    )
  for k, name in enumerate(rows):
    sheet.text(
      left_mm - 1,
      sheet.top_mm + (k + 0.5) * cell_mm,
      sheet.shorten(name, width_mm=names_mm + 0.1),
      ha='right',
    )
  sheet.text(
    sheets.MARGIN_MM + half_line,
    sheet.top_mm + tall_mm / 2,
    'encoder of',
    rotation=90,
    ha='center',
  )

  panel = sheet.panel(left_mm, sheet.top_mm, wide_mm, tall_mm)
  scale = cm.ScalarMappable(colors.Normalize(0, 1), 'viridis')
  _draw_cells(panel, rows, columns, matrix, texts, scale)
  tall_mm = max(tall_mm, 20)
  _draw_scale(sheet, left_mm + wide_mm + 3, tall_mm, scale, value_label)
  sheet.top_mm += tall_mm + 2
  sheet.save(path)
  return True


def _draw_cells(panel, rows, columns, matrix, texts, scale) -> None:
  """Draws the cells with their values, dark on bright and bright on dark."""
  panel.set(xlim=(0, len(columns)), ylim=(len(rows), 0), xticks=[], yticks=[])
  for r, i in enumerate(rows):
    for c, j in enumerate(columns):
      if (i, j) not in texts:
        look = {'facecolor': '0.93', 'edgecolor': '0.6', 'hatch': '////'}
        panel.add_patch(patches.Rectangle((c, r), 1, 1, linewidth=0, **look))
        continue
      color = scale.to_rgba(matrix[i][j])
      cell = patches.Rectangle((c, r), 1, 1, facecolor=color, linewidth=0)
      panel.add_patch(cell)
      panel.text(
        c + 0.5,
        r + 0.5,
        texts[i, j],
        size=sheets.FONT,
        ha='center',
        va='center',
        color=_ink(color[:3]),
      )
  for c in range(1, len(columns)):
    panel.axvline(c, color='white', linewidth=0.5)
  for r in range(1, len(rows)):
    panel.axhline(r, color='white', linewidth=0.5)


def _ink(behind: Sequence[float]) -> str:
  """Returns black or white, whichever is read the better on a colour."""
  luminance = np.dot(np.power(behind, 2.2), (0.2126, 0.7152, 0.0722))
  return 'white' if luminance < 0.18 else 'black'


def _draw_scale(sheet, x_mm, tall_mm, scale, label) -> None:
  """Draws the bar of the colours, its numbers and what they are."""
  bar = sheet.panel(x_mm, sheet.top_mm, 2.5, tall_mm)
  sheet.figure.colorbar(scale, cax=bar).outline.set_linewidth(0.5)
  low, high = scale.get_clim()
  ticks = np.linspace(low, high, 5)
  bar.set_yticks(ticks, [f'{tick:.3g}' for tick in ticks], fontsize=sheets.FONT)
  bar.tick_params(labelsize=sheets.FONT, length=2, width=0.5, pad=1.5)
  sheet.text(
    x_mm + 13,
    sheet.top_mm + tall_mm / 2,
    sheet.shorten(label, width_mm=tall_mm),
    rotation=90,
    ha='center',
  )
