"""Tests of attacks.outline: invariance, a leak found, and none invented."""

import jax
import numpy as np
import pytest

from ppcmi_jax import keyed
from ppcmi_jax.attacks import outline, position_order

OWN, HELD = 60, 30
OPTIONS = {'width': 16, 'steps': 120, 'eval_every': 20, 'learning_rate': 3e-3}


def draw(count, seed):
  """Masks of one disc in the upper part, and noisy pixels [N, 32, 32]."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:32, :32]
  cy, cx = rng.uniform(8, 18, count), rng.uniform(8, 24, count)
  radius = rng.uniform(3, 8, count)
  at = lambda v: v[:, None, None]
  masks = (y - at(cy)) ** 2 + (x - at(cx)) ** 2 < at(radius) ** 2
  ramp = np.broadcast_to((y + 0.5 * x) / 48, masks.shape)
  noise = 0.1 * rng.normal(size=masks.shape)
  return np.uint8(masks), np.stack([masks + noise, ramp + noise], -1)


def encode(pixels, seed):
  """Random rectified features of the means of cells: an encoder each."""
  rng = np.random.default_rng(seed)
  latents = {}
  for name, side, channels in (('s3', 8, 12), ('s4', 4, 16)):
    count, cell = len(pixels), 32 // side
    x = pixels.reshape(count, side, cell, side, cell, 2).mean((2, 4))
    weights = rng.normal(size=(2, channels))
    x = np.maximum(x @ weights + 0.3 * rng.normal(size=channels), 0)
    latents[name] = np.float32(x)
  return latents


def protect(latents, *, permute=False, seed=0):
  parts = [keyed.orthogonal(), keyed.shift(3.0)]
  parts += [keyed.permutation()] * permute
  transform = keyed.chain(*parts)
  secret = transform.init(jax.random.key(seed), latents)
  protected = transform.forward(secret, latents)
  return {k: np.asarray(z) for k, z in protected.items()}


def words(count, seed):
  rng = np.random.default_rng(seed)
  return {
    's3': rng.random((count, 8, 8, 12), np.float32),
    's4': rng.random((count, 4, 4, 16), np.float32),
  }


def evaluate(attack, messages, masks):
  """Dice of an attack, of its prior, of its answers to other messages."""
  truth, guess = masks > 0, attack.predict(messages)
  prior = np.broadcast_to(attack.prior, truth.shape)
  guesses = {
    'dice': guess,
    'prior': prior,
    'shuffled': np.roll(guess, 1, axis=0),
  }
  return {name: outline.dice(g, truth) for name, g in guesses.items()}


@pytest.fixture(scope='module')
def attack():
  masks, pixels = draw(OWN, seed=0)
  return outline.fit(encode(pixels, seed=0), masks, **OPTIONS)


@pytest.fixture(scope='module')
def victim():
  masks, pixels = draw(HELD, seed=1)
  return masks, encode(pixels, seed=7)


def test_features_see_no_rotation_and_no_shift(victim):
  _, latents = victim
  before = outline.features(latents)
  after = outline.features(protect(latents))
  assert before.shape[:3] == (HELD, 8, 8)
  # Signs of components whose third moment is nearly zero may differ.
  close = np.isclose(before, after, atol=2e-3)
  assert close.mean() > 0.99


def test_features_do_not_depend_on_the_key(attack, victim):
  masks, latents = victim
  one = evaluate(attack, protect(latents, seed=1), masks)
  other = evaluate(attack, protect(latents, seed=2), masks)
  assert one['dice'] == pytest.approx(other['dice'], abs=0.01)


def test_it_finds_outlines_under_another_encoder_and_a_key(attack, victim):
  masks, latents = victim
  scores = evaluate(attack, protect(latents), masks)
  assert scores['dice'] > scores['prior'] + 0.1
  assert scores['dice'] > scores['shuffled'] + 0.1


def test_uniform_words_leave_it_at_the_prior(victim):
  """Also when fitted to words; no more than the prior mask is known."""
  masks, _ = victim
  own, _ = draw(OWN, seed=0)
  attack = outline.fit(words(OWN, 0), own, **OPTIONS)
  scores = evaluate(attack, words(HELD, 1), masks)
  assert scores['dice'] <= scores['prior'] + 0.02
  assert scores['dice'] == pytest.approx(scores['shuffled'], abs=0.05)


def test_an_order_of_positions_is_recovered_without_images():
  """Places differ by how much they vary and with what."""
  rng = np.random.default_rng(0)

  def latents(count, seed):
    _, pixels = draw(count, seed=seed)
    return encode(pixels, seed=seed)['s3']

  reference, z = latents(300, 0), latents(300, 1)
  order = rng.permutation(64)
  scrambled = z.reshape(300, 64, -1)[:, order].reshape(z.shape)
  found = order[position_order.recover_unpaired(scrambled, reference)]
  place = np.arange(64)
  distance = np.hypot(found // 8 - place // 8, found % 8 - place % 8)
  assert np.mean(distance < 1.5) > 0.4  # by chance 0.12
  assert position_order.neighbour_ratio(z) < 0.6
  assert position_order.neighbour_ratio(scrambled) > 0.8
  assert position_order.neighbour_ratio(words(9, 0)['s3']) > 0.8


def test_a_message_without_variation_is_no_error(attack):
  flat = {k: np.ones_like(z) for k, z in words(2, 0).items()}
  assert attack.predict(flat).shape == (2, 32, 32)


def test_bad_input_is_refused():
  with pytest.raises(ValueError, match='masks: expected'):
    outline.fit(words(4, 0), np.zeros((4, 32, 32), np.uint8))
  with pytest.raises(ValueError, match='masks: expected'):
    outline.fit(words(6, 0), np.zeros((6, 30, 32), np.uint8))


@pytest.mark.parametrize('filled', [0, 1, 2, 7, 100])
def test_what_is_held_out_has_foreground(filled):
  some = np.arange(100) < filled
  for seed in range(5):
    train, valid = outline._held_out(some, np.random.default_rng(seed))
    assert sorted([*train, *valid]) == list(range(100))
    assert some[train].sum() == filled - max(filled // 5, filled > 1)


def test_dice_is_of_cases_with_foreground():
  truth = np.zeros((2, 4, 4), bool)
  truth[0, :2] = True
  guess = np.zeros_like(truth)
  guess[:, :1] = True
  assert outline.dice(guess, truth) == pytest.approx(2 * 4 / (4 + 8))
