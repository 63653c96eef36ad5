"""Tests of attacks/ciphertext_only.py and attacks/facets.py."""

import numpy as np
import pytest
import synthetic_latents as synthetic

from ppcmi_jax import keyed
from ppcmi_jax.attacks import alignment, ciphertext_only, facets

KLT = keyed.chain(keyed.orthogonal(), keyed.permutation(), keyed.shift())
PAPER = keyed.chain(keyed.orthogonal(), keyed.shift())


@pytest.fixture(scope='module')
def latents():
  return synthetic.encode(synthetic.images(40)[0])


def trivial_error(public, truth):
  mean = {
    name: np.broadcast_to(public[name].mean(axis=0), z.shape)
    for name, z in truth.items()
  }
  return alignment.relative_error(mean, truth)


@pytest.mark.parametrize(
  'transform, wire, tolerance',
  [
    (PAPER, np.float32, 1e-3),
    (KLT, np.float32, 1e-3),
    (KLT, np.float16, 1e-2),
  ],
  ids=['paper', 'klt', 'klt_float16'],
)
def test_zeros_give_channels_away_without_the_encoder(
  latents, transform, wire, tolerance
):
  truth = synthetic.take(latents, np.s_[:4])
  observed, _ = synthetic.protect(transform, truth)
  observed = {k: w.astype(wire) for k, w in observed.items() if k != 'b'}
  found = ciphertext_only.channels(observed, tolerance=tolerance)
  shares = ciphertext_only.exact_channels(
    found,
    {name: truth[name] for name in found},
    tolerance=10 * tolerance,
  )
  assert min(shares.values()) > 0.9


def test_facets_are_columns_of_the_rotation(latents):
  truth = {'s3': latents['s3'][:1]}
  observed, secret = synthetic.protect(PAPER, truth)
  points = alignment.flatten(observed['s3'])[0]
  found = facets.find(points)
  cosines = np.asarray(secret[0]['s3']).T @ found.directions
  np.testing.assert_allclose(cosines.max(axis=0), 1, atol=1e-5)
  again = facets.find(points)
  np.testing.assert_array_equal(found.directions, again.directions)
  # Distinct positions with a zero, as repeats would tie anywhere.
  assert np.all(found.ties > found.directions.shape[0])


def test_repeated_positions_are_no_facet():
  rng = np.random.default_rng(0)
  points = rng.standard_normal((80, 6))
  points = np.concatenate([points, np.repeat(points[:2], 60, axis=0)])
  assert len(facets.distinct(points, 1e-3)) == 80
  assert not facets.find(points).ties.size


@pytest.mark.parametrize('transform', [PAPER, KLT], ids=['paper', 'klt'])
def test_a_known_encoder_opens_unpaired_messages(latents, transform):
  permuted = transform is KLT
  truth = synthetic.take(latents, np.s_[:4])
  public = synthetic.take(latents, np.s_[4:])
  observed, secret = synthetic.protect(transform, truth)
  fit = ciphertext_only.fit(
    observed, ciphertext_only.learn(public), permuted=permuted
  )
  if permuted:  # the order is another question, of many more messages
    fit = {
      k: one._replace(order=np.asarray(secret[1][k])) for k, one in fit.items()
    }
  errors = alignment.relative_error(alignment.undo(fit, observed), truth)
  trivial = trivial_error(public, truth)
  assert errors['s3'] < 0.05 and errors['s4'] < 0.05
  assert permuted or errors['b'] < trivial['b']


@pytest.mark.parametrize('count', [5, 40])
def test_procrustes_of_any_number_of_rows(count):
  w, targets = np.random.default_rng(count).normal(size=(2, count, 12))
  rotation = ciphertext_only._rotation(w, targets)
  np.testing.assert_allclose(rotation @ rotation.T, np.eye(12), atol=1e-9)
  found = np.sum(rotation * (w.T @ targets))
  assert found == pytest.approx(np.linalg.norm(w.T @ targets, 'nuc'))


def test_order_and_rotation_help_each_other():
  """Public images are brighter here, which misleads a rotation alone."""
  pixels, _ = synthetic.images(90)
  truth = {'s4': synthetic.encode(pixels[:30])['s4']}
  public = {'s4': synthetic.encode(pixels[30:] + 0.3)['s4']}
  observed, secret = synthetic.protect(KLT, truth)
  fit = ciphertext_only.fit(
    observed, ciphertext_only.learn(public), max_programs=0
  )
  assert np.mean(fit['s4'].order == np.asarray(secret[1]['s4'])) > 0.9
  errors = alignment.relative_error(alignment.undo(fit, observed), truth)
  assert errors['s4'] < 0.4 * trivial_error(public, truth)['s4']


def test_many_messages_help_where_few_do_not():
  """The order of many positions shows in the likeness of many messages."""
  latents = {'s3': synthetic.encode(synthetic.images(280)[0])['s3']}
  observed, _ = synthetic.protect(KLT, latents)
  public, rest = (
    synthetic.take(latents, rows) for rows in (np.s_[200:240], np.s_[240:])
  )
  errors = {}
  for count in (12, 200):
    some = synthetic.take(observed, np.s_[:count])
    fit = ciphertext_only.fit(
      some, ciphertext_only.learn(public), max_programs=0
    )
    guess = alignment.undo(fit, synthetic.take(observed, np.s_[240:]))
    errors[count] = alignment.relative_error(guess, rest)['s3']
  trivial = trivial_error(public, rest)['s3']
  assert errors[200] < 0.6 * trivial and errors[12] > 0.9 * trivial


def test_facets_of_some_messages_open_all():
  latents = {'s4': synthetic.encode(synthetic.images(120)[0])['s4']}
  truth, public = (
    synthetic.take(latents, rows) for rows in (np.s_[:100], np.s_[100:])
  )
  observed, _ = synthetic.protect(KLT, truth)
  fit = ciphertext_only.fit(
    observed, ciphertext_only.learn(public), max_programs=48, num_programmed=12
  )
  guess = alignment.undo(fit, observed)
  assert alignment.relative_error(guess, truth)['s4'] < 1e-4


def test_transport_alone_helps(latents):
  """Without facets: mean maps and transport, from one message."""
  truth = {'s3': latents['s3'][:1]}
  public = {'s3': latents['s3'][1:]}
  observed, _ = synthetic.protect(PAPER, truth)
  fit = ciphertext_only.fit(
    observed, ciphertext_only.learn(public), permuted=False, max_programs=0
  )
  errors = alignment.relative_error(alignment.undo(fit, observed), truth)
  assert errors['s3'] < 0.6 * trivial_error(public, truth)['s3']
  rotation = fit['s3'].rotation
  np.testing.assert_allclose(rotation.T @ rotation, np.eye(8), atol=1e-9)


@pytest.mark.parametrize('count', [12, 60])
def test_an_opened_scale_opens_the_next_finer_one(count):
  """Messages in which the order of s3 does not show by itself.

  Of twelve the order of b is right from the start, and settled by that.
  """
  pixels, _ = synthetic.images(count + 60)
  latents = synthetic.encode(pixels)
  truth, public = (
    synthetic.take(latents, rows) for rows in (np.s_[:count], np.s_[count:])
  )
  observed, _ = synthetic.protect(KLT, truth)
  errors = {}
  for names in (('s3',), ('b', 's3', 's4')):
    known = ciphertext_only.learn({k: public[k] for k in names})
    fit = ciphertext_only.fit(
      {k: observed[k] for k in names}, known, max_programs=0
    )
    guess = alignment.undo(fit, observed)
    found = alignment.relative_error(guess, {k: truth[k] for k in names})
    errors[len(names)] = found['s3']
  assert errors[3] < 0.2 * errors[1]


@pytest.mark.parametrize('permuted', [False, True])
def test_uniform_words_stay_at_chance(latents, permuted):
  truth = synthetic.take(latents, np.s_[:2])
  public = synthetic.take(latents, np.s_[2:])
  words = synthetic.uniform(truth)
  found = ciphertext_only.channels(words, max_programs=32)
  assert all(z.shape[-1] == 0 for z in found.values())
  shares = ciphertext_only.exact_channels(found, truth)
  assert set(shares.values()) == {0.0}
  fit = ciphertext_only.fit(
    words, ciphertext_only.learn(public), permuted=permuted, max_programs=32
  )
  errors = alignment.relative_error(alignment.undo(fit, words), truth)
  trivial = trivial_error(public, truth)
  assert all(errors[name] > trivial[name] for name in errors)
