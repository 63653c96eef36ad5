"""Tests of attacks/seed_search.py."""

import numpy as np
import pytest
import synthetic_latents as synthetic

from ppcmi_jax import keyed
from ppcmi_jax.attacks import seed_search

KLT = keyed.chain(keyed.orthogonal(), keyed.permutation(), keyed.shift())
SEED = 42


@pytest.fixture(scope='module')
def latents():
  return synthetic.encode(synthetic.images(1)[0])


@pytest.mark.parametrize('wire', [np.float32, np.float16])
def test_the_seed_stands_out(latents, wire):
  observed, _ = synthetic.protect(KLT, latents, seed=SEED)
  observed = {k: w.astype(wire).astype(np.float32) for k, w in observed.items()}
  ranking = seed_search.search(KLT, observed, np.arange(100), tolerance=5e-3)
  assert ranking.seeds[0] == SEED
  assert ranking.scores[0] > 0.3 > 10 * ranking.scores[1]
  assert sorted(ranking.seeds) == list(range(100))


def test_uniform_words_prefer_no_seed(latents):
  words = synthetic.uniform(latents)
  ranking = seed_search.search(KLT, words, np.arange(100))
  assert ranking.scores[0] < 0.03


def test_tie_share_counts_by_hand():
  z = np.array([[0.0, 1], [0, 2], [0, 3], [5, 4], [9, 5]], np.float32)
  # Of four other values two tie in the first channel, none in the second.
  assert float(seed_search.tie_share(z)) == pytest.approx(0.25)


def test_mistakes_are_named(latents):
  with pytest.raises(ValueError, match='seeds: expected'):
    seed_search.search(KLT, latents, [2**32])
