"""Tests of folder.py: its options, and the numbers that fit them."""

import ml_collections
import numpy as np
import pytest

from ppcmi_jax.datasets import folder


@pytest.mark.parametrize(
  'array, dtype, window, expected',
  [
    ([0, 255], 'uint8', (), [0, 255]),
    ([0.0, 7.0], 'uint8', (), [0, 7]),
    ([-32768, 32767], 'int16', (), [-32768, 32767]),
    ([0.25, 1.0], 'float32', (), [0.25, 1]),
    ([-300, -160, 40, 240, 900], 'float32', (-160, 240), [0, 0, 0.5, 1, 1]),
  ],
)
def test_to_dtype(array, dtype, window, expected):
  result = folder.to_dtype(np.array(array), dtype, window)
  assert result.dtype == dtype
  np.testing.assert_array_equal(result, np.array(expected, dtype))


@pytest.mark.parametrize(
  'array, dtype, window, reason',
  [
    ([-1], 'uint8', (), 'uint8, 0 to 255, found int64 -1 to -1'),
    ([256], 'uint8', (), "dtype='int16', or 'float32' with a window"),
    ([32768], 'int16', (), 'found int64 32768'),
    ([0.5], 'uint8', (), 'whole numbers .*fractions'),
    ([0.5], 'int16', (), 'whole numbers .*fractions'),
    ([0.0, 1.01], 'float32', (), 'found float64 0 to 1.01; set .*window'),
    ([-0.01], 'float32', (), 'set .*window'),
    ([0, 1], 'float32', (), 'floating point numbers .*found int64'),
    ([np.nan], 'float32', (0, 1), 'NaN'),
    ([np.inf], 'uint8', (), 'infinity'),
    ([], 'uint8', (), 'expected pixels'),
  ],
)
def test_what_does_not_fit_is_refused(array, dtype, window, reason):
  with pytest.raises(ValueError, match=f'image: .*{reason}'):
    folder.to_dtype(np.array(array), dtype, window)


def test_options_from_configuration_files():
  """Lists, tuples and ConfigDicts of the same values are the same options."""
  options = ml_collections.ConfigDict(
    {'classes': ['background', 'x'], 'labels': [0, 9], 'window': [0, 2]}
  )
  kwargs = {'manual_dir': 'a', 'dtype': 'float32'}
  name = lambda **change: folder.FolderConfig(**kwargs, **change).name
  same = {
    name(**options),
    name(**ml_collections.FrozenConfigDict(options)),
    name(classes=('background', 'x'), labels=(0, 9), window=(0.0, 2.0)),
  }
  assert len(same) == 1
  others = {
    name(**{**options, **change})
    for change in (
      {'classes': ('background', 'y')},
      {'labels': (0, 8)},
      {'window': (0, 3)},
      {'csv': 'a.csv'},
    )
  }
  assert len(same | others) == 5


@pytest.mark.parametrize(
  'change, reason',
  [
    ({'classes': 'background'}, 'classes: expected a list'),
    ({'classes': ('background',)}, 'classes: expected 2 to 256'),
    ({'classes': ('a', 'a')}, 'classes: expected 2 to 256'),
    ({'classes': ('a', 1)}, 'classes: unexpected value 1'),
    ({'labels': (0, 1, 2)}, 'labels: expected 2 different'),
    ({'labels': (1, 1)}, 'labels: expected 2 different'),
    ({'labels': (0, 0.5)}, 'labels: unexpected value 0.5'),
    ({'dtype': 'uint16'}, 'dtype: expected one of uint8, int16, float32'),
    ({'window': (0, 1)}, "window: expected dtype='float32'"),
    ({'dtype': 'float32', 'window': (1, 0)}, 'window: expected the values'),
    ({'dtype': 'float32', 'window': (0,)}, 'window: expected the values'),
    ({'dtype': 'float32', 'window': (0, np.inf)}, 'window: expected the val'),
  ],
)
def test_config_rejects(change, reason):
  with pytest.raises(ValueError, match=reason):
    folder.FolderConfig(**change)
