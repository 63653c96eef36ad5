"""Attacks that end in an image: how close it comes, in PSNR.

Each is a function of a setting and a protection and returns a cell (`cells`)
and the images of the targets, float32 [N, H, W, C]; the images are None where
nothing could be measured. The trivial level is the PSNR of the mean of the
victim's training images, which the attacker is granted.
"""

from collections.abc import Callable

import numpy as np

from ppcmi_jax import examples, exposure, image_metrics
from ppcmi_jax.attacks import (
  ciphertext_only,
  inverter,
  known_plaintext,
  stitching,
)
from ppcmi_jax.privacy import cells
from ppcmi_jax.privacy import setting as settings

Attack = Callable[[settings.Setting, str], tuple[cells.Cell, np.ndarray | None]]

# Of the finest scale, in the messages that linear programs take, but at least
# ten messages.
POSITIONS = 3200
TOLERANCE = 1e-2  # of facets, above the rounding of float16
MAX_PROGRAMS = 48
HIGHEST_DB = 100.0
STEPS = 300  # of the inverter's training, at most; or as many as pairs


def score(
  setting: settings.Setting, guess: np.ndarray, note: str = ''
) -> tuple[cells.Cell, np.ndarray]:
  """Returns the cell of guesses of the targets, and the guesses."""
  rows = setting.groups['target']
  truth = setting.image[rows]
  prior = np.broadcast_to(setting.prior, truth.shape)
  guess = np.clip(guess, 0, 1)
  value, trivial = (
    np.minimum(image_metrics.psnr(prediction=x, truth=truth), HIGHEST_DB)
    for x in (guess, prior)
  )
  cell = cells.of_means(
    value, trivial, subject=setting.subject[rows], note=note
  )
  return cell, guess


def pairs(setting: settings.Setting, most: int) -> tuple[np.ndarray, str]:
  """Returns the rows of so many pairs, and a note where they are fewer."""
  rows = setting.known(most)
  short = len(rows) < most
  return rows, f'{len(rows)} pairs, all there are' if short else ''


def known(most: int) -> Attack:
  """Opens the targets by the transform that pairs of known images give away."""

  def attack(setting, protection):
    seen, (rows, note) = setting.seen(protection), pairs(setting, most)
    fits = known_plaintext.fit(
      examples.take(setting.latents, rows), examples.take(seen, rows)
    )
    target = examples.take(seen, setting.groups['target'])
    guess = known_plaintext.alignment.undo(fits, target)
    return score(setting, setting.decode(guess), note)

  return attack


def ciphertext(setting, protection):
  """Opens the targets from messages and the latents of public images.

  A secret of one message is fitted to that message alone, and without facets,
  which no single message of few positions has; a query, so to originals alone.
  """
  others = setting.groups['others']
  if not len(others):
    return cells.missing('no other client has public images'), None
  seen = setting.seen(protection)
  target = setting.groups['target']
  if protection in exposure.FRESH:
    permuted = protection not in exposure.IN_ORDER
    known = setting.once(
      'known of others',
      lambda: ciphertext_only.learn(examples.take(setting.latents, others)),
    )
    parts = []
    for row in target:
      one = examples.take(seen, [row])
      fits = ciphertext_only.fit(one, known, permuted=permuted, max_programs=0)
      parts.append(ciphertext_only.alignment.undo(fits, one))
    guess = {
      name: np.concatenate([part[name] for part in parts]) for name in seen
    }
    note = 'each message by itself'
  else:
    fits = intercepted_fits(setting, protection)
    guess = ciphertext_only.alignment.undo(fits, examples.take(seen, target))
    note = f'{len(setting.intercepted)} messages'
  return score(setting, setting.decode(guess), note)


def intercepted_fits(setting, protection):
  """Returns {scale: the transform that messages alone give away}.

  It takes minutes to an hour, and is fitted once for all that want it.
  """
  return setting.once(
    ('ciphertext only', protection),
    lambda: ciphertext_only.fit(
      examples.take(setting.seen(protection), setting.intercepted),
      setting.once(
        'known of public', lambda: ciphertext_only.learn(setting.public())
      ),
      permuted=protection not in exposure.IN_ORDER,
      tolerance=TOLERANCE,
      max_programs=MAX_PROGRAMS,
      num_programmed=len(programmed(setting)),
    ),
  )


def programmed(setting: settings.Setting) -> np.ndarray:
  """Returns the rows of as many messages as linear programs can take."""
  finest = max(z.shape[1] * z.shape[2] for z in setting.latents.values())
  return setting.intercepted[: max(10, POSITIONS // finest)]


def crossed(setting, protection):
  """Opens the targets with another client's decoder, as they are."""
  if not setting.accomplice:
    return cells.missing('no other client has a decoder'), None
  seen = setting.seen(protection)
  target = examples.take(seen, setting.groups['target'])
  return score(setting, setting.own_decode(target))


def stitched(most: int) -> Attack:
  """Opens the targets with another client's decoder, joined by pairs."""

  def attack(setting, protection):
    if not setting.accomplice:
      return cells.missing('no other client has a decoder'), None
    seen, (rows, note) = setting.seen(protection), pairs(setting, most)
    fits = stitching.fit(
      examples.take(seen, rows),
      examples.take(setting.own_latents, rows),
      permuted=protection not in exposure.IN_ORDER,
    )
    target = examples.take(seen, setting.groups['target'])
    guess = stitching.stitch(fits, target)
    return score(setting, setting.own_decode(guess), note)

  return attack


def learned(most: int, scales: tuple[str, ...] | None = None) -> Attack:
  """Opens the targets with a decoder trained on pairs.

  With scales it reads these alone, of plain latents whatever the protection:
  what the server makes of them, who holds the key.
  """

  def attack(setting, protection):
    seen = setting.latents if scales else setting.seen(protection)
    rows, note = pairs(setting, most)
    found = inverter.fit(
      examples.take(seen, rows),
      setting.image[rows],
      scales=scales,
      prior=setting.prior,
      source=setting.source[rows],
      judge=np.isin(rows, setting.groups['own']),
      width=32,
      steps=max(STEPS, len(rows)),
      batch_size=8,
      patience=3,
    )
    target = examples.take(seen, setting.groups['target'])
    return score(setting, found.predict(target), note)

  return attack
