"""Tests of body.py, and of what a session puts into it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppcmi_jax import keyed
from ppcmi_jax.sealed import (
  body,
  chacha,
  envelope,
  masking,
  mixing,
  sealing,
  session,
)

KEY = bytes(range(32))
ROUTE = {
  'client': 'clinic-1',
  'epoch': 0,
  'direction': 'query',
  'modality': 'image',
  'model_id': 'demo',
}


def latents_of(batch):
  """Latents whose words are filled up, in no order of names."""
  rng = np.random.default_rng(batch)
  return {
    name: jnp.asarray(rng.standard_normal((batch, *shape), np.float32))
    for name, shape in (('s3', (3, 3, 5)), ('b', (2, 2, 7)))
  }


def draft_of(latents, dtype):
  shapes = {name: z.shape for name, z in latents.items()}
  return sealing.draft(KEY, **ROUTE, dtype=dtype, shapes=shapes, counter=1)


@pytest.mark.parametrize(
  'dtype, batch', [('int8', 3), ('float16', 1), ('int4', 2)]
)
def test_a_session_and_its_layers_read_each_other(dtype, batch):
  """The session by streams, the layers of the library by keys."""
  latents = latents_of(batch)
  transform = keyed.chain(mixing.mix(), masking.mask(dtype))
  draft, codec = draft_of(latents, dtype), session.codec(dtype)
  keys, streams = (draft.mix_keys, draft.mask_keys), session.streams_of(draft)

  @jax.jit
  def cover(keys):
    return transform.forward(transform.init(keys, latents), latents)

  @jax.jit
  def uncover(keys, masked):
    return transform.inverse(transform.init(keys, latents), masked)

  covered = np.asarray(jax.jit(codec.cover)(streams, latents))
  opened = sealing.open(sealing.seal(draft, covered), KEY, **ROUTE)
  np.testing.assert_array_equal(session.streams_of(opened), streams)
  assert opened.words.tobytes() == covered.tobytes()
  parts = body.split(opened.words, opened.header.shapes, dtype=dtype)
  like = {name: z[:1] for name, z in latents.items()}  # of any batch
  by_session = jax.jit(lambda *given: codec.uncover(*given, like))
  for found in (
    uncover(keys, parts),
    by_session(streams, body.join(cover(keys))),
  ):
    for name, z in latents.items():
      error = np.linalg.norm(found[name] - z) / np.linalg.norm(z)
      assert error < {'float16': 1e-3, 'int8': 0.03, 'int4': 0.15}[dtype]


def test_streams_are_those_of_the_keys():
  latents = latents_of(2)
  draft = draft_of(latents, 'int8')
  keys = [
    *(draft.mix_keys[name] for name in ('b', 's3')),
    *(draft.mask_keys[name] for name in ('b', 's3')),
  ]
  words = mixing.num_words(latents)
  counts = [words['b'], words['s3'], 14, 23]  # 2 x 28 and 2 x 45 bytes
  expected = [chacha.keystream(key, n) for key, n in zip(keys, counts)]
  np.testing.assert_array_equal(
    session.streams_of(draft), np.concatenate(expected)
  )


def test_streams_of_another_length_are_refused():
  """Shorter ones would be spread over many numbers, and hide none."""
  latents = latents_of(1)
  streams = session.streams_of(draft_of(latents, 'int8'))
  codec = session.codec('int8')
  for wrong in (streams[:-1], np.append(streams, streams[:1])):
    with pytest.raises(ValueError, match='keystreams: expected'):
      codec.cover(wrong, latents)
  words = jnp.zeros(4, jnp.uint32)
  for length in (1, 5):
    stream = jnp.ones(length, jnp.uint32)
    for combine in (masking.add, masking.subtract):
      with pytest.raises(ValueError, match='keystream'):
        combine(stream, words)
  mixing_words = mixing.num_words(latents)
  mixing_words['b'] -= 1
  short = {n: jnp.zeros(k, jnp.uint32) for n, k in mixing_words.items()}
  with pytest.raises(ValueError, match='b: keystream'):
    mixing.draw(short, latents)


@pytest.mark.parametrize('on_device', [False, True])
def test_split_undoes_join_bit_by_bit(on_device):
  shapes = {'b': (2, 9), 'a': (2, 1, 3)}
  rng = np.random.default_rng(0)
  masked = {
    name: {
      part: rng.integers(0, 2**32, size, np.uint32).view(dtype)
      for part, dtype, size in envelope.parts(shape, 'int8')
    }
    for name, shape in shapes.items()
  }
  given = jax.device_put(masked) if on_device else masked
  join = jax.jit(body.join) if on_device else body.join
  joined = join(given)
  assert isinstance(joined, jax.Array if on_device else np.ndarray)
  assert body.batch(len(joined), masked_like(shapes), dtype='int8') == 2
  found = body.split(joined, shapes, dtype='int8')
  for name, entry in masked.items():
    for part, array in entry.items():
      assert found[name][part].dtype == array.dtype
      assert np.asarray(found[name][part]).tobytes() == array.tobytes()


def masked_like(shapes):
  return {name: jnp.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize('change', [-1, 1])
def test_another_length_is_refused(change):
  with pytest.raises(ValueError, match='body: expected 6 words of int8'):
    body.split(np.zeros(6 + change, np.uint32), {'b': (2, 4)}, dtype='int8')


def test_the_batch_is_found_for_every_filling():
  for dtype in envelope.BITS:
    for sizes in ((1,), (1, 2, 3), (5, 5, 7, 9)):
      for batch in range(1, 40):
        shapes = {f's{i}': (batch, n) for i, n in enumerate(sizes)}
        count = sum(
          np.prod(size, dtype=int)
          for shape in shapes.values()
          for _, _, size in envelope.parts(shape, dtype)
        )
        like = {name: np.zeros((1, *s[1:])) for name, s in shapes.items()}
        assert body.batch(int(count), like, dtype=dtype) == batch
