"""Tests of figures/attacks.py: its rows, its columns, what is left blank."""

import types

import numpy as np
import pytest
import sheet_layout

from ppcmi_jax.figures import attacks
from ppcmi_jax.privacy import notebook
from ppcmi_jax.report import pictures

PROTECTIONS = ('none', 'klt', 'klt, fresh keys', 'sealed')
LABELS = {'known': 'known plaintext', 'outline': 'outline', 'seed': 'seeds'}


def make_examples(side=16):
  rng = np.random.default_rng(0)
  truth = rng.random((2, side, side, 1))
  mask = np.uint8(truth[..., 0] > 0.5)
  return {
    'truth': truth,
    'mask': mask,
    'prior': truth.mean(0),
    'prior_mask': mask[0] > 0,
    **{f'known|{name}': np.clip(truth + 0.1, 0, 1) for name in PROTECTIONS},
    'outline|klt': mask > 0,
  }


def draw(tmp_path, examples, **options):
  return sheet_layout.draw(
    attacks.draw_attacks,
    tmp_path / 'figure.png',
    examples,
    labels=LABELS,
    protections=PROTECTIONS,
    **options,
  )


def test_a_row_an_attack_and_a_column_a_protection(tmp_path):
  drawn = draw(tmp_path, make_examples(), title='A title', note='a ' * 90)
  assert len(drawn.panels) == 6 + 3
  words = drawn.words()
  assert 'known plaintext' in words and 'outline' in words
  assert 'seeds' not in words  # nothing was drawn
  assert sum(word.endswith(' dB') for word in words) == 5
  assert words.count('Dice 1.00') == 2
  assert words.count('5 pixels') == 1


def test_masks_without_foreground_have_no_dice(tmp_path):
  examples = {'truth': np.zeros((1, 8, 8, 1)), 'mask': np.zeros((1, 8, 8))}
  examples |= {
    name: value[0]
    for name, value in zip(
      ('prior', 'prior_mask'), (examples['truth'], examples['mask'] > 0)
    )
  }
  examples['outline|klt'] = np.zeros((1, 8, 8), bool)
  assert not any('Dice' in word for word in draw(tmp_path, examples).words())


def test_nothing_to_draw_writes_no_file(tmp_path):
  path = tmp_path / 'figure.png'
  examples = {
    name: make_examples()[name] for name in ('truth', 'mask', 'prior')
  }
  assert not attacks.draw_attacks(
    path, examples, labels=LABELS, protections=PROTECTIONS
  )
  assert not path.exists()


def test_drawings_of_other_sizes_are_refused(tmp_path):
  examples = make_examples() | {'known|klt': np.zeros((2, 8, 8, 1))}
  with pytest.raises(ValueError, match=r'known\|klt: expected shape'):
    attacks.draw_attacks(
      tmp_path / 'figure.png', examples, labels=LABELS, protections=PROTECTIONS
    )


def test_a_report_of_the_server_alone_draws_no_attacker(tmp_path):
  (tmp_path / 'eval').mkdir()
  np.savez(tmp_path / 'eval' / notebook.EXAMPLES, truth=np.zeros((1, 4, 4, 1)))
  case = types.SimpleNamespace(spacing_mm=np.ones((1, 2)))
  run = types.SimpleNamespace(
    data=types.SimpleNamespace(hospitals={'a': {'test': case}})
  )
  result = {'attacks': {}, 'setting': {'victim': 'a'}, 'server': {}}
  config = types.SimpleNamespace(distance_unit='mm')
  assert pictures._attacks(config, run, result, tmp_path) == []
