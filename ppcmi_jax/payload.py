"""How far queries and replies shrink before Dice falls.

What would cross is rounded by each of the ways of `roundings`, before and
behind the mapping network; nothing is sent, sizes are computed, and no network
is trained anew. Sizes are those of messages of one image, with all that the
run's protection adds to the numbers (`sealed`: header, norms, seal).
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ppcmi_jax import examples as examples_lib
from ppcmi_jax import metrics, roundings, score_table, tables
from ppcmi_jax.sealed import envelope

FALL = 0.005  # of mean Dice, that the smallest payload may cost
MOST = 256  # training images that a coder or a basis learns from


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

    def encoded(image):
      return _in_batches(functools.partial(encode, state.image), image)

    def reply(latents):
      return _in_batches(functools.partial(answer, run.server_state), latents)

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
      'query': roundings.ways(known),
      'reply': roundings.ways(reply(known)),
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
      return latents, roundings.plain_bytes(latents)
    return self.ways[direction][way](latents)


def _in_batches(function, inputs):
  return examples_lib.map_batches(function, inputs, roundings.BATCH)


def _overhead(config, run):
  """Returns the bytes of a message of one image beside its numbers."""
  name, hospital = next(iter(run.hospitals.items()))
  image = run.data.hospitals[name]['test'].image[:1]
  message, _ = hospital.client.protect(hospital.state, image)
  numbers = sum(math.prod(z.shape) for z in run.latents['image'].values())
  return len(message) - math.ceil(
    numbers * envelope.BITS[config.wire_dtype] / 8
  )
