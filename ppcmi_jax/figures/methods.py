"""Pictures of the masks of several methods beside the truth.

Axes: N cases, H height, W width, C channels, K classes.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ppcmi_jax.figures import case_panels, panels, sheets

GAP_MM = 1.0
OUTLINE = 0.8  # points
PAIR_MM = 36.0  # the least width of two panels beside each other
PANEL_MM = 32.0  # the largest width of a panel


def draw_methods(
  path: str | os.PathLike,
  *,
  image: ArrayLike,
  truth: ArrayLike,
  predictions: Mapping[str, ArrayLike],
  class_names: Sequence[str],
  spacing_mm: ArrayLike,
  case: Sequence[str],
  distance_unit: str = 'mm',
  title: str = '',
  width_mm: float = sheets.WIDTH_MM,
) -> bool:
  """Draws two columns a case: image and truth, then a row for each method.

  A method's row has its mask and its errors. Cases stand beside each other as
  far as the sheet is wide enough, the others below.

  Args:
    path: the file to write, .png, .pdf or .svg; folders are made.
    image: uint8, or float in [0, 1], [N, H, W, C]; drawn in grey.
    truth: integer labels [N, H, W].
    predictions: {method: integer labels [N, H, W]}, in the order to draw.
    class_names: K names, background first.
    spacing_mm: [N, 2], size of a pixel, row then column.
    distance_unit: of the spacing, 'mm' or 'pixels' where it is not known.
    case: N names.
    title: above the picture.
    width_mm: of the sheet; 180 for two columns of a paper.

  Returns:
    Whether there was anything to draw; without cases or without methods no
    file is written.

  Raises:
    ValueError: as `case_panels.check_cases`, or a file name of another format.
  """
  path = sheets.check_path(path)
  if not len(case) or not predictions:
    return False
  masks = {'truth': truth}
  masks |= {f'prediction of {name}': p for name, p in predictions.items()}
  cases = case_panels.check_cases(
    image={'image': image},
    masks=masks,
    class_names=class_names,
    spacing_mm=spacing_mm,
    names={'case': case},
  )
  sheet = sheets.Sheet(width_mm=width_mm, title=title)
  label_mm = sheets.LINE_MM + 0.5
  inner_mm = sheet.inner_mm - label_mm
  per_block = min(len(case), max(1, int(inner_mm / PAIR_MM)))
  pair_mm = (inner_mm - 2 * GAP_MM * (per_block - 1)) / per_block
  panel_mm = min((pair_mm - GAP_MM) / 2, PANEL_MM)
  first_mm = sheets.MARGIN_MM + label_mm
  for start in range(0, len(case), per_block):
    _draw_block(
      sheet,
      cases,
      range(start, min(start + per_block, len(case))),
      names=case,
      methods=list(predictions),
      starts=first_mm + np.arange(per_block) * (pair_mm + 2 * GAP_MM),
      panel_mm=panel_mm,
      class_colors=panels.palette(len(class_names)),
      distance_unit=distance_unit,
    )
    sheet.top_mm += 2
  sheet.legend(panels.class_handles(class_names, cases.present), 'structures')
  sheet.legend(panels.error_handles(), 'errors')
  sheet.save(path)
  return True


def _draw_block(
  sheet: sheets.Sheet,
  cases: case_panels.Cases,
  indices: Sequence[int],
  *,
  names: Sequence[str],
  methods: Sequence[str],
  starts: np.ndarray,
  panel_mm: float,
  class_colors: np.ndarray,
  distance_unit: str,
) -> None:
  """Draws the cases that stand beside each other, and moves below them."""
  height_mm = max(
    case_panels.scan_height(panel_mm, cases.extent_mm[i]) for i in indices
  )
  _draw_case_names(sheet, [names[i] for i in indices], starts, panel_mm)
  for row, method in enumerate([None, *methods]):
    heads = {0: ('image', 'truth'), 1: ('prediction', 'errors')}.get(row)
    if heads:
      for x in starts[: len(indices)]:
        for j, head in enumerate(heads):
          middle = x + j * (panel_mm + GAP_MM) + panel_mm / 2
          y = sheet.top_mm + sheets.LINE_MM / 2
          sheet.text(middle, y, head, ha='center')
      sheet.top_mm += sheets.LINE_MM
    if method is not None:
      sheet.text(
        sheets.MARGIN_MM + sheets.LINE_MM / 2,
        sheet.top_mm + height_mm / 2,
        sheet.shorten(method, width_mm=height_mm),
        rotation=90,
        ha='center',
      )
    for x, i in zip(starts, indices):
      left, right = (
        case_panels.scan_panel(
          sheet, x + j * (panel_mm + GAP_MM), panel_mm, height_mm
        )
        for j in range(2)
      )
      scan = {'grey': cases.grey['image'][i], 'extent_mm': cases.extent_mm[i]}
      tint = {'class_colors': class_colors, 'line_width': OUTLINE, **scan}
      truth = cases.masks['truth'][i]
      if method is None:
        panels.draw_scan(left, scale_bar=distance_unit, **scan)
        panels.draw_mask(right, labels=truth, **tint)
        continue
      prediction = cases.masks[f'prediction of {method}'][i]
      panels.draw_mask(left, labels=prediction, **tint)
      panels.draw_errors(right, prediction=prediction, truth=truth, **scan)
    sheet.top_mm += height_mm + GAP_MM


def _draw_case_names(sheet, names, starts, panel_mm) -> None:
  """Writes names above their two columns, over up to two lines."""
  width_mm = 2 * panel_mm + GAP_MM
  style = {'weight': 'bold'}
  wrapped = []
  for name in names:
    wrapped.append(sheet.wrap(name, width_mm=width_mm, max_lines=2, **style))
  for x, lines in zip(starts, wrapped):
    for j, line in enumerate(lines):
      sheet.text(x, sheet.top_mm + (j + 0.5) * sheets.LINE_MM, line, **style)
  sheet.top_mm += sheets.LINE_MM * max(len(lines) for lines in wrapped)
