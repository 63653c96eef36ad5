"""What a configuration describes: models, tasks and trainers.

Here a ConfigDict ends; everything below gets typed keyword arguments.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppcmi_jax import (
  images,
  keyed,
  models,
  official,
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

_OBFUSCATION = (
  'is obfuscation, no confidentiality: one or a few known images undo it. '
  'Treat a protected latent as if it were the latent, and carry messages over '
  'an encrypted channel.'
)
# What a user is told of each protection.
PROTECTION_NOTES = {
  'sealed': (
    "Protection 'sealed': every message is encrypted and authenticated with "
    'keys of its own; without them it tells who talks to whom, when, with '
    'which model and how much, and nothing of the image. It does not protect '
    'from the server, which holds the keys, nor from what the mapping network '
    'remembers of its training cases.'
  ),
  'klt': f"Protection 'klt' {_OBFUSCATION}",
  'official': f"Protection 'official' {_OBFUSCATION}",
  'none': 'Latents cross as they are. Treat them as if they were images.',
}


class Learners(NamedTuple):
  """The models, tasks and trainers that a configuration describes.

  Attributes:
    image_model, mask_model: the autoencoders.
    image, mask: their trainers.
    image_task, mask_task: their tasks.
    latents: {modality: {scale: shape [1, h, w, C]}}.
    segment_alone: (variables of the image autoencoder, image) -> float32 class
      probabilities [B, H, W, K], by its own decoder; None where that tells no
      classes.
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
    latent_widths=tuple(config.latent_widths),
    skips=config.skips,
    upsampling=config.upsampling,
    axis_name='batch',
    dtype=COMPUTE_DTYPES[config.compute_dtype],
  )
  image_model = autoencoder(
    channels=channels,
    blocks=config.image_blocks,
    full_size=config.image_full_size,
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
  )

  def segment_alone(variables, image):
    logits = image_model.apply(
      variables, images.unit_image(image), train=False, method='segment'
    )
    return jax.nn.softmax(logits)

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
    remat=config.mapping_remat,
    dtype=COMPUTE_DTYPES[config.compute_dtype],
  )


def mapping(config: Any) -> tuple[tasks.Task, training.Trainer]:
  """Returns the server's task and trainer."""
  task = tasks.mapping(_mapping_model(config))
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
