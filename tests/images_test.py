"""Tests of images.py: what becomes a grey value, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from ppcmi_jax import images


def test_uint8_is_scaled_and_floats_are_kept():
  scaled = images.unit_image(np.array([0, 51, 255], np.uint8))
  np.testing.assert_allclose(scaled, [0, 0.2, 1], rtol=1e-6)
  np.testing.assert_array_equal(images.unit_image(jnp.array([0.25])), [0.25])
  assert images.unit_image(jnp.array([0.5], jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize('dtype', [np.int16, np.int32, np.bool_])
def test_other_dtypes_are_refused(dtype):
  with pytest.raises(ValueError, match='window and scale'):
    images.unit_image(np.zeros(3, dtype))
