"""Tests of config_checks.py: a mistake costs nothing."""

import math

import pytest

from configs import smoke
from ppcmi_jax import collaboration


def config_of(folder, method='ppcmi_sf'):
  config = smoke.get_config(method)
  config.data_dir = str(folder / 'data')
  return config


def test_int8_needs_the_mixing_of_sealed(tmp_path):
  config = config_of(tmp_path)
  config.update(protection='klt', wire_dtype='int8')
  with pytest.raises(
    ValueError, match="float16 with protection klt, found 'int8'"
  ):
    collaboration.train(config, tmp_path / 'w')


@pytest.mark.parametrize(
  'field, value, word',
  [
    ('wire_dtype', 'int2', 'float16'),
    ('eval_every', 0, 'at least 1'),
    ('microbatches', 0, 'at least 1'),
    ('compute_dtype', 'float16', 'bfloat16'),
    ('mapping', 'none', 'fused_mapping'),
    ('mapping', 'mapping', 'widths'),
    ('protection', 'rot13', 'klt'),
    ('augment', {'shear': 1.0}, 'rotation_deg'),
    ('autoencoder_widths', (4, 4), 'expected 3 stages or more, found 2'),
    ('autoencoder_widths', (4, 4, 8, 0), 'autoencoder_widths: .*found 0'),
    ('latent_widths', (4, 4), 'latent_widths: .*found 2'),
    ('latent_widths', (4, 4, 0), 'latent_widths: .*found 0'),
    ('image_size', 40, 'image_size: expected a multiple of 16, .*found 40'),
    ('test_fraction', -0.2, 'test_fraction: .*between 0 and 1, found -0.2'),
    ('test_fraction', 0.95, 'test_fraction, valid_fraction: .*less than 1'),
    ('weight_decay', -1e-4, 'weight_decay: .*at least 0'),
    ('autoencoder_learning_rate', math.nan, 'above 0, found nan'),
    ('mapping_learning_rate', 0.0, 'mapping_learning_rate: .*above 0'),
    ('pretrained', {'images': 'here'}, 'pretrained: .* image and for mask'),
    ('copies', -1, 'copies: expected a whole number'),
    ('seed', 2**32, 'seed: .*found 4294967296'),
    ('augment', {'probability': 2.0}, r'augment\.probability: .*0 to 1'),
    ('split', 'csv', 'split_path: .*--config.split_path=FILE'),
    ('split', 'subject', "split: expected one of subjects, .*'subject'"),
    ('distance_unit', 'cm', 'distance_unit: expected one of mm, pixels'),
    ('mapping_options', {'widths': (8, 8)}, 'mapping_options: '),
    ('mapping_options', {'norm': 'layer'}, "mapping_options: norm: .*'layer'"),
  ],
)
def test_bad_field_costs_nothing(tmp_path, field, value, word):
  config = config_of(tmp_path)
  config[field] = value
  with pytest.raises(ValueError, match=word):
    collaboration.train(config, tmp_path / 'w')
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize(
  'method, field, options, word',
  [
    ('published', 'mapping_options', {'pooling': 'foo'}, "pooling: .*'foo'"),
    ('fatnet', 'baseline_options', {'blocks': (1, 1)}, 'blocks: .*four'),
    ('unet', 'image_size', 40, 'image_size: .*divisible by 16'),
    ('unet', 'baseline_learning_rate', -1.0, 'above 0, found -1'),
  ],
)
def test_bad_network_costs_nothing(tmp_path, method, field, options, word):
  config = config_of(tmp_path, method)
  config[field] = options
  with pytest.raises(ValueError, match=word):
    collaboration.train(config, tmp_path / 'w')
  assert not any(tmp_path.iterdir())
