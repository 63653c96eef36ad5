"""Pictures of training: the losses of every task of a run.

>>> log_ticks(0.03, 0.3)
[0.05, 0.1, 0.2]
>>> log_ticks(1e-4, 1.0)
[0.0001, 0.001, 0.01, 0.1, 1.0]
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import axes, lines, ticker

from ppcmi_jax.figures import panels, sheets

CURVES = {
  'loss': {'color': sheets.SERIES_COLORS[0], 'linestyle': '-', 'marker': 'o'},
  'valid_loss': {
    'color': sheets.SERIES_COLORS[4],
    'linestyle': '--',
    'marker': 's',
  },
}
NAMES = {'loss': 'training', 'valid_loss': 'validation'}
PANEL_MM = 22.0  # height
COLUMN_MM = 42.0  # the least width of a panel with its labels
LOG_FACTOR = 3.0  # of the largest to the smallest loss, from which on
MAX_TICKS = 5


def draw_curves(
  path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]
) -> bool:
  """Draws training and validation loss, a panel for each task.

  The axis of the loss is logarithmic where the losses of a task are positive
  and span a factor of 3. Where a training was resumed and logged a step twice,
  the later line counts. Tasks with a number in front, '2/7 ...', are in that
  order, as those trained side by side are logged in turns.

  Args:
    path: the file to write, .png, .pdf or .svg; folders are made.
    rows: those of metrics.jsonl: 'task', 'step', 'loss' and 'valid_loss'; a
      loss that is missing, None or not finite leaves a gap.

  Returns:
    Whether there was anything to draw; without rows no file is written.

  Raises:
    ValueError: a file name of another format.
  """
  path = sheets.check_path(path)
  tasks = {}
  for row in rows:
    tasks.setdefault(row['task'], {})[row['step']] = row
  if not tasks:
    return False
  tasks = {name: tasks[name] for name in sorted(tasks, key=_place)}
  sheet = sheets.Sheet()
  num_columns = max(1, min(len(tasks), int(sheet.inner_mm / COLUMN_MM)))
  column_mm = sheet.inner_mm / num_columns
  left_mm = sheets.LINE_MM + 8.5
  panel_mm = column_mm - left_mm - 2.5
  sheet.legend(_handles())
  sheet.top_mm += 1
  names = list(tasks)
  for start in range(0, len(names), num_columns):
    row = names[start : start + num_columns]
    heads = [_head(sheet, name, column_mm - 2) for name in row]
    head_mm = sheets.LINE_MM * max(len(head) for head in heads)
    for k, (name, head) in enumerate(zip(row, heads)):
      x = sheets.MARGIN_MM + k * column_mm
      for j, line in enumerate(reversed(head)):
        y = sheet.top_mm + head_mm - (j + 0.5) * sheets.LINE_MM
        sheet.text(x, y, line, weight='bold')
      top = sheet.top_mm + head_mm + 0.8
      panel = sheet.panel(x + left_mm, top, panel_mm, PANEL_MM)
      scale = _draw_task(panel, tasks[name])
      sheet.text(
        x + sheets.LINE_MM / 2,
        top + PANEL_MM / 2,
        f'loss{scale}',
        rotation=90,
        ha='center',
      )
      below = top + PANEL_MM + 1.5 * sheets.LINE_MM + 0.5
      sheet.text(x + left_mm + panel_mm / 2, below, 'step', ha='center')
    sheet.top_mm += head_mm + PANEL_MM + 2 * sheets.LINE_MM + 2.5
  sheet.save(path)
  return True


def _place(task: str) -> int:
  """Returns the number in front of a task's title, or 0."""
  found = re.match(r'(\d+)/', task)
  return int(found[1]) if found else 0


def log_ticks(low: float, high: float) -> list[float]:
  """Returns at most five round numbers from `low` to `high`, both positive."""
  first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
  for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
    ticks = [
      float(f'{factor}e{power}')
      for power in range(first, last + 1)
      for factor in factors
    ]
    ticks = [tick for tick in ticks if low <= tick <= high]
    gaps = np.diff(np.log(ticks)) if len(ticks) > 1 else np.array([math.inf])
    room = math.log(high / low) / (MAX_TICKS + 2)
    if len(ticks) <= MAX_TICKS and gaps.min() > room:
      return ticks
  return ticks[:: math.ceil(len(ticks) / MAX_TICKS)]


def _head(sheet: sheets.Sheet, name: str, width_mm: float) -> list[str]:
  """Returns one line, or two: what is learnt, and by whom."""
  style = {'weight': 'bold', 'width_mm': width_mm}
  lines = [name]
  if sheet.shorten(name, **style) != name and ', ' in name:
    what, _, who = name.partition(', ')
    lines = [f'{what},', who]
  return [sheet.shorten(line, **style) for line in lines]


def _draw_task(panel: axes.Axes, rows: Mapping[int, Mapping[str, Any]]) -> str:
  """Draws the losses of a task; returns what to add to the axis's label."""
  steps = sorted(rows)
  curves = {
    key: np.array([_number(rows[step].get(key)) for step in steps])
    for key in CURVES
  }
  finite = np.concatenate(list(curves.values()))
  finite = finite[np.isfinite(finite)]
  panel.grid(color='0.9', linewidth=0.5)
  panel.set_axisbelow(True)
  if not finite.size:
    panel.set(xticks=[], yticks=[])
    panels.write_in_middle(panel, 'no finite loss')
    return ''
  for key, values in curves.items():
    panel.plot(steps, values, linewidth=1, markersize=2, **CURVES[key])
  valid = curves['valid_loss']
  if np.any(np.isfinite(valid)):
    best = int(np.nanargmin(valid))
    panel.plot(steps[best], valid[best], **_BEST)
  panel.set_xlim(0, 1.06 * max(1, steps[-1]))
  panel.xaxis.set_major_locator(
    ticker.MaxNLocator(4, integer=True, steps=[1, 2, 5, 10])
  )
  panel.xaxis.set_major_formatter(
    ticker.EngFormatter(sep='')  # 10k, to leave room
    if steps[-1] >= 10_000
    else ticker.StrMethodFormatter('{x:g}')
  )
  low, high = float(finite.min()), float(finite.max())
  logarithmic = low > 0 and high > LOG_FACTOR * low
  if logarithmic:
    panel.set_yscale('log')
    margin = (high / low) ** 0.08
    panel.set_ylim(low / margin, high * margin)
    panel.yaxis.set_minor_locator(ticker.NullLocator())
    panel.set_yticks(log_ticks(*panel.get_ylim()))
  else:
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    panel.set_ylim(low - margin, high + margin)
    panel.yaxis.set_major_locator(ticker.MaxNLocator(4))
  panel.yaxis.set_major_formatter(lambda value, _: f'{value:.4g}')
  return ' (log)' if logarithmic else ''


def _number(value: float | None) -> float:
  """Returns NaN, which leaves a gap, for what is not finite."""
  return value if value is not None and math.isfinite(value) else math.nan


_BEST = {
  'marker': 'o',
  'markersize': 5,
  'markerfacecolor': 'none',
  'markeredgecolor': 'black',
  'markeredgewidth': 0.8,
  'linestyle': '',
}


def _handles() -> list[lines.Line2D]:
  curves = [
    lines.Line2D([], [], label=NAMES[key], markersize=2.5, linewidth=1, **look)
    for key, look in CURVES.items()
  ]
  best = lines.Line2D([], [], label='best validation, kept', **_BEST)
  return [*curves, best]
