"""The grey values that networks see."""

import jax
import jax.numpy as jnp


def unit_image(image: jax.Array) -> jax.Array:
  """Returns an image as float32: uint8 over 255, floats as they are.

  Raises:
    ValueError: another dtype, such as int16 Hounsfield units, which has to be
      windowed to [0, 1] first.
  """
  if image.dtype == jnp.uint8:
    return image.astype(jnp.float32) / 255
  if jnp.issubdtype(image.dtype, jnp.floating):
    return image.astype(jnp.float32)
  raise ValueError(
    f'image: expected uint8, or float in [0, 1], found {image.dtype}; window '
    'and scale it first'
  )
