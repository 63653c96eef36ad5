"""ROC curves of membership attacks, on logarithmic axes.

What counts is how many members are told at few false positives, which no
linear axis shows (arXiv 2112.03570, section III).
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import lines, ticker

from ppcmi_jax.figures import sheets

LOOKS = (
  {'color': sheets.SERIES_COLORS[0], 'linestyle': '-'},
  {'color': sheets.SERIES_COLORS[4], 'linestyle': '--'},
  {'color': sheets.SERIES_COLORS[2], 'linestyle': '-.'},
)
CHANCE = {'color': '0.5', 'linestyle': ':', 'linewidth': 0.8}
WIDTH_MM = 130.0
LABEL_MM = 8.5  # of an axis's numbers


def draw_roc(
  path: str | os.PathLike,
  experiments: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]],
  *,
  fprs: Sequence[float],
  losses: Mapping[str, str],
  title: str = '',
) -> bool:
  """Draws a row of panels for each loss, a panel an experiment.

  Args:
    path: the file to write, .png, .pdf or .svg; folders are made.
    experiments: {experiment: {loss: {attack: {'roc': true positive rates [R]
      at fprs}}}}, of at most three attacks. A rate below the least of fprs is
      drawn at the edge.
    fprs: false positive rates [R], ascending, above 0.
    losses: {loss: as people read it}, those to draw.
    title: above the picture.

  Returns:
    Whether there was anything to draw; without a curve no file is written.

  Raises:
    ValueError: a file name of another format.
  """
  path = sheets.check_path(path)
  shown = {
    (loss, name): {a: found['roc'] for a, found in by_loss[loss].items()}
    for loss in losses
    for name, by_loss in experiments.items()
    if loss in by_loss
  }
  if not shown:
    return False
  attacks = dict.fromkeys(name for found in shown.values() for name in found)
  looks = dict(zip(attacks, LOOKS, strict=False))
  sheet = sheets.Sheet(width_mm=WIDTH_MM, title=title)
  sheet.legend(
    [
      *(
        lines.Line2D([], [], label=attack.replace('_', ' '), **look)
        for attack, look in looks.items()
      ),
      lines.Line2D([], [], label='chance', **CHANCE),
    ]
  )
  left_mm = sheets.LINE_MM + LABEL_MM
  column_mm = sheet.inner_mm / len(experiments)
  side_mm = column_mm - left_mm - 2
  for loss, label in losses.items():
    for k, name in enumerate(experiments):
      if (loss, name) not in shown:
        continue
      x_mm = sheets.MARGIN_MM + k * column_mm
      middle_mm = x_mm + left_mm + side_mm / 2
      head = sheet.shorten(f'{name}, {label}', width_mm=column_mm - 1)
      half_mm = sheets.LINE_MM / 2
      centre_mm = x_mm + column_mm / 2
      sheet.text(centre_mm, sheet.top_mm + half_mm, head, ha='center')
      top_mm = sheet.top_mm + sheets.LINE_MM + 0.8
      panel = sheet.panel(x_mm + left_mm, top_mm, side_mm, side_mm)
      _draw_curves(panel, fprs, shown[loss, name], looks)
      style = {'rotation': 90, 'ha': 'center'}
      sheet.text(x_mm + half_mm, top_mm + side_mm / 2, 'TPR', **style)
      below_mm = top_mm + side_mm + 1.5 * sheets.LINE_MM + 1.5
      sheet.text(middle_mm, below_mm, 'FPR', ha='center')
    sheet.top_mm += side_mm + 3 * sheets.LINE_MM + 3.5
  sheet.save(path)
  return True


def _draw_curves(panel, fprs, found, looks) -> None:
  least = fprs[0]
  panel.plot([least, 1], [least, 1], **CHANCE)
  for attack, tprs in found.items():
    panel.plot(fprs, np.maximum(tprs, least), linewidth=1, **looks[attack])
  panel.set(xscale='log', yscale='log', xlim=(least, 1), ylim=(least, 1.15))
  panel.set_axisbelow(True)
  panel.grid(color='0.9', linewidth=0.5)
  panel.tick_params(axis='x', pad=4)  # apart from the other axis's
  for axis in (panel.xaxis, panel.yaxis):
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_locator(ticker.LogLocator(numticks=4))
    axis.set_major_formatter('{x:g}')
