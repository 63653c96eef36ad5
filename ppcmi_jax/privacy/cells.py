"""Figures of attacks, with intervals, and what they prove.

A cell is what one attack reached against one protection, a dict:

  'value'     the figure; a mean over n, in the attack's unit; None where it
              is not measurable, and then 'why' says why
  'interval'  [low, high], 95 % over subjects, or None
  'trivial'   what an attacker reaches who sees no message
  'gain'      value - trivial, and 'gain_interval', paired where both are means
              over the same images
  'n'         what the mean is over
  'note'      what else a reader has to know

`verdict` compares the cells of one attack: what it says of `sealed` counts only
where the same attack breaks a static transform. An attacker who learns from
noise may do far worse than one who sees nothing, so `sealed` is also held
against messages of other images (`exposure.OTHERS`), from which there is
nothing to learn.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ppcmi_jax import exposure, intervals

Cell = dict[str, Any]


def missing(why: str) -> Cell:
  """Returns the cell of what cannot be measured."""
  return {'value': None, 'why': why}


def of_means(
  values: np.ndarray,
  trivial: np.ndarray,
  *,
  subject: np.ndarray,
  note: str = '',
) -> Cell:
  """Returns the cell of a mean, and of its paired gain over the trivial one.

  Args:
    values: float [n].
    trivial: float [n], of an attacker who sees nothing, on the same images.
    subject: [n], whose images are drawn together.
    note: see the module's text.
  """
  values, trivial = (np.asarray(a, np.float64) for a in (values, trivial))
  columns = np.stack([values, values - trivial], axis=1)
  bounds = intervals.bootstrap_interval(columns, subject=subject)
  return _cell(
    values.mean(), bounds[0], trivial.mean(), bounds[1], len(values), note
  )


def of_value(
  value: float,
  trivial: float,
  *,
  n: int,
  interval: np.ndarray | None = None,
  note: str = '',
) -> Cell:
  """Returns the cell of a figure that is no mean over images.

  Args:
    value, trivial: see the module's text.
    n: what the figure is of.
    interval: float [2], of the value.
    note: see the module's text.
  """
  bounds = np.full(2, np.nan) if interval is None else np.asarray(interval)
  return _cell(value, bounds, trivial, bounds - trivial, n, note)


def _cell(value, interval, trivial, gain_interval, n, note):
  plain = lambda bounds: (
    None if np.isnan(bounds).any() else [float(x) for x in bounds]
  )
  cell = {
    'value': float(value),
    'interval': plain(interval),
    'trivial': float(trivial),
    'gain': float(value - trivial),
    'gain_interval': plain(gain_interval),
    'n': int(n),
  }
  return {**cell, 'note': note} if note else cell


def verdict(
  cells: Mapping[str, Cell],
  *,
  tolerance: float,
  needed: float,
  two_sided: bool = False,
  slack: float | None = None,
  whole: float | None = None,
) -> dict[str, Any]:
  """Says whether an attack breaks the static transforms, and the sealed one.

  Args:
    cells: {protection: cell}, of one attack.
    tolerance: the gain over the trivial level that the goal allows.
    needed: how much of the whole gain the attack has to keep against a static
      transform to count as breaking it.
    two_sided: whether a figure as far below the trivial level tells as much.
    slack: how far above that of messages of other images the figure of sealed
      may be, as two trainings of an attacker differ; None: the tolerance.
    whole: the gain of an attack that finds all; None: what it is without
      protection.

  Returns:
    'breaks': {static protection: 'yes', 'in part' (more than the tolerance by
    its interval, but less than is needed) or 'no'}, of those in the cells;
    'kept': {static protection: the share of the whole gain, or None};
    'over_others': how far sealed is above messages of other images, or
    None; 'sealed': 'held', 'broken', 'in doubt' (above the goal, but not by its
    interval) or None; 'proof': whether the row says anything of sealed, which
    takes one 'yes'.
  """
  gain = lambda name: cells.get(name, {}).get('gain')
  sealed, whole = gain('sealed'), gain('none') if whole is None else whole
  breaks, kept = {}, {}
  for name in exposure.STATIC:
    if name not in cells:
      continue
    breaks[name], kept[name] = 'no', None
    if (static := gain(name)) is None:
      continue
    interval = cells[name]['gain_interval']
    low = static if interval is None else interval[0]
    if whole is not None and whole > tolerance:
      kept[name] = static / whole
    if low > tolerance and not math.isnan(low):
      enough = kept[name] is not None and kept[name] >= needed
      breaks[name] = 'yes' if enough else 'in part'
  size = abs if two_sided else float
  state = over = None
  if sealed is not None:
    state = 'held'
    if size(sealed) > tolerance:
      low, high = cells['sealed']['gain_interval'] or (sealed, sealed)
      least = max(low, -high) if two_sided else low
      state = 'broken' if least > tolerance else 'in doubt'
    others = cells.get(exposure.OTHERS, {}).get('value')
    if others is not None:
      over = cells['sealed']['value'] - others
      if size(over) > (tolerance if slack is None else slack):
        state = 'broken'
  return {
    'breaks': breaks,
    'kept': kept,
    'over_others': over,
    'sealed': state,
    'proof': 'yes' in breaks.values() and state is not None,
  }
