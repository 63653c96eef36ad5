"""Tests of figures/reconstructions.py: its panels, its scale, odd input."""

import numpy as np
import pytest
import sheet_layout

from ppcmi_jax.figures import reconstructions as reconstruction_figures


def make_arguments(n=1, num_classes=3, channels=1, **changes):
  cases = sheet_layout.make_cases(n, num_classes, channels)
  arguments = {
    'reconstruction': cases['image'].astype(np.float32) / 255,
    'reconstructed_mask': np.zeros_like(cases['truth']),
  }
  return {**cases, **arguments, **changes}


def draw(tmp_path, **arguments):
  function = reconstruction_figures.draw_reconstructions
  path = tmp_path / 'figure.png'
  return sheet_layout.draw(function, path, **make_arguments(**arguments))


def scale_of(drawn):
  return drawn.panels[-1].get_xticks()[-1]


@pytest.mark.parametrize(
  'arguments',
  [
    {'n': 1, 'num_classes': 2},
    {
      'n': 2,
      'num_classes': 11,
      'channels': 3,
      'title': 'A test',
    },
    {'case': ['a name ' * 30], 'spacing_mm': [[1.0, 3.0]]},
  ],
)
def test_five_panels_a_case_and_a_scale(tmp_path, arguments):
  drawn = draw(tmp_path, **arguments)
  assert len(drawn.panels) == 5 * arguments.get('n', 1) + 1


@pytest.mark.parametrize(
  'offset, expected', [(0, 0.01), (0.03, 0.05), (0.4, 0.5), (7, 1)]
)
def test_scale_covers_the_differences(tmp_path, offset, expected):
  image = np.full((1, 16, 16, 1), 0.5)
  arguments = {'image': image, 'reconstruction': image + offset}
  drawn = draw(tmp_path, **arguments)
  assert scale_of(drawn) == expected
  difference = drawn.panels[2].images[0]
  np.testing.assert_allclose(difference.get_array(), offset, atol=1e-12)
  assert difference.get_clim() == (0, expected)


def test_a_reconstruction_that_is_not_finite_is_drawn(tmp_path):
  draw(tmp_path, reconstruction=np.full((1, 16, 16, 1), np.nan))


def test_without_cases_there_is_no_file(tmp_path):
  path = tmp_path / 'figure.png'
  function = reconstruction_figures.draw_reconstructions
  assert function(path, **make_arguments(n=0)) is False
  assert not path.exists()
