"""Ciphertext only: the static transform undone without a single pair.

Threat. An eavesdropper, broker or storage sees N messages of one client, N
from 1, and has no key. Two attackers:

- `channels` does not know the encoder either. Zeros after a ReLU make every
  channel a facet of the cloud of positions (`facets`), so channels come out
  exactly, up to their order: of s3's 64, 58 from one phantom of 256 x 256 and a
  random encoder, 39 from ten of 128 x 128 and a trained one. It takes several
  times as many distinct positions as channels.
- `fit` knows the encoder (a stolen checkpoint, or the common one), and so has
  `public` latents of other images of the same field of view. Position-wise mean
  maps are noisy pairs, for Procrustes. Channel by channel, optimal transport in
  one dimension then moves the estimate to the public values and Procrustes
  makes it a rotation again (Grave et al., arXiv 1805.11222, with the basis of
  channels in the place of pairs). Facets near the estimate are exact, and give
  the rest less room.

Permuted positions change nothing for the facets. `fit` then starts from the
mean maps matched by their distances, or from principal components signed by
their skewness, places positions where they are likeliest (`places`), and fits
the rotation anew in that order, in turn, until the order settles. Scales are
opened from coarse to fine; where one has settled, the next is tried with what
that foretells of it, too, and the likelier fit counts. Channels of facets are
named by the rotation, or by their distributions, whichever is likelier. Where
no order settles, as with few messages, it is right only in part.

Axes: N messages, M public latents, P positions, C channels, F found ones.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ppcmi_jax.attacks import alignment, facets
from ppcmi_jax.attacks import places as places_lib

_ITERATIONS = 60  # of transport
_ROWS = 4096  # positions transported, of all messages; more fitted no better
_QUANTILES = 128
_ROUNDS = 15  # of order and rotation in turn
_SETTLED = 0.2  # of the positions may still move in an order to rely on


def channels(
  observed: alignment.Latents,
  *,
  tolerance: float = 1e-3,
  max_programs: int = 400,
  seed: int = 0,
) -> dict[str, np.ndarray]:
  """Recovers channels from messages alone.

  Args:
    observed: {name: float [N, h, w, C]}.
    tolerance, max_programs, seed: of `facets.find`; 1e-2 for float16 messages.

  Returns:
    {name: float32 [N, h, w, F]}: F <= C channels in no order, at least 0 up to
    rounding, at the positions of the messages. F is 0 where nothing is found.
  """
  found = {}
  for name, w in observed.items():
    flat = alignment.flatten(w)
    one = facets.find(
      flat.reshape(-1, flat.shape[-1]),
      tolerance=tolerance,
      max_programs=max_programs,
      seed=seed,
    )
    values = flat @ one.directions - one.offsets
    found[name] = values.reshape(*np.shape(w)[:3], -1).astype(np.float32)
  return found


def exact_channels(
  found: alignment.Latents,
  latents: alignment.Latents,
  *,
  tolerance: float = 1e-2,
) -> dict[str, float]:
  """Returns the share of channels recovered exactly, up to their order.

  A channel counts if a found one has its values in each message, sorted, to
  within `tolerance` of their standard deviation (root mean square); so the
  order of positions does not matter. By chance none does.

  Args:
    found: {name: float [N, h, w, F]}, of `channels`.
    latents: {name: float [N, h, w, C]}, the truth.
    tolerance: see above.
  """
  shares = {}
  for name, z in latents.items():
    truth = np.sort(alignment.flatten(z), axis=1).reshape(-1, z.shape[-1])
    values = np.sort(alignment.flatten(found[name]), axis=1)
    values = values.reshape(len(truth), -1)
    hits = 0
    for channel in truth.T:
      errors = np.mean((values - channel[:, None]) ** 2, axis=0)
      hits += np.min(errors, initial=np.inf) < (tolerance * channel.std()) ** 2
    shares[name] = hits / truth.shape[1]
  return shares


class Known(NamedTuple):
  """What public latents of a scale say of any others.

  Attributes:
    latents: float [M, h, w, C], the public latents.
    places: what they make expected of an image at each place.
    foretell: the same from the next coarser scale of the image, once that is
      opened; None of the coarsest scale.
    spread: count -> so many quantiles of each channel, float [count, C].
  """

  latents: np.ndarray
  places: places_lib.Places
  foretell: Callable[[np.ndarray], places_lib.Places] | None
  spread: Callable[[int], np.ndarray]


class Try(NamedTuple):
  """One estimate of a scale's transform.

  Attributes:
    fit: in the likeliest order.
    score: log-likelihood of all messages.
    settled: whether the order can be relied on.
    places: what the messages were compared with.
  """

  fit: alignment.Isometry
  score: float
  settled: bool
  places: places_lib.Places


def learn(public: alignment.Latents) -> dict[str, Known]:
  """Returns what `fit` has to know of the encoder.

  Args:
    public: {name: float [M, h, w, C]}, latents of other images of the same
      field of view, without a transform.
  """
  known, coarser = {}, None
  for name in sorted(public, key=lambda k: np.prod(np.shape(public[k])[1:3])):
    z = alignment.flatten(public[name])
    foretell = None
    if coarser is not None:
      foretell = places_lib.foretelling(public[name], public[coarser])
    known[name] = Known(
      z.reshape(np.shape(public[name])),
      places_lib.of_public(z),
      foretell,
      functools.cache(functools.partial(_spread, z.reshape(-1, z.shape[-1]))),
    )
    coarser = name
  return known


def fit(
  observed: alignment.Latents,
  known: Mapping[str, Known],
  *,
  permuted: bool = True,
  tolerance: float = 1e-3,
  max_programs: int = 400,
  num_programmed: int | None = None,
  seed: int = 0,
) -> dict[str, alignment.Isometry]:
  """Estimates the transform of each scale from messages and public latents.

  `alignment.undo` then opens these and other messages.

  Args:
    observed: {name: float [N, h, w, C]}.
    known: of `learn`, of the same scales of the same encoder, coarse to fine.
    permuted: whether positions may have been permuted.
    tolerance, max_programs, seed: of `facets.find`; max_programs=0 does
      without facets.
    num_programmed: messages that facets are looked for in, the first so many,
      as linear programs of many positions take long; None takes all.

  Returns:
    {name: the estimate}.

  Raises:
    ValueError: names or shapes differ.
  """
  latents = {name: one.latents for name, one in known.items()}
  alignment.check(latents, observed, paired=False)
  options = {
    'tolerance': tolerance,
    'max_programs': max_programs,
    'seed': seed,
  }
  fits, foretold = {}, None
  finer = dict(zip(known, list(known.values())[1:]))
  for name, of_scale in known.items():
    fits[name], settled = _fit_scale(
      alignment.flatten(observed[name]),
      of_scale,
      foretold,
      permuted,
      num_programmed,
      options,
    )
    foretold = None  # by a scale in disorder, nothing
    if settled and name in finer:
      opened = alignment.undo({name: fits[name]}, observed)[name]
      foretold = finer[name].foretell(opened)
  return {name: fits[name] for name in observed}


def _fit_scale(w, known, foretold, permuted, num_programmed, options):
  size = w.shape[-1]
  rows = w.reshape(-1, size)
  programmed = w[:num_programmed].reshape(-1, size)
  if len(rows) > _ROWS:
    rng = np.random.default_rng(options['seed'])
    rows = rows[rng.choice(len(rows), _ROWS, replace=False)]
  transport = functools.partial(
    _transport, rows=rows, values=known.spread(len(rows))
  )
  attempt = functools.partial(_try, w, transport, permuted)
  expected, mean = known.places.mean[0], w.mean(axis=0)
  if permuted:
    place = alignment.match(*map(alignment.profiles, (expected, mean)))
    starts = [
      _pose(expected[place], mean),
      _components(rows, alignment.flatten(known.latents).reshape(-1, size)),
    ]
  else:
    starts = [_pose(expected, mean)]
  # In order, the mean maps give no other start than the one at hand.
  rounds = _ROUNDS * permuted
  tries = [attempt(transport(one), known.places, rounds) for one in starts]
  if foretold is not None:
    tries += [attempt(one.fit, foretold, rounds or 1) for one in tries]
  best = max(tries, key=lambda one: one.score)
  # Where positions are in order the estimate says where to look.
  guesses = best.fit.rotation if best.settled else None
  found = facets.find(programmed, starts=guesses, **options)
  if not found.ties.size:
    return best.fit, best.settled
  exact = rows @ found.directions - found.offsets
  quantiles = known.spread(_QUANTILES), _spread(exact, _QUANTILES)
  fits = [
    _with_facets(best.fit, transport, names, found.directions, exact)
    for names in (
      alignment.assign(found.directions.T @ best.fit.rotation),
      alignment.match(*(one.T for one in quantiles)),
    )
  ]
  ends = [(fit, *_placed(fit, w, best.places, permuted)) for fit in fits]
  fit, order, _ = max(ends, key=lambda end: end[-1])
  return fit._replace(order=order), best.settled


def _with_facets(fit, transport, names, directions, exact):
  """Holds channels of known names to the directions of their facets."""
  fixed = np.zeros_like(fit.rotation)
  fixed[:, names] = directions
  fit = transport(fit, fixed=fixed)
  fit.latent_mean[names] = exact.mean(axis=0)
  return fit


def _try(w, transport, permuted, start, places, rounds):
  """Lets the order of positions and the rotation improve each other."""
  order, best_score = _placed(start, w, places, permuted)
  best, moved = start._replace(order=order), None
  # All messages where each has its own, and otherwise their mean.
  each = w if len(places.mean) > 1 else w.mean(axis=0, keepdims=True)
  for _ in range(rounds):
    pairs = places.mean[:, order], each
    fit = transport(_pose(*(x.reshape(-1, x.shape[-1]) for x in pairs)))
    again, score = _placed(fit, w, places, permuted)
    changed = np.sum(again != order)
    if moved is None:
      moved = changed  # from the start
    if score > best_score:
      best, best_score, moved = fit._replace(order=again), score, changed
    if not changed:
      break
    order = again
  settled = not permuted or moved <= _SETTLED * len(order)
  return Try(best, best_score, settled, places)


def _placed(fit, w, places, permuted):
  """Returns the likeliest order of positions, and its log-likelihood."""
  score = places_lib.likelihood(alignment.rotate_back(fit, w), places)
  order = alignment.assign(score) if permuted else np.arange(len(score))
  return order, np.sum(score[np.arange(len(order)), order])


def _components(rows, known):
  """Puts principal components onto each other, signed by their skewness."""
  bases = []
  for x in (rows, known):
    x = x - x.mean(axis=0)
    _, vectors = np.linalg.eigh(x.T @ x)
    skewness = np.mean((x @ vectors) ** 3, axis=0)
    bases.append(np.where(skewness < 0, -vectors, vectors))
  return _pose(known, rows, bases[0] @ bases[1].T)


def _pose(latents, observed, rotation=None):
  """Returns the isometry of a rotation; by default by Procrustes, of pairs."""
  means = latents.mean(axis=0), observed.mean(axis=0)
  if rotation is None:
    rotation = _rotation(observed - means[1], latents - means[0])
  return alignment.Isometry(rotation, 1.0, *means, np.zeros(0, np.int64))


def _spread(values, count):
  """Returns so many quantiles of each column, float [count, columns]."""
  return np.quantile(values, (np.arange(count) + 0.5) / count, axis=0)


def _rotation(w, targets, fixed=None):
  """Returns the orthogonal Q of least |w - Q targets|, of centred [M, C] both.

  `fixed`, float [C, C], has the columns of Q that are known, or else zeros.
  """
  count = len(w)
  if fixed is None and count < w.shape[1]:  # by the rows, and any complement
    (a, r), (b, s) = (np.linalg.qr(x.T, mode='complete') for x in (w, targets))
    left, _, right = np.linalg.svd(r[:count] @ s[:count].T)
    return a[:, :count] @ left @ right @ b[:, :count].T + (
      a[:, count:] @ b[:, count:].T
    )
  product = w.T @ targets
  if fixed is None:
    left, _, right = np.linalg.svd(product)
    return left @ right
  rotation, free = fixed.copy(), ~fixed.any(axis=0)
  if free.any():
    _, basis = np.linalg.eigh(fixed @ fixed.T)
    basis = basis[:, : free.sum()]  # what the known columns leave
    left, _, right = np.linalg.svd(basis.T @ product[:, free])
    rotation[:, free] = basis @ left @ right
  return rotation


def _transport(start, rows, values, fixed=None):
  """Alternates transport of each channel to sorted values and Procrustes."""
  fit = start
  for _ in range(_ITERATIONS):
    back = alignment.rotate_back(fit, rows)
    targets = np.empty_like(back)
    np.put_along_axis(targets, np.argsort(back, axis=0), values, axis=0)
    means = rows.mean(axis=0), targets.mean(axis=0)
    rotation = _rotation(rows - means[0], targets - means[1], fixed)
    change = np.abs(rotation - fit.rotation).max()
    fit = fit._replace(
      rotation=rotation, observed_mean=means[0], latent_mean=means[1]
    )
    if change < 1e-4:
      break
  return fit
