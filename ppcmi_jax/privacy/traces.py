"""Attacks that end in no image: channels, seeds, outlines and links.

Each is a function of a setting and a protection and returns a cell (`cells`);
`outlined` returns the outlines, too, bool [N, H, W], as `pictures` its images.
"""

import jax
import numpy as np

from ppcmi_jax import examples, exposure, learners
from ppcmi_jax.attacks import (
  ciphertext_only,
  linking,
  outline,
  position_order,
  seed_search,
)
from ppcmi_jax.privacy import cells, pictures

PROGRAMS = 4  # linear ones, at most, for each channel that is looked for
SEEDS = 256  # tried, the right one among them
OWN_CASES = 200  # of the attacker on outlines, at most
STEPS = 600

# What of messages is compared, by how often secrets change.
THREATS = {
  'none': ('static',),
  'official': ('static',),
  'klt': ('static',),
  'official, fresh keys': ('rotated',),
  'klt, fresh keys': ('permuted',),
  **dict.fromkeys(exposure.SEALED, linking.THREATS),
}


def channels(most: int) -> pictures.Attack:
  """Finds channels of the finest scale without encoder or pairs, in per cent.

  The trivial level is 0: none is found by chance. Linear programs take some
  messages only (`pictures.programmed`). Where secrets are fresh, each message
  is by itself, and only the first is looked at.
  """

  def attack(setting, protection):
    rows = pictures.programmed(setting)[:most]
    if protection in exposure.FRESH:
      rows = rows[:1]
    finest = max(setting.latents, key=lambda k: setting.latents[k].shape[1])
    latents = {finest: setting.latents[finest][rows]}
    count = latents[finest].shape[-1]
    found = ciphertext_only.channels(
      {finest: setting.seen(protection)[finest][rows]},
      tolerance=pictures.TOLERANCE,
      max_programs=PROGRAMS * count,
    )
    # Rounded to float16 on the wire, an exact channel is off by so much.
    shares = ciphertext_only.exact_channels(found, latents, tolerance=2e-2)
    note = f'messages: {len(rows)}'
    cell = cells.of_value(100 * shares[finest], 0.0, n=count, note=note)
    return cell, None

  return attack


def seeds(setting, protection):
  """Searches the integer seed of one message's secret: the share of ties there.

  In per cent; the trivial level is the largest share of a wrong seed. Without
  protection there is nothing to undo; sealed messages have no such seed.
  """
  if protection in exposure.SEALED:
    return cells.missing('the keys of sealed messages come from no seed'), None
  row = setting.groups['target'][:1]
  message = examples.take(setting.seen(protection), row)
  name = 'klt' if protection == 'none' else protection.partition(',')[0]
  transform = learners.TRANSFORMS[name]
  if protection in exposure.FRESH:
    # The key of a message is that of the seed and of its number.
    transform = transform._replace(
      init=lambda key, like, init=transform.init: init(
        jax.random.fold_in(key, int(row[0])), like
      )
    )
  tried = setting.seed + np.arange(SEEDS)
  ranking = seed_search.search(transform, message, tried)
  right = ranking.seeds == setting.seed
  if protection == 'none':
    finest = max(message, key=lambda name: message[name].shape[1])
    value, trivial = seed_search.tie_share(message[finest]), ranking.scores[0]
  else:
    value, trivial = ranking.scores[right][0], ranking.scores[~right].max()
  note = f'{SEEDS} seeds tried'
  cell = cells.of_value(
    100 * float(value), 100 * float(trivial), n=1, note=note
  )
  return cell, None


def outlined(same_encoder: bool) -> pictures.Attack:
  """Outlines the foreground of the targets, without any key; Dice.

  The attacker has the other clients' images and masks, and the victim's
  encoder or the accomplice's. One rotation leaves its features as they are, so
  that it learns from plain latents; else from its own, protected likewise. With
  the same encoder it knows where positions belong from `ciphertext_only`.

  Args:
    same_encoder: whether the encoder is the victim's.
  """

  def attack(setting, protection):
    own = setting.groups['others'][:OWN_CASES]
    target, truth = setting.groups['target'], setting.mask > 0
    if len(own) < 5 or not setting.accomplice:
      why = f'{len(own)} images of other clients, too few to learn from'
      return cells.missing(why), None
    filled = truth[target].any((1, 2))
    if not filled.any() or not truth[own].any():
      return cells.missing('masks without foreground'), None
    seen = setting.seen(protection)
    latents = setting.latents if same_encoder else setting.own_latents
    known = examples.take(latents, own)
    is_isometry = protection in (*exposure.IN_ORDER, 'klt')
    if not is_isometry:
      known = setting.protect(protection, known, seed=setting.seed + 1)
    learnt_from = 'plain' if is_isometry else protection
    found = setting.once(
      ('outline', same_encoder, learnt_from),
      lambda: outline.fit(known, setting.mask[own], steps=STEPS, patience=4),
    )
    if protection == 'klt' and same_encoder:
      messages = _in_order(setting, target)
    else:
      # The order of positions shows in many messages, so all go in.
      rows = setting.intercepted if protection == 'klt' else target
      messages = examples.take(seen, rows)
    guess = found.predict(messages)[: len(target)]
    prior = np.broadcast_to(found.prior, guess.shape)
    value, trivial = (
      np.array(
        [outline.dice(g[None], t[None]) for g, t in zip(x, truth[target])]
      )[filled]
      for x in (guess, prior)
    )
    cell = cells.of_means(
      value, trivial, subject=setting.subject[target][filled]
    )
    return cell, guess

  return attack


def _in_order(setting, rows):
  """Returns messages under klt, each position where it seems to belong."""
  fits = pictures.intercepted_fits(setting, 'klt')
  return {
    name: position_order.apply(w, np.argsort(fits[name].order))
    for name, w in examples.take(setting.seen('klt'), rows).items()
  }


def linked(setting, protection):
  """Links two messages of one subject: the AUC against those of two."""
  visits, latents = setting.visits()
  if not len(visits.image):
    return cells.missing(visits.note), None
  seen = setting.protect(protection, latents)
  links = {
    threat: linking.evaluate(
      linking.similarity(linking.features(seen, threat=threat)),
      visits.subject,
      num_draws=200,
    )
    for threat in THREATS[protection]
  }
  link = max(links.values(), key=lambda link: abs(link.auc - 0.5))
  note = (
    f'{link.same} pairs of one subject, {link.different} of two; {visits.note}'
  )
  if len(links) > 1:
    note += f'; the farthest from 0.5 of {len(links)} kinds of features'
  cell = cells.of_value(
    link.auc, 0.5, n=link.same, interval=link.interval, note=note
  )
  return cell, None
