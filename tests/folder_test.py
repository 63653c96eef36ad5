"""Tests of folder.py: any folder of images and masks, in three layouts."""

import functools
import shutil
import tracemalloc

import manual_builds
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from ppcmi_jax.datasets import folder, readers

prepare = functools.partial(manual_builds.prepare, 'folder')
RNG = np.random.default_rng(0)
NAMES = ('a', 'b', 'c', 'd')
IMAGES = dict(zip(NAMES, RNG.integers(0, 256, (4, 8, 9), np.uint8)))
IMAGES['c'][0, 0] = 255  # the most that fits
MASKS = dict(zip(NAMES, RNG.integers(0, 2, (4, 8, 9), np.uint8)))
VOLUME = RNG.integers(-500, 500, (3, 4, 5), np.int16)
VOLUME_MASK = RNG.integers(0, 2, (3, 4, 5), np.uint8)


def write(path, array, spacing_mm=(2, 0.75, 0.5), origin=(3, 4, 5)):
  path.parent.mkdir(parents=True, exist_ok=True)
  suffix = readers.suffix_of(path)
  if suffix == '.npy':
    np.save(path, array)
  elif suffix in ('.mha', '.nii', '.nii.gz'):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm[::-1][: array.ndim])
    image.SetOrigin(origin[: array.ndim])
    sitk.WriteImage(image, str(path))
  else:
    Image.fromarray(array).save(path)


@pytest.fixture
def raw(tmp_path):
  """Returns images/NAME.png and masks/NAME.tif."""
  for name in NAMES:
    write(tmp_path / 'raw' / 'images' / f'{name}.png', IMAGES[name])
    write(tmp_path / 'raw' / 'masks' / f'{name}.tif', MASKS[name])
  return tmp_path / 'raw'


def check_planes(examples, images=IMAGES, masks=MASKS):
  assert list(examples) == list(images)
  for name, example in examples.items():
    np.testing.assert_array_equal(example['image'], images[name][..., None])
    np.testing.assert_array_equal(example['mask'], masks[name])
    np.testing.assert_array_equal(example['spacing_mm'], [1, 1])
    assert example['image'].dtype == images[name].dtype
    assert example['subject'].decode() == name
    assert (example['site'], example['position']) == (b'1', 0)


def test_two_folders(raw):
  for junk in ('.hidden.png', '._a.png', 'README.txt', 'Thumbs.db', 'LICENSE'):
    (raw / 'images' / junk).write_text('junk')
  (raw / 'images' / '__MACOSX').mkdir()
  (raw / 'beside.txt').write_text('is not read')
  builder, examples, lines = prepare(raw)
  check_planes(examples)
  assert builder.info.metadata['classes'] == ['background', 'foreground']
  assert not lines


def test_one_folder(tmp_path):
  for name in NAMES:
    write(tmp_path / 'raw' / f'{name}.tif', IMAGES[name])
    write(tmp_path / 'raw' / f'{name}_mask.png', MASKS[name])
  check_planes(prepare(tmp_path / 'raw')[1])


def test_csv(raw):
  (raw / 'lists').mkdir()
  (raw / 'lists' / 'all.csv').write_text(
    'image,mask,subject,site\n'
    'images/c.png,masks/c.tif,x,north\n'
    'images/a.png,masks/a.tif,y,south\n'
    'images/d.png,masks/d.tif,x,north\n'
  )
  _, examples, _ = prepare(raw, csv='lists/all.csv')
  rows = [
    tuple(
      e[k].decode() if k != 'position' else int(e[k])
      for k in ('case', 'subject', 'site', 'position')
    )
    for e in examples.values()
  ]
  assert rows == [
    ('images/c', 'x', 'north', 0),
    ('images/a', 'y', 'south', 0),
    ('images/d', 'x', 'north', 1),
  ]
  for name in 'cad':
    example = examples[f'images/{name}']
    np.testing.assert_array_equal(example['image'], IMAGES[name][..., None])
    np.testing.assert_array_equal(example['mask'], MASKS[name])


@pytest.mark.parametrize('suffix', ['.nii.gz', '.mha', '.npy'])
def test_volumes_give_their_slices(tmp_path, suffix):
  raw = tmp_path / 'raw'
  write(raw / 'images' / f'la_1{suffix}', VOLUME)
  write(raw / 'masks' / f'la_1{suffix}', VOLUME_MASK)
  _, examples, _ = prepare(raw, dtype='int16')
  assert list(examples) == ['la_1-0000', 'la_1-0001', 'la_1-0002']
  spacing_mm = [1, 1] if suffix == '.npy' else [0.75, 0.5]
  for z, example in enumerate(examples.values()):
    np.testing.assert_array_equal(example['image'], VOLUME[z, ..., None])
    np.testing.assert_array_equal(example['mask'], VOLUME_MASK[z])
    np.testing.assert_allclose(example['spacing_mm'], spacing_mm, rtol=1e-6)
    assert example['image'].dtype == np.int16
    assert (example['subject'], example['position']) == (b'la_1', z)


def test_image_and_mask_may_be_stored_in_other_orientations(tmp_path):
  raw = tmp_path / 'raw'
  write(raw / 'images' / 'v.nii.gz', VOLUME)
  write(raw / 'masks' / 'v.mha', VOLUME_MASK)
  stored = sitk.ReadImage(str(raw / 'masks' / 'v.mha'))
  turned = sitk.DICOMOrient(stored, 'SAR')
  sitk.WriteImage(turned, str(raw / 'masks' / 'v.mha'))
  _, examples, _ = prepare(raw, dtype='int16')
  for z, example in enumerate(examples.values()):
    np.testing.assert_array_equal(example['mask'], VOLUME_MASK[z])


@pytest.mark.parametrize('suffix', ['.nii.gz', '.mha'])
@pytest.mark.parametrize(
  'change', [{'spacing_mm': (2, 0.75, 0.6)}, {'origin': (3, 4, 9)}]
)
def test_image_and_mask_in_different_places_are_refused(
  tmp_path, suffix, change
):
  raw = tmp_path / 'raw'
  write(raw / 'images' / f'v{suffix}', VOLUME)
  write(raw / 'masks' / f'v{suffix}', VOLUME_MASK, **change)
  with pytest.raises(ValueError, match=rf'v\{suffix}: .*same place in space'):
    prepare(raw, dtype='int16')


def test_nan_in_nifti_is_refused(raw):
  volume = VOLUME.astype(np.float32)
  volume[1, 2, 3] = np.nan
  for where, array in (('images', volume), ('masks', VOLUME_MASK)):
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), raw / where / 'n.nii')
  with pytest.raises(ValueError, match=r'images/n\.nii: .*NaN'):
    prepare(raw, dtype='float32', window=(0, 1))
  nibabel.save(
    nibabel.Nifti1Image(VOLUME.astype(np.float32), np.eye(4)),
    raw / 'images' / 'n.nii',
  )
  nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), raw / 'masks' / 'n.nii')
  with pytest.raises(ValueError, match=r'mask masks/n\.nii: .*NaN'):
    prepare(raw, dtype='float32', window=(0, 1))


def cut(name):
  def spoil(raw):
    path = raw / name
    path.write_bytes(path.read_bytes()[:-1])

  return spoil


def mixed_mask():
  mask = MASKS['c'].copy()
  mask[0, :3] = 0, 1, 255
  return mask


def as_mha(raw):
  (raw / 'images' / 'c.png').unlink()
  write(raw / 'images' / 'c.mha', IMAGES['c'])
  cut('images/c.mha')(raw)


def as_frames(raw):
  first, second = (Image.fromarray(IMAGES[name]) for name in 'ca')
  (raw / 'images' / 'c.png').unlink()
  first.save(raw / 'images' / 'c.tif', save_all=True, append_images=[second])


BAD = {
  'no mask': (
    lambda raw: (raw / 'masks' / 'c.tif').unlink(),
    'images/c.png', 'image without mask',
  ),
  'no image': (
    lambda raw: (raw / 'images' / 'c.png').unlink(),
    'masks/c.tif', 'mask without image',
  ),
  'two suffixes': (
    lambda raw: write(raw / 'images' / 'c.tif', IMAGES['c']),
    'images/c.png', r'2 files of one name \(c.png, c.tif\)',
  ),
  'two masks': (
    lambda raw: write(raw / 'masks' / 'c.png', MASKS['c']),
    'masks/c.png', '2 files of one name',
  ),
  'shape': (
    lambda raw: write(raw / 'masks' / 'c.tif', MASKS['c'].T.copy()),
    'images/c.png', r'same size, found \[8, 9\] and \[9, 8\]',
  ),
  'label': (
    lambda raw: write(raw / 'masks' / 'c.tif', MASKS['c'] * 2),
    'images/c.png', 'unknown label 2; expected 0, 1',
  ),
  '0, 1 and 255': (
    lambda raw: write(raw / 'masks' / 'c.tif', mixed_mask()),
    'images/c.png', 'unknown label 255',
  ),
  'png': (cut('images/c.png'), 'images/c.png', 'PNG: truncated'),
  'tif': (cut('masks/c.tif'), 'images/c.png', 'mask masks/c.tif: TIFF: trunc'),
  'mha': (as_mha, 'images/c.mha', 'MHA: truncated'),
  'colour': (
    lambda raw: write(raw / 'images' / 'c.png',
                      np.stack([IMAGES[n] for n in 'abc'], -1)),
    'images/c.png', '3 planes .*differ',
  ),
  'frames': (as_frames, 'images/c.tif', '2 frames that differ'),
  'range': (
    lambda raw: write(raw / 'images' / 'c.png', IMAGES['c'].astype('u2') + 1),
    'images/c.png', r"uint8, 0 to 255, found .* to 256; .*'float32' with a win",
  ),
}  # fmt: skip


@pytest.mark.parametrize('kind', BAD)
def test_bad_file_is_named_or_skipped(raw, kind):
  spoil, name, reason = BAD[kind]
  spoil(raw)
  with pytest.raises(ValueError, match=f'{raw / name}: .*{reason}'):
    prepare(raw)
  _, examples, lines = prepare(raw, on_error='skip')
  assert list(examples) == ['a', 'b', 'd']
  assert f'skipped {name}: ' in lines and '1 records were skipped' in lines


@pytest.mark.parametrize('place', ['images', 'masks'])
def test_file_that_is_no_image_is_named(raw, place):
  (raw / place / 'notes.txt').write_text('words')
  (raw / place / 'more').mkdir()
  with pytest.raises(ValueError, match=f'{place}/more: a folder among'):
    prepare(raw)
  (raw / place / 'more').rmdir()
  with pytest.raises(ValueError, match=rf'{place}/notes\.txt: not a picture'):
    prepare(raw)
  _, examples, lines = prepare(raw, on_error='skip')
  assert len(examples) == 4 and f'skipped {place}/notes.txt' in lines


def test_folders_that_hold_nothing(tmp_path):
  raw = tmp_path / 'raw'
  with pytest.raises(ValueError, match=f'{raw}: expected the folder'):
    prepare(raw)
  raw.mkdir()
  (raw / 'README.md').write_text('words')
  with pytest.raises(ValueError, match=f'{raw}: .*found no picture'):
    prepare(raw)
  (raw / 'images').mkdir()
  with pytest.raises(ValueError, match='found no masks'):
    prepare(raw)
  (raw / 'masks').mkdir()
  with pytest.raises(ValueError, match=f'{raw}: .*found none'):
    prepare(raw)


def test_labels(raw):
  classes = ('background', 'ring', 'core')
  for name in NAMES:
    mask = np.array([9, 0, 70], np.uint8)[MASKS[name] + IMAGES[name] % 2]
    write(raw / 'masks' / f'{name}.tif', mask)
  builder, examples, _ = prepare(raw, classes=classes, labels=(9, 0, 70))
  assert builder.info.metadata['classes'] == list(classes)
  for name in NAMES:
    np.testing.assert_array_equal(
      examples[name]['mask'], MASKS[name] + IMAGES[name] % 2
    )
  with pytest.raises(ValueError, match=r'unknown label 9; expected 0, 1, 2'):
    prepare(raw, classes=classes)


def test_255_is_foreground_of_two_classes(raw):
  for name in 'ab':
    write(raw / 'masks' / f'{name}.tif', MASKS[name] * 255)
  check_planes(prepare(raw)[1])
  three = ('background', 'x', 'y')
  with pytest.raises(ValueError, match='unknown label 255'):
    prepare(raw, classes=three)
  with pytest.raises(ValueError, match='unknown label 255'):
    prepare(raw, labels=(0, 1))


def test_float32_end_to_end(tmp_path):
  raw = tmp_path / 'raw'
  write(raw / 'images' / 'v.nii.gz', VOLUME)
  write(raw / 'masks' / 'v.nii.gz', VOLUME_MASK)
  with pytest.raises(ValueError, match=r'v\.nii\.gz: .*set .*window'):
    prepare(raw, dtype='float32')
  examples = list(prepare(raw, dtype='float32', window=[-200, 200])[1].values())
  expected = (np.clip(VOLUME, -200, 200) + 200) / 400
  for example, plane in zip(examples, expected, strict=True):
    assert example['image'].dtype == np.float32
    np.testing.assert_allclose(example['image'][..., 0], plane, atol=1e-6)


def test_images_are_not_held(tmp_path):
  raw = tmp_path / 'raw'
  for number in range(30):
    write(raw / 'images' / f'{number}.npy', np.zeros((300, 300), np.uint8))
    write(raw / 'masks' / f'{number}.npy', np.zeros((300, 300), np.uint8))
  config = folder.FolderConfig(manual_dir=str(raw))
  builder = folder.Folder(data_dir=tmp_path / 'data', config=config)
  records = builder.records(raw)
  tracemalloc.start()
  for record in records:
    assert len(list(record.read())) == 1
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 24 * 300 * 300  # bytes; all images and masks are 60 planes


def test_second_run_needs_no_folder_and_sees_changes(raw):
  prepare(raw)
  write(raw / 'images' / 'e.png', IMAGES['a'])
  with pytest.raises(ValueError, match='has changed since'):
    prepare(raw)
  shutil.rmtree(raw)
  check_planes(prepare(raw)[1])
