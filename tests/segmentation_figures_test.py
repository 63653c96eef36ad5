"""Tests of figures/segmentations.py: choice of cases, picture, file."""

import numpy as np
import pytest
from PIL import Image

from ppcmi_jax.figures import panels
from ppcmi_jax.figures import segmentations as figures

NAMES = ('background', 'head', 'symphysis')


def make_arguments(n=2, size=24, **changes):
  rng = np.random.default_rng(0)
  truth = np.zeros((n, size, size), np.uint8)
  truth[:, 4:12, 4:12] = 1
  truth[:, 14:20, 10:20] = 2
  arguments = {
    'title': 'A test',
    'image': rng.integers(0, 60, (n, size, size, 1), np.uint8),
    'truth': truth,
    'prediction': np.roll(truth, 3, axis=2),
    'class_names': NAMES,
    'spacing_mm': np.ones((n, 2)),
    'case': [f'case_{i}' for i in range(n)],
  }
  return {**arguments, **changes}


def draw(tmp_path, **changes):
  path = tmp_path / 'figure.png'
  figures.draw_segmentations(path, **make_arguments(**changes))
  with Image.open(path) as picture:
    return np.asarray(picture.convert('RGB')).astype(int)


def count_near(pixels, color, tolerance=12):
  rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
  return int(np.sum(np.all(np.abs(pixels - rgb) <= tolerance, axis=-1)))


def errors_panel(pixels):
  """Cuts the last column of a picture with one row of square panels."""
  height, width = pixels.shape[:2]
  side = int(figures.PANEL * figures.DPI)
  top = int(3 * figures.LINE * figures.DPI)
  right = width - int(figures.GAP * figures.DPI)
  assert height > top + side
  return pixels[top + 4 : top + side - 4, right - side + 4 : right - 4]


def rows_of(dices):
  return [
    {'index': i, 'case': f'c{i}', 'class': f'k{k}', 'dice': dice}
    for i, values in enumerate(dices)
    for k, dice in enumerate(values)
  ]


def test_select_cases_takes_best_median_and_worst():
  rows = rows_of([[0.2, 0.4], [1.0, None], [None, None], [0.5, 0.7], [0, 0]])
  chosen = figures.select_cases(rows, count=3)
  assert [entry['index'] for entry in chosen] == [1, 3, 4]
  assert [entry['case'] for entry in chosen] == ['c1', 'c3', 'c4']
  assert chosen[1]['dice'] == pytest.approx(0.6)


@pytest.mark.parametrize(
  'count, expected', [(1, [2]), (2, [0, 4]), (4, [0, 1, 2, 4]), (9, range(5))]
)
def test_select_cases_spreads_over_the_ranks(count, expected):
  rows = rows_of([[0.9], [0.7], [0.5], [0.3], [0.1]])
  chosen = figures.select_cases(rows, count=count)
  assert [entry['index'] for entry in chosen] == list(expected)


def test_select_cases_without_any_defined_case_is_empty():
  assert figures.select_cases(rows_of([[None]])) == []
  with pytest.raises(ValueError, match='count'):
    figures.select_cases([], count=0)


def test_picture_has_one_row_a_case(tmp_path):
  one, two = draw(tmp_path, n=1), draw(tmp_path, n=2)
  assert one.shape[1] == two.shape[1] > 1000
  row = (figures.PANEL + figures.GAP) * figures.DPI
  assert two.shape[0] - one.shape[0] == pytest.approx(row, abs=2)


def test_picture_shows_classes_and_errors_in_their_colours(tmp_path):
  pixels = draw(tmp_path, n=1)
  for color in panels.CLASS_COLORS[:2]:
    assert count_near(pixels, color) > 100
  assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_errors_panel_has_the_areas_of_the_error_map(tmp_path):
  arguments = make_arguments(n=1, image=np.zeros((1, 24, 24, 1), np.uint8))
  truth, prediction = arguments['truth'].copy(), arguments['prediction']
  prediction[0, 4:12, 4:8] = 2
  panel = errors_panel(draw(tmp_path, **arguments))
  errors = panels.error_map(prediction, truth)
  for value, (_, color) in enumerate(panels.ERRORS, start=1):
    dimmed = '#' + ''.join(
      f'{round(0.9 * int(color[i : i + 2], 16)):02x}' for i in (1, 3, 5)
    )
    share = count_near(panel, dimmed) / panel[..., 0].size
    # Outlines of the truth hide some of it.
    assert share == pytest.approx(np.mean(errors == value), rel=0.3)
    assert share > 0


def test_perfect_prediction_leaves_no_error_colour(tmp_path):
  arguments = make_arguments(n=1)
  panel = errors_panel(
    draw(tmp_path, **arguments | {'prediction': arguments['truth']})
  )
  spread = panel.max(axis=-1) - panel.min(axis=-1)
  assert spread.max() <= 2  # greys only


def test_aspect_follows_the_spacing(tmp_path):
  flat = draw(tmp_path, n=1, spacing_mm=[[1.0, 2.0]])
  tall = draw(tmp_path, n=1, spacing_mm=[[2.0, 1.0]])
  difference = (2 - 0.5) * figures.PANEL * figures.DPI
  assert tall.shape[0] - flat.shape[0] == pytest.approx(difference, abs=2)


@pytest.mark.parametrize('num_classes', [2, 10, 14])
def test_any_number_of_classes_and_colour_images(tmp_path, num_classes):
  labels = np.arange(24 * 24).reshape(1, 24, 24) % num_classes
  image = np.linspace(0, 1, 24 * 24 * 3, dtype=np.float32)
  pixels = draw(
    tmp_path,
    n=1,
    truth=labels,
    prediction=np.zeros_like(labels),
    image=image.reshape(1, 24, 24, 3),
    class_names=['background', *(f'organ {i}' for i in range(num_classes - 1))],
    scores=[float('nan')],
    note='a long note ' * 30,
  )
  assert pixels.size


def test_empty_masks_draw_without_a_warning(tmp_path):
  none = np.zeros((2, 24, 24), np.uint8)
  assert draw(tmp_path, truth=none, prediction=none, scores=[0.1, 0.2]).size


def test_a_failed_write_leaves_the_old_picture_and_no_rest(
  tmp_path, monkeypatch
):
  path = tmp_path / 'deep' / 'figure.png'
  figures.draw_segmentations(path, **make_arguments(n=1))
  before = path.read_bytes()

  def fail(self, target, **_):
    target.write_bytes(b'half')
    raise OSError('disk full')

  monkeypatch.setattr(figures.figure.Figure, 'savefig', fail)
  with pytest.raises(OSError, match='disk full'):
    figures.draw_segmentations(path, **make_arguments(n=1))
  assert path.read_bytes() == before
  assert [p.name for p in path.parent.iterdir()] == ['figure.png']


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'truth': np.zeros((2, 24, 23), np.uint8)}, 'of one size'),
    ({'image': np.zeros((2, 24, 24))}, 'image must be'),
    ({'prediction': np.full((2, 24, 24), 3)}, 'prediction must hold labels'),
    ({'case': ['one']}, 'case, scores and spacing_mm'),
    ({'scores': [1.0]}, 'case, scores and spacing_mm'),
    ({'spacing_mm': [1.0, 1.0]}, 'case, scores and spacing_mm'),
    ({'spacing_mm': [[0.0, 1.0]] * 2}, 'above 0'),
  ],
)
def test_bad_arguments_are_refused(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    draw(tmp_path, **changes)
  assert not list(tmp_path.iterdir())


def test_other_formats_are_refused(tmp_path):
  with pytest.raises(ValueError, match='must end in'):
    figures.draw_segmentations(tmp_path / 'a.jpg', **make_arguments())
