"""Tests of private_training: the promise, the clipping, the units."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from ppcmi_jax import privacy_guarantee, private_training, tasks
from ppcmi_jax.models import fused

pytest.importorskip('jax_privacy')

PLAIN = {'noise_multiplier': 0.0, 'clip_norm': 1e6, 'delta': 1e-3, 'seed': 0}


def linear_task():
  """Regression y = x w + b, whose gradients are known."""

  def init(key, batch):
    return {'params': {'w': jnp.zeros(batch['x'].shape[-1]), 'b': 0.0}}

  def loss(variables, batch, key, train):
    assert train
    params = variables['params']
    error = batch['x'] @ params['w'] + params['b'] - batch['y']
    value = jnp.mean(jnp.square(error)) / 2
    return value, ({'loss': value}, variables)

  return tasks.Task(init, loss, None)


def linear_data(count=60, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(count, 3)).astype(np.float32)
  return {'x': x, 'y': np.float32(x @ [1.0, -2.0, 0.5])}


def epsilon(noise_multiplier, **change):
  setting = {'num_units': 400, 'expected_batch': 40, 'steps': 5, 'delta': 1e-3}
  return privacy_guarantee.epsilon(
    noise_multiplier=noise_multiplier, **setting | change
  )


@pytest.mark.parametrize('noise', [0.7, 1.5, 4.0])
def test_one_full_step_is_the_gaussian_mechanism(noise):
  """Its delta is known in closed form (Balle and Wang, ICML 2018)."""
  found = epsilon(noise, expected_batch=400, steps=1)
  cdf, half = stats.norm.cdf, 1 / (2 * noise)
  delta = cdf(half - found * noise) - np.exp(found) * cdf(-half - found * noise)
  assert delta == pytest.approx(1e-3, rel=0.02)


@pytest.mark.parametrize('noise, expected', [(1, 13.9), (2, 4.4), (4, 1.9)])
def test_fifty_epochs_cost_little_less_than_another_accountant_says(
  noise, expected
):
  """Renyi's divergences bound the same from farther above."""
  found = epsilon(
    noise, num_units=4000, expected_batch=256, steps=781, delta=1e-5
  )
  assert 0.9 * expected < found < expected


def test_sampling_and_noise_protect_and_steps_cost():
  base = epsilon(1.0)
  assert epsilon(1.0, expected_batch=20) < base < epsilon(1.0, steps=20)
  assert epsilon(1.5) < base < epsilon(1.0, delta=1e-4)
  assert epsilon(0.0) == np.inf


def test_without_noise_it_learns_and_promises_nothing():
  data = linear_data()
  variables, guarantee = private_training.fit(
    linear_task(),
    data,
    subject=np.arange(60),
    steps=150,
    expected_batch=20,
    learning_rate=0.1,
    microbatch=8,
    **PLAIN,
  )
  np.testing.assert_allclose(variables['params']['w'], [1, -2, 0.5], atol=0.02)
  assert guarantee.epsilon == np.inf
  assert 'void for whoever knows the seed' in str(guarantee)


@pytest.fixture
def plain_steps(monkeypatch):
  """Makes Adam a step of the gradient: parameters show what it was."""
  monkeypatch.setattr(optax, 'adam', lambda rate: optax.scale(-1.0))


@pytest.mark.parametrize('num_units', [6, 24])
def test_a_step_is_the_mean_of_clipped_mean_gradients_of_subjects(
  num_units, plain_steps
):
  data = linear_data(24)
  bad = {'x': np.full((1, 3), np.nan, np.float32), 'y': np.zeros(1, np.float32)}
  data = {k: np.concatenate([v, bad[k]]) for k, v in data.items()}
  variables, _ = private_training.fit(
    linear_task(),
    data,
    # Of the last one nothing finite is known: it is left out.
    subject=np.append(np.repeat(np.arange(num_units), 24 // num_units), 99),
    steps=1,
    expected_batch=num_units + 1,  # everybody is drawn
    examples_per_unit=4,
    microbatch=5,
    noise_multiplier=0.0,
    clip_norm=0.7,
    delta=1e-3,
    seed=0,
  )
  inputs = np.append(data['x'], np.ones((25, 1)), axis=1)  # of w and b
  gradients = -(inputs * data['y'][:, None])[:-1]  # at 0
  gradients = gradients.reshape(num_units, -1, 4).mean(1)
  norms = np.linalg.norm(gradients, axis=1, keepdims=True)
  assert (norms > 0.7).any() and (norms < 0.7).any()
  expected = -(gradients * np.minimum(1, 0.7 / norms)).sum(0) / (num_units + 1)
  found = np.append(variables['params']['w'], variables['params']['b'])
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_noise_is_normal_and_of_each_step_anew(plain_steps):
  data = {'x': np.zeros((8, 20_000), np.float32), 'y': np.zeros(8, np.float32)}

  def after(steps):
    variables, _ = private_training.fit(
      linear_task(),
      data,
      subject=np.arange(8),
      steps=steps,
      expected_batch=4,
      noise_multiplier=3.0,
      clip_norm=0.5,
      delta=1e-3,
      seed=0,
    )
    return np.asarray(variables['params']['w']) * 4 / (3.0 * 0.5)

  first, both = after(1), after(2)
  for noise in (first, both - first):
    assert stats.kstest(noise, 'norm').pvalue > 1e-4
  assert abs(np.corrcoef(first, both - first)[0, 1]) < 0.04


def test_a_seed_decides_everything_and_none_nothing():
  run = lambda seed: private_training.fit(
    linear_task(),
    linear_data(),
    subject=np.arange(60),
    steps=3,
    expected_batch=20,
    noise_multiplier=1.0,
    clip_norm=1.0,
    delta=1e-3,
    seed=seed,
  )
  same = [np.asarray(run(5)[0]['params']['w']) for _ in range(2)]
  np.testing.assert_array_equal(*same)
  (one, guarantee), (other, _) = run(None), run(None)
  assert not np.array_equal(one['params']['w'], other['params']['w'])
  assert guarantee.notes == () and 0 < guarantee.epsilon < 10


def test_the_mapping_network_trains_privately():
  rng = np.random.default_rng(0)
  sides = {'s3': (4, 3), 's4': (2, 4), 'b': (1, 5)}
  latents = {
    name: np.float32(rng.normal(size=(12, side, side, channels)))
    for name, (side, channels) in sides.items()
  }
  data = {'image': latents, 'mask': latents, 'client': np.zeros(12, np.int32)}
  network = fused.FusedMapping(widths=(4, 4, 4), norm='group')
  task = tasks.mapping(network)
  variables, guarantee = private_training.fit(
    task,
    data,
    subject=np.arange(12) // 3,
    steps=2,
    expected_batch=2,
    noise_multiplier=1.0,
    clip_norm=1.0,
    delta=1e-2,
    examples_per_unit=3,
    microbatch=2,
    seed=0,
  )
  assert guarantee.num_units == 4 and guarantee.unit == 'subject'
  assert set(variables) == {'params'}
  assert all(np.isfinite(p).all() for p in jax.tree.leaves(variables))

  with pytest.raises(ValueError, match="norm='group'"):
    private_training.fit(
      tasks.mapping(fused.FusedMapping(widths=(4, 4, 8))),
      data,
      subject=np.arange(12),
      steps=1,
      expected_batch=2,
      **PLAIN | {'delta': 1e-2},
    )


def test_group_norm_has_no_statistics_and_other_norms_are_refused():
  latents = {
    name: jax.ShapeDtypeStruct((3, side, side, 4), jnp.float32)
    for name, side in (('s3', 4), ('s4', 2), ('b', 1))
  }
  init = lambda norm: jax.eval_shape(
    lambda key, z: fused.FusedMapping(norm=norm).init(key, z, train=False),
    jax.random.key(0),
    latents,
  )
  assert set(init('group')) == {'params'}
  assert set(init('batch')) == {'params', 'batch_stats'}
  with pytest.raises(ValueError, match="norm: expected 'batch' or 'group'"):
    init('layer')


@pytest.mark.parametrize(
  'change, message',
  [
    ({'delta': 0.1}, 'delta: expected above 0 and below one over the 10 units'),
    ({'expected_batch': 11}, 'expected_batch: expected 1 to the 10 units'),
  ],
)
def test_settings_that_promise_nothing_are_refused(change, message):
  options = {'subject': np.arange(10), 'steps': 1, 'expected_batch': 2, **PLAIN}
  with pytest.raises(ValueError, match=message):
    private_training.fit(linear_task(), linear_data(10), **options | change)
