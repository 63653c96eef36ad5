"""Losses of the method's three tasks.

Axes: B batch, H height, W width, C channels, K classes. Each loss returns a
scalar in float32 and takes logits, never probabilities.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax


def official_reconstruction(*, logits: jax.Array, labels: jax.Array):
  """Returns 0.5 BCE + 0.5 Dice, as the official code trains autoencoders.

  Dice is taken per sample over all pixels and channels with eps 1e-6
  (the official code). On grey values it is not smallest at a perfect
  reconstruction, and on masks it barely notices a lost small class;
  it is here for parity.

  Args:
    logits: [B, H, W, C].
    labels: [B, H, W, C] in [0, 1]: an image, or a one-hot mask.
  """
  bce = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels))
  axes, p = (1, 2, 3), jax.nn.sigmoid(logits)
  overlap = jnp.sum(p * labels, axes)
  total = jnp.sum(p, axes) + jnp.sum(labels, axes)
  dice = jnp.mean(1 - (2 * overlap + 1e-6) / (total + 1e-6))
  return 0.5 * bce + 0.5 * dice


def image_reconstruction(*, logits: jax.Array, labels: jax.Array):
  """Returns the mean absolute plus the mean squared error of sigmoid(logits).

  Both are smallest at a perfect reconstruction. Arguments as above.
  """
  error = jax.nn.sigmoid(logits) - labels
  return jnp.mean(jnp.abs(error)) + jnp.mean(jnp.square(error))


def segmentation(
  *, logits: jax.Array, labels: jax.Array, axis_name: str | None = None
):
  """Returns cross-entropy plus one minus the mean soft Dice of the classes.

  Dice is taken per class over the whole batch, and averaged over the classes
  that the batch holds, so that a small class weighs as much as a large one.

  Args:
    logits: [B, H, W, K].
    labels: [B, H, W, K] class probabilities (one-hot, or a mixture).
    axis_name: pmap axis whose devices share the batch, or None. Cross-entropy
      is a device's own: the mean of all, with their gradients, is the whole.
  """
  cross_entropy = jnp.mean(optax.softmax_cross_entropy(logits, labels))
  p, axes = jax.nn.softmax(logits), (0, 1, 2)
  overlap = jnp.sum(p * labels, axes)
  found, wanted = jnp.sum(p, axes), jnp.sum(labels, axes)
  if axis_name is not None:
    overlap, found, wanted = jax.lax.psum((overlap, found, wanted), axis_name)
  total, present = found + wanted, wanted > 0
  dice = jnp.sum(present * (2 * overlap) / (total + 1e-6))
  return cross_entropy + 1 - dice / jnp.maximum(jnp.sum(present), 1)


def latent_mse(
  *, predictions: Mapping[str, jax.Array], targets: Mapping[str, jax.Array]
):
  """Returns the sum over scales of the mean squared error of latents.

  The published mapping loss (arXiv 2603.05541), in the units that the latents
  came in.

  Args:
    predictions, targets: {scale: [B, h, w, C]}.
  """
  return sum(
    jnp.mean(jnp.square(predictions[name] - targets[name]))
    for name in sorted(targets)
  )
