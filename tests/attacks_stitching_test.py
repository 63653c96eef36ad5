"""Tests of attacks/stitching.py."""

import numpy as np
import pytest
import synthetic_latents as synthetic

from ppcmi_jax import keyed
from ppcmi_jax.attacks import alignment, stitching

PAPER = keyed.chain(keyed.orthogonal(), keyed.shift())
KLT = keyed.chain(keyed.orthogonal(), keyed.permutation(), keyed.shift())


@pytest.fixture(scope='module')
def clients():
  """Latents of the same images by the own and by another encoder."""
  pixels, _ = synthetic.images(12)
  own = synthetic.encode(pixels, seed=0)
  return own, synthetic.encode(pixels, seed=1)


def errors(own, other, known, **options):
  stitches = stitching.fit(
    synthetic.take(other, known), synthetic.take(own, known), **options
  )
  stitched = stitching.stitch(stitches, synthetic.take(other, np.s_[6:]))
  assert all(np.all(z >= 0) for z in stitched.values())
  return alignment.relative_error(stitched, synthetic.take(own, np.s_[6:]))


def mean_errors(own):
  truth = synthetic.take(own, np.s_[6:])
  mean = {
    k: np.broadcast_to(z[:6].mean(0), z[6:].shape) for k, z in own.items()
  }
  return alignment.relative_error(mean, truth)


def test_one_image_stitches_encoders(clients):
  own, other = clients
  found, trivial = errors(own, other, np.s_[:1]), mean_errors(own)
  assert found['s3'] < 0.95 * trivial['s3']
  more = errors(own, other, np.s_[:6])
  assert all(more[name] < found[name] for name in more)


def test_the_static_transform_changes_nothing(clients):
  own, other = clients
  plain = errors(own, other, np.s_[:2])
  protected = errors(own, synthetic.protect(PAPER, other)[0], np.s_[:2])
  for name in plain:
    assert abs(plain[name] - protected[name]) < 1e-3


def test_a_linear_relation_is_found_exactly(clients):
  own, _ = clients
  observed, secret = synthetic.protect(KLT, own)
  found = stitching.fit(
    synthetic.take(observed, np.s_[:6]),
    synthetic.take(own, np.s_[:6]),
    permuted=True,
  )
  stitched = stitching.stitch(found, observed)
  assert max(alignment.relative_error(stitched, own).values()) < 1e-3
  np.testing.assert_array_equal(found['s4'].order, secret[1]['s4'])


@pytest.mark.parametrize('permuted', [False, True])
def test_uniform_words_stay_at_the_mean(clients, permuted):
  own, other = clients
  words = synthetic.uniform(other)
  found = errors(own, words, np.s_[:6], permuted=permuted)
  trivial = mean_errors(own)
  assert all(found[name] > 0.95 * trivial[name] for name in found)


def test_mistakes_are_named(clients):
  own, other = clients
  with pytest.raises(ValueError, match='scales: expected'):
    stitching.fit({'s3': other['s3']}, own)
  with pytest.raises(ValueError, match='b: expected'):
    stitching.fit({**other, 'b': other['b'][:1]}, own)
