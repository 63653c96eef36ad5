"""Tests of panels.py: the error map, the colours, what a panel shows."""

import itertools

import numpy as np
import pytest
from matplotlib import colors, figure
from matplotlib.backends import backend_agg

from ppcmi_jax.figures import panels

EXTENT_MM = np.array([24.0, 48.0])  # pixels of 1 mm by 2 mm


def pixels_of(draw, **arguments):
  """Draws one panel without margins; returns RGB [H, W, 3] in 0 to 1."""
  page = figure.Figure(figsize=(4.8, 2.4), dpi=100)
  panel = page.add_axes((0, 0, 1, 1))
  panel.set_axis_off()
  draw(panel, extent_mm=EXTENT_MM, **arguments)
  canvas = backend_agg.FigureCanvasAgg(page)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3] / 255


def enlarged(values):
  """Repeats [24, 24] to the [240, 480] of a panel's pixels."""
  return values.repeat(10, axis=0).repeat(20, axis=1)


def inner(mask):
  """Marks what lies at least two pixels away from the rim of a mask."""
  shifts = itertools.product((-2, 0, 2), (-2, 0, 2))
  return np.all([np.roll(mask, shift, (0, 1)) for shift in shifts], axis=0)


@pytest.fixture(scope='module')
def labels():
  labels = np.zeros((24, 24), np.uint8)
  labels[4:12, 4:12] = 1
  labels[14:20, 10:20] = 2
  return labels


def test_error_map_by_cases():
  truth = np.array([[0, 0, 1, 1, 1, 2]], np.uint8)
  prediction = np.array([[0, 2, 0, 1, 2, 1]], np.int32)
  errors = panels.error_map(prediction, truth)
  np.testing.assert_array_equal(errors, [[0, 1, 2, 0, 3, 3]])
  assert errors.dtype == np.uint8


def test_error_map_counts_every_disagreement_once():
  rng = np.random.default_rng(0)
  truth, prediction = rng.integers(0, 4, (2, 3, 9, 9))
  errors = panels.error_map(prediction, truth)
  np.testing.assert_array_equal(errors > 0, truth != prediction)
  swapped = panels.error_map(truth, prediction)
  np.testing.assert_array_equal(errors == 1, swapped == 2)
  np.testing.assert_array_equal(errors == 3, swapped == 3)


def test_error_map_refuses_two_shapes():
  with pytest.raises(ValueError, match='one shape'):
    panels.error_map(np.zeros((2, 2)), np.zeros((2, 3)))


def test_a_colour_means_a_class_or_an_error_never_both():
  errors = [color for _, color in panels.ERRORS]
  every = np.array([colors.to_rgb(c) for c in (*panels.CLASS_COLORS, *errors)])
  assert len(panels.CLASS_COLORS) >= 7
  for a, b in itertools.combinations(every, 2):
    assert np.linalg.norm(a - b) > 0.2


@pytest.mark.parametrize('num_classes', [2, 3, 10, 11, 40])
def test_palette_gives_every_class_its_own_colour(num_classes):
  palette = panels.palette(num_classes)
  assert palette.shape == (num_classes, 3)
  assert len(np.unique(palette, axis=0)) == num_classes
  if num_classes <= len(panels.CLASS_COLORS) + 1:
    np.testing.assert_array_equal(
      palette[1:],
      [colors.to_rgb(c) for c in panels.CLASS_COLORS][: num_classes - 1],
    )


def test_scan_fills_the_panel_and_its_bar_has_the_length_it_says():
  grey = np.full((24, 24), 0.2)
  pixels = pixels_of(panels.draw_scan, grey=grey)
  np.testing.assert_allclose(pixels[:150], 0.2, atol=0.01)
  bar = pixels[216, :, 0] > 0.95  # 0.05 of the width above the lower edge
  # A third of 48 mm is 16 mm: the bar is 10 mm, a hundred pixels.
  assert bar.sum() == pytest.approx(100, abs=2)


def test_scan_without_a_bar_is_all_scan():
  grey = np.full((24, 24), 0.2)
  pixels = pixels_of(panels.draw_scan, grey=grey, scale_bar='')
  np.testing.assert_allclose(pixels, 0.2, atol=0.01)


@pytest.mark.parametrize('unit', ['mm', 'pixels'])
def test_the_bar_names_the_unit(unit):
  panel = figure.Figure().add_subplot()
  extent = {'grey': np.zeros((24, 24)), 'extent_mm': np.array([48.0, 48.0])}
  panels.draw_scan(panel, **extent, scale_bar=unit)
  assert [text.get_text() for text in panel.texts] == [f'10 {unit}']


def test_difference_is_brighter_the_larger_up_to_its_limit():
  difference = np.repeat([[0.0], [0.1], [0.2], [5.0]], 6, axis=0)
  difference = difference.repeat(24, axis=1)
  pixels = pixels_of(panels.draw_difference, difference=difference, limit=0.2)
  none, some, limit, above = pixels[30::60, 240].sum(axis=-1)
  assert none < some < limit == above


def test_dark_classes_have_a_bright_halo():
  labels = np.zeros((24, 24), np.uint8)
  labels[8:16, 8:16] = 1
  for color, halo in (('#332288', True), ('#DDCC77', False)):
    pixels = pixels_of(
      panels.draw_mask,
      grey=np.zeros((24, 24)),
      labels=labels,
      class_colors=colors.to_rgba_array(['k', color])[:, :3],
    )
    brightest = np.max(pixels, axis=(0, 1))
    assert np.any(brightest > np.add(colors.to_rgb(color), 0.1)) == halo


def test_mask_is_tinted_in_its_class_colour_and_nothing_else(labels):
  grey = np.full((24, 24), 0.5)
  palette = panels.palette(3)
  pixels = pixels_of(
    panels.draw_mask, grey=grey, labels=labels, class_colors=palette
  )
  for label in range(3):
    expected = 0.5 if not label else 0.65 * 0.5 + 0.35 * palette[label]
    found = pixels[inner(enlarged(labels == label))]
    np.testing.assert_allclose(np.median(found, axis=0), expected, atol=0.01)


def test_errors_are_those_of_the_error_map(labels):
  prediction = np.roll(labels, 3, axis=1)
  prediction[5:11, 8:11] = 2
  pixels = pixels_of(
    panels.draw_errors,
    grey=np.zeros((24, 24)),
    prediction=prediction,
    truth=labels,
  )
  errors = panels.error_map(prediction, labels)
  for value, (_, color) in enumerate(panels.ERRORS, start=1):
    found = pixels[inner(enlarged(errors == value))]
    assert len(found)
    expected = 0.9 * np.array(colors.to_rgb(color))
    np.testing.assert_allclose(np.median(found, axis=0), expected, atol=0.01)
  assert np.median(pixels[inner(enlarged(errors == 0))]) == 0
