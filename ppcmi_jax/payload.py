"""How far queries and replies shrink before Dice falls.

What would cross is rounded and comes back, before and behind the mapping
network; nothing is sent, sizes are computed, and no network is trained anew.

  way            what is sent                                        size
  -------------  --------------------------------------------------  ---------
  mixed, b bits  latents mixed as `sealed` mixes them, which makes   always
                 their numbers Gaussian of unit variance; each       the same
                 rounded to 2^b levels, spaced as is best for such
                 (Max, IRE Trans. Inform. Theory 6(1), 1960)
  coded, step d  latents as they are, in multiples of d, by an       depends on
                 entropy coder that knows how often each multiple    the image
                 occurs in each channel of the training images
  ... alone      the finest scales, in float16; the mean of          always
                 training images in place of the others              the same

A step is in units of what an error matters: of each channel's standard
deviation, but of all channels' together for replies in the units of the
decoder's sensitivity (`sensitivity`). A coder's messages tell by their length
what is in the image; sealed, they would have to be padded to the longest, which
is given, too. Sizes are those of messages of one image, with all that the run's
protection adds to the numbers (`sealed`: header, norms, seal).

Axes: M images, h, w sides of a latent, C channels.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppcmi_jax import examples as examples_lib
from ppcmi_jax import metrics, score_table, tables
from ppcmi_jax.sealed import chacha, envelope, masking, mixing

Latents = Mapping[str, np.ndarray]
# latents [M, ...] -> the same as they arrive, and bytes [M] of what is sent.
Rounding = Callable[[Latents], tuple[dict[str, np.ndarray], np.ndarray]]

# Spacing of 2^b levels for a Gaussian of unit variance (Max 1960, table II; 8
# bits by the same condition).
SPACINGS = {
  8: 0.0308, 6: 0.1041, 5: 0.1881, 4: masking.SPACING, 3: 0.5860, 2: 0.9957,
}  # fmt: skip
STEPS = (0.25, 0.5, 1.0, 1.5, 2.0)
FALL = 0.005  # of mean Dice, that the smallest payload may cost
BATCH = 16
MOST = 256  # training images that a coder learns from


def payload(config: Any, run: Any) -> dict[str, Any]:
  """Scores the run with queries or replies rounded ever more.

  Args:
    config: of the run.
    run: what `collaboration.restore` returned of it, of a private method.

  Returns:
    {'whole', 'query', 'reply', 'both'}: 'whole' is the run with nothing
    rounded; 'query' and 'reply' are {way: row} with the other message whole;
    'both' lists, first of what is mixed, then of all, the smallest of each that
    costs at most half of FALL, together; fewer where nothing does.
    A row holds 'dice' {client: mean over the structures of the test split},
    'bytes' (of a message, mean over images and clients; of 'both' the sum of
    two) and 'longest', and of 'both' the two ways.
  """
  parties = {name: _Party(config, run, name) for name in run.hospitals}
  overhead = _overhead(config, run)

  def row(query, reply, direction):
    scores, sizes = {}, []
    for name, party in parties.items():
      scores[name], size = party.score(query, reply)
      sizes.append(size[direction])
    sizes = np.concatenate(sizes) + overhead
    return {
      'dice': scores,
      'bytes': float(sizes.mean()),
      'longest': int(sizes.max()),
    }

  ways = next(iter(parties.values())).ways['query']
  whole = row(None, None, 'query')
  query = {way: row(way, None, 'query') for way in ways}
  reply = {way: row(None, way, 'reply') for way in ways}
  both, enough = [], mean_dice(whole) - FALL / 2
  for word in ('mixed', ''):
    least = [_least(rows, word, enough) for rows in (query, reply)]
    if None not in least:
      there, back = least
      both.append(
        {
          'query': there,
          'reply': back,
          'dice': row(there, back, 'query')['dice'],
          'bytes': query[there]['bytes'] + reply[back]['bytes'],
          'longest': query[there]['longest'] + reply[back]['longest'],
        }
      )
  return {'whole': whole, 'query': query, 'reply': reply, 'both': both}


def mean_dice(row: Mapping[str, Any]) -> float:
  """Returns the mean of a row of `payload` over clients with a structure."""
  return metrics.mean_defined([tables.number(d) for d in row['dice'].values()])


def _least(rows, word, dice):
  """Returns the way with a word whose longest message is shortest, or None."""
  return min(
    (
      way for way, row in rows.items() if word in way and mean_dice(row) >= dice
    ),
    key=lambda way: rows[way]['longest'],
    default=None,
  )


class _Party:
  """A client and its server, and what rounds the messages between them."""

  def __init__(self, config, run, name):
    # Clients share what is compiled, so variables are arguments.
    encode, answer, decode = (
      jax.jit(run.networks[network][0])
      for network in ('image encoder', 'mapping network', 'mask decoder')
    )
    state = run.hospitals[name].state
    number = list(run.hospitals).index(name)

    def encoded(image):
      return _in_batches(functools.partial(encode, state.image), image)

    def reply(latents):
      client = np.full(_count(latents), number, np.int32)
      ask = lambda parts: answer(run.server_state, *parts)
      return _in_batches(ask, (latents, client))

    def reveal(latents):
      logits = _in_batches(functools.partial(decode, state.mask), latents)
      return logits.argmax(-1).astype(np.uint8)

    self._reply, self._reveal = reply, reveal
    parts = run.data.hospitals[name]
    self._test, self._class_names = parts['test'], run.data.class_names
    known = encoded(parts['train'].image[:MOST])
    self._whole = encoded(self._test.image)
    self._whole_reply = reply(self._whole)
    self.ways = {
      'query': roundings(known, alike=False),
      'reply': roundings(reply(known), alike=config.sensitivity),
    }

  def score(self, query, reply):
    """Returns mean Dice and {direction: bytes [M]} of two ways, or None."""
    sent, there = self._rounded('query', query, self._whole)
    answer = self._whole_reply if query is None else self._reply(sent)
    answer, back = self._rounded('reply', reply, answer)
    scores = score_table.score_labels(
      self._reveal(answer), self._test, class_names=self._class_names
    )
    return scores['mean']['dice'], {'query': there, 'reply': back}

  def _rounded(self, direction, way, latents):
    if way is None:
      return latents, _plain_bytes(latents)
    return self.ways[direction][way](latents)


def roundings(known: Latents, *, alike: bool) -> dict[str, Rounding]:
  """Returns {way: what it does to latents} of one client and direction.

  Args:
    known: {scale: [M, h, w, C]} of training images.
    alike: whether an error of one matters as much in every channel.
  """
  ways = {f'mixed, {b} bits': mixed(b) for b in SPACINGS}
  deviation = {k: z.std((0, 1, 2)) for k, z in known.items()}
  if alike:
    # The mean over a scale's channels, then over scales: the units' own.
    overall = np.sqrt(np.mean([np.mean(d**2) for d in deviation.values()]))
    deviation = {k: np.full_like(d, overall) for k, d in deviation.items()}
  least = max(float(d.max()) for d in deviation.values()) * 1e-6 + 1e-12
  for step in STEPS:
    steps = {k: np.maximum(step * d, least) for k, d in deviation.items()}
    ways[f'coded, step {step:g}'] = coded(steps, known)
  fine_to_coarse = sorted(known, key=lambda name: -known[name].shape[1])
  for number in range(len(known) - 1, 0, -1):
    some = fine_to_coarse[:number]
    ways[f'{" and ".join(some)} alone'] = alone(some, known)
  return ways


def mixed(bits: int) -> Rounding:
  """Returns what rounds mixed latents to 2^bits levels, a key of SPACINGS."""
  through = functools.partial(_through, SPACINGS[bits], 2 ** (bits - 1))

  def apply(latents):
    size = sum(math.ceil(bits * z[0].size / 8) for z in latents.values())
    return _in_batches(through, latents), np.full(_count(latents), size)

  return apply


@jax.jit
def _through(spacing, half, latents):
  """Rounds mixed latents to 2 half levels, and unmixes them."""
  transform = mixing.mix()
  # Any key does: how numbers are rounded does not depend on it.
  key = chacha.key_words(bytes(chacha.KEY_BYTES))
  secret = transform.init(dict.fromkeys(latents, key), latents)

  def rounded(parts):
    level = jnp.floor(parts['values'] / spacing)
    level = jnp.clip(level, -half, half - 1) + 0.5
    return {**parts, 'values': spacing * level}

  covered = transform.forward(secret, latents)
  return transform.inverse(
    secret, {name: rounded(parts) for name, parts in covered.items()}
  )


def coded(steps: Mapping[str, np.ndarray], known: Latents) -> Rounding:
  """Returns what rounds to multiples, for a coder that learnt from `known`.

  An ideal coder is assumed, which spends -log2(p) bits on a multiple of
  frequency p (arithmetic coding comes within a few bits a message). Multiples
  outside those of training become the nearest of them.

  Args:
    steps: {scale: [C]}, positive.
    known: {scale: [M, h, w, C]} of training images.
  """
  ranges, costs = {}, {}
  for name, z in known.items():
    level = np.rint(z / steps[name]).astype(np.int64).reshape(-1, z.shape[-1])
    low, high = level.min(0), level.max(0)
    counts = np.zeros((level.shape[1], (high - low).max() + 1))
    for i, column in enumerate((level - low).T):
      counts[i] = np.bincount(column, minlength=counts.shape[1])
    # One more of each than was seen, so that none is impossible.
    counts += np.arange(counts.shape[1]) <= (high - low)[:, None]
    with np.errstate(divide='ignore'):
      costs[name] = -np.log2(counts / counts.sum(1, keepdims=True))
    ranges[name] = low, high

  def apply(latents):
    arrived, bits = {}, 0
    for name, z in latents.items():
      low, high = ranges[name]
      level = np.clip(np.rint(z / steps[name]), low, high).astype(np.int64)
      channel = np.arange(z.shape[-1])
      bits += costs[name][channel, level - low].sum((1, 2, 3))
      arrived[name] = np.float32(level * steps[name])
    return arrived, np.ceil(bits / 8)

  return apply


def alone(scales: Sequence[str], known: Latents) -> Rounding:
  """Returns what keeps some scales, and means of `known` for the others."""
  means = {k: z.mean((0, 1, 2), dtype=np.float64) for k, z in known.items()}

  def apply(latents):
    arrived = {
      name: z
      if name in scales
      else np.broadcast_to(np.float32(means[name]), z.shape)
      for name, z in latents.items()
    }
    return arrived, _plain_bytes({name: latents[name] for name in scales})

  return apply


def _plain_bytes(latents):
  """Returns the bytes [M] of latents in float16."""
  numbers = sum(z[0].size for z in latents.values())
  return np.full(_count(latents), envelope.BITS['float16'] // 8 * numbers)


def _count(latents):
  return len(next(iter(latents.values())))


def _in_batches(function, inputs):
  return examples_lib.map_batches(function, inputs, BATCH)


def _overhead(config, run):
  """Returns the bytes of a message of one image beside its numbers."""
  name, hospital = next(iter(run.hospitals.items()))
  image = run.data.hospitals[name]['test'].image[:1]
  message, _ = hospital.client.protect(hospital.state, image)
  numbers = sum(math.prod(z.shape) for z in run.latents['image'].values())
  return len(message) - math.ceil(
    numbers * envelope.BITS[config.wire_dtype] / 8
  )
