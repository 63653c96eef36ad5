"""Tests of exposure.py: what crosses is what the protections really send."""

import jax
import numpy as np
import pytest
import synthetic_latents as synthetic
from scipy import stats

from ppcmi_jax import exposure, learners
from ppcmi_jax.sealed import sealing


@pytest.fixture(scope='module')
def latents():
  return synthetic.encode(synthetic.images(20)[0])


def test_none_is_the_latents_as_the_wire_rounds_them(latents):
  seen = exposure.observe('none', latents)
  for name, z in latents.items():
    np.testing.assert_array_equal(seen[name], np.float32(np.float16(z)))


@pytest.mark.parametrize('name', exposure.STATIC)
def test_a_static_transform_is_one_secret_for_all(name, latents):
  transform = learners.TRANSFORMS[name]
  seen = exposure.observe(name, latents, seed=5, wire_dtype='float32')
  secret = transform.init(jax.random.key(5), latents)
  back = transform.inverse(secret, seen)
  for name, z in latents.items():
    np.testing.assert_allclose(back[name], z, atol=1e-4)


@pytest.mark.parametrize('name', exposure.FRESH)
def test_fresh_keys_are_a_secret_a_message(name, latents):
  same = {name: z[:1].repeat(20, axis=0) for name, z in latents.items()}
  seen = exposure.observe(name, same)
  in_order = name in exposure.IN_ORDER
  for name, w in seen.items():
    assert w.shape == same[name].shape
    assert len(np.unique(w.reshape(20, -1), axis=0)) == 20
    # Without the shift the norms of positions are kept.
    centred = w - w.mean(axis=(1, 2), keepdims=True)
    norms = np.linalg.norm(centred, axis=-1).reshape(20, -1)
    norms = norms if in_order else np.sort(norms, axis=1)
    np.testing.assert_allclose(norms, norms[:1].repeat(20, 0), atol=0.02)


@pytest.mark.parametrize('dtype', exposure.SEALED_DTYPES)
def test_sealed_is_uniform_and_never_the_same(latents, dtype):
  latents = {'s3': latents['s3'][:1].repeat(20, axis=0)}
  seen = exposure.observe('sealed', latents, sealed_dtype=dtype)['s3']
  assert seen.shape == latents['s3'].shape and seen.dtype == np.float32
  uniform = seen.ravel() / np.sqrt(12) + 0.5
  if dtype == 'int4':
    counts = np.bincount((16 * uniform).astype(int), minlength=16)
    assert len(counts) == 16 and stats.chisquare(counts).pvalue > 1e-6
  else:
    assert stats.kstest(uniform, 'uniform').pvalue > 1e-6
  one, other = seen[:2].reshape(2, -1)
  assert abs(np.corrcoef(one, other)[0, 1]) < 0.1


def test_read_takes_the_ciphertext_of_each_latent():
  shapes = {'a': (1, 2, 3), 'b': (1, 2, 2)}
  draft = sealing.draft(
    bytes(32), client='x', epoch=0, direction='query', modality='image',
    model_id='m', dtype='float16', shapes=shapes, counter=1,
  )  # fmt: skip
  message = sealing.seal(draft, np.zeros(3 + 2 + 2 * 2, np.uint32))
  body = np.frombuffer(message, '<u2')[(len(message) - 16 - 36) // 2 :]
  found = exposure.read(message)
  for name, words in (('a', body[:6]), ('b', body[6:10])):
    expected = ((words + 0.5) / 65536 - 0.5) * np.sqrt(12)
    np.testing.assert_allclose(found[name].ravel(), expected, rtol=1e-6)


def test_mistakes_are_named(latents):
  with pytest.raises(ValueError, match='protection: expected one of none'):
    exposure.observe('rot13', latents)
  with pytest.raises(ValueError, match='dtypes: expected'):
    exposure.observe('sealed', latents, sealed_dtype='float32')
  with pytest.raises(ValueError, match=r's3: expected \[N, h, w, C\]'):
    exposure.observe('none', {'s3': latents['s3'][0]})


@pytest.mark.parametrize('count', [2, 3, 50])
def test_other_images_are_nobodys_own_and_leave_no_visits_together(count):
  others = exposure._others(count, seed=0)
  assert sorted(others) == list(range(count))
  assert np.all(others != np.arange(count))
  if count == 50:  # visits of ten subjects, one after the other
    subject = np.arange(count) // 5
    together = subject[others].reshape(10, 5)
    assert all(len(set(row)) > 2 for row in together.tolist())
