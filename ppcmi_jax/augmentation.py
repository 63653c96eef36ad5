"""Random variations of images and masks, on the device, a key an example.

Image and mask of an example share one geometry. Axes: B batch, H height, W
width, C channels.
"""

import jax
import jax.numpy as jnp


def _coordinates(key, height, width, rotation, scale, translation):
  """Returns the [2, H, W] source coordinates of a random affine map."""
  angle_key, scale_key, shift_key = jax.random.split(key, 3)
  angle = jnp.deg2rad(rotation) * jax.random.uniform(
    angle_key, (), minval=-1, maxval=1
  )
  zoom = jnp.exp(
    jnp.log1p(scale) * jax.random.uniform(scale_key, (2,), minval=-1, maxval=1)
  )
  size = jnp.array([height, width], jnp.float32)
  shift = (
    translation
    * size
    * jax.random.uniform(shift_key, (2,), minval=-1, maxval=1)
  )
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  matrix = jnp.array([[cos, -sin], [sin, cos]]) / zoom
  centre = (size - 1) / 2
  grid = jnp.stack(
    jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing='ij')
  )
  offset = grid - centre[:, None, None] - shift[:, None, None]
  return jnp.einsum('ij,jhw->ihw', matrix, offset) + centre[:, None, None]


def augment(
  keys: jax.Array,
  image: jax.Array,
  mask: jax.Array,
  *,
  rotation_deg: float = 0.0,
  scale: float = 0.0,
  translation: float = 0.0,
  gamma: float = 0.0,
  gain: float = 0.0,
  noise: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Returns a random variation of each pair.

  Args:
    keys: [B] PRNG keys, one an example, each consumed here.
    image: [B, H, W, C] float in [0, 1]; resampled linearly, zero outside.
    mask: [B, H, W] integer classes; resampled to the nearest, 0 outside.
    rotation_deg: largest rotation, degrees.
    scale: largest relative change of each side's scale.
    translation: largest shift, as a fraction of each side.
    gamma: largest relative change of the exponent of grey values.
    gain: largest relative change of the brightness.
    noise: standard deviation of additive Gaussian noise.
  """

  def one(key, image, mask):
    affine_key, gamma_key, gain_key, noise_key = jax.random.split(key, 4)
    if rotation_deg or scale or translation:
      where = _coordinates(
        affine_key, *mask.shape, rotation_deg, scale, translation
      )
      sample = lambda x, order: jax.scipy.ndimage.map_coordinates(
        x, list(where), order=order, mode='constant'
      )
      image = jnp.stack(
        [sample(image[..., c], 1) for c in range(image.shape[-1])], -1
      )
      mask = sample(mask, 0)
    relative = lambda key, size: jnp.exp(
      jnp.log1p(size) * jax.random.uniform(key, (), minval=-1, maxval=1)
    )
    if gamma:
      image = jnp.power(jnp.maximum(image, 1e-6), relative(gamma_key, gamma))
    if gain:
      image = image * relative(gain_key, gain)
    if noise:
      image = image + noise * jax.random.normal(noise_key, image.shape)
    return jnp.clip(image, 0, 1), mask

  return jax.vmap(one)(keys, image, mask)
