"""Tests of nerve.py, on files in the format and layout of the challenge."""

import functools
import json
import pathlib
import shutil
import tracemalloc

import manual_builds
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from ppcmi_jax.datasets import nerve

prepare = functools.partial(manual_builds.prepare, 'nerve')
SHAPE = 420, 580


def draw(seed, shape=SHAPE):
  """Returns a frame: what all of a patient share, structures, and speckle."""
  rng = np.random.default_rng(seed)
  rows = np.linspace(1, 0.3, shape[0])[:, None]
  coarse = rng.normal(size=(7, 9))
  tissue = scipy.ndimage.zoom(
    coarse,
    (shape[0] / 7, shape[1] / 9),
    order=1,
    grid_mode=True,
    mode='nearest',
  )
  return np.clip(
    (110 + 30 * tissue) * rows * (1 + 0.2 * rng.normal(size=shape)), 0, 255
  ).astype(np.uint8)


def outline(shape=SHAPE):
  mask = np.zeros(shape, np.uint8)
  mask[shape[0] // 3 : shape[0] // 2, shape[1] // 3 : shape[1] // 2] = 255
  return mask


def noisy(image, seed=0, amount=5):
  noise = np.random.default_rng(seed).normal(0, amount, image.shape)
  return np.clip(image + noise, 0, 255).astype(np.uint8)


def write_pair(folder, name, image, mask):
  folder.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(folder / f'{name}.tif')
  Image.fromarray(mask).save(folder / f'{name}_mask.tif')


SMALL = 42, 58
FRAMES = {
  '1_1': (draw(0, SMALL), outline(SMALL)),
  '1_2': (draw(1, SMALL), np.zeros(SMALL, np.uint8)),
  '1_10': (draw(2, SMALL), outline(SMALL)),
  '12_3': (draw(3, SMALL), outline(SMALL)),
  '2_1': (draw(4, SMALL), np.zeros(SMALL, np.uint8)),
}
CASES = ['01_001', '01_002', '01_010', '02_001', '12_003']


@pytest.fixture
def raw(tmp_path):
  for name, (image, mask) in FRAMES.items():
    write_pair(tmp_path / 'raw' / 'train', name, image, mask)
  (tmp_path / 'raw' / 'train_masks.csv').write_text('subject,img,pixels\n')
  (tmp_path / 'raw' / 'test').mkdir()
  Image.fromarray(FRAMES['1_1'][0]).save(tmp_path / 'raw' / 'test' / '1.tif')
  return tmp_path / 'raw'


def listing(builder):
  path = pathlib.Path(builder.data_path) / nerve.LISTING
  return json.loads(path.read_text()) if path.exists() else []


def test_round_trip(raw):
  builder, examples, lines = prepare(raw)
  assert builder.info.metadata['classes'] == ['background', 'brachial plexus']
  assert list(examples) == CASES and not lines
  assert not listing(builder)
  for case, example in examples.items():
    subject, number = map(int, case.split('_'))
    image, mask = FRAMES[f'{subject}_{number}']
    np.testing.assert_array_equal(example['image'], image[..., None])
    np.testing.assert_array_equal(example['mask'], mask // 255)
    np.testing.assert_array_equal(example['spacing_mm'], [1, 1])
    assert example['subject'] == f'{subject:02d}'.encode()
    assert (example['site'], example['position']) == (b'1', number)


def test_the_folder_itself(raw):
  assert list(prepare(raw / 'train')[1]) == CASES
  shutil.copy(raw / 'train' / '1_1.tif', raw)
  with pytest.raises(ValueError, match='found them in both'):
    prepare(raw)
  shutil.rmtree(raw / 'train')
  (raw / '1_1.tif').unlink()
  with pytest.raises(ValueError, match=f'{raw}: .*found none'):
    prepare(raw)


def cut(name):
  def spoil(train):
    path = train / name
    path.write_bytes(path.read_bytes()[:-1])

  return spoil


IMAGE, MASK = FRAMES['1_10']
BAD = {
  'cut': (cut('1_10.tif'), '1_10.tif', 'truncated'),
  'cut mask': (
    cut('1_10_mask.tif'),
    '1_10.tif',
    'mask train/1_10_mask.tif: .*truncated',
  ),
  'label': (
    lambda train: write_pair(train, '1_10', IMAGE, MASK // 2),
    '1_10.tif',
    'unknown label 127',
  ),
  'size': (
    lambda train: write_pair(train, '1_10', IMAGE, MASK[1:]),
    '1_10.tif',
    r'same size, found \[42, 58\] and \[41, 58\]',
  ),
  'colour': (
    lambda train: write_pair(
      train, '1_10', np.stack([IMAGE, IMAGE, IMAGE // 2], -1), MASK
    ),
    '1_10.tif',
    '3 planes .*differ',
  ),
  '16 bit': (
    lambda train: write_pair(train, '1_10', IMAGE.astype('uint16'), MASK),
    '1_10.tif',
    'expected uint8, found uint16',
  ),
  'no mask': (
    lambda train: (train / '1_10_mask.tif').unlink(),
    '1_10.tif',
    'image without mask',
  ),
  'no image': (
    lambda train: (train / '1_10.tif').unlink(),
    '1_10_mask.tif',
    'mask without image',
  ),
  'twice': (
    lambda train: write_pair(train, '01_10', IMAGE, MASK),
    '01_10.tif',
    '2 files of one name',
  ),
}


@pytest.mark.parametrize('kind', BAD)
@pytest.mark.parametrize('contradictions', ['keep', 'drop'])
def test_bad_file_is_named_or_skipped(raw, kind, contradictions):
  spoil, name, reason = BAD[kind]
  spoil(raw / 'train')
  options = {'contradictions': contradictions}
  with pytest.raises(ValueError, match=f'{raw}/train/{name}: .*{reason}'):
    prepare(raw, **options)
  _, examples, lines = prepare(raw, on_error='skip', **options)
  assert list(examples) == [case for case in CASES if case != '01_010']
  assert f'skipped train/{name}: ' in lines and '1 records were' in lines


@pytest.mark.parametrize(
  'name, reason',
  [('notes.csv', 'not a picture'), ('one_2.tif', 'unexpected name')],
)
def test_file_that_is_no_frame_is_named(raw, name, reason):
  shutil.copy(raw / 'train' / '1_1.tif', raw / 'train' / name)
  with pytest.raises(ValueError, match=f'train/{name}: {reason}'):
    prepare(raw)
  assert list(prepare(raw, on_error='skip')[1]) == CASES


def test_same_frame_is_near_and_others_are_not():
  """On frames of the true size: gain, noise, speckle and a pixel are small."""
  frames = [draw(seed) for seed in range(12)]
  distance = lambda a, b: np.linalg.norm(
    nerve.thumbnail(a) - nerve.thumbnail(b)
  )
  near = nerve.NerveConfig().near
  for seed, frame in enumerate(frames[:4]):
    for same in (
      frame,
      noisy(frame, seed),
      noisy(frame, seed, amount=15),
      (frame * 0.8 + 10).astype(np.uint8),
      np.roll(frame, 1, axis=1),
    ):
      assert distance(frame, same) < near / 2
  apart = [distance(a, b) for i, a in enumerate(frames) for b in frames[:i]]
  assert min(apart) > 2 * near


def test_thumbnail_is_the_means_of_blocks():
  image = draw(0)
  means = image.reshape(21, 20, 29, 20).mean((1, 3)).ravel()
  means -= means.mean()
  np.testing.assert_allclose(
    nerve.thumbnail(image), means / np.linalg.norm(means), atol=1e-5
  )
  assert not nerve.thumbnail(np.full(SHAPE, 7, np.uint8)).any()


def test_contradictions_match_all_pairs():
  rng = np.random.default_rng(0)
  thumbnails = np.stack(
    [nerve.thumbnail(rng.integers(0, 256, (5, 6))) for _ in range(30)]
  )
  empty = rng.random(30) < 0.5
  found = nerve.contradictions(thumbnails, empty, 1.2)
  expected = {
    (i, j)
    for i in range(30)
    for j in range(30)
    if empty[i] and not empty[j]
    and np.linalg.norm(thumbnails[i] - thumbnails[j]) < 1.2
  }  # fmt: skip
  assert 0 < len(expected) < empty.sum() * (~empty).sum()
  assert set(zip(*map(np.ndarray.tolist, found[:2]))) == expected
  for i, j, apart in zip(*found):
    np.testing.assert_allclose(
      apart, np.linalg.norm(thumbnails[i] - thumbnails[j]), atol=1e-5
    )


@pytest.fixture
def contradictory(raw):
  """Adds near-identical frames to subject 1: two contradict frame 1."""
  nothing, some = np.zeros(SMALL, np.uint8), outline(SMALL)
  near = lambda name, seed: noisy(FRAMES[name][0], seed, amount=1)
  train = raw / 'train'
  write_pair(train, '1_20', near('1_1', 0), nothing)
  write_pair(train, '1_21', near('1_1', 1), nothing)
  write_pair(train, '1_22', near('1_1', 2), some)  # agrees with frame 1
  write_pair(train, '1_23', near('1_2', 3), nothing)  # agrees with frame 2
  write_pair(train, '2_20', near('1_1', 4), nothing)  # another patient
  return raw


def test_contradictions_are_counted_and_kept(contradictory, caplog):
  builder, examples, _ = prepare(contradictory)
  assert len(examples) == 10
  found = {(e['empty'], e['outlined']) for e in listing(builder)}
  assert found == {
    (empty, outlined)
    for empty in ('01_020', '01_021')
    for outlined in ('01_001', '01_022')
  }
  lines = manual_builds.said(caplog, 'nerve')
  assert len(lines) == 1 and 'kept 2 of 10' in lines[0]
  assert '(4 pairs' in lines[0]


def test_contradictions_drop_the_frames_without_outline(contradictory, caplog):
  builder, examples, _ = prepare(contradictory, contradictions='drop')
  assert sorted(examples) == sorted([*CASES, '01_022', '01_023', '02_020'])
  assert len(listing(builder)) == 4 and 'dropped 2 of 10' in caplog.text
  # Nearer than that is nothing.
  _, examples, _ = prepare(contradictory, contradictions='drop', near=1e-4)
  assert len(examples) == 10


def test_bad_frame_contradicts_nobody(contradictory):
  """Both outlined frames are damaged, so the others are not disproved."""
  train = contradictory / 'train'
  for name in ('1_1', '1_22'):
    write_pair(train, name, FRAMES['1_1'][0], outline(SMALL) // 2)
  builder, examples, lines = prepare(
    contradictory, contradictions='drop', on_error='skip'
  )
  assert len(examples) == 8 and not listing(builder)
  assert '2 records were skipped' in lines


def test_images_are_not_held(tmp_path):
  for number in range(24):
    write_pair(tmp_path / 'raw', f'3_{number}', draw(number % 3), outline())
  config = nerve.NerveConfig(manual_dir=str(tmp_path / 'raw'))
  builder = nerve.Nerve(data_dir=tmp_path / 'data', config=config)
  records = builder.records(tmp_path / 'raw')
  tracemalloc.start()
  for record in records:
    assert len(list(record.read())) == 1
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 12 * 420 * 580  # bytes; all images and masks are 48 planes


def test_second_run_needs_no_folder_and_sees_changes(raw):
  prepare(raw)
  write_pair(raw / 'train', '9_9', *FRAMES['1_1'])
  with pytest.raises(ValueError, match='has changed since'):
    prepare(raw)
  shutil.rmtree(raw)
  assert list(prepare(raw)[1]) == CASES


@pytest.mark.parametrize(
  'change', [{'contradictions': 'both'}, {'near': 0}, {'near': 1.5}]
)
def test_config_rejects(change):
  with pytest.raises(ValueError, match=f'{next(iter(change))}: expected'):
    nerve.NerveConfig(**change)
