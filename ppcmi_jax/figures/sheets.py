"""A sheet of a figure: places in mm, text that fits, colours of series.

A sheet is as wide as the column of a paper and grows downwards: what draws on
it moves `top_mm` on, and `save` cuts the sheet there. No text is below 7 pt at
that width. Text that is wider than its place is wrapped or shortened, measured
rather than guessed, since names of hospitals and structures have any length.

Colours of series are Okabe and Ito's, for colour-blind eyes too; yellow, which
white paper swallows, is left out.

>>> sheet = Sheet(width_mm=90)
>>> name = sheet.shorten('a name of a hospital that is long', width_mm=30)
>>> '…' in name, sheet.measure_mm(name) <= 30
(True, True)
>>> [style.marker for style in series_styles(3)]
['o', 's', '^']
"""

import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import artist, axes, colors, figure, lines, transforms
from matplotlib.backends import backend_agg

FORMATS = ('.png', '.pdf', '.svg')
WIDTH_MM = 90.0
MARGIN_MM = 2.0
LINE_MM = 3.3
FONT = 7  # points
DPI = 300
MM = 1 / 25.4  # inches

# Okabe and Ito 2008, https://jfly.uni-koeln.de/color.
SERIES_COLORS = (
  '#0072B2',
  '#E69F00',
  '#009E73',
  '#CC79A7',
  '#D55E00',
  '#56B4E9',
  '#000000',
)
MARKERS = ('o', 's', '^', 'D', 'v', '<', '>', 'P', 'X', '*')


class Style(NamedTuple):
  """How a series looks: RGB in [0, 1], and a marker of matplotlib's."""

  color: tuple[float, float, float]
  marker: str


def series_styles(num: int) -> list[Style]:
  """Returns as many styles; more than seven are spread over a colour map."""
  if num <= len(SERIES_COLORS):
    chosen = [colors.to_rgb(name) for name in SERIES_COLORS[:num]]
  else:
    spread = matplotlib.colormaps['turbo'](np.linspace(0.03, 0.97, num))
    chosen = [tuple(rgb) for rgb in spread[:, :3].tolist()]
  return [
    Style(color, MARKERS[i % len(MARKERS)]) for i, color in enumerate(chosen)
  ]


class Sheet:
  """A sheet that grows downwards; x and y are mm from its top left corner.

  Attributes:
    figure: the matplotlib figure.
    width_mm: of the sheet.
    top_mm: how far down the sheet is filled.
  """

  def __init__(self, *, width_mm: float = WIDTH_MM, title: str = ''):
    """Starts a sheet, with a title at its top unless that is empty."""
    self.width_mm = width_mm
    self.top_mm = MARGIN_MM
    self.figure = figure.Figure(
      figsize=(width_mm * MM, width_mm * MM), dpi=DPI, facecolor='white'
    )
    backend_agg.FigureCanvasAgg(self.figure)  # measures text quickly
    self._panels = []
    # From mm to pixels; changed in place once the height is known.
    self._inches = transforms.Affine2D()
    self._place = self._inches + self.figure.dpi_scale_trans
    self._settle(width_mm)
    if title:
      self.paragraph(title, size=FONT + 1, weight='bold')
      self.top_mm += 1

  @property
  def inner_mm(self) -> float:
    """The width between the margins."""
    return self.width_mm - 2 * MARGIN_MM

  def text(self, x_mm: float, y_mm: float, text: str, **style: Any) -> None:
    """Writes text as it is; `style` goes to matplotlib."""
    style = {'size': FONT, 'va': 'center', **style}
    self.figure.text(
      x_mm, y_mm, text, transform=self._place, parse_math=False, **style
    )

  def paragraph(self, text: str, **style: Any) -> None:
    """Writes text between the margins, wrapped, and moves below it."""
    step_mm = LINE_MM * style.get('size', FONT) / FONT
    for line in self.wrap(text, width_mm=self.inner_mm, **style):
      self.text(MARGIN_MM, self.top_mm + step_mm / 2, line, **style)
      self.top_mm += step_mm

  def panel(
    self, x_mm: float, y_mm: float, width_mm: float, height_mm: float
  ) -> axes.Axes:
    """Adds axes that fill a rectangle; labels lie outside of it."""
    panel = self.figure.add_axes((0, 0, 1, 1))
    panel.tick_params(labelsize=FONT, length=2, width=0.5, pad=1.5)
    for spine in panel.spines.values():
      spine.set(linewidth=0.5, color='0.3')
    self._panels.append((panel, x_mm, y_mm, width_mm, height_mm))
    return panel

  def line(
    self, x_mm: Sequence[float], y_mm: Sequence[float], **style: Any
  ) -> None:
    """Draws a line through points on the sheet."""
    style = {'color': '0.3', 'linewidth': 0.5, **style}
    self.figure.add_artist(
      lines.Line2D(x_mm, y_mm, transform=self._place, **style)
    )

  def legend(self, handles: Sequence[artist.Artist], title: str = '') -> None:
    """Draws what looks mean what, in as many columns as fit; moves below."""
    if not handles:
      return
    if title:
      self.paragraph(title, weight='bold')
    handle_mm = 6
    labels = [str(handle.get_label()) for handle in handles]
    wanted_mm = handle_mm + 2 + max(self.measure_mm(text) for text in labels)
    num_columns = max(1, min(len(handles), int(self.inner_mm / wanted_mm)))
    column_mm = self.inner_mm / num_columns
    for i, (handle, label) in enumerate(zip(handles, labels)):
      row, column = divmod(i, num_columns)
      x_mm = MARGIN_MM + column * column_mm
      y_mm = self.top_mm + (row + 0.5) * LINE_MM
      self.figure.legend(
        handles=[handle],
        labels=[''],
        loc='center left',
        bbox_to_anchor=(x_mm, y_mm),
        bbox_transform=self._place,
        frameon=False,
        fontsize=FONT,
        handlelength=1.6,
        borderpad=0,
        borderaxespad=0,
      )
      label = self.shorten(label, width_mm=column_mm - handle_mm)
      self.text(x_mm + handle_mm - 0.5, y_mm, label)
    self.top_mm += LINE_MM * math.ceil(len(handles) / num_columns) + 0.8

  def measure_mm(self, text: str, **style: Any) -> float:
    """Returns how wide text is that stands on one line."""
    if not text:
      return 0.0
    style = {'size': FONT, **style}
    drawn = self.figure.text(0, 0, text, parse_math=False, **style)
    width_mm = drawn.get_window_extent().width / self.figure.dpi / MM
    drawn.remove()
    return float(width_mm)

  def shorten(self, text: str, *, width_mm: float, **style: Any) -> str:
    """Returns text, its middle cut where it is wider than its place.

    Names often differ by their end alone, so that end stays.
    """
    text = ' '.join(str(text).split())
    if self.measure_mm(text, **style) <= width_mm:
      return text

    def cut(kept):
      start, end = text[: (kept + 1) // 2], text[len(text) - kept // 2 :]
      return f'{start.rstrip()}…{end.lstrip()}'

    fits, longer = 0, len(text)
    while longer - fits > 1:
      middle = (fits + longer) // 2
      if self.measure_mm(cut(middle), **style) <= width_mm:
        fits = middle
      else:
        longer = middle
    return cut(fits)

  def wrap(
    self,
    text: str,
    *,
    width_mm: float,
    max_lines: int | None = None,
    **style: Any,
  ) -> list[str]:
    """Returns text as lines that fit a width; what is too long is cut."""
    lines = []
    for word in str(text).split():
      longer = f'{lines[-1]} {word}' if lines else word
      if lines and self.measure_mm(longer, **style) <= width_mm:
        lines[-1] = longer
      else:
        lines.append(self.shorten(word, width_mm=width_mm, **style))
    if max_lines is not None and len(lines) > max_lines:
      rest = ' '.join(lines[max_lines - 1 :])
      last = self.shorten(rest, width_mm=width_mm, **style)
      lines[max_lines - 1 :] = [last]
    return lines

  def save(self, path: str | os.PathLike) -> None:
    """Writes the sheet down to `top_mm`, complete or not at all.

    Args:
      path: the file to write, .png, .pdf or .svg; folders are made.

    Raises:
      ValueError: a file name of another format.
    """
    path = check_path(path)
    height_mm = self.top_mm + MARGIN_MM
    self._settle(height_mm)
    for panel, x_mm, y_mm, wide_mm, tall_mm in self._panels:
      low_mm = height_mm - y_mm - tall_mm
      panel.set_position(
        (
          x_mm / self.width_mm,
          low_mm / height_mm,
          wide_mm / self.width_mm,
          tall_mm / height_mm,
        )
      )
    save(self.figure, path)

  def _settle(self, height_mm: float) -> None:
    self.figure.set_size_inches(self.width_mm * MM, height_mm * MM)
    self._inches.clear().scale(MM, -MM).translate(0, height_mm * MM)


def check_path(path: str | os.PathLike) -> pathlib.Path:
  """Returns a path to write; a ValueError where its format is not known."""
  path = pathlib.Path(path)
  if path.suffix not in FORMATS:
    raise ValueError(f'path must end in one of {FORMATS}, found {path.name!r}')
  return path


def save(sheet: figure.Figure, path: pathlib.Path) -> None:
  """Writes beside the target, then renames: never half a picture."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
  try:
    sheet.savefig(partial, format=path.suffix[1:])
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
