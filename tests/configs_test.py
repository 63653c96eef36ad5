"""Every configuration and method can be built; their sizes are as stated."""

import importlib
import pathlib

import jax
import pytest

from configs import abdomen, phantom, smoke
from ppcmi_jax import (
  config_checks,
  datasets,
  learners,
  partitions,
  splits,
)

CONFIGS = {'abdomen': abdomen, 'phantom': phantom, 'smoke': smoke}
ALL = sorted(
  path.stem for path in pathlib.Path(abdomen.__file__).parent.glob('*.py')
)
PRIVATE = ('ppcmi_sf', 'published', 'official', 'privacy_sf')
METHODS = (*PRIVATE, *learners.BASELINES)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('name', ALL)
def test_names_what_there_is(name, method):
  config = importlib.import_module(f'configs.{name}').get_config(method)
  config_checks.check(config)
  assert config.partition in partitions.MODES
  assert {*config.split.split('+')} <= {*splits.MODES}
  assert {*config.dataset.split('+')} <= {*datasets.DATASETS}
  if method == 'official':
    assert config.official_training and not config.augment


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('name', CONFIGS)
def test_is_complete_and_consistent(name, method):
  config = CONFIGS[name].get_config(method)
  config_checks.check(config)
  if method in learners.BASELINES:
    learners.baseline(config, num_classes=3)
    return
  built = learners.autoencoders(config, channels=1, num_classes=3)
  assert built.latents['image'].keys() == {'s3', 's4', 'b'}
  task, _ = learners.mapping(config)
  variables = jax.eval_shape(task.init, jax.random.key(0), built.latents)
  outputs = jax.eval_shape(task.predict, variables, built.latents['image'])
  assert {s: z.shape for s, z in outputs.items()} == {
    s: z.shape for s, z in built.latents['mask'].items()
  }


def test_published_method_has_the_published_parts():
  config = abdomen.get_config('published')
  config.mapping_options.width = 1.0
  config_checks.check(config)
  built = learners.autoencoders(config, channels=3, num_classes=3)
  task, _ = learners.mapping(config)
  variables = jax.eval_shape(task.init, jax.random.key(0), built.latents)
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  assert count == 58_788_480
