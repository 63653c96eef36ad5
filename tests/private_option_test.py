"""DP-SGD as an option of a configuration: `config.dp`."""

import importlib.util
import math
import shutil
import types

import jax
import numpy as np
import pytest
import worlds

from configs import smoke
from ppcmi_jax import (
  channel,
  collaboration,
  config_checks,
  learners,
  privacy_guarantee,
  private_training,
  report,
  server_training,
)
from ppcmi_jax import workdir as workdir_lib

NOTES = ('not per patient', 'autoencoders held fixed', 'not against the')


@pytest.fixture(scope='module')
def world():
  return worlds.World()


def private_config(**dp):
  config = smoke.get_config()
  config.mapping_steps = 3
  config.dp.update({'noise_multiplier': 1.0, 'delta': 1e-2, **dp})
  return config


def write_turns(world, folder_of, count=4, turns=2):
  """Writes messages of `count` images a client, each in `turns` copies."""
  rng = np.random.default_rng(0)
  for name in worlds.NAMES:
    for split, some in (('train', turns), ('valid', 1)):
      for turn in range(some):
        for start in range(0, count, 2):
          image = rng.random((2, 32, 64, 1), np.float32)
          mask = rng.integers(0, worlds.NUM_CLASSES, (2, 32, 64), np.uint8)
          origin = channel.Origin(split, turn, start)
          messages = world.clients[name].contribute(
            world.states[name], image, mask, origin
          )
          # Whatever the files are called.
          stem = f'{rng.integers(2**32):08x}'
          for modality, message in zip(('image', 'mask'), messages):
            path = folder_of(name) / f'{stem}.{modality}.msg'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(message)


def test_copies_of_an_image_have_one_source_whatever_their_files(
  world, tmp_path
):
  write_turns(world, lambda name: tmp_path / name)
  pairs = worlds.read(world, sorted(tmp_path.glob('*/*.msg')))
  assert pairs['source'].dtype == np.int32 and len(pairs['client']) == 16
  of_client = [
    np.unique(pairs['source'][pairs['client'] == i], return_counts=True)
    for i in range(2)
  ]
  for _, copies in of_client:
    assert copies.tolist() == [2] * 4
  assert not np.intersect1d(of_client[0][0], of_client[1][0]).size


@pytest.fixture
def train(world, monkeypatch):
  """Returns a function that trains the server of the world's clients."""
  monkeypatch.setattr(
    collaboration.enrolment, 'server_channel', lambda *_: world.server_channel
  )

  def call(config, workdir):
    server_training.train(
      config, workdir, names=worlds.NAMES, latents=world.latents, title='server'
    )

  return call


def test_a_private_network_has_its_promise_and_is_trained_once(
  world, train, tmp_path, capsys, monkeypatch
):
  pytest.importorskip('jax_privacy')
  config = private_config()
  workdir = workdir_lib.Workdir(tmp_path, config.to_dict())
  write_turns(world, workdir.messages)
  train(config, workdir)
  found = privacy_guarantee.Guarantee.read(workdir)
  assert str(found) in capsys.readouterr().out
  assert found.num_units == 8 and found.steps == 3
  assert found.unit == 'training image (with all its augmented copies)'
  assert 0 < found.epsilon < math.inf
  assert found.epsilon == pytest.approx(
    privacy_guarantee.epsilon(
      noise_multiplier=1.0, num_units=8, expected_batch=4, steps=3, delta=1e-2
    )
  )
  assert all(note in str(found) for note in NOTES)
  assert 'seed' not in str(found)  # the noise is nobody's to know

  _, trainer = learners.mapping(config)
  variables = trainer.restore(
    server_training.blank_pair(jax.eval_shape(lambda: world.latents)),
    workdir.checkpoints('mapping'),
  )
  assert set(variables) == {'params'}
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))

  monkeypatch.setattr(private_training, 'fit', None)
  train(config, workdir)
  assert privacy_guarantee.Guarantee.read(workdir) == found
  shutil.rmtree(workdir.checkpoints('mapping'))
  with pytest.raises(TypeError):  # it would train
    train(config, workdir)


def test_a_training_that_was_stopped_leaves_nothing(
  world, train, tmp_path, monkeypatch
):
  config = private_config()
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  workdir = workdir_lib.Workdir(tmp_path, config.to_dict())
  write_turns(world, workdir.messages, count=2, turns=1)

  def stop(*args, **options):
    raise KeyboardInterrupt

  monkeypatch.setattr(private_training, 'fit', stop)
  with pytest.raises(KeyboardInterrupt):
    train(config, workdir)
  assert not (tmp_path / privacy_guarantee.FILE).exists()
  assert not list(workdir.checkpoints('mapping').iterdir())


@pytest.mark.parametrize(
  'dp, fields, message',
  [
    ({'noise_multiplier': -1.0}, {}, 'dp.noise_multiplier: .* at least 0'),
    ({'noise_multiplier': math.nan}, {}, 'dp.noise_multiplier: .* nan'),
    ({'clip_norm': 0.0}, {}, 'dp.clip_norm: expected a number above 0'),
    ({'delta': 1.0}, {}, 'dp.delta: expected a number between 0 and 1'),
    ({'epsilon': 3.0}, {}, "dp: expected numbers .* found .*'epsilon'"),
    ({}, {'mapping': 'mapping'}, "mapping: expected 'fused_mapping'"),
    (
      {},
      {'mapping_options': {'widths': (8, 8, 8), 'norm': 'batch'}},
      '--config.mapping_options.norm=group',
    ),
  ],
)
def test_what_cannot_be_private_is_refused_first(
  dp, fields, message, tmp_path, monkeypatch
):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  config = smoke.get_config()
  with config.unlocked():
    config.dp.update({'noise_multiplier': 1.0, **dp})
    config.update(fields)
  with pytest.raises(ValueError, match=message):
    collaboration.train(config, tmp_path / 'w')
  assert not (tmp_path / 'w').exists()


def test_a_missing_package_is_named_first(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r'jax-privacy.*\[privacy\]'):
    collaboration.train(private_config(), tmp_path / 'w')
  assert not (tmp_path / 'w').exists()
  config_checks.check(smoke.get_config())  # without noise it is not missed


def test_the_report_says_what_is_promised(tmp_path):
  config = private_config()
  workdir = workdir_lib.Workdir(tmp_path, config.to_dict())
  with pytest.raises(ValueError, match=r'guarantee\.json: missing'):
    privacy_guarantee.Guarantee.read(workdir)
  promise = privacy_guarantee.Guarantee(
    2.0, 1e-5, 'training image', 1.1, 0.05, 800, 1.0, 200, ('not per patient',)
  )
  promise.write(workdir)
  found = privacy_guarantee.Guarantee.read(workdir)
  assert found == promise
  data = types.SimpleNamespace(
    within_subject=False, subjects_are_known=True, table=''
  )
  run = lambda promise: types.SimpleNamespace(
    data=data, hospitals={'1': None}, guarantee=promise
  )
  shown = lambda promise: str(report._summary(config, run(promise), {}))
  assert '(2.000, 1e-05)-DP for one training image of 200' in shown(found)
  assert 'not per patient' in shown(found)
  assert 'Differential privacy' not in shown(None)
  (tmp_path / privacy_guarantee.FILE).write_text('{}')
  with pytest.raises(ValueError, match='expected epsilon, delta, unit'):
    privacy_guarantee.Guarantee.read(workdir)
