"""Tests of the cardiac data set: pictures, and bad ones."""

import re

import numpy as np
import pytest
from cardiac_folders import (
  build,
  prepare,
  refusal,
  write_picture,
  write_pictures,
)
from PIL import Image

from ppcmi_jax.datasets import manual


@pytest.fixture
def folder(tmp_path):
  path = tmp_path / 'Task02_Heart'
  path.mkdir()
  return path


@pytest.mark.parametrize('suffix', ['png', 'tif'])
@pytest.mark.parametrize('high', [1, 255])
def test_pictures_end_to_end(folder, tmp_path, high, suffix):
  """Masks of 0/1 too, on which the official code recurses for ever."""
  written = write_pictures(folder, high=high, suffix=suffix)
  examples = prepare(folder, tmp_path)
  assert [e['case'] for e in examples] == list(written)
  for position, example in enumerate(examples):
    pixels, mask = written[example['case']]
    np.testing.assert_array_equal(
      example['image'], np.float32(pixels / np.float32(255))[..., None]
    )
    np.testing.assert_array_equal(example['mask'], mask == high)
    assert example['mask'].sum() == 6
    assert example['image'].dtype == np.float32
    assert example['subject'] == example['case'] and example['site'] == '1'
    assert example['position'] == position
    np.testing.assert_array_equal(example['spacing_mm'], [1, 1])


def test_the_subject_of_a_picture_is_read_from_its_name(folder, tmp_path):
  names = ('la_003_10', 'la_003_9', 'la_0031_1', 'heart_la_003')
  write_pictures(folder, names)
  examples = prepare(folder, tmp_path)
  # By numbers, so that positions follow the slices of a volume.
  assert [(e['case'], e['subject'], e['position']) for e in examples[:4]] == [
    ('train/heart_la_003', 'train/heart_la_003', 0),
    ('train/la_003_9', 'la_003', 1),
    ('train/la_003_10', 'la_003', 2),
    ('train/la_0031_1', 'la_0031', 3),
  ]
  assert [e['position'] for e in examples] == list(range(8))
  assert {e['case'].partition('/')[0] for e in examples[4:]} == {'test'}


def test_grey_in_three_channels_and_masks_of_one_bit(folder, tmp_path):
  written = write_pictures(folder)
  pixels, mask = written['train/a']
  write_picture(folder / 'train_slices/a.png', np.stack([pixels] * 3, -1))
  write_picture(folder / 'train_labels/a.png', mask > 0)
  with Image.open(folder / 'train_labels/a.png') as picture:
    assert picture.mode == '1'
  example = prepare(folder, tmp_path)[0]
  np.testing.assert_array_equal(
    example['image'][..., 0], np.float32(pixels) / np.float32(255)
  )
  np.testing.assert_array_equal(example['mask'], mask > 0)


def test_lossless_jpeg_is_no_condition_for_images(folder, tmp_path):
  write_pictures(folder)
  path = folder / 'train_slices/a.png'
  flat = np.full((5, 7), 128, np.uint8)
  write_picture(path.with_suffix('.jpg'), flat)
  path.unlink()
  example = prepare(folder, tmp_path)[0]
  assert example['case'] == 'train/a'
  np.testing.assert_allclose(example['image'], 128 / 255, atol=0.01)


def test_empty_pictures_are_dropped_where_asked(folder, tmp_path):
  written = write_pictures(folder)
  write_picture(folder / 'train_labels/a.png', written['train/a'][1] * 0)
  assert len(prepare(folder, tmp_path)) == 4
  dropped = prepare(folder, tmp_path, empty='drop')
  assert [(e['case'], e['position']) for e in dropped] == [
    ('train/b', 1), ('test/a', 2), ('test/b', 3),
  ]  # fmt: skip


def _picture(name, pixels, **how):
  return lambda folder: write_picture(folder / name, pixels, **how)


def _cut(folder):
  path = folder / 'train_slices/a.png'
  path.write_bytes(path.read_bytes()[:-25])


BLANK = np.zeros((5, 7), np.uint8)
COLOUR = np.zeros((5, 7, 3), np.uint8)
COLOUR[2, 2] = 1, 2, 3
RED = np.zeros((5, 7, 3), np.uint8)
RED[..., 0] = 200
TWO = np.arange(35, dtype=np.uint8).reshape(5, 7)


def _jpeg(name, pixels=TWO * 7, cut=0):
  def damage(folder):
    (folder / f'{name}.png').unlink()
    path = folder / f'{name}.jpg'
    write_picture(path, pixels, quality=60)
    path.write_bytes(path.read_bytes()[: -cut or None])

  return damage


PICTURE_DAMAGE = {
  'no mask': (
    lambda f: (f / 'train_labels/a.png').unlink(),
    'train_slices/a.png: image without mask',
  ),
  'no image': (
    lambda f: (f / 'test_slices/b.png').unlink(),
    'test_labels/b.png: mask without image',
  ),
  'twice': (_picture('train_slices/a.tif', BLANK), 'a.png, a.tif.; keep one'),
  'mask of greys': (
    _picture('train_labels/a.png', TWO),
    'mask: unknown label 1; expected 0, 255',
  ),
  'mask of 0, 1 and 255': (
    _picture('train_labels/a.png', np.where(TWO > 9, 255, TWO == 3)
    .astype(np.uint8)),
    'mask: unknown label 1; expected 0, 255',
  ),
  'other size': (_picture('train_labels/a.png', BLANK[1:]), 'same size'),
  'colour': (_picture('train_slices/a.png', COLOUR), 'found 3 planes'),
  '16 bit': (_picture('train_slices/a.png', np.uint16(TWO)), 'found uint16'),
  'colour mask': (_picture('train_labels/a.png', COLOUR), 'mask .*3 planes'),
  'truncated': (_cut, 'a.png: PNG: truncated'),
  'lossy mask': (
    _jpeg('train_labels/a'),
    'mask: unknown label .* expected 0, 255',
  ),
  'truncated jpeg': (_jpeg('train_slices/a', cut=30), 'a.jpg: JPEG: truncated'),
  'jpeg in colour': (_jpeg('train_slices/a', RED), '3 planes'),
  'no picture': (
    lambda f: (f / 'train_labels/a.png').write_text('<html>'),
    'mask train_labels/a.png: PNG',
  ),
  'pages': (
    lambda f: (
      (f / 'train_slices/a.png').unlink(),
      write_picture(
        f / 'train_slices/a.tif',
        BLANK,
        save_all=True,
        append_images=[Image.fromarray(TWO)],
      ),
    ),
    'found 2 frames',
  ),
}  # fmt: skip


@pytest.mark.parametrize('kind', PICTURE_DAMAGE)
def test_bad_pictures_are_named_and_can_be_skipped(folder, tmp_path, kind):
  write_pictures(folder)
  damage, reason = PICTURE_DAMAGE[kind]
  damage(folder)
  assert re.search(reason, refusal(folder, tmp_path))
  builder = build(folder, tmp_path, on_error='skip')
  assert len(builder.as_data_source('all')) == 3
  assert len(manual.read_note(builder)['skipped']) == 1


@pytest.mark.parametrize(
  'gone', ['train_slices', 'train_labels', 'test_slices', 'test_labels']
)
def test_a_missing_folder_of_pictures_is_named(folder, tmp_path, gone):
  write_pictures(folder)
  (folder / gone).rename(folder / 'elsewhere')
  assert f'found no {gone}' in refusal(folder, tmp_path)
