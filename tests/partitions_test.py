"""Tests of partitions.py: whole subjects, nobody without data, seeds."""

import numpy as np
import pytest

from ppcmi_jax import examples as examples_lib
from ppcmi_jax import partitions
from ppcmi_jax import splits as splits_lib


def examples_of(num_subjects=30, visits=2, sites=3, label=None):
  """Examples of 4 x 4 pixels; subject i shows class label[i], or none."""
  count = num_subjects * visits
  subject = np.repeat(np.arange(num_subjects), visits)
  mask = np.zeros((count, 4, 4), np.uint8)
  if label is not None:
    mask[:, 1:3] = np.asarray(label)[subject][:, None, None]
  return examples_lib.Examples(
    image=np.broadcast_to(
      np.uint8(subject[:, None, None, None]), (count, 4, 4, 3)
    ),
    mask=mask,
    spacing_mm=np.ones((count, 2), np.float32),
    subject=np.array([f's{i:02d}' for i in subject]),
    site=np.array([f'site{i % sites}' for i in subject]),
    case=np.array([f'case{i:03d}' for i in range(count)]),
    position=np.tile(np.arange(visits), num_subjects),
  )


def cases_of(hospitals):
  return {
    (client, split): list(map(str, part.case))
    for client, parts in hospitals.items()
    for split, part in parts.items()
  }


def test_by_site_gives_every_client_its_own():
  examples = examples_of(num_subjects=6, visits=1, sites=2)
  splits = np.array(['train', 'test', 'valid', 'valid', 'test', 'train'])
  found = cases_of(partitions.partition(examples, splits))
  assert found == {
    ('site0', 'train'): ['case000'],
    ('site0', 'valid'): ['case002'],
    ('site0', 'test'): ['case004'],
    ('site1', 'train'): ['case005'],
    ('site1', 'valid'): ['case003'],
    ('site1', 'test'): ['case001'],
  }


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('num_clients', [1, 3, 10])
@pytest.mark.parametrize('mode', ['iid', 'by_subject', 'dirichlet'])
def test_subjects_are_whole_and_nothing_is_lost(mode, num_clients, seed):
  examples = examples_of(num_subjects=120, label=np.arange(120) % 4)
  splits = splits_lib.split(examples, mode='subjects', seed=seed)
  deal = lambda examples, splits, seed: partitions.partition(
    examples, splits, mode=mode, num_clients=num_clients, alpha=9, seed=seed
  )
  hospitals = deal(examples, splits, seed)
  assert len(hospitals) == num_clients
  assert list(hospitals) == sorted(hospitals)
  assert next(iter(hospitals)) == (
    'client-01' if num_clients > 9 else 'client-1'
  )
  homes = {}
  for client, parts in hospitals.items():
    for part in parts.values():
      for subject in part.subject:
        assert homes.setdefault(subject, client) == client
  for split in examples_lib.SPLITS:
    parts = [parts[split] for parts in hospitals.values()]
    together = np.concatenate([part.case for part in parts])
    assert sorted(together) == sorted(examples.case[splits == split])
    for part in parts:  # every column goes along
      assert [f's{i:02d}' for i in part.image[:, 0, 0, 0]] == list(part.subject)
    if mode != 'dirichlet':
      sizes = [len(np.unique(part.subject)) for part in parts]
      assert max(sizes) - min(sizes) <= 1
  # The same whatever order the examples are read in; another with other seeds.
  order = np.random.default_rng(0).permutation(len(splits))
  again = deal(examples_lib.take(examples, order), splits[order], seed)
  sort = lambda found: {k: sorted(v) for k, v in cases_of(found).items()}
  assert sort(again) == sort(hospitals)
  if num_clients > 1:
    differs = sort(deal(examples, splits, seed + 7)) != sort(hospitals)
    assert differs == (mode != 'by_subject')


def test_blocks_of_subjects_are_contiguous():
  examples = examples_of(num_subjects=12, visits=1)
  splits = np.repeat(['train', 'valid', 'test'], 4)
  found = cases_of(
    partitions.partition(examples, splits, mode='by_subject', num_clients=2)
  )
  assert found['client-1', 'train'] == ['case000', 'case001']
  assert found['client-2', 'valid'] == ['case006', 'case007']


def test_each_subject_can_be_a_client():
  examples = examples_of(num_subjects=2, visits=20)
  splits = splits_lib.split(examples, mode='blocks')
  hospitals = partitions.partition(examples, splits, mode='by_subject')
  assert list(hospitals) == ['s00', 's01']
  iid = partitions.partition(examples, splits, mode='iid', num_clients=2)
  for client in iid.values():  # a subject in all splits stays at one
    assert len({s for part in client.values() for s in part.subject}) == 1


def skew(hospitals, split='train'):
  """Mean largest share of a class's cases at one client."""
  counts = np.array(
    [
      np.bincount(parts[split].mask[:, 1, 1], minlength=4)[1:]
      for parts in hospitals.values()
    ]
  )
  return np.mean(counts.max(axis=0) / counts.sum(axis=0))


def test_small_alphas_skew_the_classes():
  examples = examples_of(num_subjects=600, label=1 + np.arange(600) % 3)
  splits = splits_lib.split(examples, mode='subjects')
  found = {
    alpha: np.mean(
      [
        skew(
          partitions.partition(
            examples,
            splits,
            mode='dirichlet',
            num_clients=3,
            alpha=alpha,
            seed=seed,
          )
        )
        for seed in range(5)
      ]
    )
    for alpha in (0.3, 3, 1000)
  }
  assert found[0.3] > 0.6 > found[3] > 0.4 > found[1000] > 0.33


def test_the_skew_is_the_same_in_all_splits():
  examples = examples_of(num_subjects=600, label=1 + np.arange(600) % 3)
  splits = splits_lib.split(
    examples, mode='subjects', test_fraction=0.3, valid_fraction=0.3
  )
  hospitals = partitions.partition(
    examples, splits, mode='dirichlet', num_clients=3, alpha=1, seed=3
  )
  share = {
    split: np.array(
      [
        np.bincount(p[split].mask[:, 1, 1], minlength=4)
        for p in hospitals.values()
      ]
    )[:, 1:]
    for split in examples_lib.SPLITS
  }
  share = {k: v / v.sum(axis=0) for k, v in share.items()}
  assert np.max(abs(share['train'] - share['test'])) < 0.05
  assert np.max(abs(share['train'] - share['valid'])) < 0.05


def test_a_small_structure_can_be_dominant_for_a_subject():
  """Class 1 is always the largest; some show more of the small class 2."""
  examples = examples_of(num_subjects=300, visits=1)
  mask = examples.mask.copy()
  mask[:, :2] = 1
  mask[::2, 3, :3] = 2
  mask[1::2, 3, 0] = 2
  examples = examples._replace(mask=mask)
  splits = splits_lib.split(examples, mode='subjects')
  client = partitions.dirichlet_clients(examples, splits, 2, 0.2, 5)
  much = mask[:, 3, 2] == 2
  assert abs(np.mean(client[much]) - np.mean(client[~much])) > 0.5


@pytest.mark.parametrize(
  'options, expected',
  [
    ({'mode': 'sites'}, "one of by_site, .*official, found 'sites'"),
    ({'mode': 'iid'}, "num_clients: partition='iid' needs .* found None"),
    ({'mode': 'iid', 'num_clients': 0}, 'of at least 1, found 0'),
    ({'mode': 'official', 'num_clients': 2.5}, 'at least 1, found 2.5'),
    ({'mode': 'dirichlet', 'num_clients': 2, 'alpha': 0}, 'alpha: .*found 0'),
    (
      {'mode': 'dirichlet', 'num_clients': 2, 'alpha': float('nan')},
      'alpha: expected a number above 0, found nan',
    ),
    (
      {'mode': 'iid', 'num_clients': 4},
      "client 'client-4' has no valid case; use fewer clients, or more",
    ),
    (
      {'mode': 'dirichlet', 'num_clients': 20},
      "client 'client-.*' has no .* case; use a larger alpha, another seed",
    ),
    ({'mode': 'by_subject'}, "'s00' has no .* case; use num_clients of fewer"),
    ({'mode': 'by_site'}, "'site0' has no .* case; use a split with all three"),
    (
      {'mode': 'official', 'num_clients': 70},
      "client 'client-..' has no .* case; use fewer clients",
    ),
  ],
)
def test_what_cannot_be_dealt_is_refused(options, expected):
  examples = examples_of(num_subjects=30, sites=30)
  merged = examples._replace(site=np.full(60, 'a'))
  splits = splits_lib.split(merged, mode='subjects')
  with pytest.raises(ValueError, match=expected) as error:
    partitions.partition(examples, splits, **options)
  assert '\n' not in str(error.value)


def test_a_site_in_no_split_is_no_client():
  examples = examples_of(num_subjects=6, visits=1, sites=2)
  splits = np.array(['train', 'gap', 'valid', 'gap', 'test', 'gap'])
  assert list(partitions.partition(examples, splits)) == ['site0']


def test_official_split_and_partition_go_together():
  examples = examples_of(num_subjects=100, visits=1)
  order = np.random.default_rng(0).permutation(100)
  examples = examples_lib.take(examples, order)
  splits = splits_lib.split(
    examples,
    mode='official',
    test_fraction=0.1,
    valid_fraction=0.2,
    seed=42,
    num_clients=3,
  )
  hospitals = partitions.partition(
    examples, splits, mode='official', num_clients=3, seed=42
  )
  sizes = [[len(part.case) for part in p.values()] for p in hospitals.values()]
  assert sizes == 3 * [[24, 6, 10]]
  tests = [parts['test'] for parts in hospitals.values()]
  assert tests[0].image is tests[1].image is tests[2].image
  own = [
    set(parts['train'].case) | set(parts['valid'].case)
    for parts in hospitals.values()
  ]
  assert len(set.union(*own)) == sum(map(len, own)) == 90
  assert set.union(*own).isdisjoint(tests[0].case)


def test_the_table_says_who_has_what():
  examples = examples_of(num_subjects=6, visits=2, sites=1, label=[1, 2, 0] * 2)
  splits = np.repeat(['train', 'train', 'train', 'train', 'valid', 'test'], 2)
  hospitals = partitions.partition(examples, splits)
  rows = partitions.table(
    hospitals, ('background', 'head', 'bone')
  ).splitlines()
  cells = [[c.strip() for c in row.split('  ') if c.strip()] for row in rows]
  assert cells[0] == [
    'client', 'split', 'cases', 'subjects', 'cases that show a class'
  ]  # fmt: skip
  assert cells[2:] == [
    ['site0', 'train', '8', '4', 'head 4, bone 2'],
    ['site0', 'valid', '2', '1', 'bone 2'],
    ['site0', 'test', '2', '1', 'none'],
  ]
  assert '1 4, 2 2' in partitions.table(hospitals)
