"""Whether a configuration can be trained, before anything is computed.

A mistake then costs nothing, where the mapping network's would be found after
all the autoencoders were trained. What depends on the data is checked when they
are read.
"""

import inspect
import math
from typing import Any

import jax
import numpy as np

from ppcmi_jax import (
  augmentation,
  learners,
  privacy_guarantee,
  score_table,
  side_by_side,
  splits,
  training,
)

# What is expected, and whether a value is that.
_COUNT = (
  'a whole number of at least 1',
  lambda x: isinstance(x, int) and x >= 1,
)
_COUNT_OR_NONE = (
  'a whole number, 0 for none',
  lambda x: isinstance(x, int) and x >= 0,
)
_POSITIVE = 'a number above 0', lambda x: 0 < x < math.inf
_WEIGHT = 'a number of at least 0, 0 for none', lambda x: 0 <= x < math.inf
_SHARE = 'a number between 0 and 1', lambda x: 0 < x < 1
_SEED = (
  'a whole number from 0 to 2**32 - 1',  # the bits that a JAX key takes
  lambda x: isinstance(x, int) and 0 <= x < 2**32,
)

_NUMBERS = {
  'seed': _SEED,
  'split_seed': _SEED,
  'image_size': _COUNT,
  'image_channels': _COUNT,
  'test_fraction': _SHARE,
  'valid_fraction': _SHARE,
  'weight_decay': _WEIGHT,
  'eval_every': _COUNT,
  'patience': _COUNT,
  'microbatches': _COUNT,
  'side_by_side': _COUNT,
}
_BASELINE_NUMBERS = {
  'baseline_batch_size': _COUNT,
  'baseline_learning_rate': _POSITIVE,
  'baseline_steps': _COUNT,
}
_PRIVATE_NUMBERS = {
  'autoencoder_batch_size': _COUNT,
  'autoencoder_learning_rate': _POSITIVE,
  'image_blocks': _COUNT_OR_NONE,
  'segmentation_weight': _WEIGHT,
  'image_steps': _COUNT,
  'mask_steps': _COUNT,
  'copies': _COUNT_OR_NONE,
  'mapping_batch_size': _COUNT,
  'mapping_learning_rate': _POSITIVE,
  'mapping_steps': _COUNT,
}


def check_networks(config: Any) -> None:
  """Traces all networks: ValueError where one could not be built, or trained.

  Devices must share out each batch. It takes a second or two, after `check`.
  """
  if config.method in learners.BASELINES:
    _try_baseline(config)
  else:
    _try_private(config)


def check(config: Any) -> None:
  """Raises ValueError for fields that could not be trained with."""
  try:
    _check_choice(config, 'method', learners.METHODS)
    _check_choice(config, 'schedule', ('constant', 'cosine'))
    _check_choice(config, 'compute_dtype', tuple(learners.COMPUTE_DTYPES))
    _check_choice(config, 'distance_unit', score_table.UNITS)
    _check_numbers(config, _NUMBERS)
    _check_split(config)
    _check_augment(config.augment)
    if config.method in learners.BASELINES:
      _check_numbers(config, _BASELINE_NUMBERS)
      _check_pretrained(config, 'segmentation')
    else:
      _check_private(config)
  except (AttributeError, KeyError) as error:
    raise ValueError(f'configuration: a field is missing: {error}') from None


def _check_pretrained(config, *names):
  if set(config.pretrained) != set(names):
    raise ValueError(
      f"pretrained: expected a folder or '' for {' and for '.join(names)}, "
      f'found {dict(config.pretrained)}'
    )


def _check_private(config):
  _check_numbers(config, _PRIVATE_NUMBERS)
  _check_pretrained(config, 'image', 'mask')
  _check_choice(config, 'protection', learners.WIRE_DTYPES)
  _check_choice(config, 'mapping', learners.MAPPINGS)
  _check_choice(
    config,
    'wire_dtype',
    learners.WIRE_DTYPES[config.protection],
    f' with protection {config.protection}',
  )
  _check_choice(config, 'upsampling', ('bilinear', 'shuffle'))
  stages = len(config.autoencoder_widths)
  if stages < 3:
    raise ValueError(
      f'autoencoder_widths: expected 3 stages or more, found {stages}'
    )
  if len(config.latent_widths) not in (0, 3):
    raise ValueError(
      'latent_widths: expected those of 3 latents, or none for those of the '
      f'stages, found {len(config.latent_widths)}'
    )
  for field in ('autoencoder_widths', 'latent_widths'):
    for width in config[field]:
      _check_number(field, width, *_COUNT)
  if config.image_size % 2**stages:
    raise ValueError(
      f'image_size: expected a multiple of {2**stages}, as autoencoder_widths '
      f'has {stages} stages, found {config.image_size}'
    )
  _check_dp(config)


def _check_choice(config, field, choices, where=''):
  if config[field] not in choices:
    raise ValueError(
      f'{field}: expected one of {", ".join(choices)}{where}, found '
      f'{config[field]!r}'
    )


def _check_numbers(config, fields):
  for field, (expected, is_good) in fields.items():
    _check_number(field, config[field], expected, is_good)


def _check_number(name, value, expected, is_good):
  try:
    good = is_good(value)
  except TypeError:  # no number at all
    good = False
  if not good:
    raise ValueError(f'{name}: expected {expected}, found {value!r}')


def _check_split(config):
  for mode in config.split.split('+'):
    if mode not in splits.MODES:
      raise ValueError(
        f'split: expected one of {", ".join(splits.MODES)}, found {mode!r}'
      )
    if mode == 'csv' and not config.split_path:
      raise ValueError(
        "split_path: expected the path of a file with split='csv', found none; "
        'name it with --config.split_path=FILE'
      )
  if config.test_fraction + config.valid_fraction >= 1:
    raise ValueError(
      'test_fraction, valid_fraction: expected less than 1 together, found '
      f'{config.test_fraction} and {config.valid_fraction}, which leaves '
      'nothing to train on'
    )


def _check_augment(options):
  known = inspect.signature(augmentation.augment).parameters
  unknown = sorted(set(options) - set(known))
  if unknown:
    raise ValueError(
      f'augment: unknown option {", ".join(unknown)}; known: '
      f'{", ".join(list(known)[3:])}'
    )
  for name, value in options.items():
    expected, is_good = _WEIGHT
    if name == 'probability':
      expected, is_good = 'a number from 0 to 1', lambda x: 0 <= x <= 1
    _check_number(f'augment.{name}', value, expected, is_good)


def _check_dp(config):
  try:
    privacy_guarantee.check(**config.dp)
  except TypeError:
    raise ValueError(
      'dp: expected numbers noise_multiplier, clip_norm and delta, found '
      f'{dict(config.dp)}'
    ) from None
  except ValueError as error:
    raise ValueError(f'dp.{error}') from None
  if not config.dp.noise_multiplier:
    return
  if config.mapping != 'fused_mapping':
    raise ValueError(
      "mapping: expected 'fused_mapping' where dp.noise_multiplier is above 0, "
      f'found {config.mapping!r}, whose batch statistics mix examples; take a '
      'configuration without a method behind its colon'
    )
  norm = config.mapping_options.get('norm', 'group')
  if norm != 'group':
    raise ValueError(
      "mapping_options.norm: expected 'group' where dp.noise_multiplier is "
      f'above 0, found {norm!r}; set --config.mapping_options.norm=group'
    )


def _check_batch(config, field, num_devices):
  training.check_batch_size(
    config[field], num_devices, config.microbatches, name=field
  )


def _try_baseline(config):
  at_once = 1 if config.pooled else config.side_by_side
  devices = len(side_by_side.groups(at_once)[0])
  _check_batch(config, 'baseline_batch_size', devices)
  task, _ = learners.baseline(config, num_classes=2)
  _try('baseline_options, image_size', task, _blank(config))


def _try_private(config):
  devices = len(side_by_side.groups(config.side_by_side)[0])
  _check_batch(config, 'autoencoder_batch_size', devices)
  _check_batch(config, 'mapping_batch_size', jax.device_count())
  built = learners.autoencoders(
    config, channels=config.image_channels, num_classes=2
  )
  task, _ = learners.mapping(config)
  _try('mapping_options', task, built.latents)


def _blank(config):
  shape = (1, config.image_size, config.image_size)
  return {
    'image': np.zeros((*shape, config.image_channels), np.uint8),
    'mask': np.zeros(shape, np.uint8),
  }


def _try(field, task, batch):
  """Traces what makes the network's variables; nothing is computed."""
  try:
    jax.eval_shape(task.init, jax.random.key(0), batch)
  except Exception as error:  # options may be anything
    raise ValueError(f'{field}: {error}') from None
