"""Tests of the keyed transforms: what they refuse, and how they say so."""

import jax
import numpy as np
import pytest

from ppcmi_jax import keyed

FULL = keyed.chain(keyed.orthogonal(), keyed.permutation(), keyed.shift())


KEY = jax.random.key(0)
Z = {'b': np.zeros((2, 3, 4), np.float32)}
ORTHOGONAL, PERMUTATION, SHIFT = (
  keyed.orthogonal(),
  keyed.permutation(),
  keyed.shift(),
)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: keyed.permutation('rows'), "axis: expected .*, found 'rows'"),
    (lambda: keyed.shift(-1.0), 'stddev: expected .* at least 0, found -1'),
    (lambda: keyed.shift(float('nan')), 'stddev: expected .* found nan'),
    (lambda: ORTHOGONAL.init(KEY, {'b': np.zeros(4)}), r'b: shape.* \[4\]'),
    (lambda: SHIFT.init(KEY, np.zeros(4)), r'latents: shape: .* found \[4\]'),
    (lambda: PERMUTATION.init(KEY, np.zeros(())), r'found \[\]'),
    (
      lambda: SHIFT.forward({'b': np.zeros(4)}, {'b': np.zeros((2, 4), int)}),
      'b: dtype: expected a floating one, found int32',
    ),
    (
      lambda: ORTHOGONAL.forward({'b': np.eye(3)}, Z),
      r'b: orthogonal secret: expected floating \[4, 4\], found .* \[3, 3\]',
    ),
    (
      lambda: ORTHOGONAL.inverse({'b': np.eye(4)[0]}, Z),
      r'found float64 \[4\]',
    ),
    (lambda: ORTHOGONAL.forward({'b': None}, Z), 'found NoneType'),
    (lambda: ORTHOGONAL.forward({'b': {'q': 1}}, Z), 'found dict'),
    (
      lambda: PERMUTATION.forward({'b': np.arange(4)}, Z),
      r'permutation secret: expected integer \[3\], found int64 \[4\]',
    ),
    (
      lambda: PERMUTATION.inverse({'b': np.zeros(3)}, Z),
      r'expected integer \[3\], found float64 \[3\]',
    ),
    (
      lambda: SHIFT.forward({'b': np.zeros((1, 4))}, Z),
      r'floating \[4\], found',
    ),
    (lambda: SHIFT.forward({'s3': np.zeros(4)}, Z), 'secret: expected a tree'),
    (lambda: SHIFT.inverse(np.zeros(4), Z), 'secret: expected a tree like'),
    (lambda: SHIFT.inverse({}, Z), 'secret: expected a tree like'),
    (
      lambda: FULL.forward(({}, {}), Z),
      'chain secret: expected 3 parts, found 2',
    ),
    (lambda: FULL.inverse({'b': 1}, Z), 'expected 3 parts, found no tuple'),
    (lambda: keyed.chain().forward(None, Z), 'expected 0 parts, found no'),
    (lambda: FULL.init(0, Z), 'key: expected typed PRNG keys .*, found int'),
    (
      lambda: SHIFT.init(np.zeros(8, np.uint32), Z),
      r'key: expected typed PRNG keys of shape \(\), found uint32 \[8\]',
    ),
    (
      lambda: SHIFT.init(jax.random.split(KEY), Z),
      r'key: .* found key.* \[2\]',
    ),
    (
      lambda: SHIFT.init({'s3': KEY}, Z),
      'key: expected one PRNG key or a tree',
    ),
    (lambda: SHIFT.init(None, Z), 'key: expected one PRNG key or a tree'),
  ],
)
def test_errors_name_what_was_expected_and_found(call, message):
  with pytest.raises(ValueError, match=message) as caught:
    call()
  assert '\n' not in str(caught.value) and '; ' in str(caught.value)
