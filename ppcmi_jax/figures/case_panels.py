"""Cases that are drawn beside each other: what fits, and how tall they are.

Axes: N cases, H height, W width, C channels, K classes.

>>> scan_height(20, np.array([64.0, 128.0]))
10.0
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import axes
from numpy.typing import ArrayLike

from ppcmi_jax import metrics
from ppcmi_jax.figures import sheets


class Cases(NamedTuple):
  """Cases that fit each other.

  Attributes:
    grey: {name: float [N, H, W] in [0, 1]}.
    masks: {name: integer [N, H, W]}.
    extent_mm: float [N, 2], height and width.
    present: the labels of the classes that some mask holds, but background.
  """

  grey: dict[str, np.ndarray]
  masks: dict[str, np.ndarray]
  extent_mm: np.ndarray
  present: list[int]


def check_cases(
  *,
  image: Mapping[str, ArrayLike],
  masks: Mapping[str, ArrayLike],
  class_names: Sequence[str],
  spacing_mm: ArrayLike,
  names: Mapping[str, Sequence[Any]],
) -> Cases:
  """Returns what is to be drawn, once it is known to fit.

  Args:
    image: {name: uint8, or float in [0, 1], [N, H, W, C]}.
    masks: {name: integer labels [N, H, W]}.
    class_names: K names, background first.
    spacing_mm: [N, 2], size of a pixel in mm, row then column.
    names: {name: N values}, such as the names of the cases.

  Raises:
    ValueError: no cases, arrays that do not fit, labels outside the classes.
  """
  grey = {name: grey_scans(scans, name=name) for name, scans in image.items()}
  masks = {name: np.asarray(labels) for name, labels in masks.items()}
  for name, labels in masks.items():
    metrics.check_labels(labels, num_classes=len(class_names), name=name)
  arrays = {**grey, **masks}
  shapes = [array.shape for array in arrays.values()]
  n = shapes[0][0]
  if not n or len(set(shapes)) > 1:
    raise ValueError(
      f'{", ".join(arrays)} must hold the same N >= 1 cases of one size, '
      f'found {", ".join(str(list(shape)) for shape in shapes)}'
    )
  spacing_mm = np.asarray(spacing_mm, np.float64)
  lengths = [len(values) for values in names.values()]
  if set(lengths) != {n} or spacing_mm.shape != (n, 2):
    raise ValueError(
      f'{", ".join(names)} and spacing_mm must hold {n} cases, [{n}] and '
      f'[{n}, 2], found lengths {lengths} and {list(spacing_mm.shape)}'
    )
  if not np.all(np.isfinite(spacing_mm) & (spacing_mm > 0)):
    raise ValueError('spacing_mm must be finite and above 0')
  present = set().union(*(np.unique(labels) for labels in masks.values()))
  return Cases(
    grey=grey,
    masks=masks,
    extent_mm=spacing_mm * shapes[0][1:],
    present=sorted(int(label) for label in present if label),
  )


def grey_scans(scans: ArrayLike, *, name: str = 'image') -> np.ndarray:
  """Returns float [N, H, W] in [0, 1], the mean over channels.

  Args:
    scans: uint8, or float in [0, 1], [N, H, W, C].
    name: of the argument, for the error.

  Raises:
    ValueError: another number of axes.
  """
  scans = np.asarray(scans)
  if scans.ndim != 4:
    raise ValueError(f'{name} must be [N, H, W, C], found {list(scans.shape)}')
  scale = 255 if scans.dtype == np.uint8 else 1
  return np.mean(scans, axis=-1, dtype=np.float64) / scale


def scan_panel(
  sheet: sheets.Sheet, x_mm: float, width_mm: float, height_mm: float
) -> axes.Axes:
  """Adds a panel for a scan at the height where the sheet is filled."""
  panel = sheet.panel(x_mm, sheet.top_mm, width_mm, height_mm)
  panel.set_axis_off()
  panel.set_anchor('N')  # below the column's head
  return panel


def scan_height(width: float, extent_mm: np.ndarray) -> float:
  """Returns the height of a panel that has the aspect of its scan.

  Args:
    width: of the panel, in any unit, which the height is in too.
    extent_mm: [2], height and width of the scan; extremes are cut off.
  """
  return width * float(np.clip(extent_mm[0] / extent_mm[1], 0.3, 3))
