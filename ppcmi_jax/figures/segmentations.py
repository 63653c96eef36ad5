"""Pictures of segmentations, to be judged by eye: which error, and where.

`select_cases` takes the examples from the whole range of scores, so that the
pictures shown are not the pretty ones; `draw_segmentations` draws them.

Axes: N rows of the picture, H height, W width, C channels, K classes.

>>> rows = [
...   {'index': i, 'case': f'c{i}', 'dice': dice}
...   for i, dice in enumerate((0.9, 0.2, 0.7, 0.8))
... ]
>>> [row['case'] for row in select_cases(rows, count=2)]
['c0', 'c1']
"""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import artist, figure
from numpy.typing import ArrayLike

from ppcmi_jax.figures import case_panels, panels, sheets

COLUMNS = ('image', 'truth', 'prediction', 'errors')

# Inches.
PANEL = 2.6
GAP = 0.08
LABEL = 1.4
LINE = 0.22
DPI = 110


def select_cases(
  per_case: Sequence[Mapping[str, Any]], *, count: int = 3
) -> list[dict[str, Any]]:
  """Chooses examples to draw by rank, so that pictures are not picked by eye.

  Examples are ordered by their mean Dice over the classes that define it, and
  taken at evenly spaced ranks: 1 is the median, 2 the best and the worst, 3
  the best, the median and the worst. Examples with no class anywhere are left
  out. Equal scores keep the order of the examples.

  Args:
    per_case: the rows that `segmentation` returns.
    count: examples to choose; fewer come back where there are fewer.

  Returns:
    A dict for each, best first: 'index' (into the examples), 'case', 'dice'.

  Raises:
    ValueError: `count` is below 1.
  """
  if count < 1:
    raise ValueError(f'count must be at least 1, found {count}')
  dices, cases = {}, {}
  for row in per_case:
    cases[row['index']] = row['case']
    if row['dice'] is not None:
      dices.setdefault(row['index'], []).append(row['dice'])
  chosen = [
    {'index': index, 'case': cases[index], 'dice': sum(dice) / len(dice)}
    for index, dice in dices.items()
  ]
  chosen.sort(key=lambda entry: -entry['dice'])
  count = min(count, len(chosen))
  if count == 1:
    return [chosen[(len(chosen) - 1) // 2]]
  ranks = np.linspace(0, len(chosen) - 1, count).astype(int)
  return [chosen[rank] for rank in ranks]


def draw_segmentations(
  path: str | os.PathLike,
  *,
  title: str,
  image: ArrayLike,
  truth: ArrayLike,
  prediction: ArrayLike,
  class_names: Sequence[str],
  spacing_mm: ArrayLike,
  case: Sequence[str],
  distance_unit: str = 'mm',
  scores: Sequence[float] | None = None,
  note: str = '',
) -> None:
  """Draws one row a case: image, truth, prediction, errors.

  Panels keep the true aspect of the pixels, and a bar in the image panel
  gives the scale. Masks are tinted and outlined in their class's colour; the
  errors panel repeats the truth's outline in white. The file appears complete
  or not at all.

  Args:
    path: the file to write, .png, .pdf or .svg; folders are made.
    title: above the picture.
    image: uint8, or float in [0, 1], [N, H, W, C]; drawn in grey.
    truth: integer labels [N, H, W].
    prediction: integer labels [N, H, W].
    class_names: K names, background first.
    spacing_mm: [N, 2], size of a pixel, row then column.
    distance_unit: of the spacing, 'mm' or 'pixels' where it is not known.
    case: N names, left of the rows.
    scores: N mean Dice scores to print below the names; NaN is left out.
    note: a line below the picture, such as where the data comes from.

  Raises:
    ValueError: no cases, arrays that do not fit, labels outside the classes,
      or a file name of another format.
  """
  path = sheets.check_path(path)
  scores = [math.nan] * len(case) if scores is None else scores
  cases = case_panels.check_cases(
    image={'image': image},
    masks={'truth': truth, 'prediction': prediction},
    class_names=class_names,
    spacing_mm=spacing_mm,
    names={'case': case, 'scores': scores},
  )
  grey, extent_mm = cases.grey['image'], cases.extent_mm
  truth, prediction = cases.masks['truth'], cases.masks['prediction']
  n = len(grey)
  present = cases.present

  class_colors = panels.palette(len(class_names))
  heights = [case_panels.scan_height(PANEL, extent) for extent in extent_mm]
  note = '\n'.join(textwrap.wrap(note, 150))
  legend_lines = max(len(panels.ERRORS) + 1, math.ceil(len(present) / 3))
  bottom = LINE * (legend_lines + 2.5) + 0.7 * LINE * len(note.splitlines())
  top = LINE * 3
  width = LABEL + len(COLUMNS) * (PANEL + GAP)
  height = top + sum(heights) + GAP * (n - 1) + bottom
  page = figure.Figure(figsize=(width, height), dpi=DPI, facecolor='white')

  def inches(x, y):  # from the top left corner to matplotlib's fractions
    return x / width, 1 - y / height

  page.text(*inches(LABEL, LINE), title, size=12, weight='bold', va='center')
  y = top
  for i in range(n):
    y += heights[i]
    row = []
    for j, name in enumerate(COLUMNS):
      left, low = inches(LABEL + j * (PANEL + GAP), y)
      panel = page.add_axes((left, low, PANEL / width, heights[i] / height))
      panel.set_axis_off()
      if i == 0:
        panel.set_title(name, fontsize=10, pad=4)
      row.append(panel)
    scan = {'grey': grey[i], 'extent_mm': extent_mm[i]}
    panels.draw_scan(row[0], scale_bar=distance_unit, **scan)
    for panel, labels in ((row[1], truth[i]), (row[2], prediction[i])):
      panels.draw_mask(panel, labels=labels, class_colors=class_colors, **scan)
    panels.draw_errors(row[3], prediction=prediction[i], truth=truth[i], **scan)
    name = '\n'.join(textwrap.wrap(str(case[i]), 14))
    if not math.isnan(scores[i]):
      name += f'\n\nmean Dice {scores[i]:.2f}'
    middle = inches(LABEL - 0.1, y - heights[i] / 2)
    page.text(*middle, name, size=9, ha='right', va='center')
    y += GAP

  _draw_legends(
    page,
    classes=panels.class_handles(class_names, present),
    class_anchor=inches(LABEL, y + LINE / 2),
    error_anchor=inches(LABEL + 3 * (PANEL + GAP), y + LINE / 2),
  )
  page.text(*inches(LABEL, height - LINE / 2), note, size=8, color='0.35')
  sheets.save(page, path)


def _draw_legends(
  page: figure.Figure,
  *,
  classes: Sequence[artist.Artist],
  class_anchor: tuple[float, float],
  error_anchor: tuple[float, float],
) -> None:
  """Draws what the colours mean, below the columns that use them."""
  style = {
    'loc': 'upper left',
    'frameon': False,
    'fontsize': 9,
    'title_fontproperties': {'size': 9, 'weight': 'bold'},
    'alignment': 'left',
    'borderaxespad': 0,
    'borderpad': 0,
  }
  page.legend(
    handles=classes,
    title='colours of truth and prediction',
    ncols=3,
    bbox_to_anchor=class_anchor,
    **style,
  )
  page.legend(
    handles=panels.error_handles(),
    title='colours of errors',
    bbox_to_anchor=error_anchor,
    **style,
  )
