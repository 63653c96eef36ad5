"""Tests of figures/scores.py: boxes, counts, marks, axes, odd input."""

import math

import numpy as np
import pytest
import sheet_layout

from ppcmi_jax.figures import scores as score_figures


def make_rows(classes=('liver',), num=5, metric='dice'):
  rng = np.random.default_rng(0)
  return [
    {'class': name, metric: float(value), 'missed': False, 'spurious': False}
    for name in classes
    for value in rng.uniform(0.3, 1, num)
  ]


def draw(tmp_path, per_case, **arguments):
  path = tmp_path / 'figure.png'
  function = score_figures.draw_boxplots
  return sheet_layout.draw(function, path, per_case, **arguments)


def boxes_of(panel):
  return len(panel.patches)


@pytest.mark.parametrize(
  'num_classes, num_groups', [(1, 1), (10, 1), (1, 7), (2, 3)]
)
def test_one_box_a_class_and_group(tmp_path, num_classes, num_groups):
  classes = [f'organ {i}' for i in range(num_classes)]
  per_case = {f'client {i}': make_rows(classes) for i in range(num_groups)}
  drawn = draw(tmp_path, per_case)
  assert [boxes_of(panel) for panel in drawn.panels] == [
    num_groups
  ] * num_classes
  colors = {tuple(patch.get_edgecolor()) for patch in drawn.panels[0].patches}
  assert len(colors) == num_groups
  assert drawn.words().count('5') == num_classes * num_groups  # n


def test_every_defined_case_is_a_point_and_counted(tmp_path):
  rows = make_rows(num=4)
  rows.append({'class': 'liver', 'dice': None, 'empty': True})
  rows.append({'class': 'liver', 'dice': math.nan})
  rows.append({'class': 'liver', 'dice': 0.0, 'missed': True})
  rows.append({'class': 'liver', 'dice': 0.0, 'spurious': True})
  drawn = draw(tmp_path, {'A': rows})
  points = {
    line.get_marker(): len(line.get_xdata())
    for line in drawn.panels[0].lines
    if line.get_marker() in ('o', 'x', '+')
  }
  assert points == {'o': 4, 'x': 1, '+': 1}
  assert '6' in drawn.words() and '1' in drawn.words()


def test_box_has_the_quartiles(tmp_path):
  values = [0.1, 0.2, 0.4, 0.5, 0.9]
  rows = [{'class': 'liver', 'dice': value} for value in values]
  panel = draw(tmp_path, {'A': rows}).panels[0]
  x = panel.patches[0].get_path().vertices[:, 0]
  quartiles = np.percentile(values, (25, 75))
  np.testing.assert_allclose((x.min(), x.max()), quartiles)


def test_groups_without_a_value_keep_their_row(tmp_path):
  per_case = {
    'A': make_rows(('liver', 'spleen')),
    'B': make_rows(num=1),
    'C': [],
  }
  drawn = draw(tmp_path, per_case)
  assert [boxes_of(panel) for panel in drawn.panels] == [2, 1]
  assert drawn.words().count('C') == 2


@pytest.mark.parametrize(
  'values, scale',
  [
    ((1.0, 2.0, 3.0), 'linear'),
    ((0.0, 2.0, 3.0, 500.0), 'symlog'),
    ((0.0,), 'linear'),
  ],
)
def test_distances_have_an_axis_that_shows_all(tmp_path, values, scale):
  rows = [{'class': 'liver', 'hd95_mm': value} for value in values]
  arguments = {'metric': 'hd95_mm', 'distance_unit': 'pixels'}
  drawn = draw(tmp_path, {'A': rows}, **arguments)
  panel = drawn.panels[0]
  assert panel.get_xscale() == scale
  low, high = panel.get_xlim()
  assert low <= min(values) and max(values) <= high
  assert any('pixels' in word for word in drawn.words())


def test_long_names_and_unknown_metrics(tmp_path):
  name = 'University Hospital of Saint-Somewhere, Department of Radiology '
  rows = make_rows((name * 2,), metric='volume_error')
  draw(tmp_path, {name + 'A': rows, name + 'B': rows}, metric='volume_error')


def test_without_values_there_is_no_file(tmp_path):
  path = tmp_path / 'figure.png'
  for per_case in ({}, {'A': []}, {'A': [{'class': 'liver', 'dice': None}]}):
    assert score_figures.draw_boxplots(path, per_case) is False
  assert not path.exists()
