"""Pictures of the scores of cases: a box a class and client, or method.

>>> rows = [{'class': 'liver', 'dice': d, 'missed': d == 0} for d in (0.9, 0)]
>>> summarize_rows(rows, 'liver', 'dice')
Values(seen=[0.9], missed=[0.0], spurious=[])
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import lines, patches, ticker

from ppcmi_jax import tables
from ppcmi_jax.figures import sheets

# What to write along the axis.
METRICS = {
  'dice': 'Dice (0 to 1, higher is better)',
  'iou': 'IoU (0 to 1, higher is better)',
  'nsd': 'normalised surface Dice (0 to 1, higher is better)',
  'sensitivity': 'sensitivity (0 to 1, higher is better)',
  'specificity': 'specificity (0 to 1, higher is better)',
  'precision': 'precision (0 to 1, higher is better)',
  'hd95_mm': 'HD95 ({unit}, lower is better)',
  'asd_mm': 'ASD ({unit}, lower is better)',
  'hd95_px': 'HD95 (pixels, lower is better)',
  'asd_px': 'ASD (pixels, lower is better)',
}
DISTANCES = ('_mm', '_px')
MISSED, SPURIOUS = '#D55E00', '#000000'
ROW_MM = 3.8
MAX_LABEL_MM = 30.0


class Values(NamedTuple):
  """The values of a metric by what the case is; undefined ones left out."""

  seen: list[float]
  missed: list[float]
  spurious: list[float]

  @property
  def all(self) -> list[float]:
    return self.seen + self.missed + self.spurious


def summarize_rows(
  rows: Sequence[Mapping[str, Any]], class_name: str, metric: str
) -> Values:
  """Returns the values of a metric for a class.

  Args:
    rows: as an evaluator's 'per_case': 'class', the metric (None or NaN where
      undefined), 'missed' and 'spurious'.
    class_name: of the rows to take.
    metric: key of the value.
  """
  values = Values([], [], [])
  for row in rows:
    value = tables.number(row.get(metric))
    if row['class'] != class_name or not math.isfinite(value):
      continue
    kind = values.seen
    if row.get('missed'):
      kind = values.missed
    elif row.get('spurious'):
      kind = values.spurious
    kind.append(float(value))
  return values


def draw_boxplots(
  path: str | os.PathLike,
  per_case: Mapping[str, Sequence[Mapping[str, Any]]],
  *,
  metric: str = 'dice',
  distance_unit: str = 'mm',
) -> bool:
  """Draws a box and the points of every class and client, or method.

  Boxes span the quartiles, their line is the median, whiskers reach the last
  point within 1.5 times the box. Every case is a point; structures that were
  missed, or invented, have signs of their own, and count in the box with the
  value that the metric gives them. To the right, n is the number of cases that
  define the metric.

  Args:
    path: the file to write, .png, .pdf or .svg; folders are made.
    per_case: {client or method: rows as `summarize_rows` takes them}.
    metric: key of the value to draw; `METRICS` names those that are known.
    distance_unit: of the metrics in mm; 'pixels' where the spacing is 1 for
      unknown.

  Returns:
    Whether there was anything to draw; where no row defines the metric, no
    file is written.

  Raises:
    ValueError: a file name of another format.
  """
  path = sheets.check_path(path)
  classes = list(
    dict.fromkeys(row['class'] for rows in per_case.values() for row in rows)
  )
  table = {
    class_name: {
      group: summarize_rows(rows, class_name, metric)
      for group, rows in per_case.items()
    }
    for class_name in classes
  }
  every = [
    v for row in table.values() for values in row.values() for v in values.all
  ]
  if not every:
    return False
  sheet = sheets.Sheet()
  label_mm = min(MAX_LABEL_MM, max(sheet.measure_mm(g) for g in per_case))
  counts_mm = [sheet.measure_mm(head) + 2 for head in ('0000', 'missed')]
  left_mm = sheets.MARGIN_MM + label_mm + 1
  right_mm = sheet.width_mm - sheets.MARGIN_MM - sum(counts_mm)
  ends_mm = right_mm + np.cumsum(counts_mm)
  for x, head in zip(ends_mm, ('n', 'missed')):
    sheet.text(x, sheet.top_mm + sheets.LINE_MM / 2, head, ha='right')
  styles = sheets.series_styles(len(per_case))
  panel = None
  for class_name, groups in table.items():
    name = sheet.shorten(
      class_name, width_mm=right_mm - sheets.MARGIN_MM, weight='bold'
    )
    middle = sheet.top_mm + sheets.LINE_MM / 2
    sheet.text(sheets.MARGIN_MM, middle, name, weight='bold')
    sheet.top_mm += sheets.LINE_MM + 0.2
    tall_mm = ROW_MM * len(groups)
    panel = sheet.panel(left_mm, sheet.top_mm, right_mm - left_mm, tall_mm)
    for k, ((group, values), style) in enumerate(zip(groups.items(), styles)):
      _draw_row(panel, k, values, style)
      y = sheet.top_mm + (k + 0.5) * ROW_MM
      group = sheet.shorten(group, width_mm=label_mm + 0.1)
      sheet.text(left_mm - 1, y, group, ha='right')
      sheet.text(ends_mm[0], y, str(len(values.all)), ha='right')
      missed = len(values.missed)
      bold = {'weight': 'bold', 'color': MISSED} if missed else {}
      sheet.text(ends_mm[1], y, str(missed), ha='right', **bold)
    panel.set(yticks=[], ylim=(len(groups) - 0.5, -0.5))
    logarithmic = _scale_axis(panel, metric, every)
    panel.tick_params(labelbottom=False)
    sheet.top_mm += tall_mm + 1.2
  panel.tick_params(labelbottom=True)
  sheet.top_mm += sheets.LINE_MM
  label = METRICS.get(metric, metric).format(unit=distance_unit)
  label += ', logarithmic above 1' if logarithmic else ''
  centre_mm = (left_mm + right_mm) / 2
  for line in sheet.wrap(label, width_mm=sheet.inner_mm - sum(counts_mm)):
    sheet.text(centre_mm, sheet.top_mm + sheets.LINE_MM / 2, line, ha='center')
    sheet.top_mm += sheets.LINE_MM
  sheet.top_mm += 1
  sheet.legend(_box_handles())
  sheet.save(path)
  return True


def _draw_row(panel, position, values, style) -> None:
  """Draws the box and the points of one class and client."""
  if not values.all:
    return
  box = {'facecolor': (*style.color, 0.25), 'edgecolor': style.color}
  line = {'color': style.color, 'linewidth': 0.7}
  panel.boxplot(
    [values.all],
    positions=[position],
    widths=0.62,
    orientation='horizontal',
    manage_ticks=False,
    showfliers=False,
    patch_artist=True,
    boxprops={**box, 'linewidth': 0.7},
    medianprops={'color': style.color, 'linewidth': 1.6},
    whiskerprops=line,
    capprops=line,
  )
  # Evenly spread rather than drawn, so that a figure is the same every time.
  golden = (math.sqrt(5) - 1) / 2
  start = 0
  for found, look in (
    (values.seen, {'marker': 'o', 'color': style.color, 'alpha': 0.75}),
    (values.missed, {'marker': 'x', 'color': MISSED, 'zorder': 4}),
    (values.spurious, {'marker': '+', 'color': SPURIOUS, 'zorder': 4}),
  ):
    number = start + np.arange(len(found))
    start += len(found)
    y = position + 0.44 * ((number * golden) % 1 - 0.5)
    size = 1.6 if look['marker'] == 'o' else 3
    edge = 0 if look['marker'] == 'o' else 0.8
    panel.plot(
      found, y, linestyle='', markersize=size, markeredgewidth=edge, **look
    )


def _scale_axis(panel, metric: str, values: Sequence[float]) -> bool:
  """Gives an axis the range of its metric; says whether it is logarithmic."""
  panel.grid(axis='x', color='0.9', linewidth=0.5)
  panel.set_axisbelow(True)
  if not metric.endswith(DISTANCES):
    low, high = min(0.0, *values, 0.0), max(1.0, *values, 1.0)
    margin = 0.02 * (high - low)
    panel.set(xlim=(low - margin, high + margin))
    panel.xaxis.set_major_locator(ticker.MaxNLocator(5))
    return False
  high = max(values)
  logarithmic = high > 10 * max(1.0, float(np.median(values)))
  if logarithmic:
    panel.set_xscale('symlog', linthresh=1, linscale=0.5)
    ticks = [0, *(float(f'{m}e{k}') for k in range(6) for m in (1, 3))]
    panel.set_xlim(-0.1, 1.3 * high)
  else:
    high = high or 1.0
    ticks = ticker.MaxNLocator(5).tick_values(0, high)
    panel.set_xlim(-0.02 * high, 1.05 * high)
  low, high = panel.get_xlim()
  ticks = [tick for tick in ticks if low <= tick <= high]
  panel.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
  panel.xaxis.set_minor_locator(ticker.NullLocator())
  return logarithmic


def _box_handles() -> list:
  grey = {'color': '0.4', 'linestyle': ''}
  return [
    patches.Patch(
      facecolor='0.85', edgecolor='0.4', label='quartiles and median'
    ),
    lines.Line2D([], [], marker='o', markersize=2.5, label='a case', **grey),
    lines.Line2D(
      [],
      [],
      marker='x',
      markersize=4,
      color=MISSED,
      linestyle='',
      label='structure missed',
    ),
    lines.Line2D(
      [],
      [],
      marker='+',
      markersize=4,
      color=SPURIOUS,
      linestyle='',
      label='structure invented',
    ),
  ]
