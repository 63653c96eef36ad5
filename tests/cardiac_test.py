"""Tests of the cardiac data set: volumes, and bad ones."""

import gzip
import pathlib
import re

import numpy as np
import pytest
from cardiac_folders import (
  anatomy,
  build,
  prepare,
  refusal,
  write_pictures,
  write_volume,
)

from ppcmi_jax.datasets import cardiac, manual

nibabel = pytest.importorskip('nibabel')
CODES = ('RAS', 'LAS', 'RPS', 'PIR', 'SLA')


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


def test_an_empty_folder_is_refused(folder, tmp_path):
  assert 'imagesTr' in refusal(folder, tmp_path)
  for name in ('imagesTr', 'labelsTr'):
    (folder / name).mkdir()
  assert 'found none' in refusal(folder, tmp_path)
  assert 'found none' in refusal(pathlib.Path(folder, 'gone'), tmp_path)
