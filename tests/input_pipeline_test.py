"""Tests of input_pipeline.py: geometry, splits without leaks, batches."""

import collections
import csv
import itertools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from ppcmi_jax import input_pipeline

SETTINGS = hypothesis.settings(deadline=None, max_examples=60)


def case_of(mask, spacing_mm=(1.0, 1.0), channels=1):
  return {
    'image': np.repeat(np.uint8(50 * mask)[..., None], channels, -1),
    'mask': np.uint8(mask),
    'spacing_mm': np.float32(spacing_mm),
    'subject': b's1',
    'site': 'Zürich'.encode(),
    'case': b's1-07',
    'position': np.int32(7),
  }


def examples_of(subject, site, position=None, order=None):
  """Examples that consist of little but names, in the given order."""
  count = len(subject)
  examples = input_pipeline.Examples(
    image=np.zeros((count, 1, 1, 1), np.uint8),
    mask=np.zeros((count, 1, 1), np.uint8),
    spacing_mm=np.ones((count, 2), np.float32),
    subject=np.array(subject),
    site=np.array(site),
    case=np.array([f'case{i}' for i in range(count)]),
    position=np.arange(count) if position is None else np.array(position),
  )
  return examples if order is None else input_pipeline.take(examples, order)


def sites_of(subjects, visits=2):
  """`subjects[i]` subjects of site i, each with some visits."""
  rows = [
    (f'{site}-{k}', f'site{site}')
    for site, count in enumerate(subjects)
    for k in range(count)
    for _ in range(visits)
  ]
  return examples_of(*zip(*rows))


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
  'shape, size', [((40, 24), 20), ((24, 40), 10), ((8, 8), 32), ((20, 4), 20)]
)
def test_image_and_mask_are_fitted_alike(shape, size, channels):
  blocks = np.random.default_rng(0).integers(
    0, 4, (shape[0] // 4, shape[1] // 4)
  )
  mask = np.kron(blocks, np.ones((4, 4), int))
  found = input_pipeline.fit(case_of(mask, channels=channels), size)
  assert found['image'].shape == (size, size, channels)
  assert found['mask'].shape == (size, size)
  assert found['image'].dtype == found['mask'].dtype == np.uint8
  if size <= max(shape):  # whole blocks become whole pixels
    for c in range(channels):
      np.testing.assert_array_equal(found['image'][..., c], 50 * found['mask'])
  # Every class keeps its share of the image's area.
  area = (size / max(shape)) ** 2
  for k in range(1, 4):
    assert np.sum(found['mask'] == k) == area * np.sum(mask == k)


@pytest.mark.parametrize(
  'shape, size, height, width',
  [
    ((40, 20), 10, 10, 5),
    ((20, 40), 10, 5, 10),
    ((30, 30), 7, 7, 7),
    ((58, 42), 16, 16, 12),
    ((5, 3), 20, 20, 12),
    ((100, 1), 10, 10, 1),
    ((64, 32), 64, 64, 32),
  ],
)
def test_the_aspect_is_kept_and_the_padding_centred(shape, size, height, width):
  case = case_of(np.ones(shape))
  found = input_pipeline.fit(case, size)
  top, left = (size - height) // 2, (size - width) // 2
  expected = np.zeros((size, size), np.uint8)
  expected[top : top + height, left : left + width] = 1
  np.testing.assert_array_equal(found['mask'], expected)
  np.testing.assert_array_equal(found['image'][..., 0], 50 * expected)


@pytest.mark.parametrize('size', [7, 16, 50])
def test_fitting_makes_up_no_classes(size):
  mask = np.random.default_rng(0).choice([0, 3], (37, 29))
  found = input_pipeline.fit(case_of(mask), size)
  assert set(np.unique(found['mask'])) == {0, 3}


@pytest.mark.parametrize(
  'shape, size, expected_mm',
  [
    ((40, 20), 10, (2.0, 8.0)),
    ((20, 20), 40, (0.25, 1.0)),
    ((20, 20), 20, (0.5, 2.0)),
    ((58, 42), 16, (0.5 * 58 / 16, 2.0 * 42 / 12)),  # 42 fit into 11.6: 12
  ],
)
def test_spacing_keeps_the_physical_size(shape, size, expected_mm):
  case = case_of(np.ones(shape), spacing_mm=(0.5, 2.0))
  found = input_pipeline.fit(case, size)
  assert found['spacing_mm'].dtype == np.float32
  np.testing.assert_allclose(found['spacing_mm'], expected_mm, rtol=1e-6)


def test_fitting_keeps_names_and_the_case_itself():
  case = case_of(np.ones((4, 4)))
  found = input_pipeline.fit(case, 8)
  assert (found['subject'], found['case']) == ('s1', 's1-07')
  assert (found['site'], found['position']) == ('Zürich', 7)
  assert case['mask'].shape == (4, 4) and case['site'] == 'Zürich'.encode()


@SETTINGS
@hypothesis.given(
  subjects=st.lists(st.integers(3, 25), min_size=1, max_size=4),
  visits=st.integers(1, 3),
  seed=st.integers(0, 5),
)
def test_subjects_are_in_one_split_and_sites_in_all(subjects, visits, seed):
  examples = sites_of(subjects, visits)
  splits = input_pipeline.split(examples, mode='subjects', seed=seed)
  assert set(splits) == set(input_pipeline.SPLITS)
  for subject in np.unique(examples.subject):
    assert len(set(splits[examples.subject == subject])) == 1
  for site, count in enumerate(subjects):
    here = splits[examples.site == f'site{site}']
    counts = collections.Counter(here)
    assert counts['test'] == visits * max(1, round(0.2 * count))
    assert counts['valid'] == visits * max(1, round(0.1 * count))
    assert counts['train'] >= visits
  # The same whatever order the examples are read in.
  order = np.random.default_rng(seed).permutation(len(splits))
  again = input_pipeline.split(
    input_pipeline.take(examples, order), mode='subjects', seed=seed
  )
  np.testing.assert_array_equal(again, splits[order])


def test_the_seed_draws_other_subjects():
  examples = sites_of([20, 20])
  a, b = (
    input_pipeline.split(examples, mode='subjects', seed=seed)
    for seed in (0, 1)
  )
  assert not np.array_equal(a, b)


@pytest.mark.parametrize(
  'subjects, fractions',
  [([5, 2], {}), ([1], {}), ([10], {'test_fraction': 0.9})],
)
def test_too_few_subjects_are_refused(subjects, fractions):
  examples = sites_of(subjects)
  with pytest.raises(ValueError, match='too few') as error:
    input_pipeline.split(examples, mode='subjects', **fractions)
  message = str(error.value)
  assert '\n' not in message
  assert f'site{len(subjects) - 1}' in message
  assert f'{subjects[-1]} subjects' in message


def runs(splits):
  """Consecutive parts of a volume: [(split, number of slices), ...]."""
  edges = np.flatnonzero(splits[1:] != splits[:-1]) + 1
  return [(part[0], len(part)) for part in np.split(splits, edges)]


@SETTINGS
@hypothesis.given(
  lengths=st.lists(st.integers(9, 150), min_size=1, max_size=3),
  seed=st.integers(0, 9),
)
def test_blocks_leave_a_slice_between_any_two_splits(lengths, seed):
  subject = np.repeat([f's{i}' for i in range(len(lengths))], lengths)
  position = np.concatenate([5 + np.arange(n) for n in lengths])
  order = np.random.default_rng(seed).permutation(len(subject))
  examples = examples_of(subject, ['a'] * len(subject), position, order)
  splits = input_pipeline.split(examples, mode='blocks', seed=seed)
  restored = splits[np.argsort(order)]  # subject by subject, slice by slice
  for i, length in enumerate(lengths):
    parts = runs(restored[subject == f's{i}'])
    names = [name for name, _ in parts]
    for a, b in itertools.pairwise(names):
      assert (a == 'gap') != (b == 'gap')
    counts = collections.Counter(names)
    stretches = max(1, round(length / 28))
    assert counts['test'] == counts['valid'] == stretches
    assert counts['train'] == stretches + 1
    assert counts['gap'] == 3 * stretches
    for name, share in (('test', 0.2), ('valid', 0.1)):
      slices = sum(n for part, n in parts if part == name)
      assert abs(slices - share * length) <= stretches
  np.testing.assert_array_equal(
    splits, input_pipeline.split(examples, mode='blocks', seed=seed + 1)
  )


@hypothesis.given(
  length=st.integers(1, 60),
  test=st.floats(0.01, 0.95),
  valid=st.floats(0.01, 0.95),
)
@SETTINGS
def test_blocks_of_any_size_never_touch(length, test, valid):
  examples = examples_of(['s'] * length, ['a'] * length)
  try:
    splits = input_pipeline.split(
      examples, mode='blocks', test_fraction=test, valid_fraction=valid
    )
  except ValueError as error:
    assert "'s' has" in str(error) and '\n' not in str(error)
    return
  names = [name for name, _ in runs(splits)]
  assert set(names) == {'train', 'valid', 'test', 'gap'}
  for a, b in itertools.pairwise(names):
    assert (a == 'gap') != (b == 'gap')
  assert names[0] == names[-1] == 'train'


@pytest.mark.parametrize('length', [1, 5, 8])
def test_too_few_slices_are_refused(length):
  examples = examples_of(['s'] * length, ['a'] * length)
  with pytest.raises(ValueError, match=f"'s' has {length} slices, too few"):
    input_pipeline.split(examples, mode='blocks')


def test_unknown_names_are_refused_in_one_line(tmp_path):
  examples = sites_of([5])
  with pytest.raises(ValueError, match="'subjects' or 'blocks', found 'x'"):
    input_pipeline.split(examples, mode='x')
  for name, options, expected in (
    ('abdomenn', {}, "expected one of abdomen, .*found 'abdomenn'"),
    ('phantom', {'sise': 3}, 'has no option sise; it has: .*size'),
    ('abdomen', {'size': 3}, 'has no option size; it has: none'),
    ('phantom', {'size': 3}, 'at least 16'),
  ):
    with pytest.raises(ValueError, match=expected) as error:
      input_pipeline.load(
        name, image_size=32, data_dir=tmp_path, options=options
      )
    assert '\n' not in str(error.value)
  assert not any(tmp_path.iterdir())


def test_partition_gives_every_client_its_own():
  site = np.array(['b', 'a', 'b', 'a', 'a', 'b'])
  splits = np.array(['train', 'test', 'valid', 'gap', 'train', 'train'])
  examples = examples_of([f's{i}' for i in range(6)], site)
  clients = input_pipeline.partition(examples, splits)
  assert list(clients) == ['a', 'b']
  cases = {
    (client, name): list(part.case)
    for client, parts in clients.items()
    for name, part in parts.items()
  }
  assert cases == {
    ('a', 'train'): ['case4'],
    ('a', 'valid'): [],
    ('a', 'test'): ['case1'],
    ('b', 'train'): ['case0', 'case5'],
    ('b', 'valid'): ['case2'],
    ('b', 'test'): [],
  }


def test_the_written_split_can_be_read(tmp_path):
  examples = sites_of([4, 5])
  splits = input_pipeline.split(examples, mode='subjects')
  input_pipeline.write_split(tmp_path / 'split.csv', examples, splits)
  with open(tmp_path / 'split.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert list(rows[0]) == ['case', 'subject', 'site', 'split']
  for column, values in (
    ('case', examples.case),
    ('subject', examples.subject),
    ('site', examples.site),
    ('split', splits),
  ):
    assert [row[column] for row in rows] == list(values)


def test_balanced_order_repeats_the_small_groups():
  groups = np.array([3, 0, 0, 3, 0, 0, 1, 0, 3])
  order = input_pipeline.balanced_order(groups)
  assert collections.Counter(groups[order]) == {0: 5, 1: 5, 3: 5}
  times = np.bincount(order, minlength=9)
  for group in (0, 1, 3):
    own = times[groups == group]
    assert own.min() >= 1 and own.max() - own.min() <= 1


def draw(steps, batch_size, order, seed=0):
  arrays = {'row': np.arange(100), 'tree': {'twice': 2 * np.arange(100)}}
  batches = [
    input_pipeline.batch_at(
      arrays, step, order=order, batch_size=batch_size, seed=seed
    )
    for step in steps
  ]
  for batch in batches:
    assert batch['row'].shape == (1, batch_size)  # [devices, B / devices]
    np.testing.assert_array_equal(batch['tree']['twice'], 2 * batch['row'])
    np.testing.assert_array_equal(batch['slot'][0], np.arange(batch_size))
    assert batch['slot'].dtype == np.int32
  return np.concatenate([batch['row'][0] for batch in batches])


@SETTINGS
@hypothesis.given(
  order=st.lists(st.integers(0, 99), min_size=1, max_size=12),
  batch_size=st.integers(1, 9),
  seed=st.integers(0, 3),
)
def test_epochs_are_permutations_laid_end_to_end(order, batch_size, seed):
  order = np.array(order)  # rows may stand there several times
  epochs = 3
  steps = -(-epochs * len(order) // batch_size)
  stream = draw(range(steps), batch_size, order, seed)
  for epoch in stream[: epochs * len(order)].reshape(epochs, -1):
    np.testing.assert_array_equal(np.sort(epoch), np.sort(order))
  # A pure function of the step: the last one alone is the same.
  np.testing.assert_array_equal(
    stream[-batch_size:], draw([steps - 1], batch_size, order, seed)
  )


def test_epochs_and_seeds_differ():
  order = np.arange(40)
  a, b = draw([0], 40, order), draw([1], 40, order)
  c = draw([0], 40, order, seed=1)
  assert len({tuple(rows) for rows in (a, b, c, order)}) == 4


def test_processes_and_devices_share_a_batch(monkeypatch):
  arrays, order = {'row': np.arange(20)}, np.arange(20)
  at = lambda: input_pipeline.batch_at(
    arrays, 3, order=order, batch_size=8, seed=5
  )
  whole = at()
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(jax, 'local_device_count', lambda: 2)
  shares = []
  for index in (0, 1):
    monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
    shares.append(at())
    assert shares[-1]['row'].shape == (2, 2)
  for name in ('row', 'slot'):
    together = np.concatenate([share[name].ravel() for share in shares])
    np.testing.assert_array_equal(together, whole[name].ravel())


def test_a_prepared_data_set_is_loaded(tmp_path):
  load = lambda size: input_pipeline.load(
    'phantom',
    image_size=size,
    data_dir=tmp_path,
    options={'num_subjects': 4, 'size': 32},
  )
  examples, class_names = load(32)
  assert class_names[0] == 'background' and len(class_names) == 3
  assert examples.image.shape == (4, 32, 32, 1)
  assert examples.mask.shape == (4, 32, 32)
  assert examples.image.dtype == examples.mask.dtype == np.uint8
  assert examples.spacing_mm.dtype == np.float32
  assert examples.position.dtype == np.int32
  assert list(examples.subject) == [f's{i:05d}' for i in range(4)]
  assert list(examples.site) == ['1', '2', '3', '1']
  assert set(np.unique(examples.mask)) <= {0, 1, 2}
  assert set(examples.arrays()) == {'image', 'mask'}
  small, _ = load(16)
  np.testing.assert_allclose(small.spacing_mm, 2 * examples.spacing_mm)
  blocks = np.float32(examples.image).reshape(4, 16, 2, 16, 2, 1)
  # Pillow rounds after each of the two axes.
  np.testing.assert_allclose(small.image, blocks.mean((2, 4)), atol=1)
