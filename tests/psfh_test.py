"""Tests of psfh.py, on files in the format and layout of FH-PS-AOP."""

import functools
import json
import pathlib
import shutil

import manual_builds
import numpy as np
import pytest
import SimpleITK as sitk

from ppcmi_jax.datasets import manual, psfh

prepare = functools.partial(manual_builds.prepare, 'psfh')
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 32, 48), np.uint8)
MASKS = RNG.integers(0, 3, (5, 32, 48), np.uint8)


def write(path, array):
  """Writes a .mha whose header says what is not so."""
  path.parent.mkdir(parents=True, exist_ok=True)
  image = sitk.GetImageFromArray(array)
  image.SetSpacing((0.25, 0.5, 2)[: image.GetDimension()])
  if image.GetDimension() == 3:
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
  sitk.WriteImage(image, str(path))


def write_pair(folder, name, image, mask):
  planes = image if image.ndim == 3 else np.stack([image] * 3)
  write(folder / 'image_mha' / f'{name}.mha', planes)
  write(folder / 'label_mha' / f'{name}.mha', mask)


@pytest.fixture
def raw(tmp_path):
  """Returns a folder of five frames, 00001 to 00005."""
  for number, (image, mask) in enumerate(zip(IMAGES, MASKS), 1):
    write_pair(tmp_path / 'raw', f'{number:05d}', image, mask)
  return tmp_path / 'raw'


def test_round_trip(raw):
  write(raw / 'image_mha' / '00002.mha', IMAGES[1])  # one plane will do, too
  write(raw / 'label_mha' / '00003.mha', MASKS[2][None])
  (raw / 'image_mha' / '._00001.mha').write_bytes(b'junk')
  (raw / 'image_mha' / 'README.txt').write_text('words')
  builder, examples, lines = prepare(raw)
  assert builder.info.metadata['classes'] == [
    'background', 'pubic symphysis', 'fetal head',
  ]  # fmt: skip
  assert list(examples) == [f'{i:05d}' for i in range(1, 6)] and not lines
  for example, image, mask in zip(examples.values(), IMAGES, MASKS):
    np.testing.assert_array_equal(example['image'], image[..., None])
    np.testing.assert_array_equal(example['mask'], mask)
    np.testing.assert_array_equal(example['spacing_mm'], [1, 1])
    assert example['image'].dtype == example['mask'].dtype == np.uint8
    assert example['subject'] == example['case']
    assert (example['site'], example['position']) == (b'1', 0)


def test_folder_beside_another_is_refused(raw):
  shutil.copytree(raw / 'image_mha', raw / 'more' / 'image_mha')
  shutil.copytree(raw / 'label_mha', raw / 'more' / 'label_mha')
  with pytest.raises(ValueError, match=r'found them in raw, more'):
    prepare(raw)


def test_folder_one_deeper(raw):
  deeper = raw / 'Pubic Symphysis-Fetal Head'
  deeper.mkdir()
  for name in psfh.HOMES:
    (raw / name).rename(deeper / name)
  (raw / '__MACOSX' / 'image_mha').mkdir(parents=True)
  assert len(prepare(raw)[1]) == 5
  assert len(prepare(deeper, data_dir=raw.parent / 'data')[1]) == 5
  shutil.copytree(deeper, raw / 'again')
  with pytest.raises(ValueError, match=r'them in Pubic .*, again'):
    prepare(raw, duplicates='keep')


@pytest.mark.parametrize('gone', psfh.HOMES)
def test_missing_folder_is_named(raw, gone):
  shutil.rmtree(raw / gone)
  with pytest.raises(ValueError, match=f'found no {gone}'):
    prepare(raw)


def test_empty_folders(raw):
  for name in psfh.HOMES:
    shutil.rmtree(raw / name)
  with pytest.raises(ValueError, match=f'{raw}: .*found none'):
    prepare(raw)
  for name in psfh.HOMES:
    (raw / name).mkdir()
  with pytest.raises(ValueError, match=f'{raw}: .*found none'):
    prepare(raw)


def cut(raw):
  path = raw / 'image_mha' / '00003.mha'
  path.write_bytes(path.read_bytes()[:-1])


def cut_mask(raw):
  path = raw / 'label_mha' / '00003.mha'
  path.write_bytes(path.read_bytes()[:-9])


BAD = {
  'cut': (cut, 'image_mha/00003.mha', 'truncated'),
  'cut mask': (
    cut_mask,
    'image_mha/00003.mha',
    'mask label_mha/00003.mha: .*truncated',
  ),
  'colour': (
    lambda raw: write_pair(raw, '00003', IMAGES[:3], MASKS[2]),
    'image_mha/00003.mha',
    '3 planes .*differ',
  ),
  'label': (
    lambda raw: write_pair(raw, '00003', IMAGES[2], MASKS[2] + 2),
    'image_mha/00003.mha',
    'unknown label 3',
  ),
  'size': (
    lambda raw: write_pair(raw, '00003', IMAGES[2], MASKS[2][1:]),
    'image_mha/00003.mha',
    r'same size, found \[32, 48\] and \[31, 48\]',
  ),
  'dtype': (
    lambda raw: write_pair(raw, '00003', IMAGES[2].astype('int16'), MASKS[2]),
    'image_mha/00003.mha',
    'expected uint8, found int16',
  ),
  'no mask': (
    lambda raw: (raw / 'label_mha' / '00003.mha').unlink(),
    'image_mha/00003.mha',
    'image without mask',
  ),
  'no image': (
    lambda raw: (raw / 'image_mha' / '00003.mha').unlink(),
    'label_mha/00003.mha',
    'mask without image',
  ),
  'twice': (
    lambda raw: shutil.copy(
      raw / 'image_mha' / '00003.mha', raw / 'image_mha' / '00003.MHA'
    ),
    'image_mha/00003.MHA',
    '2 files of one name',
  ),
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_file_is_named_or_skipped(raw, kind):
  spoil, name, reason = BAD[kind]
  spoil(raw)
  with pytest.raises(ValueError, match=f'{raw / name}: .*{reason}'):
    prepare(raw)
  _, examples, lines = prepare(raw, on_error='skip')
  assert list(examples) == ['00001', '00002', '00004', '00005']
  assert f'skipped {name}: ' in lines and '1 records were skipped' in lines


def test_file_that_is_no_image_is_named(raw):
  (raw / 'label_mha' / 'notes.csv').write_text('a,b')
  with pytest.raises(ValueError, match=r'label_mha/notes\.csv: not a picture'):
    prepare(raw)
  _, examples, lines = prepare(raw, on_error='skip')
  assert len(examples) == 5 and 'label_mha/notes.csv' in lines


def listing(builder):
  path = pathlib.Path(builder.data_path) / psfh.LISTING
  return json.loads(path.read_text()) if path.exists() else []


def test_duplicates_are_dropped_and_listed(raw, caplog):
  write_pair(raw, '00007', IMAGES[1], MASKS[1])
  write_pair(raw, '00008', IMAGES[3], MASKS[4])
  write_pair(raw, '00009', IMAGES[1], MASKS[1])
  builder, examples, _ = prepare(raw)
  assert list(examples) == [f'{i:05d}' for i in range(1, 6)]
  np.testing.assert_array_equal(examples['00004']['mask'], MASKS[3])
  assert listing(builder) == [
    {'case': '00007', 'of': '00002', 'contradicts': False},
    {'case': '00008', 'of': '00004', 'contradicts': True},
    {'case': '00009', 'of': '00002', 'contradicts': False},
  ]
  warnings = manual_builds.said(caplog, 'psfh')
  assert len(warnings) == 1
  assert 'dropped 3 of 8' in warnings[0]
  assert (
    'masks of 1 contradict those of the other (00008 of 00004)' in (warnings[0])
  )


def test_duplicates_that_are_kept_stay_in_one_split(raw, caplog):
  write_pair(raw, '00007', IMAGES[1], MASKS[1])
  builder, examples, _ = prepare(raw, duplicates='keep')
  assert len(examples) == 6 and len(listing(builder)) == 1
  assert examples['00007']['subject'] == b'00002'
  assert 'kept 1 of 6' in caplog.text


def test_frames_that_differ_by_one_pixel_are_no_duplicates(raw, caplog):
  image = IMAGES[1].copy()
  image[-1, -1] ^= 1
  write_pair(raw, '00007', image, MASKS[1])
  write_pair(raw, '00008', IMAGES[1].reshape(48, 32), MASKS[1].reshape(48, 32))
  builder, examples, _ = prepare(raw)
  assert len(examples) == 7 and not listing(builder)
  assert not manual_builds.said(caplog, 'psfh')


def test_copy_of_a_bad_frame_is_used(raw):
  write_pair(raw, '00001', IMAGES[0], MASKS[0] + 1)
  write_pair(raw, '00007', IMAGES[0], MASKS[0])
  builder, examples, lines = prepare(raw, on_error='skip')
  assert sorted(examples)[0] == '00002' and '00007' in examples
  assert 'image_mha/00001.mha' in lines and not listing(builder)


def test_last_record_may_be_bad(raw, caplog):
  write_pair(raw, '00006', IMAGES[1], MASKS[1])
  write_pair(raw, '00007', IMAGES[0], MASKS[0] + 9)
  builder, examples, _ = prepare(raw, on_error='skip')
  assert len(examples) == 5 and len(listing(builder)) == 1
  assert 'dropped 1 of 7' in caplog.text


def test_second_run_needs_no_folder_and_sees_changes(raw):
  first = prepare(raw)[1]
  write_pair(raw, '00006', IMAGES[0] ^ 1, MASKS[0])
  with pytest.raises(ValueError, match='has changed since'):
    prepare(raw)
  shutil.rmtree(raw)
  again = prepare(raw)[1]
  np.testing.assert_array_equal(
    again['00004']['image'], first['00004']['image']
  )


def test_options():
  with pytest.raises(ValueError, match='duplicates: expected one of drop, kee'):
    psfh.PsfhConfig(duplicates='ignore')
  names = {
    psfh.PsfhConfig(manual_dir='a', **options).name
    for options in ({}, {'duplicates': 'keep'}, {'on_error': 'skip'})
  }
  assert len(names) == 3
  assert issubclass(psfh.PsfhConfig, manual.ManualConfig)
