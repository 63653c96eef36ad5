"""Tests of figures/matrices.py: cells, gaps, the size of the sheet."""

import math

import numpy as np
import pytest
import sheet_layout
from matplotlib import colormaps, colors, patches

from ppcmi_jax.figures import matrices as matrix_figures
from ppcmi_jax.figures import sheets


def make_matrix(num, name='{}', value=0.5):
  names = [name.format(i) for i in range(num)]
  return {i: {j: value if i != j else 0.95 for j in names} for i in names}


def draw(tmp_path, matrix, **arguments):
  path = tmp_path / 'figure.png'
  arguments = {'value_label': 'mean Dice', **arguments}
  function = matrix_figures.draw_matrix
  return sheet_layout.draw(function, path, matrix, **arguments)


@pytest.mark.parametrize(
  'num, name, arguments',
  [
    (1, '{}', {}),
    (3, 'client {}', {'title': 'A test'}),
    (7, 'University Hospital of Somewhere {}', {}),
    (7, '{}', {'value_label': 'SSIM of images'}),
  ],
)
def test_every_cell_has_its_value(tmp_path, num, name, arguments):
  drawn = draw(tmp_path, make_matrix(num, name), **arguments)
  values = [
    artist for artist, _ in drawn.texts if artist.axes is drawn.panels[0]
  ]
  assert len(values) == num**2
  assert {'encoder of', 'decoder of'} <= set(drawn.words())


def test_rows_and_columns_are_not_exchanged(tmp_path):
  matrix = {'A': {'A': 0.1, 'B': 0.2}, 'B': {'A': 0.3, 'B': 0.4}}
  drawn = draw(tmp_path, matrix)
  places = {artist.get_text(): box for artist, box in drawn.texts}
  assert places['0.10'].y0 == pytest.approx(places['0.20'].y0)
  assert places['0.10'].x0 < places['0.20'].x0
  assert places['0.10'].y0 > places['0.30'].y1
  shown = {
    tuple(p.get_xy()): p.get_facecolor() for p in drawn.panels[0].patches
  }
  scale = colors.Normalize(0, 1)
  assert scale(0.2) > scale(0.1)
  assert sum(shown[1, 0][:3]) != sum(shown[0, 1][:3])


def test_undefined_cells_are_hatched(tmp_path):
  matrix = {'A': {'A': 0.9, 'B': None}, 'B': {'A': math.nan}}
  cells = draw(tmp_path, matrix).panels[0].findobj(patches.Rectangle)
  assert sum(cell.get_hatch() is not None for cell in cells) == 3


def luminance(rgb):
  """Of sRGB, as the contrast of the WCAG defines it."""
  rgb = np.asarray(rgb)
  linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
  return linear @ (0.2126, 0.7152, 0.0722)


def test_values_can_be_read_on_every_colour(tmp_path):
  drawn = draw(tmp_path, {'A': {str(i): i / 10 for i in range(11)}})
  scale = colormaps['viridis']
  values = [a for a, _ in drawn.texts if a.axes is drawn.panels[0]]
  assert len(values) == 11
  for artist in values:
    behind = luminance(scale(float(artist.get_text()))[:3])
    front = luminance(colors.to_rgb(artist.get_color()))
    low, high = sorted((behind, front))
    assert (high + 0.05) / (low + 0.05) > 4.4


def test_sheet_grows_where_columns_do_not_fit(tmp_path):
  few, many = draw(tmp_path, make_matrix(3)), draw(tmp_path, make_matrix(12))
  expected = sheets.WIDTH_MM * sheets.MM * sheet_layout.DPI
  assert (
    few.size[0] == pytest.approx(expected, abs=1) and many.size[0] > expected
  )


def test_without_cells_there_is_no_file(tmp_path):
  path = tmp_path / 'figure.png'
  for matrix in ({}, {'A': {}}):
    assert not matrix_figures.draw_matrix(path, matrix, value_label='SSIM')
  assert not path.exists()
