"""Tests of finding the order of masks, on phantoms of vessels and emboli."""

import numpy as np
import pytest

from ppcmi_jax.datasets import fumpe_order

SPACING_MM = (1.5, 1.5)
SIZE = 48


def disc(row, column, radius, size=SIZE):
  rows, columns = np.mgrid[:size, :size]
  return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def phantom(count=14, *, seed=0, masked=(3, 4, 5, 6, 7, 8)):
  """Returns HU int16 [N, H, W], feet first, and the masks of its emboli.

  Lungs, a mediastinum of soft tissue, a bright spine, two bright arteries that
  wander from slice to slice, and clots in one of them.
  """
  rng = np.random.default_rng(seed)
  volume = np.full((count, SIZE, SIZE), -850.0)
  volume[:, 14:44, 17:31] = 45  # mediastinum
  volume[:, 36:42, 20:28] = 400  # spine
  mask = np.zeros(volume.shape, bool)
  for z in range(count):
    drift = 6 * np.sin(0.9 * z + seed) + z - count / 2
    for column in (14 + drift / 2, 33 - drift / 2):
      volume[z][disc(18 + drift, column, 5)] = 350
    if z in masked:
      mask[z] = disc(18 + drift, 14 + drift / 2 + 1, 2.5)
      volume[z][mask[z]] = 60
  volume += rng.normal(0, 20, volume.shape)
  return np.rint(volume).astype(np.int16), mask


def choose(volume, mask, orders):
  return fumpe_order.choose(volume, mask, orders, spacing_mm=SPACING_MM)


def names(count, start=1):
  return [f'IM{i:04d}.dcm' for i in range(start, start + count)]


def test_candidates_are_orders_and_their_reverses():
  orders = fumpe_order.candidates(
    ['IM1', 'IM2', 'IM10'], instance_numbers=[2, 3, 1], heights_mm=[9, 7, 8]
  )
  found = {name: order.tolist() for name, order in orders.items()}
  assert list(found.items()) == [
    ('file names', [0, 1, 2]),
    ('file names, alphabetical', [0, 2, 1]),
    ('InstanceNumber', [2, 0, 1]),
    ('position', [1, 2, 0]),  # alphabetical, reversed, too
    ('file names, reversed', [2, 1, 0]),
    ('InstanceNumber, reversed', [1, 0, 2]),
  ]


@pytest.mark.parametrize('reverse', [False, True])
def test_equal_candidates_collapse(reverse):
  heights = np.arange(5.0)[:: -1 if reverse else 1]
  orders = fumpe_order.candidates(
    names(5), instance_numbers=range(5), heights_mm=heights
  )
  # Backwards, the position is the reverse of the names and has its own name.
  second = 'position' if reverse else 'file names, reversed'
  assert list(orders) == ['file names', second]
  assert len(fumpe_order.candidates(names(1), heights_mm=[3.0])) == 1


@pytest.mark.parametrize('seed', range(5))
def test_the_right_order_scores_high_and_others_low(seed):
  volume, mask = phantom(seed=seed)
  right = np.arange(len(volume))
  score = lambda order: fumpe_order.score(
    volume, mask, order, spacing_mm=SPACING_MM
  )
  assert score(right) > 0.7
  assert score(right[::-1]) < 0.3
  assert score(np.roll(right, 4)) < 0.3


def test_soft_tissue_around_does_not_score():
  """A mask in soft tissue beside a vessel has a rim of the same tissue."""
  volume = np.full((1, SIZE, SIZE), 45, np.int16)
  volume[0, :, :4] = 350
  mask = np.zeros(volume.shape, bool)
  mask[0, 10:14, 6:8] = True
  low = fumpe_order.score(volume, mask, np.arange(1), spacing_mm=SPACING_MM)
  assert abs(low) < 0.1
  volume[0, 8:16, 4:10] = 350  # now the vessel is around it
  volume[mask] = 45
  high = fumpe_order.score(volume, mask, np.arange(1), spacing_mm=SPACING_MM)
  assert high > 0.9


@pytest.mark.parametrize('value', [-800, 350, 900])
def test_lung_contrast_and_bone_are_no_clots(value):
  volume = np.full((1, SIZE, SIZE), value, np.int16)
  volume[0, :, 20] = 400
  mask = np.zeros(volume.shape, bool)
  mask[0, 10:14, 18:20] = True
  assert (
    fumpe_order.score(volume, mask, np.arange(1), spacing_mm=SPACING_MM) <= 0
  )


def test_distances_are_millimetres():
  volume = np.full((1, SIZE, SIZE), -800, np.int16)
  mask = np.zeros(volume.shape, bool)
  mask[0, 10:12, 10:12] = True
  volume[mask] = 50
  volume[0, 10:12, 16] = 400  # five columns away
  score = lambda *spacing_mm: fumpe_order.score(
    volume, mask, np.arange(1), spacing_mm=spacing_mm
  )
  assert score(1, 1) == 1
  assert score(9, 1) == 1
  assert score(1, 9) == 0
  volume[0, 10:12, 13:17] = -800
  volume[0, 10:12, 14] = 400  # three columns behind the last of the mask
  assert score(1, 1) == 1
  assert score(1, 3) == 0


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize(
  'truth', ['file names', 'file names, reversed', 'InstanceNumber', 'position']
)
def test_the_true_order_is_found(seed, truth):
  """Files, instance numbers and positions all follow different orders."""
  volume, mask = phantom(seed=seed)
  rng = np.random.default_rng(seed)
  heights, numbers = rng.permutation(14), rng.permutation(14)
  orders = fumpe_order.candidates(
    names(14), instance_numbers=numbers, heights_mm=heights
  )
  files = np.empty_like(volume)
  files[orders[truth]] = volume
  choice = choose(files, mask, orders)
  assert choice.verified and choice.name == truth
  np.testing.assert_array_equal(files[choice.order], volume)
  assert len(choice.scores) == len(orders) == 6
  assert choice.scores[truth] == max(choice.scores.values())


def test_an_empty_mask_is_not_verified():
  volume, mask = phantom(masked=())
  orders = fumpe_order.candidates(names(14))
  choice = choose(volume, mask, orders)
  assert not choice.verified and choice.name == 'file names'
  assert choice.scores == {}


def test_a_symmetric_phantom_is_not_verified():
  volume, mask = phantom(7, masked=(1, 2, 3))
  volume = np.concatenate([volume, volume[::-1]])
  mask = np.concatenate([mask, mask[::-1]])
  orders = fumpe_order.candidates(names(14), heights_mm=range(14))
  choice = choose(volume, mask, orders)
  assert not choice.verified and choice.name == 'file names'
  assert len(choice.scores) == 2
  assert max(choice.scores.values()) - min(choice.scores.values()) < 0.01


def test_masks_that_lie_nowhere_are_not_verified():
  orders = fumpe_order.candidates(names(15))
  volume, mask = phantom(15)
  choice = choose(np.full_like(volume, 40), mask, orders)
  assert not choice.verified and max(choice.scores.values()) <= 0
  choice = choose(volume, np.roll(mask, 11, axis=2), orders)
  assert not choice.verified
  volume, mask = phantom(15, masked=(7,))  # one order, and a bad one
  choice = choose(volume, np.roll(mask, 11, axis=2), orders)
  assert not choice.verified and len(choice.scores) == 1


def test_orders_that_put_masks_on_the_same_files_count_as_one():
  volume, mask = phantom(15, masked=(7,))
  orders = fumpe_order.candidates(names(15))
  choice = choose(volume, mask, orders)
  assert choice.verified and list(choice.scores) == ['file names']
