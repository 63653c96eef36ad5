"""Tests of attacks/known_plaintext.py and attacks/alignment.py."""

import tracemalloc

import numpy as np
import pytest
import synthetic_latents as synthetic

from ppcmi_jax import keyed
from ppcmi_jax.attacks import alignment, known_plaintext

KLT = keyed.chain(keyed.orthogonal(), keyed.permutation(), keyed.shift())
PAPER = keyed.chain(keyed.orthogonal(), keyed.shift())


@pytest.fixture(scope='module')
def latents():
  return synthetic.encode(synthetic.images(8)[0])


@pytest.mark.parametrize(
  'transform, permuted',
  [(PAPER, False), (PAPER, True), (KLT, True)],
  ids=['paper', 'paper_permuted', 'klt'],
)
def test_known_images_open_all_other_messages(latents, transform, permuted):
  observed, secret = synthetic.protect(transform, latents)
  known, other = np.s_[:2], np.s_[2:]
  fit = known_plaintext.fit(
    synthetic.take(latents, known),
    synthetic.take(observed, known),
    permuted=permuted,
  )
  opened = alignment.undo(fit, synthetic.take(observed, other))
  errors = alignment.relative_error(opened, synthetic.take(latents, other))
  assert max(errors.values()) < 1e-5
  for name, one in fit.items():
    assert opened[name].dtype == np.float32
    np.testing.assert_allclose(one.rotation, secret[0][name], atol=1e-4)
    assert abs(one.scale - 1) < 1e-4


def test_one_image_is_enough_where_positions_outnumber_channels(latents):
  observed, _ = synthetic.protect(PAPER, latents)
  fit = known_plaintext.fit(
    synthetic.take(latents, np.s_[:1]),
    synthetic.take(observed, np.s_[:1]),
    permuted=False,
  )
  errors = alignment.relative_error(alignment.undo(fit, observed), latents)
  assert errors['s3'] < 1e-5 and errors['s4'] < 1e-5
  # 16 positions span 15 of 16 channels, the last stays at its mean.
  assert 1e-3 < errors['b'] < 0.5


def test_float16_on_the_wire_costs_its_rounding(latents):
  observed, _ = synthetic.protect(KLT, latents)
  observed = {k: w.astype(np.float16) for k, w in observed.items()}
  fit = known_plaintext.fit(
    synthetic.take(latents, np.s_[:3]), synthetic.take(observed, np.s_[:3])
  )
  errors = alignment.relative_error(alignment.undo(fit, observed), latents)
  assert max(errors.values()) < 3e-3


@pytest.mark.parametrize('permuted', [False, True])
def test_uniform_words_teach_nothing(latents, permuted):
  """The estimate is no better than the mean of the known images."""
  words = synthetic.uniform(latents)
  known, other = np.s_[:6], np.s_[6:]
  fit = known_plaintext.fit(
    synthetic.take(latents, known),
    synthetic.take(words, known),
    permuted=permuted,
  )
  opened = alignment.undo(fit, synthetic.take(words, other))
  truth = synthetic.take(latents, other)
  mean = {
    name: np.broadcast_to(z[known].mean(axis=(0, 1, 2)), z[other].shape)
    for name, z in latents.items()
  }
  errors = alignment.relative_error(opened, truth)
  trivial = alignment.relative_error(mean, truth)
  for name in errors:
    assert errors[name] > trivial[name] - 0.02


def test_profiles_survive_an_isometry(latents):
  observed, secret = synthetic.protect(KLT, latents)
  one = alignment.profiles(alignment.flatten(latents['s4'])[0])
  other = alignment.profiles(alignment.flatten(observed['s4'])[0])
  np.testing.assert_allclose(one[secret[1]['s4']], other, atol=1e-2)
  np.testing.assert_array_equal(alignment.match(one, other), secret[1]['s4'])


def test_many_images_are_matched_one_at_a_time():
  """1000 images of the default's 1024 positions once took 23 GB."""
  rng = np.random.default_rng(0)
  z, order = rng.normal(size=(60, 64, 4)), rng.permutation(64)
  tracemalloc.start()
  found = alignment.match_profiles(z, z[:, order])
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  side_by_side = [
    np.concatenate([alignment.profiles(one) for one in t], axis=1)
    for t in (z, z[:, order])
  ]
  np.testing.assert_array_equal(found, alignment.match(*side_by_side))
  np.testing.assert_array_equal(found, order)
  assert peak < 0.2 * sum(a.nbytes for a in side_by_side)


def test_mistakes_are_named(latents):
  fewer = {'s3': latents['s3'], 'b': latents['b']}
  with pytest.raises(ValueError, match='scales: expected'):
    known_plaintext.fit(latents, fewer)
  with pytest.raises(ValueError, match='b: expected shape'):
    known_plaintext.fit(latents, {**latents, 'b': latents['b'][:1]})
  with pytest.raises(ValueError, match=r'expected \[N, h, w, C\]'):
    alignment.flatten(latents['b'][0])
