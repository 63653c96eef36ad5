"""Tests of payload.py; `roundings_test.py` has the ways of rounding."""

import math

import pytest

from ppcmi_jax import payload


def test_a_client_without_structures_is_in_no_mean():
  # None is what a file makes of NaN.
  for undefined in (math.nan, None):
    row = {'dice': {'a': 0.8, 'b': undefined, 'c': 0.6}}
    assert payload.mean_dice(row) == pytest.approx(0.7)
