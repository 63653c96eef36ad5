"""Tests of pretraining.py: what a run may start from."""

import gc
import logging
import shutil

import jax
import numpy as np
import pytest

from configs import smoke
from ppcmi_jax import (
  collaboration,
  hospital_data,
  learners,
  pretraining,
  workdir,
)


@pytest.fixture(scope='module')
def other(tmp_path_factory):
  """Returns the workdir of a run that trained one autoencoder, and its data."""
  folder = tmp_path_factory.mktemp('other')
  config = config_of(folder / 'data')
  run = workdir.Workdir(folder / 'run', config.to_dict())
  data = hospital_data.load(config, run)
  autoencoders = autoencoders_of(config, data)
  variables = jax.jit(autoencoders.image_task.init)(
    jax.random.key(3), data.sample()
  )
  autoencoders.image.adopt(variables, data.sample(), run.checkpoints('image_1'))
  return run, data, variables


def config_of(data_dir, start=''):
  config = smoke.get_config()
  config.data_dir, config.pretrained.image = str(data_dir), str(start)
  return config


def autoencoders_of(config, data):
  return learners.autoencoders(
    config, channels=data.channels, num_classes=data.num_classes
  )


def load(config, data):
  autoencoders = autoencoders_of(config, data)
  trainers = {'image': autoencoders.image, 'mask': autoencoders.mask}
  sources = pretraining.sources(config, data, trainers)
  return {name: source() for name, source in sources.items()}


def other_data_of(data):
  """Returns data that are tested on what the other run trained on."""
  swapped = {
    name: {'train': parts['test'], 'test': parts['train']}
    for name, parts in data.hospitals.items()
  }
  return data._replace(hospitals=swapped)


def test_the_same_split_is_fine(other):
  run, data, variables = other
  found = load(config_of('', run.checkpoints('image_1')), data)
  assert list(found) == ['image']
  jax.tree.map(np.testing.assert_array_equal, found['image'], variables)


@pytest.mark.parametrize('column', ['subject', 'case'])
def test_what_was_seen_is_not_tested_on(other, column):
  run, data, _ = other
  config = config_of('', run.checkpoints('image_1'))
  swapped = other_data_of(data)._replace(within_subject=column == 'case')
  with pytest.raises(
    ValueError, match=rf"pretrained\.image: .* test {column}s .* as 's0"
  ):
    load(config, swapped)


def test_another_view_of_the_same_data_is_no_way_round(other):
  run, data, _ = other
  config = config_of('', run.checkpoints('image_1'))
  config.dataset_options.size = 256
  with pytest.raises(ValueError, match=r"such as 's0"):
    load(config, other_data_of(data))
  config.dataset = 'phantom+abdomen'
  config.dataset_options = {'phantom': {'seed': 0}}
  parts = other_data_of(data).hospitals['1']
  test = parts['test']._replace(
    case=np.array([f'phantom-{name}' for name in parts['test'].case])
  )
  joined = data._replace(
    within_subject=True, hospitals={'1': {**parts, 'test': test}}
  )
  with pytest.raises(ValueError, match=r"such as 's0"):
    load(config, joined)


def test_what_a_run_began_with_counts_too(other, tmp_path):
  run, data, _ = other
  config = config_of('', run.checkpoints('image_1'))
  config.dataset_options.seed = 1  # of other data, but for its beginning
  second = workdir.Workdir(tmp_path / 'second', config.to_dict())
  shutil.copytree(run.checkpoints('image_1'), second.checkpoints('image_1'))
  shutil.copy(run.path / 'split.csv', second.path)
  third = config_of('', second.checkpoints('image_1'))
  with pytest.raises(ValueError, match=f'validation data of {run.path}, such'):
    load(third, other_data_of(data))


def test_other_data_may_have_the_same_names(other):
  run, data, _ = other
  config = config_of('', run.checkpoints('image_1'))
  config.dataset_options.seed = 1
  assert load(config, other_data_of(data))


def test_a_baseline_starts_from_another(tmp_path):
  config = smoke.get_config('unet')
  config.data_dir, config.baseline_steps = str(tmp_path / 'data'), 1
  config.baseline_options.depth = 1
  first, second = tmp_path / 'first', tmp_path / 'second'
  collaboration.train(config, first)
  config.pretrained.segmentation = str(first / 'checkpoints' / 'segmentation')
  rate, config.baseline_learning_rate = config.baseline_learning_rate, 1e-9
  collaboration.train(config, second)
  trained = collaboration.restore(config, second)
  # What it started from is not needed any more: it may be gone.
  first.rename(tmp_path / 'elsewhere')
  collaboration.train(config, second)
  with pytest.raises(ValueError, match=r'pretrained\.segmentation: .* none at'):
    collaboration.train(config, tmp_path / 'third')
  config.pretrained.segmentation, config.baseline_learning_rate = '', rate
  other = collaboration.restore(config, tmp_path / 'elsewhere')
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    *(run.networks['unet'][1]['params'] for run in (trained, other)),
  )


def test_no_folder_is_an_error(other):
  _, data, _ = other
  with pytest.raises(ValueError, match=r'image_CLIENT, found none at /nowhere'):
    load(config_of('', '/nowhere'), data)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_another_network_is_nothing_to_start_from(other, caplog):
  run, data, _ = other
  config = config_of('', run.checkpoints('image_1'))
  config.image_blocks = 1 - config.image_blocks
  with pytest.raises(
    ValueError, match=r'^pretrained\.image: .*image_1: expected .* network'
  ):
    load(config, data)
  assert 'cannot be used' in caplog.text
  gc.collect()  # what Orbax left unawaited warns here, not in another test


def test_a_folder_of_no_run_is_warned_of(other, tmp_path, caplog):
  _, data, _ = other
  with (
    caplog.at_level(logging.WARNING, logger='absl'),
    pytest.raises(ValueError, match=r'pretrained\.image: .* found none that'),
  ):
    load(config_of('', tmp_path), data)
  assert 'what it was trained on' in caplog.text
