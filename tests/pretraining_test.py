"""Tests of pretraining.py: what a run may start from."""

import logging

import pytest

from configs import smoke
from ppcmi_jax import hospital_data, pretraining, workdir


@pytest.fixture(scope='module')
def other(tmp_path_factory):
  """Returns the workdir of a run that was begun, and its data."""
  folder = tmp_path_factory.mktemp('other')
  config = config_of(folder / 'data')
  run = workdir.Workdir(folder / 'run', config.to_dict())
  data = hospital_data.load(config, run)
  run.checkpoints('image_1').mkdir(parents=True)
  return run, data


def config_of(data_dir, start=''):
  config = smoke.get_config()
  config.data_dir, config.pretrained.image = str(data_dir), str(start)
  return config


def other_data_of(data):
  """Returns data that are tested on what the other run trained on."""
  swapped = {
    name: {'train': parts['test'], 'test': parts['train']}
    for name, parts in data.hospitals.items()
  }
  return data._replace(hospitals=swapped)


def test_the_same_split_is_fine(other):
  run, data = other
  config = config_of('', run.checkpoints('image_1'))
  pretraining.check(config, data)


@pytest.mark.parametrize('column', ['subject', 'case'])
def test_what_was_seen_is_not_tested_on(other, column):
  run, data = other
  config = config_of('', run.checkpoints('image_1'))
  swapped = other_data_of(data)._replace(within_subject=column == 'case')
  with pytest.raises(
    ValueError, match=rf"pretrained\.image: .* test {column}s .* as 's0"
  ):
    pretraining.check(config, swapped)


def test_other_data_may_have_the_same_names(other):
  run, data = other
  config = config_of('', run.checkpoints('image_1'))
  config.dataset_options.seed = 1
  pretraining.check(config, other_data_of(data))


def test_no_folder_is_an_error_and_no_run_a_warning(other, tmp_path, caplog):
  _, data = other
  with pytest.raises(ValueError, match=r'image_CLIENT, found none at /nowhere'):
    pretraining.check(config_of('', '/nowhere'), data)
  with caplog.at_level(logging.WARNING, logger='absl'):
    pretraining.check(config_of('', tmp_path), data)
  assert 'what it was trained on' in caplog.text
