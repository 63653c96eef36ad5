"""Tests of splits.py: splits without leaks, and files of them."""

import collections
import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from ppcmi_jax import examples as examples_lib
from ppcmi_jax import splits as splits_lib

SETTINGS = hypothesis.settings(deadline=None, max_examples=60)


def examples_of(subject, site, position=None, order=None):
  """Examples that consist of little but names, in the given order."""
  count = len(subject)
  examples = examples_lib.Examples(
    image=np.zeros((count, 1, 1, 1), np.uint8),
    mask=np.zeros((count, 1, 1), np.uint8),
    spacing_mm=np.ones((count, 2), np.float32),
    subject=np.array(subject),
    site=np.array(site),
    case=np.array([f'case{i}' for i in range(count)]),
    position=np.arange(count) if position is None else np.array(position),
  )
  return examples if order is None else examples_lib.take(examples, order)


def sites_of(subjects, visits=2):
  """`subjects[i]` subjects of site i, each with some visits."""
  rows = [
    (f'{site}-{k}', f'site{site}')
    for site, count in enumerate(subjects)
    for k in range(count)
    for _ in range(visits)
  ]
  return examples_of(*zip(*rows))


@SETTINGS
@hypothesis.given(
  subjects=st.lists(st.integers(3, 25), min_size=1, max_size=4),
  visits=st.integers(1, 3),
  seed=st.integers(0, 5),
)
def test_subjects_are_in_one_split_and_sites_in_all(subjects, visits, seed):
  examples = sites_of(subjects, visits)
  splits = splits_lib.split(examples, mode='subjects', seed=seed)
  assert set(splits) == set(examples_lib.SPLITS)
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
  again = splits_lib.split(
    examples_lib.take(examples, order), mode='subjects', seed=seed
  )
  np.testing.assert_array_equal(again, splits[order])


def test_the_seed_draws_other_subjects():
  examples = sites_of([20, 20])
  a, b = (
    splits_lib.split(examples, mode='subjects', seed=seed) for seed in (0, 1)
  )
  assert not np.array_equal(a, b)


@pytest.mark.parametrize(
  'subjects, fractions',
  [([5, 2], {}), ([1], {}), ([10], {'test_fraction': 0.9})],
)
def test_too_few_subjects_are_refused(subjects, fractions):
  examples = sites_of(subjects)
  with pytest.raises(ValueError, match='too few') as error:
    splits_lib.split(examples, mode='subjects', **fractions)
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
  splits = splits_lib.split(examples, mode='blocks', seed=seed)
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
    splits, splits_lib.split(examples, mode='blocks', seed=seed + 1)
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
    splits = splits_lib.split(
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
    splits_lib.split(examples, mode='blocks')


def test_an_unknown_mode_is_refused():
  with pytest.raises(ValueError, match=r"one of subjects, .*, found 'x'"):
    splits_lib.split(sites_of([5]), mode='x')


@pytest.mark.parametrize('mode', splits_lib.MODES)
def test_a_subject_at_two_sites_is_refused(mode):
  examples = examples_of(['s', 's', 't'], ['a', 'b', 'b'])
  with pytest.raises(ValueError, match="subject 's' is at the sites a, b; a"):
    splits_lib.split(examples, mode=mode, path='x')


def videos(num_videos, frames, sites=2, seed=0):
  """Examples without subjects: each image its own, in videos, shuffled."""
  rng = np.random.default_rng(seed)
  count = num_videos * frames
  video = np.repeat(np.arange(num_videos), frames)
  scenes = rng.integers(50, 200, (num_videos, 24, 24, 1))
  image = scenes[video] + rng.integers(-3, 4, (count, 24, 24, 1))
  order = rng.permutation(count)
  examples = examples_of(
    [f's{i}' for i in range(count)], [f'site{v % sites}' for v in video]
  )._replace(image=image.astype(np.uint8))
  return examples_lib.take(examples, order), video[order]


@pytest.mark.parametrize('seed', [0, 1])
def test_frames_of_a_video_are_on_one_side(seed):
  examples, video = videos(20, 5)
  splits = splits_lib.split(examples, mode='content', seed=seed)
  for one in range(20):
    assert len(set(splits[video == one])) == 1
  for site in ('site0', 'site1'):
    here = collections.Counter(splits[examples.site == site])
    assert here == {'train': 35, 'valid': 5, 'test': 10}
  # By subject, frames would lie on both sides; and order does not matter.
  apart = splits_lib.split(examples, mode='subjects', seed=seed)
  assert any(len(set(apart[video == one])) > 1 for one in range(20))
  order = np.random.default_rng(seed).permutation(len(splits))
  again = splits_lib.split(
    examples_lib.take(examples, order), mode='content', seed=seed
  )
  np.testing.assert_array_equal(again, splits[order])
  other = splits_lib.split(examples, mode='content', seed=seed + 10)
  assert not np.array_equal(other, splits)


def test_a_video_at_two_sites_is_on_one_side():
  examples, video = videos(12, 4, sites=1)
  site = np.where(np.arange(48) % 2, 'a', 'b')
  splits = splits_lib.split(examples._replace(site=site), mode='content')
  for one in range(12):
    assert len(set(splits[video == one])) == 1


def test_named_subjects_stay_together_with_their_near_duplicates():
  examples, video = videos(40, 3)
  # Two videos a patient, of views that have nothing in common.
  named = examples._replace(
    subject=np.array([f'p{v // 4:02d}{v % 2}' for v in video])
  )
  subject = splits_lib.together(named, 'content')
  np.testing.assert_array_equal(subject, named.subject)
  splits = splits_lib.split(named, mode='content')
  for name in np.unique(named.subject):
    assert len(set(splits[named.subject == name])) == 1
  # A frame that two patients share connects them.
  image = named.image.copy()
  a, b = (np.flatnonzero(named.subject == name) for name in ('p000', 'p010'))
  image[b[0]] = image[a[0]]
  joined = splits_lib.together(named._replace(image=image), 'content')
  assert set(joined[[*a, *b]]) == {'p000'}
  assert len(set(joined)) == len(set(named.subject)) - 1


@pytest.mark.parametrize('mode', ['subjects', 'blocks', 'csv', 'official'])
def test_known_subjects_are_taken_at_their_word(mode):
  examples, video = videos(6, 4)
  named = examples._replace(subject=np.array([f'p{v // 4}' for v in video]))
  assert splits_lib.together(named, mode) is named.subject
  assert splits_lib.subjects_are_known(named, mode)


def test_groups_stand_for_subjects_that_are_not_known():
  examples, video = videos(6, 4)
  for mode in ('content', 'official'):
    assert not splits_lib.subjects_are_known(examples, mode)
    groups = splits_lib.together(examples, mode)
    assert len({*zip(groups, video)}) == len(set(groups)) == 6
  assert splits_lib.subjects_are_known(examples, 'subjects')


def test_too_few_groups_are_refused():
  examples, _ = videos(2, 6, sites=1)
  with pytest.raises(ValueError, match='has 2 groups of near-duplicate images'):
    splits_lib.split(examples, mode='content')


def test_official_drops_empty_masks_only_where_asked():
  examples = examples_of([f's{i}' for i in range(30)], ['a'] * 30)
  mask = np.zeros((30, 1, 1), np.uint8)
  mask[::2] = 1
  examples = examples._replace(mask=mask)
  options = {'mode': 'official', 'num_clients': 2, 'test_fraction': 0.2}
  dropped = splits_lib.split(examples, drop_empty=True, **options)
  assert np.all((dropped == 'gap') == (mask[:, 0, 0] == 0))
  kept = splits_lib.split(examples, **options)
  assert 'gap' not in kept
  with pytest.raises(ValueError, match=r"official_test: .*found 'patients'"):
    splits_lib.split(examples, official_test='patients', **options)


@pytest.mark.parametrize(
  'fractions, missing',
  [
    ({'test_fraction': 0, 'valid_fraction': 0.3}, 'test'),
    ({'valid_fraction': 0}, 'valid'),
    ({'valid_fraction': 1}, 'train'),
  ],
)
def test_no_split_is_empty(fractions, missing):
  with pytest.raises(ValueError, match=f'{missing!r} has no case of 10; use'):
    splits_lib.split(sites_of([5]), mode='official', **fractions)


@pytest.mark.parametrize('mode', ['subjects', 'blocks'])
def test_a_written_split_is_read_back(tmp_path, mode):
  names = ['a, "b"', 'Zürich', 'c\nd']
  examples = examples_of(np.repeat(names, 30), np.repeat(['x', 'y', 'y'], 30))
  if mode == 'subjects':
    examples = sites_of([4, 5])
  splits = splits_lib.split(examples, mode=mode)
  path = tmp_path / 'split.csv'
  path.write_text(splits_lib.split_csv(examples, splits), encoding='utf-8')
  assert path.read_text(encoding='utf-8').startswith(
    'case,subject,site,split\n'
  )
  order = np.random.default_rng(0).permutation(len(splits))
  again = splits_lib.split(
    examples_lib.take(examples, order), mode='csv', path=path
  )
  np.testing.assert_array_equal(again, splits[order])


FILE = [
  'case,subject,site,split',
  'case0,0-0,site0,train',
  'case1,0-1,site0,valid',
  'case2,0-2,site0,test',
  'case3,0-3,site0,gap',
]


@pytest.mark.parametrize(
  'line, text, expected',
  [
    (1, 'case,subject,site', 'line 1: expected the columns case,subject,site,'),
    (1, 'split,subject,site,case', 'line 1: expected the columns'),
    (3, 'case9,0-1,site0,valid', "line 3: the data have no case 'case9'; rem"),
    (3, 'case0,0-0,site0,valid', "line 3: the case 'case0' is in line 2 alre"),
    (3, 'case1,0-1,site0,vlid', "line 3: split: .* gap, found 'vlid'"),
    (3, 'case1,0-1,site0,', "line 3: split: .*found ''"),
    (
      4,
      'case2,0-1,site0,test',
      "4: the subject of 'case2' is '0-2' in .*'0-1'",
    ),
    (4, 'case2,0-2,site1,test', "line 4: the site of 'case2' is 'site0' in"),
    (4, 'case2,0-2,site0', 'line 4: expected 4 columns, found'),
    (4, 'case2,0-2,site0,test,more', 'line 4: expected 4 columns, found'),
    (4, '', "1 cases of the data are missing, such as 'case2'; add"),
    (4, '"case2', 'expected 4 columns'),
    (4, 'case2,0-2,site0,train', "'test' has no case of 4"),
    (4, 'case2\0', 'expected'),
  ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, line, text, expected):
  examples = sites_of([4], visits=1)
  path = tmp_path / 'split.csv'
  path.write_text('\n'.join(FILE) + '\n')
  read = splits_lib.split(examples, mode='csv', path=path)
  assert list(read) == ['train', 'valid', 'test', 'gap']
  lines = [*FILE[: line - 1], text, *FILE[line:]]
  path.write_text('\n'.join(lines) + '\n')
  with pytest.raises(ValueError, match=expected) as error:
    splits_lib.split(examples, mode='csv', path=path)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('content', [b'', b'\xff\xfe\x00', None])
def test_unreadable_files_are_refused(tmp_path, content):
  path = tmp_path / 'split.csv'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(ValueError, match=r'split\.csv: ') as error:
    splits_lib.split(sites_of([4]), mode='csv', path=path)
  assert '\n' not in str(error.value)
  with pytest.raises(ValueError, match='needs the path of a file'):
    splits_lib.split(sites_of([4]), mode='csv')
