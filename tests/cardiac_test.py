"""Tests of the cardiac data set: volumes, pictures, and bad files."""

import gzip
import pathlib
import re

import manual_builds
import numpy as np
import pytest
from PIL import Image

from ppcmi_jax.datasets import cardiac, manual

nibabel = pytest.importorskip('nibabel')

SHAPE = (9, 8, 6)  # X, Y, Z
CODES = ('RAS', 'LAS', 'RPS', 'PIR', 'SLA')


def anatomy(seed=0):
  """Returns grey values and labels [X, Y, Z] RAS+ without any symmetry."""
  rng = np.random.default_rng(seed)
  grey = rng.integers(0, 2000, SHAPE).astype(np.int16)
  labels = np.zeros(SHAPE, np.uint8)
  labels[2:5, 1:6, 2:4] = 1
  labels[2, 1, 2] = 0
  return grey, labels


def turned(voxels, codes='RAS', degrees=0):
  """Stores voxels [X, Y, Z] RAS+ with other axes; the body stays in place."""
  affine = np.diag([1.25, 1.5, 2.7, 1])
  affine[:3, 3] = -40, 12, 5
  angle = np.deg2rad(degrees)
  turn = np.eye(4)
  turn[1:3, 1:3] = [
    [np.cos(angle), -np.sin(angle)],
    [np.sin(angle), np.cos(angle)],
  ]
  image = nibabel.Nifti1Image(voxels, turn @ affine)
  return image.as_reoriented(
    nibabel.orientations.ornt_transform(
      nibabel.orientations.axcodes2ornt('RAS'),
      nibabel.orientations.axcodes2ornt(codes),
    )
  )


def write_volume(folder, name, grey, labels, *axes, label_axes=None):
  for place, voxels, how in (
    ('imagesTr', grey, axes),
    ('labelsTr', labels, label_axes or axes),
  ):
    (folder / place).mkdir(parents=True, exist_ok=True)
    if voxels is not None:
      nibabel.save(turned(voxels, *how), folder / place / f'{name}.nii.gz')


def write_picture(path, pixels, **how):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, **how)


def write_pictures(folder, names=('a', 'b'), *, high=255, suffix='png'):
  """Writes the four folders; returns {'train/a': (pixels, mask)}."""
  rng = np.random.default_rng(1)
  written = {}
  for part in ('train', 'test'):
    for name in names:
      pixels = rng.integers(0, 256, (5, 7)).astype(np.uint8)
      mask = np.zeros((5, 7), np.uint8)
      mask[1:3, 2:5] = high
      write_picture(folder / f'{part}_slices/{name}.{suffix}', pixels)
      write_picture(folder / f'{part}_labels/{name}.{suffix}', mask)
      written[f'{part}/{name}'] = pixels, mask
  return written


build, prepare, refusal = manual_builds.functions(
  cardiac.Cardiac, cardiac.CardiacConfig
)


@pytest.fixture
def folder(tmp_path):
  path = tmp_path / 'Task02_Heart'
  path.mkdir()
  return path


def test_a_volume_end_to_end(folder, tmp_path):
  grey, labels = anatomy()
  write_volume(folder, 'la_003', grey, labels, 'LAS', 12)
  write_volume(folder, 'la_010', *anatomy(1))
  examples = prepare(folder, tmp_path)
  assert len(examples) == 12
  low, high = np.percentile(grey, [0.5, 99.5])
  for z, example in enumerate(examples[:6]):
    assert example['image'].dtype == np.float32
    assert example['image'].shape == (8, 9, 1)
    for x, y in np.ndindex(9, 8):
      row, column = 7 - y, 8 - x  # front on top, right on the left
      scaled = min(max((grey[x, y, z] - low) / (high - low), 0), 1)
      assert example['image'][row, column, 0] == pytest.approx(scaled)
      assert example['mask'][row, column] == labels[x, y, z]
    np.testing.assert_allclose(example['spacing_mm'], [1.5, 1.25], rtol=1e-5)
    assert example['subject'] == 'la_003' and example['site'] == '1'
    assert example['case'] == f'la_003-{z:03d}' and example['position'] == z
  assert {e['subject'] for e in examples[6:]} == {'la_010'}
  values = np.stack([e['image'] for e in examples[:6]])
  assert values.min() == 0 and values.max() == 1


def test_any_axes_give_identical_slices(folder, tmp_path):
  grey, labels = anatomy()
  for number, codes in enumerate(CODES):
    write_volume(folder, f'la_{number:03d}', grey, labels, codes)
  write_volume(folder, 'la_100', grey, labels, 'PIR', 20)
  # Image and label need not be stored alike.
  write_volume(
    folder, 'la_101', grey, labels, 'RPS', 20, label_axes=('LAS', 20)
  )
  examples = prepare(folder, tmp_path)
  assert len(examples) == 7 * 6
  for index, example in enumerate(examples):
    first = examples[index % 6]
    np.testing.assert_array_equal(example['image'], first['image'])
    np.testing.assert_array_equal(example['mask'], first['mask'])
  assert examples[2]['mask'].any()


def test_the_junk_of_the_archive_is_ignored(folder, tmp_path):
  write_volume(folder, 'la_003', *anatomy())
  for place in ('imagesTr', 'labelsTr'):
    (folder / place / '._la_003.nii.gz').write_bytes(b'\0\5\x16\7junk')
  (folder / 'imagesTs').mkdir()
  (folder / 'imagesTs/la_001.nii.gz').write_bytes(b'no label, never read')
  (folder / 'dataset.json').write_text('{}')
  assert len(prepare(folder, tmp_path)) == 6


def test_empty_slices_are_kept_or_dropped(folder, tmp_path):
  write_volume(folder, 'la_003', *anatomy())
  kept = prepare(folder, tmp_path)
  dropped = prepare(folder, tmp_path, empty='drop')
  assert [e['position'] for e in dropped] == [2, 3]
  for example in dropped:
    twin = kept[example['position']]
    assert example['case'] == twin['case']
    np.testing.assert_array_equal(example['image'], twin['image'])


def test_options_that_leave_nothing_are_told(folder, tmp_path):
  grey, labels = anatomy()
  write_volume(folder, 'la_003', grey, labels * 0)
  assert 'leave out all' in refusal(folder, tmp_path, empty='drop')
  assert len(prepare(folder, tmp_path)) == 6


def test_an_unknown_option_is_refused():
  with pytest.raises(
    ValueError, match='empty: expected one of keep, drop, fou'
  ):
    cardiac.CardiacConfig(manual_dir='x', empty='no')


def _shift(folder):
  path = folder / 'labelsTr/la_003.nii.gz'
  label = nibabel.load(path)
  affine = label.affine.copy()
  affine[0, 3] += 1.25
  nibabel.save(nibabel.Nifti1Image(label.dataobj, affine), path)


def _crop(folder):
  path = folder / 'labelsTr/la_003.nii.gz'
  nibabel.save(nibabel.load(path).slicer[:, :, 1:], path)


def _mirror(folder):
  # The same numbers under a header that says they run the other way.
  path = folder / 'labelsTr/la_003.nii.gz'
  label = nibabel.load(path)
  affine = label.affine @ np.diag([-1, 1, 1, 1])
  nibabel.save(nibabel.Nifti1Image(np.asarray(label.dataobj), affine), path)


def _rewrite(change, place='labelsTr'):
  def damage(folder):
    path = folder / place / 'la_003.nii.gz'
    old = nibabel.load(path)
    voxels = change(np.asarray(old.dataobj).astype(np.float32))
    nibabel.save(nibabel.Nifti1Image(voxels, old.affine), path)

  return damage


def _put_nan(voxels):
  voxels[3, 3, 3] = np.nan
  return voxels


def _truncate(folder):
  path = folder / 'imagesTr/la_003.nii.gz'
  path.write_bytes(path.read_bytes()[:-100])


def _truncate_label(folder):
  path = folder / 'labelsTr/la_003.nii.gz'
  content = gzip.decompress(path.read_bytes())
  path.write_bytes(gzip.compress(content[:-10]))


def _double(folder):
  path = folder / 'imagesTr/la_003.nii.gz'
  nibabel.save(nibabel.load(path), folder / 'imagesTr/la_003.nii')


VOLUME_DAMAGE = {
  'no label': (
    lambda f: (f / 'labelsTr/la_003.nii.gz').unlink(),
    'imagesTr/la_003.nii.gz: image without mask',
  ),
  'no image': (
    lambda f: (f / 'imagesTr/la_003.nii.gz').unlink(),
    'labelsTr/la_003.nii.gz: mask without image',
  ),
  'junk': (
    lambda f: (f / 'imagesTr/notes.txt').write_text('x'),
    'imagesTr/notes.txt: not a picture',
  ),
  'twice': (_double, '2 files of one name .la_003.nii, la_003.nii.gz'),
  'shifted label': (_shift, 'grid of the image, found corners up to 1.25 mm'),
  'cropped label': (_crop, r'grid of the image, found slices.*\[6.*\[5'),
  'mirrored label': (_mirror, 'grid of the image, found corners'),
  'a third label': (_rewrite(lambda v: v * 2), 'unknown label 2'),
  'half a label': (_rewrite(lambda v: v / 2), 'unknown label 0.5'),
  'NaN': (_rewrite(_put_nan, 'imagesTr'), '1 NaN'),
  'NaN label': (_rewrite(_put_nan), 'mask labelsTr/la_003.nii.gz: .*1 NaN'),
  'constant': (_rewrite(lambda v: v * 0 + 7, 'imagesTr'), 'grey value 7'),
  'truncated': (_truncate, 'la_003.nii.gz: NIfTI: truncated'),
  'truncated label': (
    _truncate_label,
    'mask labelsTr/la_003.nii.gz: NIfTI: trunc',
  ),
}


@pytest.mark.parametrize('kind', VOLUME_DAMAGE)
def test_bad_volumes_are_named_and_can_be_skipped(folder, tmp_path, kind):
  write_volume(folder, 'la_003', *anatomy())
  write_volume(folder, 'la_004', *anatomy(1))
  damage, reason = VOLUME_DAMAGE[kind]
  damage(folder)
  found = refusal(folder, tmp_path)
  assert re.search(reason, found) and 'Tr/' in found
  builder = build(folder, tmp_path, on_error='skip')
  subjects = {e['subject'] for e in builder.as_data_source('all')}
  skipped = manual.read_note(builder)['skipped']
  assert len(skipped) == 1
  others = {b'la_003'} if kind == 'junk' else set()
  assert subjects == others | {b'la_004'}


@pytest.mark.parametrize('gone', ['imagesTr', 'labelsTr'])
def test_a_missing_folder_is_named(folder, tmp_path, gone):
  write_volume(folder, 'la_003', *anatomy())
  (folder / gone).rename(folder / 'elsewhere')
  assert f'found no {gone}' in refusal(folder, tmp_path)


def test_both_layouts_at_once_are_refused(folder, tmp_path):
  write_volume(folder, 'la_003', *anatomy())
  write_pictures(folder)
  assert 'volumes and slices' in refusal(folder, tmp_path)


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


def test_an_empty_folder_is_refused(folder, tmp_path):
  assert 'imagesTr' in refusal(folder, tmp_path)
  for name in ('imagesTr', 'labelsTr'):
    (folder / name).mkdir()
  assert 'found none' in refusal(folder, tmp_path)
  assert 'found none' in refusal(pathlib.Path(folder, 'gone'), tmp_path)
