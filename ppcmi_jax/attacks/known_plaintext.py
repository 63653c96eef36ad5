"""Known plaintext: a few messages of known images open all the others.

Threat. The attacker holds K latents with the messages that carry them: a
colluding client that shares an image, a public image sent through a stolen
account, a leaked study. It needs the encoder (a stolen checkpoint, or the
common one) to have the latents of the images, and no key.

Every position of a known image is an equation w_p = Q z_p + b, so that affine
Procrustes gives Q and b as soon as K P positions span the C channels: one image
for s3 and s4, five for b at the official size (relative error 1e-6, measured).
A permutation of positions hides which z_p belongs to w_p, but it is an
isometry, too: each position is known by its distances to all others. Where K is
too small, the directions that are still open stay at their mean. (Rotations of
data fall to known pairs, as Liu, Giannella and Kargupta showed, PKDD 2006.)

Positions that look alike in all known images, such as empty background, can't
be told apart; only those stay unsorted.

  >>> import jax
  >>> from ppcmi_jax import keyed
  >>> z = {'s3': jax.random.normal(jax.random.key(0), (2, 6, 6, 4))}
  >>> transform = keyed.chain(keyed.orthogonal(), keyed.permutation())
  >>> w = transform.forward(transform.init(jax.random.key(1), z), z)
  >>> found = fit({'s3': z['s3'][:1]}, {'s3': w['s3'][:1]})
  >>> alignment.relative_error(alignment.undo(found, w), z)['s3'] < 1e-5
  True
"""

import numpy as np

from ppcmi_jax.attacks import alignment

_REFINEMENTS = 10
_FIRST = 100  # images whose profiles order positions, before all refine that


def fit(
  latents: alignment.Latents,
  observed: alignment.Latents,
  *,
  permuted: bool = True,
) -> dict[str, alignment.Isometry]:
  """Estimates the transform of each scale from K pairs.

  `alignment.undo` then opens other messages.

  Args:
    latents: {name: float [K, h, w, C]} of the known images.
    observed: the same shapes, as they crossed the wire.
    permuted: whether positions may have been permuted; False saves time.

  Returns:
    {name: the estimate}; its scale is 1 if the transform is an isometry, and
    falls towards 0 where pairs have nothing in common.

  Raises:
    ValueError: names or shapes differ.
  """
  alignment.check(latents, observed, paired=True)
  return {
    name: _fit_scale(
      alignment.flatten(latents[name]),
      alignment.flatten(observed[name]),
      permuted,
    )
    for name in latents
  }


def _fit_scale(z, w, permuted):
  order = np.arange(z.shape[1])
  if permuted:
    order = alignment.match_profiles(z[:_FIRST], w[:_FIRST])
  isometry = _fit_rows(z, w, order)
  for _ in range(_REFINEMENTS if permuted else 0):
    back = alignment.rotate_back(isometry, w)
    rematched = alignment.match(alignment.stack(z), alignment.stack(back))
    if np.array_equal(rematched, order):
      break
    order = rematched
    isometry = _fit_rows(z, w, order)
  return isometry._replace(order=order)


def _fit_rows(z, w, order):
  channels = z.shape[-1]
  return alignment.procrustes(
    z[:, order].reshape(-1, channels), w.reshape(-1, channels)
  )
