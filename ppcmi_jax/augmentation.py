"""Random variations of images and masks, on the device, a key an example.

Image and mask of an example share one geometry. Axes: B batch, H height, W
width, C channels.
"""

import jax
import jax.numpy as jnp


def _coordinates(draws, height, width, rotation_deg, scale, translation):
  """Returns the [2, H, W] source coordinates of an affine map.

  `draws` [5] in [-1, 1] choose the angle, two scales and two shifts.
  """
  angle = jnp.deg2rad(rotation_deg) * draws[0]
  zoom = jnp.exp(jnp.log1p(scale) * draws[1:3])
  size = jnp.array([height, width], jnp.float32)
  shift = translation * size * draws[3:5]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  matrix = jnp.array([[cos, -sin], [sin, cos]]) / zoom
  centre = (size - 1) / 2
  grid = jnp.stack(
    jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing='ij')
  )
  offset = grid - (centre + shift)[:, None, None]
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
  probability: float = 1.0,
  flip: bool = False,
  speckle: float = 0.0,
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
    probability: share of the pairs that are varied; the others come back as
      they are.
    flip: whether half of the varied pairs are mirrored left to right, first of
      all. Only where the anatomy allows it: mirrored, a liver is on the wrong
      side.
    speckle: standard deviation of multiplicative Gaussian noise, relative to
      the grey value, a number a pixel, the same in all channels.
  """

  def one(key, image, mask):
    affine_key, noise_key = jax.random.split(key)
    # One draw for all: each separate draw costs a second of compilation.
    draws = jax.random.uniform(affine_key, (9,), minval=-1, maxval=1)
    original = image, mask
    if flip:
      image, mask = (
        jnp.where(draws[8] < 0, jnp.flip(x, axis=1), x) for x in (image, mask)
      )
    if rotation_deg or scale or translation:
      where = _coordinates(draws, *mask.shape, rotation_deg, scale, translation)

      def sample(x, order):
        return jax.scipy.ndimage.map_coordinates(
          x, list(where), order=order, mode='constant'
        )

      image = jnp.stack(
        [sample(image[..., c], 1) for c in range(image.shape[-1])], -1
      )
      mask = sample(mask, 0)
    if gamma:
      exponent = jnp.exp(jnp.log1p(gamma) * draws[5])
      image = jnp.power(jnp.maximum(image, 1e-6), exponent)
    if gain:
      image = image * jnp.exp(jnp.log1p(gain) * draws[6])
    if speckle:
      speckle_key = jax.random.fold_in(noise_key, 1)
      grain = jax.random.normal(speckle_key, (*image.shape[:2], 1))
      image = image * (1 + speckle * grain)
    if noise:
      image = image + noise * jax.random.normal(noise_key, image.shape)
    chosen = (draws[7] + 1) / 2 < probability
    return jax.tree.map(
      lambda new, old: jnp.where(chosen, new, old),
      (jnp.clip(image, 0, 1), mask),
      original,
    )

  return jax.vmap(one)(keys, image, mask)
