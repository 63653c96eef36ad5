"""What the tests of figures draw, and look at: texts and panels."""

import unittest.mock
from typing import Any, NamedTuple

import numpy as np
from matplotlib import axes, figure, text, transforms
from PIL import Image

from ppcmi_jax.figures import sheets

DPI = 120  # fewer than a picture has, to be quick


class Drawn(NamedTuple):
  """A picture that was written.

  Attributes:
    sheet: the matplotlib figure.
    texts: [(text artist, its box in pixels)], all that are seen.
    panels: the axes.
    size: width and height in pixels, of the file.
  """

  sheet: figure.Figure
  texts: list[tuple[text.Text, transforms.Bbox]]
  panels: list[axes.Axes]
  size: tuple[int, int]

  def words(self) -> list[str]:
    return [artist.get_text() for artist, _ in self.texts]


def make_cases(n, num_classes, channels):
  """Returns cases of 16 x 16 pixels, as what draws them takes them."""
  rng = np.random.default_rng(0)
  truth = np.arange(16 * n).reshape(n, 4, 4) % num_classes
  return {
    'image': rng.integers(0, 256, (n, 16, 16, channels), np.uint8),
    'truth': truth.repeat(4, axis=1).repeat(4, axis=2),
    'class_names': [
      'background',
      *(f'organ {i}' for i in range(1, num_classes)),
    ],
    'spacing_mm': np.ones((n, 2)),
    'case': [f'case {i}' for i in range(n)],
  }


def draw(function, path, *args: Any, **kwargs: Any) -> Drawn:
  """Draws a picture that must be written, and checks how it is laid out."""
  seen, saved = {}, []
  draw_text, savefig = text.Text.draw, figure.Figure.savefig

  def record_text(self, *args, **kwargs):
    if self.get_visible() and self.get_text().strip():
      seen[id(self)] = self
    return draw_text(self, *args, **kwargs)

  def record_sheet(self, *args, **kwargs):
    saved.append(self)
    return savefig(self, *args, **kwargs)

  with (
    unittest.mock.patch.object(text.Text, 'draw', record_text),
    unittest.mock.patch.object(figure.Figure, 'savefig', record_sheet),
    unittest.mock.patch.object(sheets, 'DPI', DPI),
  ):
    assert function(path, *args, **kwargs) is True
  (sheet,) = saved
  texts = [
    (artist, artist.get_window_extent())
    for artist in seen.values()
    if artist.figure is sheet
  ]
  with Image.open(path) as picture:
    assert picture.format == 'PNG'
    drawn = Drawn(sheet, texts, sheet.axes, picture.size)
  check_layout(drawn)
  return drawn


def check_layout(drawn: Drawn) -> None:
  """Texts are on the sheet, large enough, apart, and out of others' panels."""
  width, height = drawn.size
  for artist, box in drawn.texts:
    words = artist.get_text()
    assert artist.get_fontsize() >= sheets.FONT, words
    assert box.x0 >= -1 and box.x1 <= width + 1, f'{words!r} leaves the sheet'
    assert box.y0 >= -1 and box.y1 <= height + 1, f'{words!r} leaves the sheet'
  words = [artist.get_text() for artist, _ in drawn.texts]
  boxes = np.array([box.extents for _, box in drawn.texts]).reshape(-1, 4)
  outside = np.array([artist.axes is None for artist, _ in drawn.texts], bool)
  for panel in drawn.panels:
    hit = outside & overlap(boxes, panel.get_window_extent().extents)
    assert not hit.any(), f'{words[hit.argmax()]!r} lies over a panel'
  for i, box in enumerate(boxes):
    hit = overlap(boxes[:i], box)
    assert not hit.any(), f'{words[i]!r} lies over {words[hit.argmax()]!r}'


def overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
  """Says which boxes [N, 4] share more than a rim of a pixel with another."""
  low = np.maximum(boxes[:, :2], box[:2])
  high = np.minimum(boxes[:, 2:], box[2:])
  return np.all(high - low > 1, axis=1)
