"""Pictures of what the two autoencoders keep of images and masks.

Axes: N cases, H height, W width, C channels, K classes.
"""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ppcmi_jax.figures import case_panels, panels, sheets

GAP_MM = 1.0
OUTLINE = 0.8  # points


def draw_reconstructions(
  path: str | os.PathLike,
  *,
  image: ArrayLike,
  reconstruction: ArrayLike,
  truth: ArrayLike,
  reconstructed_mask: ArrayLike,
  class_names: Sequence[str],
  spacing_mm: ArrayLike,
  case: Sequence[str],
  distance_unit: str = 'mm',
  title: str = '',
) -> bool:
  """Draws one row a case: image, decoded, difference; mask, decoded.

  Args:
    path: the file to write, .png, .pdf or .svg; folders are made.
    image: uint8, or float in [0, 1], [N, H, W, C]; drawn in grey.
    reconstruction: of the images, likewise; NaN is left blank.
    truth: integer labels [N, H, W].
    reconstructed_mask: of the truth, integer labels [N, H, W].
    class_names: K names, background first.
    spacing_mm: [N, 2], size of a pixel, row then column.
    distance_unit: of the spacing, 'mm' or 'pixels' where it is not known.
    case: N lines to stand above the rows, such as name and scores.
    title: above the picture.

  Returns:
    Whether there was anything to draw; without cases no file is written.

  Raises:
    ValueError: as `case_panels.check_cases`, or a file name of another format.
  """
  path = sheets.check_path(path)
  if not len(case):
    return False
  cases = case_panels.check_cases(
    image={'image': image, 'reconstruction': reconstruction},
    masks={'truth': truth, 'reconstructed_mask': reconstructed_mask},
    class_names=class_names,
    spacing_mm=spacing_mm,
    names={'case': case},
  )
  difference = np.abs(cases.grey['reconstruction'] - cases.grey['image'])
  limit = _difference_limit(difference)
  class_colors = panels.palette(len(class_names))
  sheet = sheets.Sheet(title=title)
  panel_mm = (sheet.inner_mm - 5 * GAP_MM) / 5
  starts = sheets.MARGIN_MM + np.arange(5) * (panel_mm + GAP_MM)
  starts[3:] += GAP_MM  # between images and masks
  _draw_heads(sheet, starts, panel_mm)
  shown = None
  for i in range(len(case)):
    middle = sheet.top_mm + sheets.LINE_MM / 2
    line = sheet.shorten(case[i], width_mm=sheet.inner_mm)
    sheet.text(sheets.MARGIN_MM, middle, line)
    sheet.top_mm += sheets.LINE_MM
    height_mm = case_panels.scan_height(panel_mm, cases.extent_mm[i])
    row = [
      case_panels.scan_panel(sheet, x, panel_mm, height_mm) for x in starts
    ]
    extent = {'extent_mm': cases.extent_mm[i]}
    panels.draw_scan(
      row[0],
      grey=cases.grey['image'][i],
      scale_bar=distance_unit,
      **extent,
    )
    panels.draw_scan(
      row[1], grey=cases.grey['reconstruction'][i], scale_bar='', **extent
    )
    shown = panels.draw_difference(
      row[2], difference=difference[i], limit=limit, **extent
    )
    for panel, name in zip(row[3:], cases.masks):
      panels.draw_mask(
        panel,
        grey=cases.grey['image'][i],
        labels=cases.masks[name][i],
        class_colors=class_colors,
        line_width=OUTLINE,
        **extent,
      )
    sheet.top_mm += height_mm + GAP_MM

  sheet.top_mm += 1
  bar = sheet.panel(starts[2] + 1, sheet.top_mm, panel_mm - 2, 1.8)
  sheet.figure.colorbar(
    shown, cax=bar, orientation='horizontal', ticks=[0, limit], extend='max'
  )
  bar.set_xticks([0, limit], ['0', f'{limit:g}'], fontsize=sheets.FONT)
  bar.tick_params(width=0.5)
  label = 'absolute difference of grey (1: black to white)'
  lines = sheet.wrap(label, width_mm=2 * panel_mm + GAP_MM)
  for k, line in enumerate(lines):
    sheet.text(starts[3], sheet.top_mm + 1 + k * sheets.LINE_MM, line)
  sheet.top_mm += max(len(lines), 2) * sheets.LINE_MM
  sheet.legend(
    panels.class_handles(class_names, cases.present), 'structures of the masks'
  )
  sheet.save(path)
  return True


def _draw_heads(sheet, starts, panel_mm) -> None:
  """Writes the two lines above the columns of `draw_reconstructions`."""
  y = sheet.top_mm + sheets.LINE_MM / 2
  for name, first, last in (('images', 0, 2), ('masks', 3, 4)):
    left, right = starts[first], starts[last] + panel_mm
    sheet.text((left + right) / 2, y, name, ha='center', weight='bold')
    sheet.line([left, right], [y + 2, y + 2])
  for x, name in zip(
    starts, ('original', 'decoded', 'difference', 'original', 'decoded')
  ):
    middle = x + panel_mm / 2
    sheet.text(middle, y + sheets.LINE_MM + 0.8, name, ha='center')
  sheet.top_mm += 2 * sheets.LINE_MM + 1


def _difference_limit(difference: np.ndarray) -> float:
  """Returns a round number that nearly all differences are below."""
  finite = difference[np.isfinite(difference)]
  high = float(np.percentile(finite, 99.5)) if finite.size else 0.0
  steps = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
  return next((step for step in steps if high <= step), 1.0)
