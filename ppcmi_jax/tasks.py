"""What is learnt: reconstruction, mapping and segmentation as pure functions.

A task is three functions; its state is a dict of variables outside it.

    init(key, batch) -> variables        {'params': ..., and other collections}
    loss(variables, batch, key, train) -> loss, (metrics, variables)
    predict(variables, inputs) -> outputs

`loss` consumes `key` (augmentation, dropout) only where `train` is
true, and returns the variables with updated batch statistics. A batch is a
dict of arrays with a leading axis B; 'slot' [B] int32 numbers its examples, so
that an example's randomness does not depend on how devices share a batch.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ppcmi_jax import augmentation, images, losses

Variables = Mapping[str, Any]


class Task(NamedTuple):
  """A learnable task; see the module's docstring for the three signatures."""

  init: Callable[..., Variables]
  loss: Callable[..., tuple[jax.Array, tuple[dict, Variables]]]
  predict: Callable[..., Any]


def _apply(model, variables, *args, key, train, **kwargs):
  """Applies a model and returns (outputs, variables with new statistics)."""
  if not train:
    return model.apply(variables, *args, train=False, **kwargs), variables
  outputs, updates = model.apply(
    variables,
    *args,
    train=True,
    rngs={'dropout': key},
    mutable=['batch_stats'],
    **kwargs,
  )
  return outputs, {**variables, **updates}


def _axis(model, train):
  """Returns the pmap axis that a training batch is shared over, or None."""
  return getattr(model, 'axis_name', None) if train else None


def _keys(key, batch):
  """Returns a key for augmentation, an example at a time, and one for dropout.

  The second differs by device, and uses the 'rbg' generator, which compiles
  much faster than the default; its draws depend on the batch's shape.
  """
  if 'slot' not in batch:  # validation draws nothing
    return key, key
  augment_key, key = jax.random.split(key)
  words = jax.random.key_data(jax.random.fold_in(key, batch['slot'][0]))
  return augment_key, jax.random.wrap_key_data(jnp.tile(words, 2), impl='rbg')


def _augmented(batch, key, train, options):
  """Returns image [B, H, W, C] in [0, 1] and mask [B, H, W] of a batch."""
  image, mask = images.unit_image(batch['image']), batch['mask']
  if train and options:
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(batch['slot'])
    image, mask = augmentation.augment(keys, image, mask, **options)
  return image, mask


def image_reconstruction(
  model: nn.Module,
  *,
  official: bool = False,
  augment: Mapping | None = None,
  segmentation_weight: float = 0.0,
) -> Task:
  """Learns to reconstruct images (arXiv 2603.05541, stage 1).

  Reconstruction alone spends the latents on speckle and noise; what tells a
  small structure from its surroundings is little of the error. With a
  segmentation weight the model's decoder must also tell the classes of the
  hospital's own masks.

  Args:
    model: an Autoencoder of the image's channels, with num_classes where there
      is a segmentation weight.
    official: whether to use the official code's loss.
    augment: keyword arguments of `augmentation.augment`, or None.
    segmentation_weight: of the classes' loss beside the reconstruction's.
  """
  loss_fn = (
    losses.official_reconstruction if official else losses.image_reconstruction
  )

  def init(key, batch):
    return model.init(key, images.unit_image(batch['image'][:1]), train=False)

  def loss(variables, batch, key, train):
    augment_key, dropout_key = _keys(key, batch)
    image, mask = _augmented(batch, augment_key, train, augment)
    apply = functools.partial(
      _apply, model, variables, image, key=dropout_key, train=train
    )
    if not segmentation_weight:
      logits, variables = apply()
      value = loss_fn(logits=logits, labels=image)
    else:
      (logits, classes), variables = apply(method='reconstruct_and_segment')
      one_hot = jax.nn.one_hot(mask, classes.shape[-1])
      value = loss_fn(logits=logits, labels=image)
      value += segmentation_weight * losses.segmentation(
        logits=classes, labels=one_hot, axis_name=_axis(model, train)
      )
    return value, ({'loss': value}, variables)

  def predict(variables, image):
    logits = model.apply(variables, images.unit_image(image), train=False)
    return jax.nn.sigmoid(logits)

  return Task(init, loss, predict)


def mask_reconstruction(
  model: nn.Module,
  *,
  num_classes: int,
  official: bool = False,
  augment: Mapping | None = None,
) -> Task:
  """Learns to reconstruct masks (arXiv 2603.05541, stage 1).

  Args:
    model: an Autoencoder with num_classes channels.
    num_classes: classes K, background included.
    official: whether to use the official code's loss.
    augment: keyword arguments of `augmentation.augment`, or None.
  """

  def init(key, batch):
    one_hot = jax.nn.one_hot(batch['mask'][:1], num_classes)
    return model.init(key, one_hot, train=False)

  def loss(variables, batch, key, train):
    augment_key, dropout_key = _keys(key, batch)
    _, mask = _augmented(batch, augment_key, train, augment)
    labels = jax.nn.one_hot(mask, num_classes)
    logits, variables = _apply(
      model, variables, labels, key=dropout_key, train=train
    )
    loss_fn = (
      losses.official_reconstruction
      if official
      else functools.partial(losses.segmentation, axis_name=_axis(model, train))
    )
    value = loss_fn(logits=logits, labels=labels)
    return value, ({'loss': value}, variables)

  def predict(variables, mask):
    one_hot = jax.nn.one_hot(mask, num_classes)
    logits = model.apply(variables, one_hot, train=False)
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

  return Task(init, loss, predict)


def mapping(model: nn.Module) -> Task:
  """Learns to map image latents to mask latents (arXiv 2603.05541, stage 3).

  A batch holds 'image' and 'mask', latents {scale: [B, h, w, C]} of any
  floating dtype. `predict` takes latents and returns mask latents.

  Args:
    model: a mapping network.
  """
  as_float32 = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)

  def init(key, batch):
    first = jax.tree.map(lambda z: z[:1] * 1.0, as_float32(batch['image']))
    return model.init(key, first, train=False)

  def loss(variables, batch, key, train):
    _, dropout_key = _keys(key, batch)
    outputs, new = _apply(
      model, variables, as_float32(batch['image']), key=dropout_key, train=train
    )
    value = losses.latent_mse(
      predictions=outputs, targets=as_float32(batch['mask'])
    )
    return value, ({'loss': value}, new)

  def predict(variables, latents):
    return model.apply(variables, as_float32(latents), train=False)

  return Task(init, loss, predict)


def segmentation(
  model: nn.Module, *, num_classes: int, augment: Mapping | None = None
) -> Task:
  """Learns masks from images directly: the privacy-agnostic baselines.

  Args:
    model: maps [B, H, W, C] to logits [B, H, W, num_classes].
    num_classes: classes K, background included.
    augment: keyword arguments of `augmentation.augment`, or None.
  """

  def init(key, batch):
    return model.init(key, images.unit_image(batch['image'][:1]), train=False)

  def loss(variables, batch, key, train):
    augment_key, dropout_key = _keys(key, batch)
    image, mask = _augmented(batch, augment_key, train, augment)
    logits, variables = _apply(
      model, variables, image, key=dropout_key, train=train
    )
    value = losses.segmentation(
      logits=logits,
      labels=jax.nn.one_hot(mask, num_classes),
      axis_name=_axis(model, train),
    )
    return value, ({'loss': value}, variables)

  def predict(variables, image):
    logits = model.apply(variables, images.unit_image(image), train=False)
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

  return Task(init, loss, predict)
