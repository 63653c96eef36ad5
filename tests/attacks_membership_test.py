"""Tests of attacks.membership: oracles, and controls of both signs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from ppcmi_jax.attacks import membership

NUM_MODELS = 16


def synthetic(gap, *, examples=300, seed=0):
  """Log-normal losses; members' are smaller by `gap` deviations."""
  subject = np.arange(examples)
  member = membership.halves(subject, num_models=NUM_MODELS, seed=seed)
  rng = np.random.default_rng(seed)
  noise = rng.normal(size=member.shape) + 1.5 * rng.normal(size=examples)
  return np.exp(noise - gap * member), member, subject


def measure(name, losses, member, subject, **options):
  scores = membership.ATTACKS[name](losses, member)
  return membership.evaluate(
    scores, member, subject=subject, num_draws=50, **options
  )


def test_halves_are_of_subjects_and_independent():
  subject = np.repeat([f'p{i}' for i in range(10)], 3)
  member = membership.halves(subject, num_models=400, seed=1)
  assert member.shape == (400, 30) and member.dtype == bool
  np.testing.assert_array_equal(member.sum(1), 15)
  np.testing.assert_array_equal(member[:, ::3], member[:, 2::3])
  assert np.all(np.abs(member.mean(0) - 0.5) < 0.1)
  assert len(np.unique(member.sum(0))) > 3  # not exactly half for everybody


@pytest.mark.parametrize('name', membership.ATTACKS)
def test_controls(name):
  strong = measure(name, *synthetic(3.0))
  assert strong['auc'] > (0.8 if name == 'threshold' else 0.9)
  assert strong['tpr_at_0.01'] > 0.1
  none = measure(name, *synthetic(0.0))
  low, high = none['auc_interval']
  assert abs(none['auc'] - 0.5) < 0.03 and low - 0.01 < 0.5 < high + 0.01
  assert none['tpr_at_0.01'] < 0.03


def test_shuffled_memberships_score_a_half():
  losses, member, subject = synthetic(3.0)
  rng = np.random.default_rng(0)
  shuffled = rng.permuted(member, axis=1)
  for name in membership.ATTACKS:
    assert abs(measure(name, losses, shuffled, subject)['auc'] - 0.5) < 0.03


def test_shadow_models_help():
  losses, member, subject = synthetic(1.0)
  auc = {
    name: measure(name, losses, member, subject)['auc']
    for name in membership.ATTACKS
  }
  assert auc['lira_online'] > auc['threshold'] + 0.05
  assert auc['rmia'] > auc['threshold'] + 0.03


def test_lira_is_the_ratio_of_gaussians():
  losses, member, _ = synthetic(1.0, examples=40)
  s = -np.log(losses)
  found = membership.lira(losses, member)
  stds = []
  for group in (~member, member):
    total = freedom = 0.0
    for n in range(40):
      some = s[group[:, n], n]
      total += np.sum((some - some.mean()) ** 2)
      freedom += len(some) - 1
    stds.append(np.sqrt(total / freedom))
  for t, n in np.ndindex(4, 40):
    others = np.arange(NUM_MODELS) != t
    out = s[others & ~member[:, n], n].mean()
    inside = s[others & member[:, n], n].mean()
    expected = stats.norm(inside, stds[1]).logpdf(s[t, n])
    expected -= stats.norm(out, stds[0]).logpdf(s[t, n])
    assert found[t, n] == pytest.approx(expected, rel=1e-6)


def test_what_no_other_network_saw_is_expected_to_be_as_others_members():
  losses, member, _ = synthetic(1.0, examples=6)
  s, member = np.log(losses[:4]), member[:4]
  member[:, 0] = [True, False, False, False]
  mean, _ = membership._leave_one_out(s, member)
  assert mean[0, 0] == pytest.approx(s[1:][member[1:]].mean())
  assert mean[1, 0] == s[0, 0]


@pytest.mark.parametrize('attack', [membership.lira, membership.rmia])
def test_networks_without_others_are_refused(attack):
  for member in (np.eye(4, 3) == 1, np.eye(4, 3) == 0):
    member[1:] = member[3]  # all the other networks have the same rows
    with pytest.raises(ValueError, match='network 0: no other'):
      attack(np.ones((4, 3)), member)


def test_rmia_is_the_share_of_others_that_are_beaten():
  losses, member, _ = synthetic(1.0, examples=30)
  found = membership.rmia(losses, member, gamma=1.5, temperature=2.0)
  p = np.exp(-losses / 2)
  for t in range(3):
    others = np.arange(NUM_MODELS) != t
    ratio = [
      p[t, n]
      / np.mean(
        [p[others & g[:, n], n].mean() for g in (member, ~member)],
      )
      for n in range(30)
    ]
    for n in range(30):
      share = np.mean([ratio[n] / z >= 1.5 for z in ratio])
      assert found[t, n] == pytest.approx(share)


def test_auc_and_rates_against_their_definitions():
  rng = np.random.default_rng(0)
  member = rng.random((4, 50)) < 0.5
  scores = np.round(rng.normal(size=(4, 50)) + member, 1)  # with ties
  found = membership.evaluate(
    scores, member, subject=np.arange(50), fprs=(0.05, 0.3), num_draws=20
  )
  inside, outside = scores[member], scores[~member]
  u = stats.mannwhitneyu(inside, outside).statistic
  assert found['auc'] == pytest.approx(u / (len(inside) * len(outside)))
  for rate in (0.05, 0.3):
    best = max(
      np.mean(inside >= t)
      for t in (*scores.ravel(), np.inf)
      if np.mean(outside >= t) <= rate
    )
    assert found[f'tpr_at_{rate}'] == pytest.approx(best)
  assert found['num_members'] == member.sum()
  for rate, tpr in zip(membership.ROC_FPRS, found['roc'], strict=True):
    assert tpr == max(
      np.mean(inside >= t)
      for t in (*scores.ravel(), np.inf)
      if np.mean(outside >= t) <= rate
    )


def test_intervals_are_over_subjects_not_examples():
  losses, member, _ = synthetic(0.7, examples=60)
  width = {}
  for copies in (1, 20):
    repeat = lambda x, copies=copies: np.repeat(x, copies, axis=-1)
    result = measure(
      'threshold', repeat(losses), repeat(member), repeat(np.arange(60))
    )
    width[copies] = np.ptp(result['auc_interval'])
  assert width[20] == pytest.approx(width[1], rel=0.01) and width[1] > 0


def test_too_few_to_tell_is_said():
  result = measure('threshold', *synthetic(1.0))
  assert any('tpr_at_0.001: too few non-members, 2400' in n
             for n in result['notes'])  # fmt: skip
  assert not any('tpr_at_0.01:' in note for note in result['notes'])
  losses, member, subject = synthetic(1.0)
  few = measure('threshold', losses[:5], member[:5], subject)
  assert few['notes'][-1].startswith('5 networks only')
  many = measure('threshold', *synthetic(1.0, examples=1500))
  assert many['notes'] == []


def test_examples_of_a_subject_are_averaged():
  values = np.array([[1.0, 2.0, 5.0], [0.0, 4.0, 8.0]])
  found = membership.subject_means(values, ['b', 'a', 'b'])
  np.testing.assert_array_equal(found, [[2.0, 3.0], [4.0, 4.0]])


def train_networks(x, y, member, steps=400):
  """Trains all networks at once; returns their squared errors [M, N]."""

  def init(key):
    one, two = jax.random.split(key)
    return {
      'w': jax.random.normal(one, (x.shape[1], 64)) / np.sqrt(x.shape[1]),
      'b': jnp.zeros(64),
      'v': jax.random.normal(two, (64,)) / 8,
    }

  def errors(params):
    hidden = jnp.tanh(x @ params['w'] + params['b'])
    return jnp.square(hidden @ params['v'] - y)

  tx = optax.adam(1e-2)

  def train(key, weight):
    def step(carry, _):
      params, state = carry
      loss = lambda p: jnp.sum(weight * errors(p)) / jnp.sum(weight)
      updates, state = tx.update(jax.grad(loss)(params), state)
      return (optax.apply_updates(params, updates), state), None

    params = init(key)
    (params, _), _ = jax.lax.scan(
      step, (params, tx.init(params)), None, length=steps
    )
    return errors(params)

  keys = jax.random.split(jax.random.key(0), len(member))
  return np.asarray(jax.jit(jax.vmap(train))(keys, jnp.float32(member)))


def test_an_overfitted_network_gives_its_members_away():
  """Labels are noise: whatever a network knows of them it has memorised."""
  rng = np.random.default_rng(0)
  x = np.float32(rng.normal(size=(80, 10)))
  y = np.float32(rng.normal(size=80))
  subject = np.arange(80)
  member = membership.halves(subject, num_models=NUM_MODELS, seed=0)
  losses = train_networks(x, y, member)
  assert losses[member].mean() < 0.05 < 0.5 < losses[~member].mean()
  for name in membership.ATTACKS:
    assert measure(name, losses, member, subject)['auc'] > 0.9, name
  # The control: the same networks, asked about memberships that never were.
  random = membership.halves(subject, num_models=NUM_MODELS, seed=1)
  for name in membership.ATTACKS:
    assert abs(measure(name, losses, random, subject)['auc'] - 0.5) < 0.06


def test_rates_are_just_below_those_of_who_may_draw_lots():
  """Jax-privacy's auditor mixes two thresholds: the hull of our curve."""
  auditing = pytest.importorskip('jax_privacy.auditing')
  losses, member, subject = synthetic(0.7)
  scores = membership.lira(losses, member)
  found = membership.evaluate(scores, member, subject=subject, num_draws=2)
  theirs = auditing.CanaryScoreAuditor(scores[member], scores[~member])
  assert 0 <= theirs.attack_auroc() - found['auc'] < 0.01
  for rate in membership.FPRS:
    higher = theirs.tpr_at_given_fpr(rate)
    assert 0 <= higher - found[f'tpr_at_{rate:g}'] < 0.01


def test_epsilon_bound_tells_leaks_from_none():
  pytest.importorskip('jax_privacy')
  losses, member, subject = synthetic(0.0)
  bound = membership.epsilon_bound
  assert bound(-losses, member, subject=subject) < 0.2
  losses, member, subject = synthetic(4.0)
  scores = membership.lira(losses, member)
  whole = bound(scores, member, subject=subject)
  assert whole > 2
  # Ten frames of each subject are no more subjects.
  frames = [np.repeat(x, 10, axis=-1) for x in (scores, member, subject)]
  assert bound(*frames[:2], subject=frames[2]) == pytest.approx(whole)


@pytest.mark.parametrize(
  'losses, member, message',
  [
    (np.ones((4, 3)), np.ones((4, 3), bool), 'found one kind only'),
    (np.ones((4, 3)), np.eye(4, 3), 'bool memberships'),
    (np.ones(3), np.ones(3, bool), r'found \[3\]'),
    (-np.ones((4, 3)), np.eye(4, 3, dtype=bool), 'at least 0'),
    (np.full((4, 3), np.nan), np.eye(4, 3, dtype=bool), 'finite'),
    (np.ones((3, 3)), np.eye(3, dtype=bool), 'at least 4 networks'),
  ],
)
def test_bad_arrays_are_refused(losses, member, message):
  with pytest.raises(ValueError, match=message):
    membership.lira(losses, member)
