"""Sealed messages of one client, for the tests of sealing."""

import numpy as np

from ppcmi_jax.sealed import body, masking, sealing

KEY = bytes(range(32))
SHAPES = {'s3': (2, 2, 2, 2), 'b': (2, 1, 1, 5)}
ROUTE = {
  'client': 'clinic-1',
  'epoch': 3,
  'direction': 'query',
  'modality': 'image',
  'model_id': 'demo.1',
}
MESSAGE_ID = bytes(range(100, 116))


def draft_of(key=KEY, dtype='int8', shapes=None, counter=7, **changes):
  fields = {'message_id': MESSAGE_ID, **ROUTE, **changes}
  shapes = SHAPES if shapes is None else shapes
  return sealing.draft(
    key, dtype=dtype, shapes=shapes, counter=counter, **fields
  )


def masked_of(dtype='int8', shapes=None):
  rng = np.random.default_rng(0)
  return {
    name: {
      'words': rng.integers(
        0, 2**32, masking.num_words(shape, dtype), np.uint32
      ),
      'numbers': rng.standard_normal((shape[0], 2), np.float32),
    }
    for name, shape in (shapes or SHAPES).items()
  }


def words_of(*args):
  return body.join(masked_of(*args))


def message_of(**changes):
  return sealing.seal(draft_of(**changes), words_of())


DATA = message_of()
HEADER_BYTES = -(-(177 + 2 * 37) // 8) * 8


OFFICIAL = {'s3': (1, 32, 32, 64), 's4': (1, 16, 16, 128), 'b': (1, 8, 8, 256)}
