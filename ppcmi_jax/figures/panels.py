"""The panels of a picture: a scan, a mask over it, the errors of a mask.

Colours are for colour-blind eyes too, and none means both a class and an
error: classes have those of Paul Tol's 'muted' scheme, errors three of Okabe
and Ito's.

Axes: H height, W width, K classes.

>>> error_map(np.array([[0, 1, 2, 2]]), np.array([[0, 0, 0, 1]])).tolist()
[[0, 1, 1, 3]]
"""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import axes, colors, image, lines, patches, patheffects
from numpy.typing import ArrayLike

# Tol 2021, https://personal.sron.nl/~pault: the first seven differ the most,
# and cyan, the nearest to an error's colour, is the last of them.
CLASS_COLORS = (
  '#44AA99',
  '#DDCC77',
  '#AA4499',
  '#999933',
  '#117733',
  '#332288',
  '#88CCEE',
  '#CC6677',
  '#882255',
)
# Luminance below which a colour is lost on a dark scan and gets a bright halo.
DARK = 0.4
# Values of `error_map`, 1 and up; Okabe and Ito 2008.
ERRORS = (
  ('false positive (drawn, not there)', '#D55E00'),
  ('false negative (there, not drawn)', '#56B4E9'),
  ('wrong class', '#F0E442'),
)


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


def palette(num_classes: int) -> np.ndarray:
  """Returns float RGB [K, 3] in [0, 1]; the background's is never drawn.

  More classes than `CLASS_COLORS` has are spread over a colour map instead.
  """
  names = ['black', *CLASS_COLORS]
  if num_classes > len(names):
    spread = matplotlib.colormaps['turbo'](np.linspace(0, 1, num_classes - 1))
    return np.vstack([np.zeros((1, 3)), spread[:, :3]])
  return colors.to_rgba_array(names[:num_classes])[:, :3]


def class_handles(
  class_names: Sequence[str], labels: Sequence[int]
) -> list[patches.Patch]:
  """Returns what a legend says of the classes with these labels."""
  class_colors = palette(len(class_names))
  return [
    patches.Patch(
      facecolor=(*class_colors[label], 0.4),
      edgecolor=class_colors[label],
      label=class_names[label],
    )
    for label in labels
  ]


def error_handles() -> list[patches.Patch | lines.Line2D]:
  """Returns what a legend says of the panels of errors."""
  outline = lines.Line2D(
    [],
    [],
    color='white',
    linewidth=1,
    path_effects=[patheffects.withStroke(linewidth=4, foreground='0.3')],
    label='outline of the truth',
  )
  errors = [patches.Patch(color=color, label=name) for name, color in ERRORS]
  return [*errors, outline]


def draw_scan(
  panel: axes.Axes,
  *,
  grey: np.ndarray,
  extent_mm: np.ndarray,
  scale_bar: str = 'mm',
) -> None:
  """Draws a scan and a bar that gives its scale.

  Args:
    panel: what to draw into; its coordinates become mm, row 0 on top.
    grey: float [H, W] in [0, 1]; NaN is left blank.
    extent_mm: [2], height and width of the scan in mm.
    scale_bar: the unit that the bar names; '' draws none.
  """
  _show_grey(panel, grey, extent_mm)
  if scale_bar:
    _draw_scale_bar(panel, extent_mm, scale_bar)
  _trim(panel, extent_mm)


def draw_difference(
  panel: axes.Axes,
  *,
  difference: np.ndarray,
  limit: float,
  extent_mm: np.ndarray,
) -> image.AxesImage:
  """Draws how far apart two scans are, from 0, dark, to a limit, bright.

  Args:
    panel: as in `draw_scan`.
    difference: float [H, W], 0 or more; NaN is left blank.
    limit: what is drawn brightest, as is all above it.
    extent_mm: as in `draw_scan`.

  Returns:
    What a colour bar is made of.
  """
  shown = panel.imshow(
    difference, cmap='viridis', vmin=0, vmax=limit, **_frame(extent_mm)
  )
  _trim(panel, extent_mm)
  return shown


def draw_mask(
  panel: axes.Axes,
  *,
  grey: np.ndarray,
  labels: np.ndarray,
  class_colors: np.ndarray,
  extent_mm: np.ndarray,
  line_width: float = 1.2,
) -> None:
  """Draws a scan with its mask, tinted and outlined in the classes' colours.

  Args:
    panel: as in `draw_scan`.
    grey: float [H, W] in [0, 1].
    labels: integer [H, W], 0 is background.
    class_colors: RGB [K, 3], as `palette` returns.
    extent_mm: as in `draw_scan`.
    line_width: of the outlines, in points.
  """
  _show_grey(panel, grey, extent_mm)
  _show_tint(panel, labels, class_colors, extent_mm, alpha=0.35)
  for label in np.unique(labels[labels > 0]):
    color = class_colors[label]
    _outline(panel, labels == label, extent_mm, color, width=line_width)
  _trim(panel, extent_mm)


def draw_errors(
  panel: axes.Axes,
  *,
  grey: np.ndarray,
  prediction: np.ndarray,
  truth: np.ndarray,
  extent_mm: np.ndarray,
) -> None:
  """Draws the errors over a dimmed scan, and the truth's outline in white.

  Args:
    panel: as in `draw_scan`.
    grey: float [H, W] in [0, 1].
    prediction: integer labels [H, W], 0 is background.
    truth: integer labels [H, W].
    extent_mm: as in `draw_scan`.
  """
  _show_grey(panel, 0.6 * grey, extent_mm)
  error_colors = colors.to_rgba_array(['k', *(c for _, c in ERRORS)])[:, :3]
  errors = error_map(prediction, truth)
  _show_tint(panel, errors, error_colors, extent_mm, alpha=0.9)
  for label in np.unique(truth[truth > 0]):
    _outline(panel, truth == label, extent_mm, 'white', width=0.5)
  _trim(panel, extent_mm)


def write_in_corner(panel: axes.Axes, text: str) -> None:
  """Writes a few words into the lower right corner of a panel."""
  panel.text(
    0.96,
    0.04,
    text,
    transform=panel.transAxes,
    color='white',
    fontsize=7,
    ha='right',
    va='bottom',
    path_effects=[patheffects.withStroke(linewidth=2, foreground='black')],
  )


def write_in_middle(panel: axes.Axes, text: str) -> None:
  """Writes a few words into a panel that has nothing else to show."""
  panel.text(
    0.5,
    0.5,
    text,
    transform=panel.transAxes,
    color='0.35',
    fontsize=7,
    ha='center',
    va='center',
  )


def _frame(extent_mm: np.ndarray) -> dict:
  """Returns what lays an image out in mm."""
  tall, wide = extent_mm
  return {'extent': (0, wide, tall, 0), 'aspect': 'equal'}


def _show_grey(
  panel: axes.Axes, grey: np.ndarray, extent_mm: np.ndarray
) -> None:
  panel.imshow(grey, cmap='gray', vmin=0, vmax=1, **_frame(extent_mm))


def _show_tint(
  panel: axes.Axes,
  labels: np.ndarray,
  label_colors: np.ndarray,
  extent_mm: np.ndarray,
  *,
  alpha: float,
) -> None:
  """Draws labels in their colours, the background clear."""
  rgba = np.dstack([label_colors[labels], alpha * (labels > 0)])
  panel.imshow(rgba, interpolation='nearest', **_frame(extent_mm))


def _trim(panel: axes.Axes, extent_mm: np.ndarray) -> None:
  """Limits the axes to the scan, whatever else was drawn."""
  tall, wide = extent_mm
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
  drawn = panel.contour(
    x, y, padded, levels=[0.5], colors=[color], linewidths=width
  )
  if np.dot(colors.to_rgb(color), (0.2126, 0.7152, 0.0722)) < DARK:
    halo = patheffects.withStroke(linewidth=width + 0.8, foreground='0.85')
    drawn.set_path_effects([halo])


def _draw_scale_bar(panel: axes.Axes, extent_mm: np.ndarray, unit: str) -> None:
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
    x,  # in small panels the text is longer than the bar
    y - 0.02 * wide,
    f'{length:g} {unit}',
    color='white',
    fontsize=7,
    ha='left',
    va='bottom',
    path_effects=[patheffects.withStroke(linewidth=2, foreground='black')],
  )
