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
their skewness, places positions where the public latents make them likeliest,
and fits mean maps anew in that order, in turn, until the order settles. Where
it does not, as with few messages, channels of facets are named by their
distributions, and the order is right only in part.

Axes: N messages, M public latents, P positions, C channels, F found ones.
"""

import numpy as np

from ppcmi_jax.attacks import alignment, facets

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


def fit(
  observed: alignment.Latents,
  public: alignment.Latents,
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
    public: {name: float [M, h, w, C]} of other images; of the encoder, without
      a transform.
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
  alignment.check(public, observed, paired=False)
  options = {
    'tolerance': tolerance,
    'max_programs': max_programs,
    'seed': seed,
  }
  return {
    name: _fit_scale(
      alignment.flatten(observed[name]),
      alignment.flatten(public[name]),
      permuted,
      num_programmed,
      options,
    )
    for name in observed
  }


def likelihood(back: np.ndarray, public: np.ndarray) -> np.ndarray:
  """Returns how likely each observed position is at each place, float [P, P].

  Places have independent Gaussian channels with the means and variances of the
  public latents, the variances drawn towards their mean over places.

  Args:
    back: float [N, P, C], messages with rotation and shift undone.
    public: float [M, P, C].
  """
  mean, variance = public.mean(axis=0), public.var(axis=0)
  variance = variance + 0.1 * variance.mean(axis=0) + 1e-6
  inverse, count = 1 / variance, len(back)
  return -0.5 * (
    np.sum(back**2, axis=0) @ inverse.T
    - 2 * np.sum(back, axis=0) @ (mean * inverse).T
    + count * np.sum(mean**2 * inverse + np.log(variance), axis=1)
  )


def _fit_scale(w, public, permuted, num_programmed, options):
  size, mean = w.shape[-1], w.mean(axis=0)
  rows = w.reshape(-1, size)
  programmed = w[:num_programmed].reshape(-1, size)
  if len(rows) > _ROWS:
    rng = np.random.default_rng(options['seed'])
    rows = rows[rng.choice(len(rows), _ROWS, replace=False)]
  values = _spread(public.reshape(-1, size), len(rows))
  best = _transport(_mean_maps(mean, public, permuted), rows, values)
  ordered = not permuted
  if permuted:
    components = _components(rows, public.reshape(-1, size))
    other = _transport(components, rows, values)
    tries = [
      _alternate(start, w, public, rows, values) for start in (best, other)
    ]
    best, _, ordered = max(tries, key=lambda t: t[1])
  # Where positions are in order the estimate says where to look.
  guesses = best.rotation if ordered else None
  found = facets.find(programmed, starts=guesses, **options)
  if found.ties.size:
    exact = rows @ found.directions - found.offsets
    if ordered:
      names = alignment.assign(found.directions.T @ best.rotation)
    else:
      known = _spread(public.reshape(-1, size), _QUANTILES)
      names = alignment.match(known.T, _spread(exact, _QUANTILES).T)
    fixed = np.zeros((size, size))
    fixed[:, names] = found.directions
    best = _transport(best, rows, values, fixed)
    best.latent_mean[names] = exact.mean(axis=0)
  order = _likeliest(best, w, public)[0] if permuted else np.arange(w.shape[1])
  return best._replace(order=order)


def _alternate(start, w, public, rows, values):
  """Lets the order of positions and the rotation improve each other.

  Returns:
    (the likeliest fit, its log-likelihood, whether its order has settled or
    nearly so).
  """
  order, best_score = _likeliest(start, w, public)
  best, moved, mean = start, len(order), w.mean(axis=0)
  for _ in range(_ROUNDS):
    placed = np.empty_like(mean)
    placed[order] = mean
    fit = _transport(_mean_maps(placed, public, False), rows, values)
    again, score = _likeliest(fit, w, public)
    changed = np.sum(again != order)
    if score > best_score:
      best, best_score, moved = fit, score, changed
    if not changed:
      break
    order = again
  return best, best_score, moved <= _SETTLED * len(order)


def _likeliest(fit, w, public):
  """Returns the likeliest order of positions, and its log-likelihood."""
  score = likelihood(alignment.rotate_back(fit, w), public)
  order = alignment.assign(score)
  return order, np.sum(score[np.arange(len(order)), order])


def _mean_maps(other, public, permuted):
  """Returns Procrustes on mean maps, which are matched by their distances."""
  one = public.mean(axis=0)
  if permuted:
    one = one[alignment.match(*map(alignment.profiles, (one, other)))]
  return _pose(one, other, _rotation(other - other.mean(0), one - one.mean(0)))


def _components(rows, known):
  """Puts principal components onto each other, signed by their skewness."""
  bases = []
  for x in (rows, known):
    x = x - x.mean(axis=0)
    _, vectors = np.linalg.eigh(x.T @ x)
    skewness = np.mean((x @ vectors) ** 3, axis=0)
    bases.append(np.where(skewness < 0, -vectors, vectors))
  return _pose(known, rows, bases[0] @ bases[1].T)


def _pose(latents, observed, rotation):
  means = latents.mean(axis=0), observed.mean(axis=0)
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
