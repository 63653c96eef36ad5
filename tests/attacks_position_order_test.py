"""Tests of attacks.position_order: how much of an order pairs give away."""

import numpy as np
import pytest
from attacks_inverter_test import draw_images

from ppcmi_jax.attacks import position_order

SIDES = 16, 16


def encode(images, *, width, seed):
  """Returns random latents of cells, at least 0, of each the same map."""
  z = position_order.cells(images, SIDES)
  z = z @ np.random.default_rng(seed).normal(size=(z.shape[-1], width))
  return np.maximum(z - np.median(z), 0)


def share_found(z, seen, *, seed=0):
  """Returns the share of positions that `recover` puts into place."""
  order = np.random.default_rng(seed).permutation(SIDES[0] * SIDES[1])
  found = position_order.recover(position_order.apply(z, order), seen)
  return np.mean(order[found] == np.arange(len(order)))


@pytest.mark.parametrize('count, least', [(6, 0.6), (15, 0.95)])
def test_few_pairs_give_the_order_away(count, least):
  images = draw_images(count)
  z = encode(images, width=12, seed=0)
  assert share_found(z, images) > least  # likeness alone: 0.29 and 0.94


def test_a_scale_in_order_says_where_another_belongs():
  images = draw_images(8)
  z, other = (encode(images, width=12, seed=seed) for seed in (0, 1))
  thrown = np.random.default_rng(1).random(images.shape)  # of other images
  assert share_found(z, other) > 0.8 > 0.1 > share_found(z, thrown)


def test_constant_latents_have_no_order():
  images = draw_images(8)
  z = np.ones((8, *SIDES, 3))
  found = position_order.recover(z, images)
  assert sorted(found) == list(range(256))
