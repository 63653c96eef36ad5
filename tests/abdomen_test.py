"""Tests of the embedded abdominal slices and of their rebuilding."""

import gzip
import hashlib
import io
import pathlib
import shutil
import tarfile

import numpy as np
import pytest

from ppcmi_jax.datasets import abdomen, abdomen_source

SITES = {volume.site: volume for volume in abdomen.VOLUMES}
CLASS_MAP = """
raise RuntimeError('this text is parsed, never executed')
class_map = {
  'total': {1: 'liver', 2: 'kidney_left', 3: 'vertebrae_L1', 4: 'brain'},
  'total_mr': {1: 'spleen', 2: 'vertebrae'},
}
other = 1
"""


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """Builds the data set once and opens it."""
  folder = tmp_path_factory.mktemp('abdomen')
  builder = abdomen.Abdomen(data_dir=folder)
  builder.download_and_prepare()
  assert builder.info.metadata['classes'] == list(abdomen.CLASSES)
  return builder.as_data_source('all')


@pytest.fixture
def data_copy(tmp_path, monkeypatch):
  """A copy of the embedded files that a test may damage."""
  folder = tmp_path / 'data'
  shutil.copytree(abdomen.DATA_DIR, folder)
  monkeypatch.setattr(abdomen, 'DATA_DIR', folder)
  return folder


@pytest.mark.parametrize('site, count', [('A', 112), ('B', 20), ('C', 20)])
def test_embedded_arrays(site, count):
  image, mask = abdomen.load(SITES[site])
  assert image.shape == mask.shape == (count, 128, 128)
  assert image.dtype == mask.dtype == np.uint8
  assert image.min() == 0 and image.max() == 255
  present = set(np.unique(mask).tolist())
  assert present == set(range(8)) - ({3} if site == 'B' else set())
  assert mask.any((1, 2)).all()
  assert SITES[site].num_slices == SITES[site].source_shape[2] == count


def test_spacing_is_the_field_of_view_over_128():
  spacing = [volume.spacing_mm for volume in abdomen.VOLUMES]
  expected = [2.859375, 3.90625, 2.7421875]
  np.testing.assert_array_equal(spacing, np.stack([expected, expected], 1))


def test_builder_round_trip_equals_the_embedded_arrays(source):
  examples = list(source)
  assert len(examples) == 152
  assert len({example['case'] for example in examples}) == 152
  for site, volume in SITES.items():
    part = [e for e in examples if e['site'] == site.encode()]
    assert [e['position'] for e in part] == list(range(volume.num_slices))
    assert {e['subject'] for e in part} == {f'subject-{site}'.encode()}
    image, mask = abdomen.load(volume)
    np.testing.assert_array_equal([e['image'] for e in part], image[..., None])
    np.testing.assert_array_equal([e['mask'] for e in part], mask)
    for example in part:
      np.testing.assert_array_equal(example['spacing_mm'], volume.spacing_mm)


def test_builder_example_types(source):
  example = source[17]
  assert example['case'] == b'A-017'
  assert example['image'].shape == (128, 128, 1)
  assert example['image'].dtype == example['mask'].dtype == np.uint8
  assert example['spacing_mm'].dtype == np.float32


@pytest.mark.parametrize('damage', ['missing', 'truncated', 'flipped'])
@pytest.mark.parametrize('volume', abdomen.VOLUMES, ids=lambda v: v.site)
def test_damaged_file_is_named_in_one_line(data_copy, volume, damage):
  path = data_copy / volume.file
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  if damage == 'missing':
    path.unlink()
  elif damage == 'truncated':
    path.write_bytes(content[: len(content) // 2])
  else:
    path.write_bytes(content)
  with pytest.raises(ValueError, match=volume.file) as caught:
    abdomen.load(volume)
  assert '\n' not in str(caught.value)


def test_builder_refuses_damaged_data_and_leaves_nothing(data_copy, tmp_path):
  (data_copy / abdomen.VOLUMES[2].file).unlink()
  builder = abdomen.Abdomen(data_dir=tmp_path / 'tfds')
  with pytest.raises(ValueError, match=abdomen.VOLUMES[2].file) as caught:
    builder.download_and_prepare()
  assert '\n' not in str(caught.value)
  assert not pathlib.Path(builder.data_dir).exists()


def test_data_folder_states_licence_and_labels():
  text = (abdomen.DATA_DIR / 'README.txt').read_text()
  assert 'Apache' in text and 'not by an expert' in text
  for volume in abdomen.VOLUMES:
    assert volume.file in text


def test_window_clips_and_keeps_dtype():
  image = np.array([-1000, -160, 40, 240, 3000], np.float32)
  result = abdomen_source.window(image, -160.0, 240.0)
  assert result.dtype == np.float32
  np.testing.assert_array_equal(result, [0, 0, 0.5, 1, 1])


def test_resize_is_isotropic_and_centred():
  size = 16
  image = abdomen_source.resize_images(np.ones((20, 10, 3)), size)
  mask = abdomen_source.resize_masks(np.full((20, 10, 3), 5, np.uint8), size)
  assert image.shape == mask.shape == (3, size, size)
  assert image.dtype == mask.dtype == np.uint8
  expected = np.zeros((size, size), bool)
  expected[4:12] = True  # 20 x 10 voxels become 16 columns and 8 rows
  np.testing.assert_array_equal(
    image, np.broadcast_to(expected * 255, (3, size, size))
  )
  np.testing.assert_array_equal(
    mask, np.broadcast_to(expected * 5, (3, size, size))
  )


def test_resize_turns_the_front_up_and_the_right_to_the_right():
  labels = np.zeros((8, 8, 1), np.uint8)
  labels[7, 7] = 1  # right front
  labels[0, 0] = 2  # left back
  mask = abdomen_source.resize_masks(labels, 8)[0]
  assert mask[0, 7] == 1 and mask[7, 0] == 2
  image = abdomen_source.resize_images(labels / 2, 8)[0]
  assert image[7, 0] == image.max()


def test_resize_invents_no_labels_and_keeps_a_ramp():
  rng = np.random.default_rng(0)
  labels = rng.choice(np.array([0, 3, 7], np.uint8), (13, 9, 2))
  assert set(np.unique(abdomen_source.resize_masks(labels, 16))) == {0, 3, 7}
  ramp = np.broadcast_to(np.linspace(0, 1, 33)[:, None, None], (33, 33, 1))
  columns = abdomen_source.resize_images(ramp, 16)[0]
  # The mean of two neighbours of 32 corner-aligned samples of the ramp.
  fine = np.linspace(0, 255, 32).reshape(16, 2).mean(1)
  np.testing.assert_allclose(columns, np.tile(fine, (16, 1)), atol=1)


def test_merge_table_follows_the_names():
  names = {
    5: 'liver',
    1: 'spleen',
    2: 'kidney_right',
    4: 'kidney_cyst_left',
    18: 'small_bowel',
    26: 'vertebrae_S1',
    27: 'vertebrae',
    65: 'iliac_artery_left',
    64: 'portal_vein_and_splenic_vein',
    80: 'gluteus_maximus_left',
    90: 'brain',
  }
  table = abdomen_source.merge_table(names)
  found = {names[label]: int(table[label]) for label in names}
  assert list(found.values()) == [1, 2, 3, 0, 4, 5, 5, 6, 6, 7, 0]
  assert table[0] == 0 and np.count_nonzero(table) == 9


def test_class_names_are_parsed_not_executed():
  names = abdomen_source.class_names(CLASS_MAP, 'total_mr')
  assert names == {1: 'spleen', 2: 'vertebrae'}
  with pytest.raises(ValueError, match='nothing'):
    abdomen_source.class_names(CLASS_MAP, 'nothing')


def test_compare_counts_pixels():
  a = np.zeros((2, 3), np.uint8)
  b = a.copy()
  b[0, 0] = 200
  assert abdomen_source.compare('x', a, a) == 'x: identical'
  assert '1 of 6' in abdomen_source.compare('x', a, b)
  assert 'most 200' in abdomen_source.compare('x', b, a)
  assert 'shape' in abdomen_source.compare('x', a, b[:1])


def _nifti(voxels, affine):
  nibabel = pytest.importorskip('nibabel')
  return gzip.compress(nibabel.Nifti1Image(voxels, affine).to_bytes())


def _turned(volume, degrees):
  """Stores canonical voxels with axes (-y, z, -x) and an oblique affine."""
  voxels = volume[::-1, ::-1].transpose(1, 2, 0)
  affine = np.zeros((4, 4))
  affine[[1, 2, 0, 3], [0, 1, 2, 3]] = [-2.0, 3.0, -1.0, 1.0]
  turn = np.deg2rad(degrees)
  oblique = np.eye(4)
  oblique[:2, :2] = [
    [np.cos(turn), -np.sin(turn)],
    [np.sin(turn), np.cos(turn)],
  ]
  return voxels, oblique @ affine


@pytest.mark.parametrize('degrees', [0, 20, -30])
def test_read_nifti_finds_the_closest_canonical_axes(degrees):
  volume = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
  content = _nifti(*_turned(volume, degrees))
  found = abdomen_source.read_nifti(content)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, volume)


def _dicom(pixels, height_mm):
  """One uncompressed axial CT slice; `pixels` are [row, column]."""
  pydicom = pytest.importorskip('pydicom')
  dataset = pydicom.Dataset()
  dataset.file_meta = pydicom.dataset.FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  dataset.SOPClassUID = pydicom.uid.CTImageStorage
  dataset.SOPInstanceUID = '1.2.3'
  dataset.Rows, dataset.Columns = pixels.shape
  dataset.SamplesPerPixel = 1
  dataset.PhotometricInterpretation = 'MONOCHROME2'
  dataset.BitsAllocated = dataset.BitsStored = 16
  dataset.HighBit = 15
  dataset.PixelRepresentation = 0
  dataset.RescaleSlope, dataset.RescaleIntercept = 2, -1024
  dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
  dataset.ImagePositionPatient = [0, 0, height_mm]
  dataset.PixelData = pixels.astype('<u2').tobytes()
  target = io.BytesIO()
  pydicom.dcmwrite(target, dataset, enforce_file_format=True)
  return target.getvalue()


def test_read_dicom_orders_slices_and_converts_to_hu():
  volume = np.arange(24).reshape(2, 3, 4)  # canonical [X, Y, Z]
  # DICOM columns run to the patient's left and rows to the back.
  slices = [
    _dicom(volume[::-1, ::-1, z].T, height_mm=2.5 * z - 7) for z in range(4)
  ]
  found = abdomen_source.read_dicom([slices[i] for i in (2, 0, 3, 1)])
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, 2 * volume - 1024)


def _archive(path, files):
  with tarfile.open(path, 'w:gz') as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
    link = tarfile.TarInfo('TS/tests/reference_files/example_ct_dicom/CT.link')
    link.type, link.linkname = tarfile.SYMTYPE, '../../../../outside'
    archive.addfile(link)
  return hashlib.sha256(path.read_bytes()).hexdigest()


def _erode(inside):
  """Keeps pixels whose four neighbours are inside too."""
  return np.all(
    [inside]
    + [np.roll(inside, step, axis) for step in (1, -1) for axis in (1, 2)],
    axis=0,
  )


def test_rebuild_from_a_small_archive(tmp_path, monkeypatch):
  folder = 'TS/tests/reference_files/'
  labels = np.zeros((12, 12, 3), np.uint8)
  labels[2:6, 3:9, 1:] = 1
  labels[8:10, 3:9, 1] = 2
  labels[0, 0, 0] = 4  # 'brain', no class of ours: slice 0 is dropped
  scan = np.where(labels == 1, 240, -160).astype(np.int16)
  contents = {
    folder + 'example_ct.nii.gz': _nifti(*_turned(scan, 10)),
    folder + 'example_seg_fast_force_split.nii.gz': _nifti(
      *_turned(labels, 10)
    ),
    'TS/' + abdomen_source.CLASS_MAP_FILE: CLASS_MAP.encode(),
    '../../' + folder + 'example_mr_sm.nii.gz': b'outside',
    'TS/setup.py': b'unwanted',
  }
  path = tmp_path / 'small.tar.gz'
  digest = _archive(path, contents)
  monkeypatch.setattr(abdomen_source, 'ARCHIVE_SHA256', digest)
  files = abdomen_source.read_archive(path)
  assert len(files) == 3 and set(files.values()) <= set(contents.values())

  image, mask = abdomen_source.rebuild(files, 'A', size=12)
  assert image.shape == mask.shape == (2, 12, 12)
  expected = np.rot90(np.select([labels == 1, labels == 2], [1, 3]))
  expected = np.moveaxis(expected[..., 1:], -1, 0)
  agreement = np.mean(mask == expected)
  assert agreement > 0.9
  assert set(np.unique(mask)) == {0, 1, 3}
  inside = _erode(mask == 1)
  assert image[inside].min() > 200
  with pytest.raises(ValueError, match='example_mr_sm'):
    abdomen_source.rebuild(files, 'C')
  assert [path.name for path in tmp_path.iterdir()] == ['small.tar.gz']


def test_rebuild_refuses_shapes_that_differ():
  affine = np.eye(4)
  files = {
    'example_ct.nii.gz': _nifti(np.zeros((3, 4, 5), np.int16), affine),
    'example_seg_fast_force_split.nii.gz': _nifti(
      np.zeros((3, 4, 6), np.uint8), affine
    ),
    abdomen_source.CLASS_MAP_FILE: CLASS_MAP.encode(),
  }
  with pytest.raises(ValueError, match='shape'):
    abdomen_source.rebuild(files, 'A')


def test_read_archive_refuses_other_files(tmp_path):
  path = tmp_path / 'other.tar.gz'
  with pytest.raises(ValueError, match='no such file'):
    abdomen_source.read_archive(path)
  path.write_bytes(b'something else')
  with pytest.raises(ValueError, match=r'other.tar.gz: expected sha256'):
    abdomen_source.read_archive(path)
