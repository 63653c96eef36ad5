"""Tests of pairing.py; the builders' tests cover what it refuses."""

import pathlib

import pytest

from ppcmi_jax.datasets import manual, pairing

HOMES = 'images/NAME.png', 'masks/NAME.png'


def test_problems_come_first_and_nothing_is_lost(tmp_path):
  for place, names in (
    ('images', 'd.png b.png a.png c.png e.tif e.png x.txt .y.png'),
    ('masks', 'c.tif a.png f.png d.PNG'),
  ):
    (tmp_path / place).mkdir()
    for name in names.split():
      (tmp_path / place / name).touch()
  pairs = pairing.pair(
    pairing.list_folder(tmp_path / 'images'),
    pairing.list_folder(tmp_path / 'masks'),
    homes=HOMES,
  )
  assert [(pair.key, bool(pair.problem)) for pair in pairs] == [
    ('x.txt', True), ('b', True), ('e', True), ('f', True),
    ('a', False), ('c', False), ('d', False),
  ]  # fmt: skip
  assert pairs[-1][1:3] == (
    tmp_path / 'images' / 'd.png',
    tmp_path / 'masks' / 'd.PNG',
  )
  records = pairing.to_records(pairs, tmp_path, lambda pair: [pair.key])
  assert [record.name for record in records] == [
    'images/x.txt', 'images/b.png', 'images/e.png', 'masks/f.png',
    'images/a.png', 'images/c.png', 'images/d.png',
  ]  # fmt: skip
  assert [record.read() for record in records[4:]] == [['a'], ['c'], ['d']]
  with pytest.raises(ValueError, match=r'expected that of .b. as masks/NAME'):
    records[1].read()


def test_pictures_are_data_whatever_their_name(tmp_path):
  for name in ('readme_1.png', 'README', 'License.md', '.a.png', '_a.png'):
    (tmp_path / name).touch()
  names = [path.name for path in pairing.list_folder(tmp_path)]
  assert names == ['_a.png', 'readme_1.png']


def test_report_follows_the_last_record_even_if_it_fails():
  calls = []

  def read_first():
    calls.append('first')
    yield 1

  records = pairing.and_then(
    [manual.Record('a', read_first), pairing.refused('b', 'bad')],
    lambda: calls.append('report'),
  )
  assert list(records[0].read()) == [1]
  with pytest.raises(ValueError, match='bad'):
    records[1].read()
  assert calls == ['first', 'report']
  assert pairing.and_then([], calls.clear) == []


def test_error_of_a_mask_names_the_mask():
  def reader(path):
    if path.name == 'bad.png':
      raise ValueError('damaged')
    return path.name

  good, bad = (pathlib.Path('x') / name for name in ('good.png', 'bad.png'))
  assert pairing.read_pair(good, good, reader) == ('good.png', 'good.png')
  with pytest.raises(ValueError, match=r'mask x/bad\.png: damaged'):
    pairing.read_pair(good, bad, reader)
  with pytest.raises(ValueError, match=r'^damaged'):
    pairing.read_pair(bad, good, reader)
