"""Tests of case_panels.py: what fits, what is refused."""

import numpy as np
import pytest

from ppcmi_jax.figures import case_panels


def check(**changes):
  masks = np.zeros((2, 4, 6), np.uint8)
  masks[1, 0, 0] = 2
  arguments = {
    'image': {'image': np.zeros((2, 4, 6, 1), np.uint8)},
    'masks': {'truth': masks, 'prediction': np.zeros_like(masks)},
    'class_names': ('background', 'liver', 'spleen'),
    'spacing_mm': np.array([[1.0, 1.0], [2.0, 0.5]]),
    'names': {'case': ['a', 'b']},
  }
  return case_panels.check_cases(**{**arguments, **changes})


def test_cases_know_their_size_and_classes():
  cases = check()
  np.testing.assert_array_equal(cases.extent_mm, [[4, 6], [8, 3]])
  assert cases.present == [2]


def test_grey_is_the_mean_over_channels_in_the_unit_range():
  scans = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
  assert case_panels.grey_scans(scans)[0, 0, 0] == pytest.approx(0.4)
  scans = scans.astype(np.float32) / 255
  assert case_panels.grey_scans(scans)[0, 0, 0] == pytest.approx(0.4)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'image': {'scan': np.zeros((2, 4, 6))}}, r'scan must be \[N, H, W, C\]'),
    ({'image': {'image': np.zeros((2, 4, 5, 1))}}, 'of one size'),
    ({'masks': {'truth': np.full((2, 4, 6), 3)}}, 'truth must hold labels'),
    ({'names': {'case': ['a']}}, 'case and spacing_mm must hold 2 cases'),
    ({'spacing_mm': np.ones(2)}, 'case and spacing_mm must hold 2 cases'),
    ({'spacing_mm': np.full((2, 2), np.nan)}, 'finite and above 0'),
  ],
)
def test_what_does_not_fit_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    check(**changes)


@pytest.mark.parametrize(
  'extent, expected', [((1, 2), 5), ((3, 1), 30), ((9, 1), 30), ((1, 9), 3)]
)
def test_panels_have_the_aspect_of_scans_within_reason(extent, expected):
  height = case_panels.scan_height(10, np.array(extent, float))
  assert height == pytest.approx(expected)
