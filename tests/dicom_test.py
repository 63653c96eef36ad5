"""Tests of reading a folder of DICOM files as CT slices in HU."""

import pathlib
import re
import shutil
import sys

import numpy as np
import pytest

from ppcmi_jax.datasets import dicom

pydicom = pytest.importorskip('pydicom')

SERIES = '1.2.826.0.1.3680043.8.498.1'
INTERCEPT = -1024


def write_slice(path, hu, *, number, height_mm, **header):
  """Writes one uncompressed axial CT slice, HU int [H, W].

  `header` replaces elements of the header; None removes them.
  """
  stored = np.asarray(hu) - INTERCEPT
  elements = {
    'Modality': 'CT',
    'SOPClassUID': pydicom.uid.CTImageStorage,
    'SOPInstanceUID': f'{SERIES}.{number}',
    'SeriesInstanceUID': SERIES,
    'InstanceNumber': number,
    'ImagePositionPatient': [-100.5, -90, height_mm],
    'ImageOrientationPatient': [1, 0, 0, 0, 1, 0],
    'PixelSpacing': [0.75, 0.5],
    'RescaleSlope': 1,
    'RescaleIntercept': INTERCEPT,
    'Rows': stored.shape[0],
    'Columns': stored.shape[1],
    'SamplesPerPixel': 1,
    'PhotometricInterpretation': 'MONOCHROME2',
    'BitsAllocated': 16,
    'BitsStored': 16,
    'HighBit': 15,
    'PixelRepresentation': 0,
    'PixelData': stored.astype('<u2').tobytes(),
    **header,
  }
  dataset = pydicom.Dataset()
  dataset.file_meta = pydicom.dataset.FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  for name, value in elements.items():
    if value is not None:
      setattr(dataset, name, value)
  path.parent.mkdir(parents=True, exist_ok=True)
  pydicom.dcmwrite(path, dataset, enforce_file_format=True)
  return path


def body(count=4, shape=(5, 6)):
  """Returns HU int16 [N, H, W], every voxel different."""
  return np.arange(count * np.prod(shape)).reshape(count, *shape) - 1000


def write_series(folder, volume=None, names=None):
  """Writes slices, feet first, under names; returns the volume."""
  volume = body() if volume is None else volume
  for z, plane in enumerate(volume):
    name = names[z] if names else f'IM{z + 1:04d}.dcm'
    write_slice(folder / name, plane, number=z + 1, height_mm=2.5 * z - 40)
  return volume


def rewrite(path, **header):
  """Replaces elements of a file; None removes one."""
  dataset = pydicom.dcmread(path)
  for name, value in header.items():
    if value is None:
      delattr(dataset, name)
    else:
      setattr(dataset, name, value)
  dataset.save_as(path)


def read(folder):
  slices = dicom.read_headers(folder)
  return slices, dicom.heights(slices), dicom.read_hu(slices)


def test_a_series_is_read_in_the_order_of_names(tmp_path):
  names = ['IM10.dcm', 'IM2.DCM', 'IM1.dcm', 'IM03.dcm']
  volume = write_series(tmp_path, names=names)
  (tmp_path / '._IM1.dcm').write_bytes(b'junk')
  (tmp_path / 'notes.txt').write_text('no slice')
  slices, heights_mm, hu = read(tmp_path)
  order = [2, 1, 3, 0]
  assert [s.path.name for s in slices] == [names[i] for i in order]
  assert [s.instance_number for s in slices] == [3, 2, 4, 1]
  np.testing.assert_allclose(heights_mm, [2.5 * i - 40 for i in order])
  np.testing.assert_array_equal(hu, volume[order])
  assert hu.dtype == np.int16
  np.testing.assert_array_equal(slices[0].spacing_mm, [0.75, 0.5])


def test_rescaling_is_rounded(tmp_path):
  stored = np.arange(12).reshape(3, 4)
  path = write_slice(
    tmp_path / 'a.dcm', stored + INTERCEPT, number=1, height_mm=0,
    RescaleSlope='0.7', RescaleIntercept='-1000.3',
  )  # fmt: skip
  assert path.is_file()
  expected = np.rint(stored * 0.7 - 1000.3)
  np.testing.assert_array_equal(read(tmp_path)[2][0], expected)


def test_signed_pixels_and_no_rescaling(tmp_path):
  hu = body(1)[0]
  write_slice(
    tmp_path / 'a.dcm', hu, number=1, height_mm=0, PixelRepresentation=1,
    PixelData=hu.astype('<i2').tobytes(), RescaleSlope=None,
    RescaleIntercept=None,
  )  # fmt: skip
  slices, _, volume = read(tmp_path)
  assert slices[0].slope is None and slices[0].intercept is None
  np.testing.assert_array_equal(volume[0], hu)


@pytest.mark.parametrize(
  'orientation, expected',
  [
    ([1, 0, 0, 0, 1, 0], [0, 2, 4]),
    ([-1, 0, 0, 0, 1, 0], [0, 2, 4]),  # the normal points to the feet
    (None, [0, 2, 4]),
    # A tilted gantry: distances are along the normal.
    ([1, 0, 0, 0, 0.8, 0.6], [0, 1.6, 3.2]),
  ],
)
def test_heights_grow_towards_the_head(tmp_path, orientation, expected):
  for z, plane in enumerate(body(3)):
    write_slice(
      tmp_path / f'{z}.dcm', plane, number=z + 1, height_mm=2 * z,
      ImageOrientationPatient=orientation,
    )  # fmt: skip
  heights_mm = read(tmp_path)[1]
  np.testing.assert_allclose(heights_mm - heights_mm[0], expected, atol=1e-6)


def test_without_positions_there_are_no_heights(tmp_path):
  write_series(tmp_path)
  for path in tmp_path.iterdir():
    rewrite(path, ImagePositionPatient=None)
  assert read(tmp_path)[1] is None


def test_series_ids_that_no_two_slices_share_are_none(tmp_path):
  """As where a program that removed names gave every file another one."""
  write_series(tmp_path)
  for index, path in enumerate(sorted(tmp_path.iterdir())):
    rewrite(path, SeriesInstanceUID=f'1.2.{index}')
  assert len(read(tmp_path)[0]) == 4


def _first(folder):
  return folder / 'IM0001.dcm'


def _change(**header):
  return lambda folder: rewrite(_first(folder), **header)


def _cut(keep):
  def damage(folder):
    content = _first(folder).read_bytes()
    _first(folder).write_bytes(content[:keep])

  return damage


def _other_size(folder):
  write_slice(_first(folder), np.zeros((6, 6)), number=1, height_mm=-40)


def _compressed(folder):
  """Bytes said to be in a syntax for which pydicom itself has no decoder."""
  dataset = pydicom.dcmread(_first(folder))
  dataset.PixelData = pydicom.encaps.encapsulate([b'\xff\xd8 no picture'])
  dataset['PixelData'].is_undefined_length = True
  dataset.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
  dataset.save_as(_first(folder))


def _two_series(folder):
  for path in sorted(folder.iterdir())[:2]:
    rewrite(path, SeriesInstanceUID='1.2.3')


DAMAGE = {
  'no files': (lambda f: shutil.rmtree(f) or f.mkdir(), 'found none'),
  'text': (lambda f: _first(f).write_text('<html>'), 'IM0001.dcm: not a DICOM'),
  'empty file': (lambda f: _first(f).write_bytes(b''), 'IM0001.dcm: not a DIC'),
  'preamble only': (_cut(140), 'IM0001.dcm: '),
  'header only': (
    _change(PixelData=None),
    'IM0001.dcm: truncated .*Pixel Data',
  ),
  'pixels short': (_cut(-10), 'IM0001.dcm: truncated .*less than expected'),
  'one byte short': (_cut(-1), 'IM0001.dcm: truncated'),
  'cut before the pixels': (_cut(-62), 'IM0001.dcm: truncated'),
  'colour': (
    _change(SamplesPerPixel=3, PhotometricInterpretation='RGB'),
    'IM0001.dcm: SamplesPerPixel: expected 1, found 3',
  ),
  'inverted': (
    _change(PhotometricInterpretation='MONOCHROME1'),
    'IM0001.dcm: Photo.*expected MONOCHROME2, found MONOCHROME1',
  ),
  'frames': (_change(NumberOfFrames=2), 'NumberOfFrames: expected 1, found 2'),
  'MR': (_change(Modality='MR'), 'IM0001.dcm: Modality: expected CT, found MR'),
  'no image': (_change(Rows=None), 'IM0001.dcm: .*no Rows and Columns'),
  'other size': (_other_size, r'size \[6, 6\] in IM0001.dcm and \[5, 6\] in'),
  'other spacing': (
    _change(PixelSpacing=[0.8, 0.5]),
    r'spacing_mm \[0.8, 0.5\] in IM0001.dcm',
  ),
  'no spacing': (_change(PixelSpacing=None), 'IM0001.dcm: PixelSpacing'),
  'zero spacing': (_change(PixelSpacing=[0, 1]), 'IM0001.dcm: PixelSpacing'),
  'other direction': (
    _change(ImageOrientationPatient=[0, 1, 0, -1, 0, 0]),
    'orientation .*in IM0001.dcm and',
  ),
  'two series': (_two_series, 'found 2 SeriesInstanceUIDs'),
  'one place twice': (
    _change(ImagePositionPatient=[-100.5, -90, -37.5]),
    'IM000[12].dcm and IM000[12].dcm are at the same ImagePositionPatient',
  ),
  'one instance twice': (
    _change(SOPInstanceUID=f'{SERIES}.2'),
    'IM0001.dcm and IM0002.dcm have the same SOPInstanceUID',
  ),
  'a place missing': (
    _change(ImagePositionPatient=None),
    'place_mm in one only of IM0001.dcm and IM0002.dcm',
  ),
  'a slope missing': (
    _change(RescaleSlope=None),
    'slope in one only of IM0001.dcm and IM0002.dcm',
  ),
  'slope zero': (_change(RescaleSlope=0), 'IM0001.dcm: RescaleSlope'),
  'slope large': (
    _change(RescaleSlope=1000),
    'IM0001.dcm: expected HU that fit int16, found .* to',
  ),
  'no decoder': (_compressed, 'IM0001.dcm: its compressed pixels cannot be'),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_bad_series_are_refused_in_one_line(tmp_path, kind):
  folder = tmp_path / 'PAT001'
  write_series(folder)
  damage, reason = DAMAGE[kind]
  damage(folder)
  with pytest.raises(ValueError) as caught:
    read(folder)
  assert '\n' not in str(caught.value)
  assert re.search(reason, str(caught.value)), str(caught.value)


def test_other_than_axial_slices_are_refused(tmp_path):
  for x in range(2):
    write_slice(
      tmp_path / f'{x}.dcm', body(1)[0], number=x + 1, height_mm=0,
      ImagePositionPatient=[x, 0, 0],
      ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
    )  # fmt: skip
  with pytest.raises(ValueError, match='expected axial slices'):
    read(tmp_path)


def from_pydicom(name):
  path = pydicom.data.get_testdata_file(name, download=False)
  return path and pathlib.Path(path)


def test_a_real_ct_slice(tmp_path):
  """The CT slice that comes with pydicom."""
  shutil.copy(from_pydicom('CT_small.dcm'), tmp_path / 'a.dcm')
  slices, heights_mm, hu = read(tmp_path)
  raw = pydicom.dcmread(tmp_path / 'a.dcm').pixel_array
  np.testing.assert_array_equal(hu[0], raw.astype(int) - 1024)
  assert hu.shape == (1, 128, 128) and -1024 <= hu.min() < -800
  np.testing.assert_allclose(slices[0].spacing_mm, [0.661468, 0.661468])
  np.testing.assert_allclose(heights_mm, [-75.699997])


@pytest.mark.parametrize(
  'name, reason',
  [
    ('MR_truncated.dcm', 'Modality: expected CT, found MR'),
    ('no_meta.dcm', 'not a DICOM file'),
    ('rtplan.dcm', 'Modality: expected CT'),
    ('JPEG-lossy.dcm', 'Modality'),
  ],
)
def test_real_files_of_other_kinds_are_refused(tmp_path, name, reason):
  shutil.copy(from_pydicom(name), tmp_path / 'a.dcm')
  with pytest.raises(ValueError, match=reason):
    read(tmp_path)


@pytest.mark.parametrize('name', ['JPEG-lossy.dcm', 'MR_truncated.dcm'])
def test_real_files_whose_pixels_cannot_be_read(tmp_path, monkeypatch, name):
  monkeypatch.setattr(dicom, '_EXPECTED', {})
  path = tmp_path / 'a.dcm'
  shutil.copy(from_pydicom(name), path)
  if 'PixelSpacing' not in pydicom.dcmread(path):
    rewrite(path, PixelSpacing=[1, 1])
  with pytest.raises(ValueError, match=r'a.dcm: (its compr|trunc)') as caught:
    read(tmp_path)
  assert '\n' not in str(caught.value)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
  write_series(tmp_path)
  monkeypatch.setitem(sys.modules, 'pydicom', None)
  with pytest.raises(ValueError, match=r'ppcmi_jax\[data\]'):
    read(tmp_path)
