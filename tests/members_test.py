"""Tests of privacy/members.py on latents too small for more than its shape."""

import types

import numpy as np
import pytest

from ppcmi_jax.privacy import members

SHAPES = {'s3': (4, 4, 4), 's4': (2, 2, 6), 'b': (1, 1, 8)}


def make_contributions(num_subjects, each=2):
  """Two cases a subject, each with one copy."""
  rng = np.random.default_rng(0)
  count = num_subjects * each
  latents = lambda: {
    name: rng.random((2 * count, *shape), np.float32)
    for name, shape in SHAPES.items()
  }
  return members.Contributions(
    {'image': latents(), 'mask': latents()},
    client=np.arange(2 * count, dtype=np.int32) % 2,
    mask=np.zeros((2 * count, 4, 4), np.uint8),
    case=np.tile(np.arange(count), 2),
    subject=np.repeat(np.arange(num_subjects), each).astype(str),
  )


@pytest.fixture
def patch(monkeypatch):
  def apply(num_subjects):
    contributions = make_contributions(num_subjects)
    monkeypatch.setattr(members, '_contributions', lambda *_: contributions)
    decode = lambda client, part: np.ones(len(part[1]))
    monkeypatch.setattr(members, '_decoder', lambda *_: decode)

  return apply


def make_config():
  return types.SimpleNamespace(
    mapping='fused_mapping',
    mapping_options={},
    mapping_learning_rate=3e-3,
    mapping_batch_size=4,
    mapping_steps=4,
    schedule='cosine',
    weight_decay=0.0,
  )


def test_all_experiments_losses_and_attacks(patch, monkeypatch, capsys):
  patch(12)
  monkeypatch.setitem(members.SMALL, 'fused_mapping', {'widths': (4, 4, 4)})
  found = members.membership(make_config(), None, num_models=4, overfit_steps=2)
  assert list(found['experiments']) == ['mapping', 'overfit', 'shuffled']
  assert found['steps'] == 2  # half of the cases, half of the run's
  losses = found['experiments']['mapping']
  assert list(losses) == ['b', 's3', 's4', 'all', 'mask']
  scores = losses['all']['lira_online']
  assert len(scores['roc']) == len(found['roc_fprs'])
  assert scores['roc'][-1] == 1 and scores['epsilon'] in (0, None)
  assert (scores['epsilon_provable'] is None) == (scores['epsilon'] is None)
  assert 0 <= scores['auc'] <= 1 and len(scores['auc_interval']) == 2
  # A constant loss says nothing.
  assert losses['mask']['threshold']['auc'] == pytest.approx(0.5)
  assert scores['num_members'] + scores['num_non_members'] == 4 * 24
  # Many draws, each with a chance of its own to stray.
  control = found['experiments']['shuffled']['all']['lira_online']
  assert control['num_members'] == 20 * scores['num_members']
  assert any('4 networks only' in line for line in found['notes'])
  assert 'membership, overfit: network 4/4' in capsys.readouterr().out


def test_three_subjects_are_not_measurable(patch):
  patch(3)
  found = members.membership(make_config(), None)
  assert '3 subjects' in found['why'] and found['experiments'] == {}
