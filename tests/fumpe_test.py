"""Tests of the FUMPE data set: DICOM series with masks in MATLAB files."""

import re
import shutil

import dicom_test
import fumpe_order_test
import manual_builds
import numpy as np
import pytest
from absl import logging
from scipy import io

from ppcmi_jax.datasets import fumpe, manual

pytest.importorskip('pydicom')

COUNT = 14


def write_patient(
  folder, patient='PAT001', *, seed=0, mask_order=None, names=None,
  numbers=None, key='Mask', **header,
):  # fmt: skip
  """Writes a phantom's slices and mask; returns both, feet first.

  Args:
    folder: of the data set.
    patient: name.
    seed: of the phantom.
    mask_order: int [N], the slice, counted from the feet, of each mask plane.
    names, numbers: of the files and their instances, from the feet.
    key: of the mask in its file.
    header: of the slices.
  """
  volume, mask = fumpe_order_test.phantom(COUNT, seed=seed)
  names = fumpe_order_test.names(COUNT) if names is None else names
  numbers = range(1, COUNT + 1) if numbers is None else numbers
  for z, plane in enumerate(volume):
    dicom_test.write_slice(
      folder / 'CT_scans' / patient / names[z], plane, number=int(numbers[z]),
      height_mm=1.25 * z - 300, PixelSpacing=[1.5, 1.25],
      SeriesInstanceUID=f'1.2.{patient[3:].lstrip("0")}', **header,
    )  # fmt: skip
  planes = mask if mask_order is None else mask[mask_order]
  write_mask(folder, patient, planes, key)
  return volume, mask


def write_mask(folder, patient, planes, key='Mask'):
  """Writes [N, H, W] as MATLAB does, [row, column, slice]."""
  path = folder / 'GroundTruth' / f'{patient}.mat'
  path.parent.mkdir(exist_ok=True)
  stored = np.moveaxis(np.asarray(planes), 0, -1)
  io.savemat(path, {key: stored}, do_compression=True)
  return path


build, prepare, refusal = manual_builds.functions(
  fumpe.Fumpe, fumpe.FumpeConfig
)


@pytest.fixture
def folder(tmp_path):
  path = tmp_path / 'FUMPE'
  path.mkdir()
  return path


@pytest.fixture
def log(monkeypatch):
  """Collects (level, line) of what is logged."""
  lines = []
  for level in ('info', 'warning'):
    monkeypatch.setattr(
      logging,
      level,
      lambda text, *values, level=level: lines.append((level, text % values)),
    )

  def of_fumpe():
    return [(level, line) for level, line in lines if 'fumpe: ' in line]

  return of_fumpe


def check(examples, volume, mask):
  """Checks that slices and masks are those of a body, feet first."""
  np.testing.assert_array_equal([e['image'][..., 0] for e in examples], volume)
  np.testing.assert_array_equal([e['mask'] for e in examples], mask)
  assert [e['position'] for e in examples] == list(range(COUNT))


def test_two_patients_end_to_end(folder, tmp_path, log):
  first = write_patient(folder, 'PAT002', seed=1)
  second = write_patient(folder, 'PAT010')
  (folder / 'GroundTruth/._PAT002.mat').write_bytes(b'junk')
  (folder / 'CT_scans/.DS_Store').write_bytes(b'junk')
  examples = prepare(folder, tmp_path)
  check(examples[:COUNT], *first)
  check(examples[COUNT:], *second)
  example = examples[COUNT + 3]
  assert example['image'].dtype == np.int16
  assert example['image'].min() < -800 and example['image'].max() > 300
  np.testing.assert_array_equal(example['spacing_mm'], [1.5, 1.25])
  assert example['subject'] == 'PAT010' and example['site'] == '1'
  assert example['case'] == 'PAT010-003' and example['mask'].any()
  levels, lines = zip(*log())
  assert set(levels) == {'info'} and len(lines) == 2
  assert re.search(
    r'PAT002: masks follow file names \(scores: file names 0\.\d\d, '
    r'file names, reversed -?0\.\d\d\)',
    lines[0],
  )


UP = np.arange(COUNT)
MIXED = np.random.default_rng(3).permutation(COUNT)
PLACE = np.argsort(MIXED)  # of each slice in that order
LAYOUTS = {
  # Of the slices, from the feet: the number in the name, the number of the
  # instance. Then the slices that the mask has planes of, in its order.
  'names follow the body': (UP, UP, UP, 'file names'),
  'names and masks backwards': (UP[::-1], UP, UP[::-1], 'file names'),
  'names backwards': (UP[::-1], UP, UP, 'InstanceNumber'),
  'names and numbers backwards': (UP[::-1], UP[::-1], UP, 'position'),
  'only positions are right': (UP[::-1], PLACE, UP, 'position'),
  'masks backwards': (UP, UP, UP[::-1], 'file names, reversed'),
  'names and masks mixed': (PLACE, UP, MIXED, 'file names'),
  'numbers and masks mixed': (UP, PLACE, MIXED, 'InstanceNumber'),
  'numbers mixed, masks backwards': (
    UP,
    PLACE,
    MIXED[::-1],
    'InstanceNumber, reversed',
  ),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_masks_land_on_their_slices(folder, tmp_path, log, layout):
  in_names, numbers, mask_order, expected = LAYOUTS[layout]
  names = [f'IM{i:04d}.dcm' for i in in_names]
  volume, mask = write_patient(
    folder, names=names, numbers=numbers, mask_order=mask_order
  )
  check(prepare(folder, tmp_path, order='strict'), volume, mask)
  [(level, line)] = log()
  assert level == 'info' and f'masks follow {expected} (' in line


def test_names_without_leading_zeros(folder, tmp_path, log):
  names = [f'IM{i}.dcm' for i in range(1, COUNT + 1)]
  alphabetical = np.argsort(names)
  volume, mask = write_patient(folder, names=names)
  check(prepare(folder, tmp_path), volume, mask)
  assert 'follow file names (' in log()[-1][1]
  shutil.rmtree(tmp_path / 'prepared')
  write_mask(folder, 'PAT001', mask[alphabetical])
  check(prepare(folder, tmp_path), volume, mask)
  assert 'follow file names, alphabetical (' in log()[-1][1]


def test_the_option_filename_trusts_the_names(folder, tmp_path, log):
  backwards = list(range(COUNT))[::-1]
  volume, mask = write_patient(folder, mask_order=backwards)
  check(prepare(folder, tmp_path, order='filename'), volume, mask[backwards])
  assert [level for level, _ in log()] == ['info']
  assert 'not verified' in log()[0][1]


def test_an_empty_mask_is_warned_of(folder, tmp_path, log):
  volume, mask = write_patient(folder)
  write_mask(folder, 'PAT001', mask & False)
  check(prepare(folder, tmp_path), volume, mask & False)
  [(level, line)] = log()
  assert level == 'warning' and 'PAT001: the mask is empty' in line
  # There is nothing that could lie on a wrong slice.
  check(prepare(folder, tmp_path, order='strict'), volume, mask & False)


def _make_symmetric(folder, volume, mask):
  for z in range(COUNT // 2):
    path = folder / f'CT_scans/PAT001/IM{COUNT - z:04d}.dcm'
    dicom_test.rewrite(path, PixelData=(volume[z] + 1024).tobytes())
  both = mask.copy()
  both[COUNT // 2 :] = mask[: COUNT // 2][::-1]
  write_mask(folder, 'PAT001', both)
  return np.concatenate(
    [volume[: COUNT // 2], volume[: COUNT // 2][::-1]]
  ), both


def test_an_ambiguous_order_falls_back_or_is_refused(folder, tmp_path, log):
  volume, mask = write_patient(folder)
  volume, mask = _make_symmetric(folder, volume, mask)
  check(prepare(folder, tmp_path), volume, mask)
  [(level, line)] = log()
  assert level == 'warning'
  assert 'PAT001: the order of the masks cannot be verified (scores' in line
  assert line.endswith('taken by file names')
  found = refusal(folder, tmp_path, order='strict')
  assert 'CT_scans/PAT001: the order of its masks cannot be verified' in found


def test_without_positions_slices_follow_the_masks(folder, tmp_path, log):
  backwards = list(range(COUNT))[::-1]
  volume, mask = write_patient(
    folder, mask_order=backwards, ImagePositionPatient=None
  )
  examples = prepare(folder, tmp_path)
  check(examples, volume[::-1], mask[::-1])
  assert 'follow file names, reversed' in log()[0][1]


def test_a_missing_rescaling_is_noted(folder, tmp_path, log):
  volume, _ = write_patient(folder, RescaleSlope=None, RescaleIntercept=None)
  examples = prepare(folder, tmp_path)
  np.testing.assert_array_equal(examples[3]['image'][..., 0], volume[3] + 1024)
  warnings = [line for level, line in log() if level == 'warning']
  assert 'PAT001: no RescaleSlope or RescaleIntercept' in warnings[0]


@pytest.mark.parametrize('key', fumpe.MASK_KEYS)
@pytest.mark.parametrize('dtype', [bool, np.uint8, np.float64])
def test_keys_and_types_of_masks(tmp_path, key, dtype):
  mask = np.zeros((3, 4, 5), dtype)  # slices, rows, columns
  mask[1, 2, 4] = 1
  found = fumpe._read_mask(write_mask(tmp_path, 'PAT001', mask, key))
  np.testing.assert_array_equal(found, mask == 1)
  assert found.dtype == bool


def test_one_slice_whose_axis_matlab_drops(tmp_path):
  path = tmp_path / 'a.mat'
  io.savemat(path, {'Mask': np.eye(3), 'other': np.zeros(3)})
  np.testing.assert_array_equal(fumpe._read_mask(path), np.eye(3)[None] == 1)


def test_masks_cut_short_are_refused_at_every_length(tmp_path):
  mask = np.random.default_rng(0).integers(0, 2, (6, 7, 8))
  for compress in (False, True):
    path = tmp_path / 'PAT001.mat'
    io.savemat(path, {'Mask': mask}, do_compression=compress)
    content = path.read_bytes()
    for length in {0, 1, 100, 127, 128, 130, 140, 180, *(
      len(content) - n for n in (1, 2, 4, 8, 50)
    )}:  # fmt: skip
      path.write_bytes(content[:length])
      with pytest.raises(ValueError, match=r'PAT001.mat: ') as caught:
        fumpe._read_mask(path)
      assert '\n' not in str(caught.value)


def _mask_of(planes, key='Mask'):
  return lambda folder, mask: write_mask(folder, 'PAT001', planes(mask), key)


def _save(**arrays):
  return lambda folder, _: io.savemat(folder / 'GroundTruth/PAT001.mat', arrays)


def _hdf5(folder, _):
  header = b'MATLAB 7.3 MAT-file, Platform: PCWIN64'.ljust(512)
  path = folder / 'GroundTruth/PAT001.mat'
  path.write_bytes(header + b'\x89HDF\r\n\x1a\n' + bytes(100))


def _slices(change):
  return lambda folder, _: change(folder / 'CT_scans/PAT001')


def _move(folder, _):
  shutil.move(folder / 'GroundTruth/PAT001.mat', folder / 'elsewhere.mat')


DAMAGE = {
  'no mask': (_move, 'CT_scans/PAT001: has no GroundTruth/PAT001.mat'),
  'no scan': (
    _slices(shutil.rmtree),
    'GroundTruth/PAT001.mat: has no folder CT_scans/PAT001',
  ),
  'a file for a scan': (
    _slices(lambda p: (shutil.rmtree(p), p.write_text('x'))),
    'expected one folder and one .mat file, found PAT001, PAT001.mat',
  ),
  'a slice missing': (
    _slices(lambda p: (p / 'IM0003.dcm').unlink()),
    r'mask of 13 slices of \[48, 48\] .* found 14 of \[48, 48\] in PAT001.mat',
  ),
  'a mask missing': (_mask_of(lambda m: m[1:]), 'mask of 14 slices .*found 13'),
  'other size': (_mask_of(lambda m: m[:, 1:]), r'found 14 of \[47, 48\]'),
  'axes swapped': (
    _mask_of(lambda m: m[..., :40].transpose(2, 1, 0)),
    r'found 40 of \[48, 14\]',
  ),
  'labels 0 and 2': (
    _mask_of(lambda m: m * 2),
    'PAT001.mat: expected a mask of 0 and 1, found 0, 2',
  ),
  'NaN': (
    _mask_of(lambda m: m * np.nan),
    'expected a mask of 0 and 1, found na',
  ),
  'half': (_mask_of(lambda m: m * 0.5), 'of 0 and 1, found 0, 0.5'),
  'other key': (
    _mask_of(lambda m: m, 'lungs'),
    'PAT001.mat: expected one of Mask, GT, seg, volume, found lungs',
  ),
  'text': (_save(Mask='PAT001'), 'expected an array of numbers'),
  'cells': (
    _save(Mask=np.array([np.eye(2), 1], object)),
    'PAT001.mat: expected an array of numbers',
  ),
  'struct': (_save(Mask={'a': 1}), 'PAT001.mat: expected an array of numbers'),
  'four axes': (
    _save(Mask=np.ones((2, 2, 2, 2))),
    'expected .row, column, sli',
  ),
  'HDF5': (_hdf5, r'PAT001.mat: MATLAB v7.3 \(HDF5\) is not read'),
  'no MATLAB': (
    lambda f, _: (f / 'GroundTruth/PAT001.mat').write_text('<html>' * 99),
    'PAT001.mat: not a MATLAB v5 file',
  ),
  'no DICOM': (
    _slices(lambda p: (p / 'IM0003.dcm').write_text('<html>')),
    'CT_scans/PAT001: IM0003.dcm: not a DICOM file',
  ),
  'pixels short': (
    _slices(
      lambda p: (p / 'IM0003.dcm').write_bytes(
        (p / 'IM0003.dcm').read_bytes()[:-100]
      )
    ),
    'CT_scans/PAT001: IM0003.dcm: truncated',
  ),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_a_bad_patient_is_left_out_whole(folder, tmp_path, kind):
  _, mask = write_patient(folder)
  good = write_patient(folder, 'PAT002', seed=1)
  damage, reason = DAMAGE[kind]
  damage(folder, mask)
  found = refusal(folder, tmp_path)
  assert re.search(reason, found), found
  assert 'PAT001' in found
  builder = build(folder, tmp_path, on_error='skip')
  examples = list(builder.as_data_source('all'))
  assert {e['subject'] for e in examples} == {b'PAT002'}
  check(examples, *good)
  [(name, why)] = manual.read_note(builder)['skipped'].items()
  assert 'PAT001' in name and re.search(reason, f'{name}: {why}')


def test_two_masks_of_one_patient_are_refused(folder, tmp_path):
  write_patient(folder)
  shutil.copy(
    folder / 'GroundTruth/PAT001.mat', folder / 'GroundTruth/PAT001.MAT'
  )
  assert 'found PAT001, PAT001.MAT, PAT001.mat' in refusal(folder, tmp_path)


@pytest.mark.parametrize('gone', ['CT_scans', 'GroundTruth'])
def test_a_missing_folder_is_named(folder, tmp_path, gone):
  write_patient(folder)
  (folder / gone).rename(folder / 'elsewhere')
  assert f'found no {gone}' in refusal(folder, tmp_path)


def test_an_unknown_order_is_refused():
  with pytest.raises(ValueError, match='order: expected one of verify, file'):
    fumpe.FumpeConfig(manual_dir='x', order='position')
