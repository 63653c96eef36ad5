"""What a configuration describes: models, tasks and trainers.

Here a ConfigDict ends; everything below gets typed keyword arguments.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppcmi_jax import keyed, models, tasks, training

METHODS = ('ppcmi_sf', 'unet')
MAPPINGS = ('mapping', 'fused_mapping')
TRANSFORMS = {
  'klt': keyed.chain(keyed.orthogonal(), keyed.permutation(), keyed.shift()),
  'none': keyed.chain(),
}


def check(config: Any) -> None:
  """Raises ValueError for a method or protection that does not exist."""
  if config.method not in METHODS:
    raise ValueError(
      f'method: expected one of {", ".join(METHODS)}, found {config.method!r}'
    )
  if config.method == 'ppcmi_sf' and config.protection not in TRANSFORMS:
    raise ValueError(
      f'protection: expected one of {", ".join(TRANSFORMS)}, found '
      f'{config.protection!r}'
    )


class Learners(NamedTuple):
  """The models, tasks and trainers that a configuration describes."""

  image_model: Any
  mask_model: Any
  image: training.Trainer
  mask: training.Trainer
  image_task: tasks.Task
  mask_task: tasks.Task
  latents: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]


def _trainer(config, task, learner, steps) -> training.Trainer:
  return training.Trainer(
    task,
    steps=steps,
    batch_size=config[f'{learner}_batch_size'],
    learning_rate=config[f'{learner}_learning_rate'],
    schedule=config.schedule,
    weight_decay=config.weight_decay,
    eval_every=config.eval_every,
    patience=config.patience,
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
  )
  image_model = autoencoder(channels=channels)
  mask_model = autoencoder(channels=num_classes)
  image_task = tasks.image_reconstruction(
    image_model, official=config.official_losses, augment=augment
  )
  mask_task = tasks.mask_reconstruction(
    mask_model,
    num_classes=num_classes,
    official=config.official_losses,
    augment=augment,
    latent_noise=config.latent_noise,
    latent_mixing=config.latent_mixing,
  )

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
  )


def mapping(
  config: Any, statistics: Mapping[str, Any]
) -> tuple[tasks.Task, training.Trainer]:
  """Returns the server's task and trainer.

  Args:
    config: of the run.
    statistics: {'image': tasks.Statistics, 'mask': likewise}, used where the
      configuration standardises latents.
  """
  if config.mapping not in MAPPINGS:
    raise ValueError(
      f'mapping: expected one of {", ".join(MAPPINGS)}, found '
      f'{config.mapping!r}'
    )
  model = models.MODELS[config.mapping](
    relu=not config.standardise,
    axis_name='batch',
    **{
      k: tuple(v) if isinstance(v, (list, tuple)) else v
      for k, v in config.mapping_options.items()
    },
  )
  if not config.standardise:
    statistics = {'image': None, 'mask': None}
  task = tasks.mapping(
    model,
    image_statistics=statistics['image'],
    mask_statistics=statistics['mask'],
  )
  return task, _trainer(config, task, 'mapping', config.mapping_steps)


def baseline(
  config: Any, *, num_classes: int
) -> tuple[tasks.Task, training.Trainer]:
  """Returns the task and trainer of a privacy-agnostic baseline."""
  task = tasks.segmentation(
    models.MODELS['unet'](
      num_classes=num_classes,
      width=config.unet_width,
      axis_name='batch',
    ),
    num_classes=num_classes,
    augment=dict(config.augment),
  )
  return task, _trainer(config, task, 'unet', config.unet_steps)
