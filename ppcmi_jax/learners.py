"""What a configuration describes: models, tasks and trainers.

Here a ConfigDict ends; everything below gets typed keyword arguments.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppcmi_jax import (
  augmentation,
  images,
  keyed,
  models,
  official,
  privacy_guarantee,
  tasks,
  training,
  wire,
)
from ppcmi_jax.sealed import masking

BASELINES = ('unet', 'ghostnet', 'fatnet')
METHODS = ('ppcmi_sf', *BASELINES)
MAPPINGS = ('mapping', 'fused_mapping')
TRANSFORMS = {
  'klt': keyed.chain(keyed.orthogonal(), keyed.permutation(), keyed.shift()),
  'official': official.TRANSFORM,
  'none': keyed.chain(),
}
# None computes in what comes in, float32.
COMPUTE_DTYPES = {'float32': None, 'bfloat16': jnp.bfloat16}
# What a protection can send: int8 needs latents that were mixed.
WIRE_DTYPES = {
  'sealed': tuple(masking.DTYPES),
  **dict.fromkeys(TRANSFORMS, tuple(wire.DTYPES)),
}


def check(config: Any) -> None:
  """Raises ValueError for a configuration that could not be trained.

  It runs before anything is computed or written, so that a mistake costs
  nothing; what depends on the data is checked when they are read.
  """
  try:
    _check_choice(config, 'method', METHODS)
    _check_choice(config, 'schedule', ('constant', 'cosine'))
    _check_choice(config, 'compute_dtype', tuple(COMPUTE_DTYPES))
    positive = ['image_size', 'image_channels', 'eval_every', 'patience']
    positive += ['microbatches']
    if config.method in BASELINES:
      positive += ['baseline_steps', 'baseline_batch_size']
      _baseline_model(config, num_classes=2)
    else:
      _check_choice(config, 'protection', WIRE_DTYPES)
      _check_choice(config, 'mapping', MAPPINGS)
      _check_choice(
        config,
        'wire_dtype',
        WIRE_DTYPES[config.protection],
        f' with protection {config.protection}',
      )
      _check_choice(config, 'upsampling', ('bilinear', 'shuffle'))
      positive += ['image_steps', 'mask_steps', 'mapping_steps']
      positive += ['autoencoder_batch_size', 'mapping_batch_size']
      if len(config.autoencoder_widths) != 5:
        raise ValueError(
          'autoencoder_widths: expected 5 stages, found '
          f'{len(config.autoencoder_widths)}'
        )
      if not isinstance(config.image_blocks, int) or config.image_blocks < 0:
        raise ValueError(
          'image_blocks: expected a whole number, 0 for none, found '
          f'{config.image_blocks!r}'
        )
      if not 0 <= config.segmentation_weight < math.inf:
        raise ValueError(
          'segmentation_weight: expected a number of at least 0, 0 for none, '
          f'found {config.segmentation_weight!r}'
        )
      _check_dp(config)
      _mapping_model(config)
    for field in positive:
      if not isinstance(config[field], int) or config[field] < 1:
        raise ValueError(
          f'{field}: expected a whole number of at least 1, found '
          f'{config[field]!r}'
        )
    known = inspect.signature(augmentation.augment).parameters
    unknown = sorted(set(config.augment) - set(known))
    if unknown:
      raise ValueError(
        f'augment: unknown option {", ".join(unknown)}; known: '
        f'{", ".join(list(known)[3:])}'
      )
  except (AttributeError, KeyError) as error:
    raise ValueError(f'configuration: a field is missing: {error}') from None


def _check_choice(config, field, choices, where=''):
  if config[field] not in choices:
    raise ValueError(
      f'{field}: expected one of {", ".join(choices)}{where}, found '
      f'{config[field]!r}'
    )


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


class Learners(NamedTuple):
  """The models, tasks and trainers that a configuration describes.

  Attributes:
    image_model, mask_model: the autoencoders.
    image, mask: their trainers.
    image_task, mask_task: their tasks.
    latents: {modality: {scale: shape [1, h, w, C]}}.
    segment_alone: (variables of the image autoencoder, image) -> mask, by its
      own decoder; None where that tells no classes.
  """

  image_model: Any
  mask_model: Any
  image: training.Trainer
  mask: training.Trainer
  image_task: tasks.Task
  mask_task: tasks.Task
  latents: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]
  segment_alone: Callable[..., jax.Array] | None


def _trainer(config, task, learner, steps) -> training.Trainer:
  if config.get('official_training'):
    task = task._replace(loss=official.unbiased_variance(task.loss))
  return training.Trainer(
    task,
    steps=steps,
    batch_size=config[f'{learner}_batch_size'],
    learning_rate=config[f'{learner}_learning_rate'],
    schedule=config.schedule,
    weight_decay=config.weight_decay,
    eval_every=config.eval_every,
    patience=config.patience,
    microbatches=config.microbatches,
  )


def autoencoders(config: Any, *, channels: int, num_classes: int) -> Learners:
  """Returns the clients' autoencoders; all clients share what is compiled.

  Args:
    config: of the run.
    channels: of the images.
    num_classes: of the masks, background included.
  """
  augment = dict(config.augment)
  autoencoder = functools.partial(
    models.MODELS['autoencoder'],
    widths=tuple(config.autoencoder_widths),
    skips=config.skips,
    upsampling=config.upsampling,
    axis_name='batch',
    dtype=COMPUTE_DTYPES[config.compute_dtype],
  )
  image_model = autoencoder(
    channels=channels,
    blocks=config.image_blocks,
    num_classes=num_classes if config.segmentation_weight else 0,
  )
  mask_model = autoencoder(channels=num_classes)
  image_task = tasks.image_reconstruction(
    image_model,
    official=config.official_training,
    augment=augment,
    segmentation_weight=config.segmentation_weight,
  )
  mask_task = tasks.mask_reconstruction(
    mask_model,
    num_classes=num_classes,
    official=config.official_training,
    augment=augment,
    latent_noise=config.latent_noise,
    latent_mixing=config.latent_mixing,
  )

  def segment_alone(variables, image):
    logits = image_model.apply(
      variables, images.unit_image(image), train=False, method='segment'
    )
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

  def latents(model, channels):
    x = jnp.zeros((1, config.image_size, config.image_size, channels))
    return jax.eval_shape(
      lambda key: model.init_with_output(key, x, train=False, method='encode')[
        0
      ],
      jax.random.key(0),
    )

  return Learners(
    image_model,
    mask_model,
    _trainer(config, image_task, 'autoencoder', config.image_steps),
    _trainer(config, mask_task, 'autoencoder', config.mask_steps),
    image_task,
    mask_task,
    {
      'image': latents(image_model, channels),
      'mask': latents(mask_model, num_classes),
    },
    segment_alone if config.segmentation_weight else None,
  )


def _model(name, options, field, **ours):
  """Returns the network of a name; `options` are the configuration's."""
  options = {
    k: tuple(v) if isinstance(v, (list, tuple)) else v
    for k, v in options.items()
  }
  model = models.MODELS[name]
  known = set(model.__dataclass_fields__)
  known -= {'parent', 'name', 'axis_name', *ours}
  unknown = sorted(set(options) - known)
  if unknown:
    raise ValueError(
      f'{field}: the network {name!r} does not take {", ".join(unknown)}; it '
      f'takes {", ".join(sorted(known))}'
    )
  return model(axis_name='batch', **options, **ours)


def _mapping_model(config):
  options = dict(config.mapping_options)
  if config.dp.noise_multiplier:
    options.setdefault('norm', 'group')
  return _model(
    config.mapping,
    options,
    'mapping_options',
    relu=not config.standardise,
    remat=config.mapping_remat,
    dtype=COMPUTE_DTYPES[config.compute_dtype],
  )


def mapping(
  config: Any, statistics: Mapping[str, Any]
) -> tuple[tasks.Task, training.Trainer]:
  """Returns the server's task and trainer.

  Args:
    config: of the run.
    statistics: {'image': standardisation.Statistics, 'mask': likewise}, used
      where the configuration standardises latents.
  """
  model = _mapping_model(config)
  if not config.standardise:
    statistics = {'image': None, 'mask': None}
  task = tasks.mapping(
    model,
    image_statistics=statistics['image'],
    mask_statistics=statistics['mask'],
    weigh=config.sensitivity,
  )
  return task, _trainer(config, task, 'mapping', config.mapping_steps)


def _baseline_model(config, num_classes):
  return _model(
    config.method,
    config.baseline_options,
    'baseline_options',
    num_classes=num_classes,
    dtype=COMPUTE_DTYPES[config.compute_dtype],
  )


def baseline(
  config: Any, *, num_classes: int
) -> tuple[tasks.Task, training.Trainer]:
  """Returns the task and trainer of a privacy-agnostic baseline."""
  task = tasks.segmentation(
    _baseline_model(config, num_classes),
    num_classes=num_classes,
    augment=dict(config.augment),
  )
  return task, _trainer(config, task, 'baseline', config.baseline_steps)
