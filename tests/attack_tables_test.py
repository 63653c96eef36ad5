"""Tests of attack_tables.py: what counts, what does not, what is missing."""

import numpy as np
import pytest

from ppcmi_jax import tables
from ppcmi_jax.privacy import cells
from ppcmi_jax.report import attack_tables


def make_cell(value, trivial=20.0):
  return cells.of_means(
    np.full(4, value), np.full(4, trivial), subject=np.arange(4)
  )


def make_result(klt=24.0, sealed=19.5, none=24.0, **others):
  found = {
    'none': make_cell(none),
    'klt': make_cell(klt),
    'sealed': make_cell(sealed),
    **others,
  }
  attack = {
    'label': 'known plaintext, 1 image',
    'unit': 'PSNR dB',
    'goal': 'trivial + 0.1',
    'cells': found,
    **cells.verdict(found, tolerance=0.1, needed=0.9),
  }
  return {
    'attacks': {'known_plaintext_1': attack},
    'server': {'s3': make_cell(25.0), 'b': cells.missing('no pairs')},
    'setting': {
      'victim': 'A',
      'num_images': {'target': 4, 'own': 9, 'others': 5},
      'num_subjects_target': 4,
      'num_known': 20,
      'autoencoder_psnr_db': 26.5,
    },
  }


def row_of(table, i=0):
  return dict(zip(table.headers, map(tables.show, table.rows[i])))


@pytest.mark.parametrize(
  'values, breaks, sealed',
  [
    ({}, 'klt', 'held'),
    ({'sealed': 20.2}, 'klt', 'broken'),
    ({'klt': 22.0}, 'klt in part (50 %)', 'no proof'),
    ({'klt': 20.0}, 'none', 'no proof'),
    (
      {'klt': 22.0, 'official': make_cell(24.0)},
      'official, klt in part (50 %)',
      'held',
    ),
  ],
)
def test_only_what_breaks_a_static_transform_says_anything_of_sealed(
  values, breaks, sealed
):
  row = row_of(attack_tables.attacks(make_result(**values)))
  assert row['breaks'] == breaks and row['verdict'] == sealed
  assert row['sealed'] != '-'


def test_what_is_not_measurable_is_said():
  why = '3 subjects, fewer than 8'
  result = make_result(klt=20.0)
  attack = result['attacks']['known_plaintext_1']
  attack['cells'] = dict.fromkeys(attack['cells'], cells.missing(why))
  attack |= cells.verdict(attack['cells'], tolerance=0.1, needed=0.9)
  table = attack_tables.attacks(result)
  assert list(row_of(table).values())[2:6] == ['-'] * 4
  assert f'known plaintext, 1 image: {why}.' in table.notes
  assert not attack_tables.spread(result).rows


def test_all_are_rendered_in_all_forms():
  scores = {
    'auc': 0.5,
    'auc_interval': [0.4, 0.6],
    'tpr_at_0.01': 0.01,
    'tpr_at_0.01_interval': [0.0, 0.1],
    'tpr_at_0.001': 0.0,
    'tpr_at_0.001_interval': [0.0, 0.1],
    'epsilon': None,
    'num_members': 8,
    'num_non_members': 8,
  }
  experiments = {'mapping': {'mask': {'lira_online': scores}}}
  results = {
    'privacy': make_result(),
    'membership': {'experiments': experiments, 'notes': ['a lower bound']},
  }
  built = attack_tables.build(results)
  names = [table.name for table in built]
  assert names == ['privacy', 'privacy_spread', 'privacy_server', 'membership']
  for table in built:
    for render in (tables.text, tables.csv, tables.latex, tables.html):
      assert render(table)
  assert '26.500 dB' in built[2].notes and len(built[2].rows) == 1
  assert row_of(built[3])['loss'] == 'decoded mask'
  assert row_of(built[3])['epsilon from'] == '-'
  assert 'a lower bound' in built[3].notes
  assert attack_tables.build({}) == []


def test_membership_that_could_not_be_measured():
  table = attack_tables.membership(
    {'experiments': {}, 'notes': [], 'why': 'not measurable: 3 subjects'}
  )
  assert not table.rows and 'not measurable: 3 subjects' in tables.text(table)
