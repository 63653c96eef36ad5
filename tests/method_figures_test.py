"""Tests of figures/methods.py: its panels, their place, odd input."""

import numpy as np
import pytest
import sheet_layout

from ppcmi_jax.figures import methods as method_figures
from ppcmi_jax.figures import panels


def make_arguments(n=1, methods=('U-Net',), num_classes=3, **changes):
  cases = sheet_layout.make_cases(n, num_classes, channels=3)
  shifted = np.roll(cases['truth'], 2, axis=2)
  return {**cases, 'predictions': dict.fromkeys(methods, shifted), **changes}


def draw(tmp_path, **arguments):
  path = tmp_path / 'figure.png'
  function = method_figures.draw_methods
  return sheet_layout.draw(function, path, **make_arguments(**arguments))


@pytest.mark.parametrize(
  'arguments',
  [
    {'n': 1, 'num_classes': 2},
    {
      'n': 3,
      'methods': ('PPCMI-SF', 'a method of a very long name'),
      'num_classes': 11,
    },
    {
      'n': 2,
      'spacing_mm': [[1.0, 1.0], [2.0, 1.0]],
      'case': ['a name ' * 20] * 2,
    },
    {'n': 3, 'width_mm': 180, 'title': 'A test'},
  ],
)
def test_two_panels_a_row_and_a_row_a_method(tmp_path, arguments):
  drawn = draw(tmp_path, **arguments)
  num_methods = len(arguments.get('methods', 'u'))
  assert len(drawn.panels) == arguments['n'] * 2 * (1 + num_methods)


def test_cases_stand_beside_each_other_as_far_as_there_is_room(tmp_path):
  def lefts(width_mm):
    drawn = draw(tmp_path, n=3, width_mm=width_mm)
    return {round(panel.get_position().x0, 3) for panel in drawn.panels}

  assert len(lefts(90)) == 4
  assert len(lefts(180)) == 6


def test_errors_are_those_of_each_method(tmp_path):
  arguments = make_arguments(methods=('right', 'wrong'))
  truth = arguments['truth']
  arguments['predictions'] = {'right': truth, 'wrong': 0 * truth}
  drawn = draw(tmp_path, **arguments)
  for panel, prediction in ((3, truth), (5, 0 * truth)):
    tint = drawn.panels[panel].images[1].get_array()
    errors = panels.error_map(prediction[0], truth[0])
    np.testing.assert_array_equal(tint[..., 3] > 0, errors > 0)


def test_without_cases_or_methods_there_is_no_file(tmp_path):
  path = tmp_path / 'figure.png'
  for arguments in (make_arguments(n=0), make_arguments(methods=())):
    assert method_figures.draw_methods(path, **arguments) is False
  assert not path.exists()
