"""Learned inversion: a decoder trained on pairs of messages and images.

Threat. The attacker holds P images with the messages of one client that carry
them (a colluding client, a leaked study, own images sent through a stolen
account) and the client's other messages. It knows neither encoder nor key. It
trains a convolutional decoder from what is observed to the image: a constant
rotation, shift or encoder is one more layer to learn, so the static transform
costs it nothing. The same attack on plain latents of chosen `scales` says what
the server sees, who has the key, if it holds such pairs by its own means.

Phantoms of 128 x 128, random encoder, s3, 60 other images, PSNR in dB (mean
image 20.15), short training:

  pairs                         1      20     200
  plain latents                 23.18  25.95  26.48
  rotation, order and shift                   24.79  (by likeness alone, below)
  uniform words                               20.15

A constant order of positions (`keyed.permutation`) would blind convolutions,
but not the whole attack. `position_order` finds it: at the right place the
latents of P messages are alike where the P images are. And a ridge regression
from all that is observed to all pixels, in its dual form of rank P, does not
change under any constant orthogonal map, whatever it mixes. It, or one shared
by all positions, of all scales or the finest alone, as foretells better, comes
first; the decoder learns what to add. Below five images, too few to train it,
the regression is the attack. Sources: the inversion networks of Dosovitskiy and
Brox (CVPR 2016); the likeness is CKA (Kornblith et al., ICML 2019).

Everything is added to the attacker's prior, the mean image, as far as pairs
that were left out gain by it (`fitting`), so that without information the
attack stays at its prior. Pairs that are unlike what is to be opened, such as
images of other hospitals, help to learn and do not judge: their own mean would
pass for something learnt.

Axes: N messages, P positions, H, h height, W, w width, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from numpy.typing import ArrayLike

from ppcmi_jax import examples
from ppcmi_jax.attacks import fitting, linear_maps, position_order
from ppcmi_jax.models import layers

FEW_PAIRS = 5  # of different images; below, no decoder is trained


class Decoder(nn.Module):
  """Maps observed {scale: [B, h, w, C]} to what is added to a prior image.

  Attributes:
    shape: (H, W, C) of images; H and W multiples of the scales' sides, by
      powers of two.
    width: channels at the scales; halved at each doubling of the sides.
  """

  shape: tuple[int, int, int]
  width: int = 64

  @nn.compact
  def __call__(self, observed: Mapping[str, jax.Array]) -> jax.Array:
    conv = lambda x, features: layers.conv(features)(x)
    x = None
    for z in sorted(observed.values(), key=lambda z: z.shape[1]):
      z = nn.Conv(self.width, (1, 1))(z)
      if x is not None:
        x = jax.image.resize(x, (*z.shape[:3], x.shape[-1]), 'bilinear')
        z = jnp.concatenate([x, z], axis=-1)
      x = nn.relu(conv(z, self.width))
      x = nn.relu(x + conv(nn.relu(conv(x, self.width)), self.width))
    while x.shape[1] < self.shape[0]:
      features = max(x.shape[-1] // 2, 8)
      x = nn.relu(layers.depth_to_space(conv(x, 4 * features)))
    zero = nn.initializers.zeros
    return nn.Conv(self.shape[-1], (3, 3), kernel_init=zero)(x)


class Inverter(NamedTuple):
  """A trained attack.

  Attributes:
    predict: {scale: [N, h, w, C]} -> float32 images [N, H, W, C] in [0, 1].
    prior: float32 [H, W, C], the mean image that it adds to.
    orders: {scale: int32 [P]}, the recovered order of positions, of the scales
      where one was found.
  """

  predict: Callable[[Mapping[str, np.ndarray]], np.ndarray]
  prior: np.ndarray
  orders: dict[str, np.ndarray]


def fit(
  observed: Mapping[str, np.ndarray],
  images: np.ndarray,
  *,
  scales: Sequence[str] | None = None,
  prior: np.ndarray | None = None,
  source: ArrayLike | None = None,
  judge: ArrayLike | None = None,
  width: int = 64,
  seed: int = 0,
  **options,
) -> Inverter:
  """Trains an inverter on the attacker's pairs.

  A fifth of the sources that judge is held out to stop training.

  Args:
    observed: {scale: float32 [P, h, w, C]}, what crossed the wire.
    images: float32 [P, H, W, C] in [0, 1], what it carried.
    scales: those to use, or the finest of them if that foretells better; all
      by default.
    prior: float32 [H, W, C], the mean of any images the attacker has; by
      default that of `images`, or their mean grey below five sources.
    source: int [P], of which image each pair is a copy; by default each of its
      own.
    judge: bool [P], the pairs that are like what is to be opened, which alone
      say how much was learnt; by default, and of fewer than five sources, all.
    width: of the decoder.
    seed: of the held-out choice, the initialisation and the batches.
    **options: of `fitting.fit`.

  Raises:
    ValueError: shapes do not fit, an unknown scale.
    FloatingPointError: training diverged.
  """
  scales = tuple(sorted(observed) if scales is None else scales)
  observed = _chosen(observed, scales)
  images = np.asarray(images, np.float32)
  count, height, columns, _ = images.shape
  sides = max(z.shape[1:3] for z in observed.values())
  for name, z in observed.items():
    if len(z) != count or height % z.shape[1] or columns % z.shape[2]:
      raise ValueError(
        f'{name}: expected [{count}, h, w, C] with sides that divide those of '
        f'the images, {height} x {columns}, found {list(z.shape)}'
      )
  source = np.arange(count) if source is None else np.asarray(source)
  if source.shape != (count,):
    raise ValueError(f'source: expected [{count}], found {list(source.shape)}')
  if prior is None:
    few = len(np.unique(source)) < FEW_PAIRS
    mean = images.mean() if few else images.mean(0)
    prior = np.broadcast_to(mean, images.shape[1:])
  prior = np.asarray(prior, np.float32)

  rng = np.random.default_rng(seed)
  train, valid, judges = _parted(source, judge, rng)
  orders, seen = {}, images
  finest_first = sorted(observed, key=lambda k: -observed[k].shape[1])
  for name in finest_first if len(valid) else ():
    z = observed[name]
    order = position_order.recover(z[train], seen[train])
    if position_order.is_scrambled(z[valid], images[valid], order):
      orders[name] = order
      seen = position_order.apply(z, order)  # it shows more than images do
  observed = _apply_orders(observed, orders)
  axes = (0, 1, 2)
  mean = {k: z[train].mean(axes) for k, z in observed.items()}
  std = {k: z[train].std(axes) + 1e-6 for k, z in observed.items()}
  # The prior goes in, too: what to add to it depends on it.
  hint = (prior - prior.mean()) / (prior.std() + 1e-6)
  hint = position_order.cells(hint[None], sides)

  def inputs(observed):
    z = {k: (z - mean[k]) / std[k] for k, z in observed.items()}
    return {**z, 'prior': np.repeat(hint, len(next(iter(z.values()))), 0)}

  z, target = inputs(observed), images - prior
  linear = linear_maps.fit(
    examples.take(z, train),
    target[train],
    source=source[train],
    judges=judges,
    rng=rng,
  )
  z = {k: z[k] for k in linear.names}
  residual = target - linear.predict(z)
  residual[train] = target[train] - linear.left_out

  decoder, params = Decoder(images.shape[1:], width), None
  if len(valid):
    arrays = {'z': z, 'image': residual}
    params = jax.jit(decoder.init)(
      jax.random.key(seed), examples.take(z, slice(1))
    )

    def loss(params, batch):
      guess = decoder.apply(params, batch['z'])
      return jnp.mean(jnp.square(guess - batch['image']))

    params = fitting.fit(
      loss,
      params,
      examples.take(arrays, train),
      examples.take(arrays, valid),
      seed=seed,
      **options,
    )
  apply = jax.jit(decoder.apply)

  def predict(messages):
    z = inputs(_apply_orders(_chosen(messages, scales), orders))
    z = {k: z[k] for k in linear.names}
    image = prior + linear.predict(z)
    for i in range(0, len(image) if params else 0, 16):
      part = slice(i, i + 16)
      image[part] += apply(params, examples.take(z, part))
    return np.clip(image, 0, 1)

  return Inverter(predict, prior, orders)


def _parted(source, judge, rng):
  """Returns the rows to learn from, those held out, and who of the first judge.

  Those to learn from begin with the ones that judge.
  """
  judge = np.ones(len(source), bool) if judge is None else np.asarray(judge)
  if len(np.unique(source[judge])) < FEW_PAIRS:
    judge = np.ones(len(source), bool)
  names = np.unique(source[judge])
  few = len(names) < FEW_PAIRS
  held = rng.permutation(names)[: 0 if few else len(names) // 5]
  is_held = np.isin(source, held)
  rows = np.argsort(~judge, kind='stable')
  train = rows[~is_held[rows]]
  return train, np.flatnonzero(is_held & judge), judge[train]


def _apply_orders(observed, orders):
  return {
    k: position_order.apply(z, orders[k]) if k in orders else z
    for k, z in observed.items()
  }


def _chosen(observed, scales):
  missing = sorted(set(scales) - set(observed))
  if missing or not scales:
    raise ValueError(
      f'scales: expected some of {", ".join(observed)}, found '
      f'{", ".join(scales) or "none"}'
    )
  return {k: np.asarray(observed[k], np.float32) for k in scales}
