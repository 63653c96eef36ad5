"""Tests of sheets.py: text that fits, colours, size of the sheet, the file."""

import itertools

import numpy as np
import pytest
import sheet_layout
from matplotlib import patches
from PIL import Image

from ppcmi_jax.figures import sheets

LONG = 'University Hospital of Saint-Somewhere, Department of Radiology'


def draw_sheet(path, **arguments):
  """Draws a sheet with a title, a legend and a panel."""
  sheet = sheets.Sheet(**arguments)
  labels = ['liver', 'spleen', LONG]
  sheet.legend([patches.Patch(label=label) for label in labels], 'structures')
  sheet.panel(10, sheet.top_mm, 30, 20).set(xticks=[], yticks=[])
  sheet.top_mm += 20
  sheet.paragraph(' '.join([LONG] * 3))
  sheet.save(path)
  return True


@pytest.mark.parametrize('width_mm', [10, 30, 60, 200])
@pytest.mark.parametrize('weight', ['normal', 'bold'])
def test_shortened_text_fits_and_begins_as_before(width_mm, weight):
  sheet = sheets.Sheet()
  short = sheet.shorten(LONG, width_mm=width_mm, weight=weight)
  assert sheet.measure_mm(short, weight=weight) <= width_mm
  start, _, end = short.partition('…')
  assert LONG.startswith(start) and LONG.endswith(end)
  assert abs(len(start) - len(end)) <= 2 or short == LONG
  assert (short == LONG) == (sheet.measure_mm(LONG, weight=weight) <= width_mm)


def test_wrapped_text_fits_and_loses_no_word():
  sheet = sheets.Sheet()
  lines = sheet.wrap(LONG, width_mm=30)
  assert ' '.join(lines) == LONG
  assert len(lines) > 1
  assert all(sheet.measure_mm(line) <= 30 for line in lines)
  few = sheet.wrap(LONG, width_mm=30, max_lines=2)
  assert few[0] == lines[0] and '…' in few[1] and len(few) == 2
  assert sheet.wrap('', width_mm=30) == []


def test_mathematics_is_not_read_into_names():
  sheet = sheets.Sheet()
  assert sheet.measure_mm('$a$') > sheet.measure_mm('aa')


@pytest.mark.parametrize('num', [0, 1, 2, 7, 8, 20])
def test_series_look_different(num):
  styles = sheets.series_styles(num)
  assert len(styles) == num
  for a, b in itertools.combinations(styles, 2):
    assert np.linalg.norm(np.subtract(a.color, b.color)) > 0.05
  if num <= 7:
    assert len({style.marker for style in styles}) == num


@pytest.mark.parametrize('width_mm', [90, 180])
def test_sheet_has_the_width_asked_for_and_holds_all(tmp_path, width_mm):
  path = tmp_path / 'deep' / 'sheet.png'
  drawn = sheet_layout.draw(draw_sheet, path, width_mm=width_mm, title=LONG)
  expected = width_mm * sheets.MM * sheet_layout.DPI
  assert drawn.size[0] == pytest.approx(expected, abs=1)
  with Image.open(path) as picture:
    assert np.all(np.asarray(picture.convert('RGB'))[0, 0] == 255)
  panel = drawn.panels[0].get_window_extent()
  assert panel.width == pytest.approx(30 * sheets.MM * sheet_layout.DPI, abs=1)
  assert panel.height == pytest.approx(20 * sheets.MM * sheet_layout.DPI, abs=1)
  assert [p.name for p in path.parent.iterdir()] == ['sheet.png']


def test_pictures_are_fine_enough_for_print(tmp_path):
  draw_sheet(tmp_path / 'sheet.png', width_mm=90)
  with Image.open(tmp_path / 'sheet.png') as picture:
    assert picture.size[0] == pytest.approx(90 / 25.4 * 300, abs=1)


@pytest.mark.parametrize(
  'place, size, message',
  [
    ((2, 2), 7, 'lies over'),
    ((-4, 20), 7, 'leaves the sheet'),
    ((60, 20), 6, 'some words'),
    ((20, 50), 7, 'lies over a panel'),
  ],
)
def test_the_check_of_layouts_finds_what_is_wrong(
  tmp_path, place, size, message
):
  def draw_badly(path):
    sheet = sheets.Sheet(title='A title')
    sheet.panel(10, 40, 30, 20)
    sheet.top_mm = 70
    sheet.text(*place, 'some words', size=size)
    sheet.save(path)
    return True

  with pytest.raises(AssertionError, match=message):
    sheet_layout.draw(draw_badly, tmp_path / 'sheet.png')


def test_other_formats_are_refused(tmp_path):
  with pytest.raises(ValueError, match='must end in'):
    sheets.Sheet().save(tmp_path / 'sheet.gif')
  assert not list(tmp_path.iterdir())
