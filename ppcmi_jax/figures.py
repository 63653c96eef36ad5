"""Pictures of segmentations, to be judged by eye: which error, and where.

`select_cases` takes the examples from the whole range of scores, so that the
pictures shown are not the pretty ones; `draw_segmentations` draws them.
Colours are those of Okabe and Ito, told apart with colour-blind eyes too.

Axes: N rows of the picture, H height, W width, C channels, K classes.

>>> error_map(np.array([[0, 1, 2, 2]]), np.array([[0, 0, 0, 1]])).tolist()
[[0, 1, 1, 3]]
"""

import math
import os
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import axes, colors, figure, lines, patches, patheffects
from numpy.typing import ArrayLike

from ppcmi_jax import metrics

# Okabe and Ito 2008; the errors take those that few-class pictures leave free.
CLASS_COLORS = (
  '#009E73',
  '#E69F00',
  '#CC79A7',
  '#0072B2',
  '#F0E442',
  '#56B4E9',
  '#D55E00',
)
# Values of `error_map`, 1 and up.
ERRORS = (
  ('false positive (drawn, not there)', '#D55E00'),
  ('false negative (there, not drawn)', '#56B4E9'),
  ('wrong class', '#F0E442'),
)
COLUMNS = ('image', 'truth', 'prediction', 'errors')
FORMATS = ('.png', '.pdf', '.svg')

# Inches.
PANEL = 2.6
GAP = 0.08
LABEL = 1.4
LINE = 0.22
DPI = 110


def error_map(prediction: ArrayLike, truth: ArrayLike) -> np.ndarray:
  """Says of each pixel what kind of error a prediction makes there.

  Args:
    prediction: integer labels, any shape, 0 is background.
    truth: integer labels of the same shape.

  Returns:
    uint8 of that shape: 0 right, 1 false positive (a class where the truth is
    background), 2 false negative (background where the truth is a class), 3
    one class where the truth is another.

  Raises:
    ValueError: the shapes differ.
  """
  prediction, truth = np.asarray(prediction), np.asarray(truth)
  if prediction.shape != truth.shape:
    raise ValueError(
      'prediction and truth must have one shape, found '
      f'{list(prediction.shape)} and {list(truth.shape)}'
    )
  errors = np.where(prediction == truth, 0, 3)
  errors[(truth == 0) & (prediction != 0)] = 1
  errors[(truth != 0) & (prediction == 0)] = 2
  return errors.astype(np.uint8)


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
    spacing_mm: [N, 2], size of a pixel in mm, row then column.
    case: N names, left of the rows.
    scores: N mean Dice scores to print below the names; NaN is left out.
    note: a line below the picture, such as where the data comes from.

  Raises:
    ValueError: no cases, arrays that do not fit, labels outside the classes,
      or a file name of another format.
  """
  path = pathlib.Path(path)
  if path.suffix not in FORMATS:
    raise ValueError(f'path must end in one of {FORMATS}, found {path.name!r}')
  truth, prediction = np.asarray(truth), np.asarray(prediction)
  grey = _grey(image)
  spacing_mm = np.asarray(spacing_mm, np.float64)
  for name, labels in (('truth', truth), ('prediction', prediction)):
    metrics.check_labels(labels, num_classes=len(class_names), name=name)
  n = len(grey)
  if not n or not grey.shape == truth.shape == prediction.shape:
    raise ValueError(
      'image, truth and prediction must hold the same N >= 1 cases of one '
      f'size, found {list(grey.shape)}, {list(truth.shape)} and '
      f'{list(prediction.shape)}'
    )
  lengths = [len(case), n if scores is None else len(scores)]
  if lengths != [n, n] or spacing_mm.shape != (n, 2):
    raise ValueError(
      f'case, scores and spacing_mm must be [{n}], [{n}] and [{n}, 2], found '
      f'lengths {lengths} and {list(spacing_mm.shape)}'
    )
  if not np.all(np.isfinite(spacing_mm) & (spacing_mm > 0)):
    raise ValueError('spacing_mm must be finite and above 0')

  present = [
    label
    for label in range(1, len(class_names))
    if np.any(truth == label) or np.any(prediction == label)
  ]
  palette = _palette(len(class_names))
  extent_mm = spacing_mm * truth.shape[1:]
  heights = PANEL * np.clip(extent_mm[:, 0] / extent_mm[:, 1], 0.3, 3)
  note = '\n'.join(textwrap.wrap(note, 150))
  legend_lines = max(len(ERRORS) + 1, math.ceil(len(present) / 3))
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
    panels = []
    for j, name in enumerate(COLUMNS):
      left, low = inches(LABEL + j * (PANEL + GAP), y)
      panel = page.add_axes((left, low, PANEL / width, heights[i] / height))
      panel.set_axis_off()
      if i == 0:
        panel.set_title(name, fontsize=10, pad=4)
      panels.append(panel)
    _draw_row(panels, grey[i], truth[i], prediction[i], extent_mm[i], palette)
    name = '\n'.join(textwrap.wrap(str(case[i]), 14))
    if scores is not None and not math.isnan(scores[i]):
      name += f'\n\nmean Dice {scores[i]:.2f}'
    middle = inches(LABEL - 0.1, y - heights[i] / 2)
    page.text(*middle, name, size=9, ha='right', va='center')
    y += GAP

  _draw_legends(
    page,
    classes=[(class_names[label], palette[label]) for label in present],
    class_anchor=inches(LABEL, y + LINE / 2),
    error_anchor=inches(LABEL + 3 * (PANEL + GAP), y + LINE / 2),
  )
  page.text(*inches(LABEL, height - LINE / 2), note, size=8, color='0.35')
  _save(page, path)


def _draw_row(
  panels: Sequence[axes.Axes],
  grey: np.ndarray,
  truth: np.ndarray,
  prediction: np.ndarray,
  extent_mm: np.ndarray,
  palette: np.ndarray,
) -> None:
  """Draws one case into four axes: image, truth, prediction, errors."""
  tall, wide = extent_mm
  frame = {'extent': (0, wide, tall, 0), 'aspect': 'equal'}
  scan = {'cmap': 'gray', 'vmin': 0, 'vmax': 1, **frame}
  labels = {**frame, 'interpolation': 'nearest'}
  for panel in panels[:3]:
    panel.imshow(grey, **scan)
  for panel, mask in ((panels[1], truth), (panels[2], prediction)):
    panel.imshow(_tint(mask, palette, alpha=0.35), **labels)
    for label in np.unique(mask[mask > 0]):
      _outline(panel, mask == label, extent_mm, palette[label], width=1.2)
  panels[3].imshow(0.6 * grey, **scan)
  error_colors = colors.to_rgba_array(['k', *(c for _, c in ERRORS)])[:, :3]
  errors = error_map(prediction, truth)
  panels[3].imshow(_tint(errors, error_colors, alpha=0.9), **labels)
  for label in np.unique(truth[truth > 0]):
    _outline(panels[3], truth == label, extent_mm, 'white', width=0.5)
  _draw_scale_bar(panels[0], extent_mm)
  for panel in panels:
    panel.set(xlim=(0, wide), ylim=(tall, 0))


def _outline(
  panel: axes.Axes,
  mask: np.ndarray,
  extent_mm: np.ndarray,
  color: ArrayLike,
  *,
  width: float,
) -> None:
  """Draws the outline of a mask that is not empty."""
  # A border of zeros closes outlines at the image's edge.
  padded = np.pad(mask, 1).astype(np.float32)
  row, column = extent_mm / mask.shape
  y = (np.arange(padded.shape[0]) - 0.5) * row
  x = (np.arange(padded.shape[1]) - 0.5) * column
  panel.contour(x, y, padded, levels=[0.5], colors=[color], linewidths=width)


def _draw_scale_bar(panel: axes.Axes, extent_mm: np.ndarray) -> None:
  """Draws a bar of a round length, at most a third of the panel wide."""
  tall, wide = extent_mm
  power = 10.0 ** math.floor(math.log10(wide / 3))
  length = power * max(m for m in (1, 2, 5) if m * power <= wide / 3)
  edge = [patheffects.withStroke(linewidth=3.5, foreground='black')]
  x, y = 0.05 * wide, tall - 0.05 * wide
  panel.plot(
    [x, x + length],
    [y, y],
    color='white',
    linewidth=2,
    solid_capstyle='butt',
    path_effects=edge,
  )
  panel.text(
    x + length / 2,
    y - 0.02 * wide,
    f'{length:g} mm',
    color='white',
    fontsize=8,
    ha='center',
    va='bottom',
    path_effects=[patheffects.withStroke(linewidth=2, foreground='black')],
  )


def _draw_legends(
  page: figure.Figure,
  *,
  classes: Sequence[tuple[str, ArrayLike]],
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
    handles=[
      patches.Patch(facecolor=(*color, 0.4), edgecolor=color, label=name)
      for name, color in classes
    ],
    title='colours of truth and prediction',
    ncols=3,
    bbox_to_anchor=class_anchor,
    **style,
  )
  outline = lines.Line2D(
    [],
    [],
    color='white',
    linewidth=1,
    path_effects=[patheffects.withStroke(linewidth=4, foreground='0.3')],
    label='outline of the truth',
  )
  page.legend(
    handles=[
      *(patches.Patch(color=color, label=name) for name, color in ERRORS),
      outline,
    ],
    title='colours of errors',
    bbox_to_anchor=error_anchor,
    **style,
  )


def _tint(
  labels: np.ndarray, palette: np.ndarray, *, alpha: float
) -> np.ndarray:
  """Returns RGBA [H, W, 4]: labels in their colours, background clear."""
  return np.dstack([palette[labels], alpha * (labels > 0)])


def _palette(num_classes: int) -> np.ndarray:
  """Returns RGB [K, 3], the background's never used."""
  names = ['black', *CLASS_COLORS]
  if num_classes > len(names):
    spread = matplotlib.colormaps['turbo'](np.linspace(0, 1, num_classes - 1))
    return np.vstack([np.zeros((1, 3)), spread[:, :3]])
  return colors.to_rgba_array(names[:num_classes])[:, :3]


def _grey(image: ArrayLike) -> np.ndarray:
  """Returns [N, H, W] in [0, 1], the mean over channels."""
  image = np.asarray(image)
  if image.ndim != 4:
    raise ValueError(f'image must be [N, H, W, C], found {list(image.shape)}')
  scale = 255 if image.dtype == np.uint8 else 1
  return np.mean(image, axis=-1, dtype=np.float64) / scale


def _save(page: figure.Figure, path: pathlib.Path) -> None:
  """Writes beside the target, then renames: never half a picture."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
  try:
    page.savefig(partial, format=path.suffix[1:])
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
