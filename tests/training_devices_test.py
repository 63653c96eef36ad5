"""Several devices: they learn what one does, and find their batches there."""

import functools
import socket
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scripts
import training_test

from ppcmi_jax import examples as examples_lib
from ppcmi_jax import input_pipeline, processes, tasks, train_step, training
from ppcmi_jax.models import unet

BATCH = 8


def task():
  model = unet.UNet(3, width=2, depth=1, axis_name='batch')
  return tasks.segmentation(model, num_classes=3, augment={'gain': 0.1})


def arrays(count=16):
  """Returns cases whose third class only every fourth has."""
  rng = np.random.default_rng(0)
  image = rng.integers(0, 255, (count, 8, 8, 1), np.uint8)
  mask = (image[..., 0] > 127).astype(np.uint8)
  mask[::4, 2:4, 2:4] = 2
  return {'image': image, 'mask': mask}


def steps_of_one(path, num_steps=3):
  """Writes losses, gradients and batch statistics of steps of gradients.

  And the validation loss that a training which stands still logs.
  """
  # Adam divides by the gradient's size: a plain step shows what it is.
  tx = optax.GradientTransformation(
    functools.partial(jax.tree.map, jnp.zeros_like),
    lambda grads, _, params: (jax.tree.map(lambda g: -0.3 * g, grads), grads),
  )
  one, data = task(), arrays()
  state = jax.jit(functools.partial(train_step.init_state, one, tx))(
    jax.random.key(0), examples_lib.take(data, np.arange(1))
  )
  step, kept = train_step.make_train_step(one, tx), {}
  for i in range(num_steps):
    batch = input_pipeline.batch_at(
      data, i, order=np.arange(16), batch_size=BATCH, seed=0
    )
    state, metrics = step(state, batch, jax.random.key(1))
    of_step = metrics['loss'], state.opt_state, state.variables['batch_stats']
    for place, leaf in jax.tree_util.tree_leaves_with_path(of_step):
      # A copy: the next step takes the memory.
      kept[f'{i}{jax.tree_util.keystr(place)}'] = np.array(leaf)
  still = training.Trainer(
    one, steps=1, batch_size=BATCH, learning_rate=0.0, schedule='constant'
  )
  log = []
  still.fit(data, data, seed=0, directory=f'{path}.fit', log=log.append)
  np.savez(path, **kept, valid_loss=log[0]['valid_loss'])


def fitted(directory, guard, change=lambda batch: batch):
  """Returns the state of a fit, and the batches that its steps got."""
  make, seen = train_step.make_train_step, []

  def watched(*args):
    step = make(*args)

    def take(state, batch, key):
      seen.append(batch)
      with jax.transfer_guard(guard):
        return step(state, change(batch), key)

    return take

  data = training_test.arrays()
  with mock.patch.object(train_step, 'make_train_step', watched):
    state = training_test.trainer().fit(data, data, seed=0, directory=directory)
  return jax.device_get(state), seen


def check_batches(directory):
  """Asserts that batches lie where steps take them, and nothing else changes.

  Of the devices of this process, whatever other processes have.
  """
  # Among several processes pmap takes a key's two words to the host and back.
  several = jax.process_count() > 1
  guard = 'allow' if several else 'disallow'
  state, seen = fitted(f'{directory}/ahead', guard)
  assert len(seen) == int(state.step) == 6
  count = jax.local_device_count()
  share = 4 // jax.device_count()
  for batch in seen:
    for name, dtype in (('image', np.uint8), ('slot', np.int32)):
      leaf = batch[name]
      assert isinstance(leaf, jax.Array) and leaf.dtype == dtype
      assert leaf.shape[:2] == (count, share)
      shards = leaf.addressable_shards
      assert [s.device for s in shards] == jax.local_devices()
      assert all(s.data.shape[0] == 1 for s in shards)
  expected, _ = fitted(f'{directory}/late', 'allow', jax.device_get)
  jax.tree.map(np.testing.assert_array_equal, state, expected)


def check_batches_of_processes(address, number, directory):
  processes.start(address, 2, number)
  train_step.meet()
  check_batches(directory)


def start(devices, call):
  code = f'import sys; sys.path.insert(0, "tests"); import {__name__} as t; '
  flags = scripts.xla_flags(devices)
  return scripts.start('-c', code + call, XLA_FLAGS=flags)


def check(*started):
  for code, _, err in [scripts.finish(one) for one in started]:
    assert code == 0, err


@pytest.fixture(scope='module')
def of_one_device(tmp_path_factory):
  path = tmp_path_factory.mktemp('one') / 'steps.npz'
  steps_of_one(path)
  return dict(np.load(path))


@pytest.mark.parametrize('count', [2, 4, 8])
def test_devices_learn_what_one_does(count, of_one_device, tmp_path):
  """Losses, BatchNorm statistics, and gradients, of Dice of the whole batch."""
  path = tmp_path / 'steps.npz'
  call = f't.steps_of_one({str(path)!r})'
  check(start(count, call))
  found = np.load(path)
  assert set(found) == set(of_one_device)
  for name, expected in of_one_device.items():
    # Biases before a BatchNorm have gradients of rounding alone.
    np.testing.assert_allclose(
      found[name], expected, rtol=1e-4, atol=1e-6, err_msg=name
    )


def test_batches_lie_on_the_device(tmp_path):
  check_batches(tmp_path)


def test_batches_lie_on_all_devices(tmp_path):
  check(start(2, f't.check_batches({str(tmp_path)!r})'))


def test_batches_lie_on_the_devices_of_each_process(tmp_path):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  call = f't.check_batches_of_processes({address!r}, %d, {str(tmp_path)!r})'
  check(*(start(2, call % number) for number in (0, 1)))
