"""Tests of attacks.inverter: cases of known answers, and of none."""

import jax
import numpy as np
import pytest

from ppcmi_jax import image_metrics, keyed
from ppcmi_jax.attacks import inverter, linear_maps, position_order

COUNT, HELD = 60, 20
OPTIONS = {'width': 8, 'steps': 60, 'eval_every': 20, 'learning_rate': 3e-3}


def draw_images(count, seed=0, side=32):
  """Bright discs of random place and size, float32 [N, side, side, 1]."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:side, :side]
  images = np.zeros((count, side, side, 1), np.float32)
  for image in images:
    for _ in range(4):
      cy, cx = rng.uniform(0, side, 2)
      disc = (y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(3, 9) ** 2
      image[..., 0] += rng.uniform(0.1, 0.25) * disc
  return images


def encode(images, seed=0):
  """Random linear latents of cells: s3 keeps all, s4 a quarter."""
  rng = np.random.default_rng(seed)
  s3 = position_order.cells(images, (8, 8))
  s4 = position_order.cells(images, (4, 4))
  return {
    's3': s3 @ np.linalg.qr(rng.normal(size=(16, 16)))[0].astype(np.float32),
    's4': s4 @ np.linalg.qr(rng.normal(size=(64, 64)))[0][:, :16],
  }


def protect(latents, *, permute):
  parts = [keyed.orthogonal(), keyed.shift()]
  parts += [keyed.permutation()] * permute
  transform = keyed.chain(*parts)
  latents = {k: np.float32(z) for k, z in latents.items()}
  secret = transform.init(jax.random.key(3), latents)
  protected = transform.forward(secret, latents)
  return {k: np.asarray(z) for k, z in protected.items()}, secret


def part(tree, rows):
  return {k: z[rows] for k, z in tree.items()}


def evaluate(attack, observed, images):
  """The PSNR of what an attack draws, and of its prior, in dB."""
  prior = np.broadcast_to(attack.prior, images.shape)
  return [
    float(np.mean(image_metrics.psnr(prediction=guess, truth=images)))
    for guess in (attack.predict(observed), prior)
  ]


@pytest.fixture(scope='module')
def images():
  return draw_images(COUNT + HELD)


@pytest.fixture(scope='module')
def scrambled(images):
  """(observed, order, scores) of an attack on rotation, shift and order."""
  observed, secret = protect(encode(images), permute=True)
  attack = inverter.fit(
    part(observed, slice(COUNT)), images[:COUNT], scales=('s3',), **OPTIONS
  )
  held = slice(COUNT, None)
  scores = evaluate(attack, part(observed, held), images[held])
  return attack, np.asarray(secret[2]['s3']), scores


def test_one_pair_undoes_a_linear_encoder_and_the_rotation(images):
  observed, _ = protect(encode(images), permute=False)
  attack = inverter.fit(
    part(observed, slice(1)),
    images[:1],
    scales=('s3',),
    prior=images.mean(0),
  )
  psnr, of_prior = evaluate(attack, part(observed, slice(1, 9)), images[1:9])
  assert psnr > of_prior + 4
  assert attack.orders == {}


def test_a_constant_order_does_not_stop_it(scrambled):
  attack, order, scores = scrambled
  assert scores[0] > scores[1] + 3
  found = order[attack.orders['s3']]  # the place each is taken from
  assert np.mean(found == np.arange(64)) > 0.8


def test_uniform_words_stay_at_the_mean_image(images):
  rng = np.random.default_rng(0)
  words = {'s3': rng.random((COUNT + HELD, 8, 8, 16), np.float32)}
  attack = inverter.fit(
    part(words, slice(COUNT)), images[:COUNT], scales=('s3',), **OPTIONS
  )
  held = slice(COUNT, None)
  psnr, of_prior = evaluate(attack, part(words, held), images[held])
  assert psnr == pytest.approx(of_prior, abs=0.1)


def test_what_other_images_have_in_common_is_not_taken_for_a_leak(images):
  rng = np.random.default_rng(0)
  words = {'s3': rng.random((COUNT + HELD, 8, 8, 16), np.float32)}
  own = np.arange(COUNT) < 10
  pairs = np.where(own[:, None, None, None], images[:COUNT], 1 - images[:COUNT])
  attack = inverter.fit(
    part(words, slice(COUNT)),
    pairs,
    prior=images[:10].mean(0),
    judge=own,
    **OPTIONS,
  )
  held = slice(COUNT, None)
  psnr, of_prior = evaluate(attack, part(words, held), images[held])
  assert psnr == pytest.approx(of_prior, abs=0.1)


def test_pairs_of_other_images_do_not_hinder_it(images, monkeypatch):
  monkeypatch.setattr(linear_maps, '_ROWS', 8 * 64)  # positions of eight images
  observed = encode(images)
  attack = inverter.fit(
    part(observed, slice(COUNT)),
    images[:COUNT],
    prior=images[:10].mean(0),
    judge=np.arange(COUNT) < 10,
    **OPTIONS,
  )
  held = slice(COUNT, None)
  psnr, _ = evaluate(attack, part(observed, held), images[held])
  assert psnr > 40  # 26 where these eight were in one fold


def test_one_pair_of_uniform_words_tells_nothing(images):
  words = np.random.default_rng(0).random((20, 8, 8, 16), np.float32)
  attack = inverter.fit(
    {'s3': words[:1]}, images[:1], scales=('s3',), prior=images.mean(0)
  )
  psnr, of_prior = evaluate(attack, {'s3': words[1:]}, images[1:20])
  assert psnr <= of_prior + 0.1


def test_a_seed_decides_everything(images):
  observed = encode(images)
  guesses = [
    inverter.fit(part(observed, slice(4)), images[:4], seed=1).predict(
      part(observed, slice(4, 8))
    )
    for _ in range(2)
  ]
  np.testing.assert_array_equal(*guesses)
  assert guesses[0].shape == (4, 32, 32, 1)
  assert guesses[0].min() >= 0 and guesses[0].max() <= 1


def test_copies_of_one_image_are_held_out_together(images, monkeypatch):
  """Training would not stop on copies of its own images."""
  source = np.repeat(np.arange(10), 3)
  observed = part(encode(images), source)
  kept = []

  def fit(loss, params, train, valid, **_):
    kept[:] = ({z.tobytes() for z in x['z']['s3']} for x in (train, valid))
    return params

  monkeypatch.setattr(inverter.fitting, 'fit', fit)
  inverter.fit(observed, images[source], source=source)
  assert tuple(map(len, kept)) == (8, 2) and kept[0].isdisjoint(kept[1])
  inverter.fit(observed, images[source])
  assert not kept[0].isdisjoint(kept[1])


def test_plain_latents_are_not_put_in_another_order(images):
  z = encode(images)['s3']
  order = position_order.recover(z[:COUNT], images[:COUNT])
  held = slice(COUNT, None)
  assert not position_order.is_scrambled(z[held], images[held], order)


def test_bad_input_is_refused(images):
  observed = encode(images)
  with pytest.raises(ValueError, match='scales: expected some of s3, s4'):
    inverter.fit(observed, images, scales=('b',))
  with pytest.raises(ValueError, match='s3: expected'):
    inverter.fit(part(observed, slice(3)), images[:4], scales=('s3',))
  with pytest.raises(ValueError, match=r'source: expected \[80\]'):
    inverter.fit(observed, images, source=[1, 2])


def test_cells_and_back():
  images = np.arange(2 * 8 * 12 * 3).reshape(2, 8, 12, 3)
  rows = position_order.cells(images, (2, 3))
  assert rows.shape == (2, 2, 3, 48)
  np.testing.assert_array_equal(
    rows[1, 1, 2].reshape(4, 4, 3), images[1, 4:, 8:]
  )
  back = position_order.join_cells(rows, (2, 3), (8, 12, 3))
  np.testing.assert_array_equal(back, images)
