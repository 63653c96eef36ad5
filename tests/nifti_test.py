"""Tests of reading NIfTI volumes as axial slices."""

import gzip
import pathlib
import sys

import numpy as np
import pytest

from ppcmi_jax.datasets import nifti

nibabel = pytest.importorskip('nibabel')
testing_data = pytest.importorskip('nibabel.testing').data_path

SIDES_MM = np.array([1.5, 2.0, 3.0])  # towards the right, the front, the head
CODES = ('RAS', 'LAS', 'RPS', 'PIR', 'SAL', 'IPL', 'ARI')


def body(shape=(4, 5, 6), dtype=np.int16):
  """Returns voxels [X, Y, Z] RAS+, every one different."""
  return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def oblique(degrees):
  """Returns a turn [4, 4] about an axis that is none of the body's."""
  axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
  cross = np.cross(np.eye(3), axis)
  angle = np.deg2rad(degrees)
  turn = np.eye(4)
  turn[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
  return turn


def stored(voxels, codes='RAS', degrees=0.0):
  """Stores voxels [X, Y, Z] RAS+ with other axes; the body stays in place."""
  affine = np.diag([*SIDES_MM, 1])
  affine[:3, 3] = -20, 7, 100
  image = nibabel.Nifti1Image(voxels, oblique(degrees) @ affine)
  start = nibabel.orientations.axcodes2ornt('RAS')
  end = nibabel.orientations.axcodes2ornt(codes)
  return image.as_reoriented(nibabel.orientations.ornt_transform(start, end))


def save(folder, image, name='volume.nii.gz'):
  nibabel.save(image, folder / name)
  return folder / name


@pytest.mark.parametrize('degrees', [0, 17, -25])
@pytest.mark.parametrize('codes', CODES)
def test_any_axes_give_the_same_slices(tmp_path, codes, degrees):
  voxels = body()
  volume = nifti.read(save(tmp_path, stored(voxels, codes, degrees)))
  expected = np.empty((6, 5, 4), np.int16)
  for x, y, z in np.ndindex(voxels.shape):
    expected[z, 4 - y, 3 - x] = voxels[x, y, z]
  np.testing.assert_array_equal(volume.array, expected)
  assert volume.array.dtype == np.int16
  np.testing.assert_allclose(volume.spacing_mm, SIDES_MM[::-1], rtol=1e-5)
  reference = nifti.read(
    save(tmp_path, stored(voxels, 'RAS', degrees), 'other.nii')
  )
  np.testing.assert_allclose(volume.affine, reference.affine, atol=1e-4)
  assert not nifti.difference(volume, reference)


@pytest.mark.parametrize('codes', CODES)
def test_first_pixel_is_lowest_front_right(tmp_path, codes):
  voxels = np.zeros((4, 5, 6), np.uint8)
  voxels[3, 4, 0] = 1  # right, front, lowest
  volume = nifti.read(save(tmp_path, stored(voxels, codes)))
  assert volume.array[0, 0, 0] == 1 and volume.array.sum() == 1
  steps = volume.affine[:3, :3] @ np.eye(3)
  # One slice up, one row to the back, one column to the left, in RAS+ mm.
  np.testing.assert_allclose(
    steps.T, [[0, 0, 3], [0, -2, 0], [-1.5, 0, 0]], atol=1e-5
  )
  at = volume.affine @ [0, 0, 0, 1]
  np.testing.assert_allclose(at[:3], [-20 + 4.5, 7 + 8, 100], atol=1e-5)


def test_scaling_is_applied_and_labels_stay_whole(tmp_path):
  image = stored(body())
  image.header.set_slope_inter(0.5, -100)
  path = save(tmp_path, image)
  stored_numbers = nibabel.load(path).dataobj.get_unscaled()
  expected = stored_numbers * 0.5 - 100
  np.testing.assert_array_equal(
    nifti.read(path).array, expected.transpose(2, 1, 0)[:, ::-1, ::-1]
  )
  labels = nifti.read(save(tmp_path, stored(body(dtype=np.uint8))))
  assert labels.array.dtype == np.uint8


@pytest.mark.parametrize('name', ['a.nii', 'a.nii.gz', 'packed.nii'])
def test_compression_is_told_from_the_content(tmp_path, name):
  path = save(tmp_path, stored(body()), name)
  if name == 'packed.nii':
    path.write_bytes(gzip.compress(path.read_bytes()))
  assert nifti.read(path).array[0, -1, -1] == 0


@pytest.mark.parametrize('order', '<>')
def test_byte_order_and_nifti_2(tmp_path, order):
  header = nibabel.Nifti2Header(endianness=order)
  header.set_data_dtype(np.int16)
  image = nibabel.Nifti2Image(body().astype(f'{order}i2'), np.eye(4), header)
  array = nifti.read(save(tmp_path, image)).array
  assert array.dtype == np.int16 and array.dtype.isnative
  assert array.max() == 119 and array.flags.c_contiguous


@pytest.mark.parametrize(
  'unit, factor', [('mm', 1), ('meter', 1000), ('micron', 0.001)]
)
def test_units_become_millimetres(tmp_path, unit, factor):
  image = stored(body())
  image.header.set_xyzt_units(unit)
  volume = nifti.read(save(tmp_path, image))
  np.testing.assert_allclose(volume.spacing_mm, factor * SIDES_MM[::-1])


def test_only_a_trailing_axis_of_one_is_dropped(tmp_path):
  image = nibabel.Nifti1Image(body()[..., None], np.eye(4))
  assert nifti.read(save(tmp_path, image)).array.shape == (6, 5, 4)
  single = nibabel.Nifti1Image(body((4, 5, 1)), np.eye(4))
  assert nifti.read(save(tmp_path, single)).array.shape == (1, 5, 4)


def test_no_orientation_is_read_as_right_to_left(tmp_path):
  volume = nifti.read(save(tmp_path, nibabel.Nifti1Image(body(), None)))
  np.testing.assert_array_equal(
    volume.array, body().transpose(2, 1, 0)[:, ::-1]
  )


def test_the_qform_is_used_where_there_is_no_sform(tmp_path):
  image = stored(body(), 'PIR', 10)
  image.set_qform(image.affine, 1)
  image.set_sform(None, 0)
  path = save(tmp_path, image)
  assert int(nibabel.load(path).header['sform_code']) == 0
  reference = nifti.read(save(tmp_path, stored(body()), 'other.nii'))
  np.testing.assert_array_equal(nifti.read(path).array, reference.array)


def refusal(path):
  with pytest.raises(ValueError, match='NIfTI') as caught:
    nifti.read(path)
  assert '\n' not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize('name', ['a.nii', 'a.nii.gz'])
def test_truncated_files_are_refused_at_every_length(tmp_path, name):
  rng = np.random.default_rng(0)
  voxels = rng.integers(0, 9999, (4, 5, 6)).astype(np.int16)
  path = save(tmp_path, stored(voxels), name)
  content = path.read_bytes()
  lengths = {0, 1, 2, 3, 9, 10, 17, 100, 347, 348, 349, 351, 352, 353}
  lengths |= {len(content) // 2, *(len(content) - n for n in (8, 4, 2, 1))}
  for length in (n for n in lengths if n < len(content)):
    path.write_bytes(content[:length])
    found = refusal(path)
    assert 'truncated' in found or 'no NIfTI header' in found, length


def test_a_flipped_bit_of_a_compressed_file_is_found(tmp_path):
  path = save(tmp_path, stored(body(dtype=np.float32)))
  content = bytearray(path.read_bytes())
  content[-30] ^= 4
  path.write_bytes(content)
  assert 'damaged' in refusal(path)


@pytest.mark.parametrize(
  'content', [b'', b'\x89PNG\r\n', b'\0' * 400, b'x' * 1000]
)
def test_other_files_are_refused(tmp_path, content):
  path = tmp_path / 'volume.nii'
  path.write_bytes(content)
  assert 'no NIfTI header' in refusal(path)


def test_a_header_whose_voxels_are_elsewhere_is_refused(tmp_path):
  image = nibabel.Nifti1Pair(body(), np.eye(4))
  nibabel.save(image, tmp_path / 'volume.hdr')
  content = (tmp_path / 'volume.hdr').read_bytes()
  path = tmp_path / 'volume.nii'
  path.write_bytes(content + bytes(1000))
  assert 'another file' in refusal(path)


def test_the_message_survives_an_absurd_header(tmp_path):
  path = save(tmp_path, stored(body()), 'volume.nii')
  content = bytearray(path.read_bytes())
  content[42:48] = b'\xff\x7f' * 3  # dim[1..3] = 32767: 70 terabytes
  path.write_bytes(content)
  assert 'truncated' in refusal(path)
  content[42:44] = b'\xff\xff'  # dim[1] = -1
  path.write_bytes(content)
  refusal(path)


@pytest.mark.parametrize(
  'shape', [(4, 5), (4, 5, 6, 2), (4, 5, 6, 1, 3), (4, 0, 6)]
)
def test_other_than_three_axes_are_refused(tmp_path, shape):
  path = save(tmp_path, nibabel.Nifti1Image(body(shape), np.eye(4)))
  assert str(list(shape)) in refusal(path)


@pytest.mark.parametrize(
  'value, expected', [(np.nan, '1 NaN and 0 inf'), (-np.inf, '0 NaN and 1 inf')]
)
def test_nan_and_infinity_are_refused(tmp_path, value, expected):
  voxels = body(dtype=np.float32)
  voxels[1, 2, 3] = value
  assert expected in refusal(save(tmp_path, stored(voxels)))


@pytest.mark.parametrize('dtype', ['complex64', 'rgb'])
def test_other_than_real_numbers_are_refused(tmp_path, dtype):
  if dtype == 'rgb':
    dtype = np.dtype([(c, np.uint8) for c in 'RGB'])
  voxels = np.zeros((4, 5, 6), dtype)
  path = save(tmp_path, nibabel.Nifti1Image(voxels, np.eye(4)))
  assert 'real number' in refusal(path)


@pytest.mark.parametrize(
  'columns',
  [
    [[1, 0, 0], [0, 0, 0], [0, 0, 1]],
    [[1, 0, 0], [1, 0, 0], [0, 0, 1]],
    [[1, 0, 0], [1, 1e-5, 0], [0, 0, 1]],
    [[1, 0, 0], [0, np.nan, 0], [0, 0, 1]],
    [[1, 0, 0], [0, np.inf, 0], [0, 0, 1]],
  ],
)
def test_a_singular_affine_is_refused(tmp_path, columns):
  path = save(tmp_path, stored(body()), 'volume.nii')
  content = bytearray(path.read_bytes())
  rows = np.zeros((3, 4), '<f4')
  rows[:, :3] = np.transpose(columns)
  content[280:328] = rows.tobytes()  # srow_x, srow_y, srow_z
  content[254:256] = np.int16(2).tobytes()  # sform_code
  path.write_bytes(content)
  assert 'affine' in refusal(path)


def test_small_voxels_are_not_singular(tmp_path):
  image = nibabel.Nifti1Image(body(), np.diag([1e-4, 1e-4, 1e-4, 1]))
  np.testing.assert_allclose(
    nifti.read(save(tmp_path, image)).spacing_mm, [1e-4] * 3
  )


def test_geometry_tolerates_rounding_and_finds_what_differs(tmp_path):
  image = nifti.read(save(tmp_path, stored(body())))
  rounded = image._replace(affine=image.affine + 1e-3)
  assert not nifti.difference(image, rounded)
  shifted = image.affine.copy()
  shifted[0, 3] += 1.5  # a voxel to the right
  found = nifti.difference(image, image._replace(affine=shifted))
  assert '1.5 mm apart' in found
  flipped = image._replace(affine=image.affine @ np.diag([1, 1, -1, 1]))
  assert nifti.difference(image, flipped)
  coarse = image.affine * 1.05  # 5 % add up over a volume
  assert nifti.difference(image, image._replace(affine=coarse))
  cropped = image._replace(array=image.array[1:])
  assert 'slices' in nifti.difference(image, cropped)
  assert nifti.difference(image, image) == ''


@pytest.mark.parametrize(
  'name, shape, codes',
  [
    ('anatomical.nii', (25, 41, 33), 'LAS'),
    ('standard.nii.gz', (7, 5, 4), 'RAS'),
  ],
)
def test_files_of_others(name, shape, codes):
  """The files that come with nibabel, as nibabel turns them."""
  path = pathlib.Path(testing_data) / name
  image = nibabel.load(path)
  assert ''.join(nibabel.aff2axcodes(image.affine)) == codes
  canonical = nibabel.as_closest_canonical(image).get_fdata()
  volume = nifti.read(path)
  assert volume.array.shape == shape
  np.testing.assert_array_equal(
    volume.array, np.rot90(canonical)[:, ::-1].transpose(2, 0, 1)
  )


def test_a_missing_package_is_named(tmp_path, monkeypatch):
  path = save(tmp_path, stored(body()))
  monkeypatch.setitem(sys.modules, 'nibabel', None)
  assert 'ppcmi_jax[data]' in refusal(path)
