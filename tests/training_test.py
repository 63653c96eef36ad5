"""The pmapped step on one and on four devices; the loop's duties."""

import functools
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts
from flax import linen as nn

from ppcmi_jax import examples as examples_lib
from ppcmi_jax import input_pipeline, tasks, train_step, training


class Net(nn.Module):
  """A convolution and a synchronised BatchNorm: the smallest real network."""

  features: int = 2
  axis_name: str | None = 'batch'

  @nn.compact
  def __call__(self, x, *, train):
    x = nn.Conv(4, (3, 3), use_bias=False)(x)
    x = nn.BatchNorm(
      use_running_average=not train, momentum=0.9, axis_name=self.axis_name
    )(x)
    return nn.Conv(self.features, (1, 1))(nn.relu(x))


class Convolution(nn.Module):
  """No normalisation: an example's loss is its own."""

  @nn.compact
  def __call__(self, x, *, train):
    return nn.Conv(1, (3, 3))(x)


def task():
  return tasks.segmentation(Net(), num_classes=2)


def arrays(count=16):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 255, (count, 8, 8, 1), np.uint8)
  return {'image': image, 'mask': (image[..., 0] > 127).astype(np.uint8)}


def trainer(**options):
  defaults = {
    'steps': 6,
    'batch_size': 4,
    'learning_rate': 1e-2,
    'eval_every': 2,
    'patience': 100,
  }
  return training.Trainer(task(), **{**defaults, **options})


def test_loss_falls_and_is_logged(tmp_path):
  rows, start = [], time.monotonic()
  state = trainer(steps=30, eval_every=10).fit(
    arrays(), arrays(), seed=0, directory=tmp_path, log=rows.append
  )
  spent = time.monotonic() - start
  assert 0 < sum(row['seconds'] for row in rows) < spent
  for row in rows:
    assert 0 < row['waited'] < row['stepped'] < row['seconds']
  assert [row['step'] for row in rows] == [10, 20, 30]
  assert rows[-1]['loss'] < rows[0]['loss']
  assert int(state.step) == 30
  assert float(state.best_loss) == pytest.approx(
    min(row['valid_loss'] for row in rows)
  )


def test_best_variables_are_those_of_the_best_validation(tmp_path):
  one = trainer(learning_rate=0.5, schedule='constant')
  state = one.fit(arrays(), arrays(), seed=0, directory=tmp_path)
  valid_loss = train_step.make_validation_loss(task(), 4)
  assert valid_loss(state.best_variables, arrays()) == pytest.approx(
    float(state.best_loss), rel=1e-5
  )


def test_stops_early_and_stays_stopped(tmp_path):
  nonsense = arrays()
  nonsense['mask'] = 1 - nonsense['mask']  # training only makes this worse
  one = trainer(steps=100, eval_every=2, patience=2, learning_rate=0.1)
  state = one.fit(arrays(), nonsense, seed=0, directory=tmp_path)
  assert int(state.step) < 100
  assert int(state.step) - int(state.best_step) == 4
  again = one.fit(arrays(), nonsense, seed=0, directory=tmp_path)
  assert int(again.step) == int(state.step)
  best = one.restore(examples_lib.take(arrays(), np.arange(1)), tmp_path)
  jax.tree.map(np.testing.assert_array_equal, best, state.best_variables)


def test_non_finite_loss_names_the_step_and_keeps_the_checkpoint(tmp_path):
  good = arrays()
  good['image'] = good['image'].astype(np.float32) / 255
  one = trainer(steps=6, eval_every=2)
  trainer(steps=4, eval_every=2).fit(good, good, seed=0, directory=tmp_path)
  bad = {**good, 'image': np.full_like(good['image'], np.nan)}
  with pytest.raises(FloatingPointError, match=r'task X.*not finite at step 5'):
    one.fit(bad, good, seed=0, directory=tmp_path, title='task X')
  state = one.fit(good, good, seed=0, directory=tmp_path)
  assert int(state.step) == 6


def test_interrupted_equals_uninterrupted(tmp_path):
  whole = trainer().fit(arrays(), arrays(), seed=1, directory=tmp_path / 'a')

  class Stop(Exception):
    pass

  def stop(row):
    if row['step'] == 4:
      raise Stop

  with pytest.raises(Stop):
    trainer().fit(
      arrays(), arrays(), seed=1, directory=tmp_path / 'b', log=stop
    )
  resumed = trainer().fit(arrays(), arrays(), seed=1, directory=tmp_path / 'b')
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_restore_refuses_what_has_not_ended(tmp_path):
  sample = examples_lib.take(arrays(), np.arange(1))
  with pytest.raises(ValueError, match='run train'):
    trainer().restore(sample, tmp_path / 'nothing')
  trainer(steps=4).fit(arrays(), arrays(), seed=0, directory=tmp_path / 'a')
  with pytest.raises(ValueError, match='step 4 of 6'):
    trainer().restore(sample, tmp_path / 'a')


def test_training_starts_from_what_another_has_learnt(tmp_path):
  other = trainer().fit(arrays(), arrays(), seed=5, directory=tmp_path / 'a')
  state = trainer(steps=2, learning_rate=1e-9).fit(
    arrays(),
    arrays(),
    seed=0,
    directory=tmp_path / 'b',
    pretrained=lambda: other.best_variables,
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7),
    state.variables['params'],
    other.best_variables['params'],
  )
  # It goes on from its own checkpoint; what it started from is not read.
  again = trainer(steps=2).fit(
    arrays(),
    arrays(),
    seed=0,
    directory=tmp_path / 'b',
    pretrained=lambda: pytest.fail('read'),
  )
  jax.tree.map(np.testing.assert_array_equal, again, state)


def test_what_four_devices_saved_one_restores(tmp_path):
  code = (
    'import sys; sys.path.insert(0, "tests"); import training_test as t;'
    't.trainer().fit(t.arrays(), t.arrays(), seed=0, '
    f'directory={str(tmp_path)!r})'
  )
  run_on_devices(4, code)
  warnings = []
  state = trainer().fit(
    arrays(), arrays(), seed=0, directory=tmp_path, warn=warnings.append
  )
  assert int(state.step) == 6 and not warnings


def run_on_devices(count, code):
  result = subprocess.run(
    [sys.executable, '-c', code],
    env=scripts.environment(XLA_FLAGS=scripts.xla_flags(count)),
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  return result.stdout


def test_unknown_schedule_is_an_error():
  with pytest.raises(ValueError, match="'linear'"):
    train_step.optimizer(learning_rate=1.0, steps=1, schedule='linear')


def test_the_first_step_learns_and_kernels_alone_decay():
  params = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones((2, 2))}
  zero = jax.tree.map(jnp.zeros_like, params)
  tx = train_step.optimizer(learning_rate=0.1, steps=40, weight_decay=0.5)
  updates, _ = tx.update(zero, tx.init(params), params)
  # The first of two steps of warm-up.
  np.testing.assert_allclose(updates['kernel'], -0.5 * 0.05, rtol=1e-6)
  np.testing.assert_array_equal(updates['bias'], 0)


def losses_of_steps(num_steps=3):
  """Returns the losses of the first steps, and the BatchNorm statistics."""
  one = tasks.image_reconstruction(
    Net(features=1), augment={'rotation_deg': 10.0, 'gain': 0.1}
  )
  tx = train_step.optimizer(learning_rate=1e-2, steps=10, schedule='constant')
  data, order = arrays(), np.arange(16)
  state = jax.jit(functools.partial(train_step.init_state, one, tx))(
    jax.random.key(0), examples_lib.take(data, np.arange(1))
  )
  step = train_step.make_train_step(one, tx)
  losses = []
  for i in range(num_steps):
    batch = input_pipeline.batch_at(data, i, order=order, batch_size=8, seed=0)
    state, metrics = step(state, batch, jax.random.key(1))
    losses.append(float(metrics['loss']))
  stats = jax.tree.leaves(state.variables['batch_stats'])
  return losses, [float(jnp.sum(leaf)) for leaf in stats]


@pytest.mark.parametrize('count', [2, 8])
def test_devices_give_the_losses_of_one(count):
  code = (
    'import sys; sys.path.insert(0, "tests"); import jax, training_test;'
    f'assert jax.device_count() == {count};'
    'print(training_test.losses_of_steps())'
  )
  out = run_on_devices(count, code)
  losses, stats = eval(out.splitlines()[-1])
  expected_losses, expected_stats = losses_of_steps()
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
  np.testing.assert_allclose(stats, expected_stats, rtol=1e-4, atol=1e-5)


def one_step(one, microbatches):
  """Returns the state and loss after a step of eight examples."""
  tx = train_step.optimizer(learning_rate=0.1, steps=9, schedule='constant')
  # Adam divides by the gradient's size: a plain step shows what it is.
  tx = tx._replace(update=lambda grads, state, params: (grads, state))
  data = arrays(8)
  state = train_step.init_state(
    one, tx, jax.random.key(0), examples_lib.take(data, np.arange(1))
  )
  before = jax.device_get(state.variables)
  batch = input_pipeline.batch_at(
    data, 0, order=np.arange(8), batch_size=8, seed=0
  )
  step = train_step.make_train_step(one, tx, microbatches)
  state, metrics = step(state, batch, jax.random.key(1))
  return before, batch, jax.device_get((state.variables, metrics['loss']))


def test_the_parts_of_a_batch_give_its_gradient():
  """Augmentation included, which is drawn for each example."""
  one = tasks.image_reconstruction(Convolution(), augment={'gain': 0.1})
  _, _, whole = one_step(one, 1)
  _, _, parts = one_step(one, 4)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, parts, whole)


def test_each_part_of_a_batch_is_normalised_by_itself():
  one = task()
  before, batch, (after, value) = one_step(one, 2)
  variables, values = before, []
  for rows in (slice(0, 4), slice(4, 8)):
    part = jax.tree.map(lambda x, rows=rows: x[0, rows], batch)
    loss = jax.pmap(
      lambda v, p: one.loss(v, p, jax.random.key(1), True),
      axis_name='batch',
      in_axes=(None, 0),
      out_axes=None,
    )
    found, (_, variables) = loss(
      variables, jax.tree.map(lambda x: x[None], part)
    )
    values.append(float(found))
  np.testing.assert_allclose(value, np.mean(values), rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    after['batch_stats'],
    jax.device_get(variables['batch_stats']),
  )


def test_parts_that_a_batch_does_not_have_are_refused(tmp_path):
  with pytest.raises(ValueError, match='1 devices times 3 microbatches'):
    trainer(microbatches=3).fit(arrays(), arrays(), seed=0, directory=tmp_path)


def test_training_can_be_stopped_and_goes_on(tmp_path):
  answers = iter([False, False, True])
  fit = functools.partial(trainer(eval_every=1).fit, arrays(), arrays(), seed=0)
  state = fit(directory=tmp_path / 'a', stopped=lambda: next(answers))
  assert int(state.step) == 2
  state = fit(directory=tmp_path / 'a')
  whole = fit(directory=tmp_path / 'b')
  jax.tree.map(np.testing.assert_array_equal, state, whole)


def test_the_step_is_compiled_once(tmp_path, caplog):
  """Validations change the state, and another client starts with a new one."""
  one = trainer()
  with jax.log_compiles(), caplog.at_level('WARNING'):
    for name in 'ab':
      one.fit(arrays(), arrays(), seed=0, directory=tmp_path / name)
  messages = [record.getMessage() for record in caplog.records]
  # Only the step sees batches with an axis of devices.
  of_step = 'uint8[1,4,8,8,1]'
  compiled = [m for m in messages if m.startswith('Compiling') and of_step in m]
  assert len(compiled) == 1
