"""Tests of attacks/linking.py."""

import numpy as np
import pytest
import synthetic_latents as synthetic

from ppcmi_jax.attacks import linking


def protect(latents, *, fresh, permuted, seed):
  """Returns observed messages of one secret, or of one secret each."""
  rng, observed = np.random.default_rng(seed), {}
  for name, z in latents.items():
    flat = z.reshape(len(z), -1, z.shape[-1])
    out = np.empty_like(flat)
    for i, one in enumerate(flat):
      if fresh or not i:
        gaussian = rng.standard_normal((z.shape[-1],) * 2)
        q, b = np.linalg.qr(gaussian)[0], rng.standard_normal(z.shape[-1])
        order = np.arange(flat.shape[1])
        order = rng.permutation(order) if permuted else order
      out[i] = one[order] @ q.T + b
    observed[name] = out.reshape(z.shape)
  return observed


@pytest.fixture(scope='module')
def cohort():
  pixels, subject = synthetic.images(40, visits=2)
  return synthetic.encode(pixels), subject


@pytest.mark.parametrize(
  'threat, fresh, permuted',
  [('static', False, True), ('rotated', True, False), ('permuted', True, True)],
)
def test_visits_are_linked(cohort, threat, fresh, permuted):
  latents, subject = cohort
  own = subject < 20
  how = {'fresh': fresh, 'permuted': permuted}
  target = protect(synthetic.take(latents, ~own), **how, seed=1)
  features = linking.features(target, threat=threat)
  likeness = linking.similarity(features)
  link = linking.evaluate(likeness, subject[~own], num_draws=50)
  assert link.auc > 0.9
  assert link.interval[0] <= link.auc <= link.interval[1]
  assert (link.same, link.different) == (20, 40 * 39 // 2 - 20)


@pytest.mark.parametrize('threat', ['rotated', 'permuted'])
def test_features_do_not_depend_on_the_secret(cohort, threat):
  latents = synthetic.take(cohort[0], np.s_[:3])
  permuted = threat == 'permuted'
  one, other = (
    linking.features(
      protect(latents, fresh=True, permuted=permuted, seed=seed), threat=threat
    )
    for seed in (1, 2)
  )
  # Logarithms of singular values at rounding are not worth comparing.
  np.testing.assert_allclose(one, other, atol=2e-2, rtol=1e-3)


@pytest.mark.parametrize('threat', linking.THREATS)
def test_uniform_words_are_not_linked(cohort, threat):
  latents, subject = cohort
  features = linking.features(synthetic.uniform(latents), threat=threat)
  link = linking.evaluate(linking.similarity(features), subject, num_draws=100)
  assert abs(link.auc - 0.5) < 0.15
  assert link.interval[0] < 0.5 < link.interval[1]


def test_auc_counts_pairs():
  rng = np.random.default_rng(0)
  likeness = rng.integers(0, 5, (12, 12)).astype(float)
  likeness += likeness.T
  subject = np.repeat(['p', 'q', 'r'], 4)
  wins = [
    np.sign(likeness[i, j] - likeness[k, l]) / 2 + 0.5
    for i in range(12)
    for j in range(i)
    if subject[i] == subject[j]
    for k in range(12)
    for l in range(k)
    if subject[k] != subject[l]
  ]
  link = linking.evaluate(likeness, subject, num_draws=10)
  assert link.auc == pytest.approx(np.mean(wins))


def test_mistakes_are_named(cohort):
  latents, _ = cohort
  with pytest.raises(ValueError, match='threat: expected'):
    linking.features(latents, threat='fresh')
  with pytest.raises(ValueError, match='subject: expected pairs'):
    linking.evaluate(np.zeros((3, 3)), [1, 2, 3])
