"""Tests of readers.py: right numbers from every format, none from bad files."""

import io
import struct
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image, TiffImagePlugin

from ppcmi_jax.datasets import readers

PLANE = np.random.default_rng(0).integers(0, 256, (6, 7), np.uint8)
VOLUME = np.random.default_rng(1).integers(-99, 99, (2, 3, 4), np.int16)


def save(path, array, **kwargs):
  """Writes an array in the format of the suffix, with the usual libraries."""
  suffix = readers.suffix_of(path)
  if suffix in ('.png', '.tif', '.tiff'):
    Image.fromarray(array).save(path, **kwargs)
  elif suffix == '.npy':
    np.save(path, array)
  elif suffix == '.npz':
    np.savez_compressed(path, array)
  elif suffix == '.mha':
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), **kwargs)
  else:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
  return path


def refusal(path, reader=readers.read):
  with pytest.raises(ValueError) as caught:
    reader(path)
  assert '\n' not in str(caught.value) and ' at 0x' not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize(
  'name, dtype',
  [
    ('a.png', 'uint8'), ('a.PNG', 'uint8'), ('a.tif', 'uint8'),
    ('a.tiff', 'float32'), ('a.tif', 'int32'), ('a.npy', 'uint8'),
    ('a.npy', '>i2'), ('a.npz', 'float64'), ('a.mha', 'uint8'),
    ('a.mha', 'int16'), ('a.mha', 'float32'),
  ],
)  # fmt: skip
def test_reads_planes_as_stored(tmp_path, name, dtype):
  plane = PLANE.astype(dtype) * (1 if dtype == 'uint8' else -3)
  picture = readers.read(save(tmp_path / name, plane))
  np.testing.assert_array_equal(picture.array, plane)
  assert picture.array.dtype == np.dtype(dtype).newbyteorder('=')
  assert picture.spacing_mm == (1, 1) and picture.affine is None


@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
def test_keeps_16_bit(tmp_path, name):
  plane = PLANE.astype(np.uint16) * 257
  array = readers.read(save(tmp_path / name, plane)).array
  assert array.dtype == np.uint16
  np.testing.assert_array_equal(array, plane)


def test_unsigned_32_bit_tiff_is_not_read_as_signed(tmp_path):
  plane = np.full((2, 3), 2**32 - 2, np.uint32)
  Image.fromarray(plane.view(np.int32)).save(tmp_path / 'a.tif')
  content = (tmp_path / 'a.tif').read_bytes()
  entry = struct.Struct('<HHIHH')  # a tag, SHORT, one value
  signed, unsigned = (entry.pack(339, 3, 1, k, 0) for k in (2, 1))
  assert content.count(signed) == 1
  (tmp_path / 'a.tif').write_bytes(content.replace(signed, unsigned))
  np.testing.assert_array_equal(readers.read(tmp_path / 'a.tif').array, plane)


def test_bits_are_black_and_white(tmp_path):
  bits = PLANE > 128
  for name in ('a.png', 'a.tif'):
    array = readers.read(save(tmp_path / name, bits)).array
    np.testing.assert_array_equal(array, np.where(bits, 255, 0))
  array = readers.read(save(tmp_path / 'a.npy', bits)).array
  np.testing.assert_array_equal(array, bits)
  assert array.dtype == np.uint8


GREY_RGB = np.stack([PLANE] * 3, -1)
COLOUR = np.stack([PLANE, PLANE, PLANE ^ (PLANE.max() == PLANE)], -1)
OPAQUE = np.full_like(PLANE, 255)


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize(
  'array', [GREY_RGB, np.dstack([PLANE, OPAQUE]), np.dstack([GREY_RGB, OPAQUE])]
)
def test_equal_planes_are_grey(tmp_path, suffix, array):
  read = readers.read(save(tmp_path / f'a{suffix}', array)).array
  np.testing.assert_array_equal(read, PLANE)


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_colour_of_one_pixel_is_refused(tmp_path, suffix):
  assert '3 planes' in refusal(save(tmp_path / f'a{suffix}', COLOUR))


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('array', [PLANE, GREY_RGB])
def test_transparency_is_refused(tmp_path, suffix, array):
  array = np.dstack([array, np.where(PLANE.max() == PLANE, 254, 255)])
  path = save(tmp_path / f'a{suffix}', array.astype(np.uint8))
  assert 'transparent' in refusal(path)


def test_transparent_colour_is_refused(tmp_path):
  assert 'transparency' in refusal(
    save(tmp_path / 'a.png', PLANE, transparency=3)
  )


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_palette_of_greys_gives_its_greys(tmp_path, suffix):
  indices = PLANE % 3
  image = Image.fromarray(indices, mode=None).convert('P')
  image = Image.frombytes('P', (7, 6), indices.tobytes())
  greys = np.array([9, 0, 200], np.uint8)
  image.putpalette(np.repeat(greys, 3).tobytes())
  image.save(tmp_path / f'a{suffix}')
  array = readers.read(tmp_path / f'a{suffix}').array
  np.testing.assert_array_equal(array, greys[indices])
  image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
  image.save(tmp_path / f'a{suffix}')
  assert 'planes' in refusal(tmp_path / f'a{suffix}')


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_frames_must_be_one(tmp_path, suffix):
  path = tmp_path / f'a{suffix}'

  def save_frames(*frames):
    first, *others = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=others)

  save_frames(PLANE, PLANE, PLANE ^ 1)
  assert 'frames that differ' in refusal(path)
  save_frames(PLANE, PLANE)
  np.testing.assert_array_equal(readers.read(path).array, PLANE)


def test_16_bit_colour_is_not_reduced_to_8(tmp_path):
  """Pillow drops the low byte of 16 bit colours, so that all looks grey."""
  rows = np.repeat(PLANE.astype(np.uint16) * 256, 3, 1).astype('>u2')
  rows[0, 0] += 1
  lines = b''.join(b'\0' + row.tobytes() for row in rows)
  chunk = lambda kind, body: (
    struct.pack('>I', len(body))
    + kind
    + body
    + struct.pack('>I', zlib.crc32(kind + body))
  )
  head = struct.pack('>IIBBBBB', 7, 6, 16, 2, 0, 0, 0)
  png = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head)
  end = chunk(b'IEND', b'')
  (tmp_path / 'a.png').write_bytes(
    png + chunk(b'IDAT', zlib.compress(lines)) + end
  )
  with Image.open(tmp_path / 'a.png') as image:  # what would be read
    np.testing.assert_array_equal(np.array(image), GREY_RGB)
  assert '16 bit' in refusal(tmp_path / 'a.png')
  # Chunks that are whole, around pixels that are not.
  (tmp_path / 'b.png').write_bytes(
    png.replace(
      chunk(b'IHDR', head), chunk(b'IHDR', head[:8] + b'\x08' + bytes(4))
    )
    + chunk(b'IDAT', zlib.compress(lines[:20]))
    + end
  )
  assert 'truncated' in refusal(tmp_path / 'b.png')


@pytest.mark.parametrize(
  'plane, tag, value, reason',
  [
    (PLANE, 339, 2, 'signed 8 bit'),
    (PLANE.astype(np.uint16), 262, 0, 'white as zero'),
  ],
)
def test_tiff_that_pillow_reads_as_other_numbers(
  tmp_path, plane, tag, value, reason
):
  tags = TiffImagePlugin.ImageFileDirectory_v2()
  tags[tag] = value
  buffer = io.BytesIO()
  Image.fromarray(plane).save(buffer, 'TIFF', tiffinfo=tags)
  content = buffer.getvalue()
  entry = struct.Struct('<HHIHH')
  # What the writer knows better is set in the file itself.
  content = content.replace(
    entry.pack(tag, 3, 1, 1, 0), entry.pack(tag, 3, 1, value, 0)
  )
  (tmp_path / 'a.tif').write_bytes(content)
  assert reason in refusal(tmp_path / 'a.tif')


def test_cmyk_is_refused(tmp_path):
  Image.new('CMYK', (4, 4)).save(tmp_path / 'a.tif')
  assert "'CMYK'" in refusal(tmp_path / 'a.tif')


@pytest.mark.parametrize(
  'name, array, kwargs',
  [
    ('a.png', PLANE, {}),
    ('a.tif', PLANE, {}),
    ('a.tif', PLANE.astype(np.float32), {}),
    ('a.tif', PLANE, {'compression': 'tiff_lzw'}),
    ('a.tif', PLANE, {'compression': 'tiff_adobe_deflate'}),
    ('a.tif', PLANE, {'compression': 'packbits'}),
    (
      'a.tif',
      PLANE,
      {'save_all': True, 'append_images': [Image.fromarray(PLANE)]},
    ),
    ('a.npy', PLANE, {}),
    ('a.npy', PLANE.astype(np.float64), {}),
    ('a.npz', PLANE, {}),
    ('a.mha', PLANE, {}),
    ('a.mha', VOLUME, {}),
    ('a.mha', VOLUME, {'useCompression': True}),
    ('a.nii', VOLUME, {}),
    ('a.nii.gz', VOLUME, {}),
  ],
)  # fmt: skip
def test_truncated_at_any_length_is_refused(tmp_path, name, array, kwargs):
  content = save(tmp_path / name, array, **kwargs).read_bytes()
  assert readers.read(tmp_path / name).array.size == array.size
  if 'save_all' in kwargs:
    content = content.rstrip(b'\0')  # pillow pads the file
  short = tmp_path / f'short{readers.suffix_of(name)}'
  for length in range(len(content)):
    short.write_bytes(content[:length])
    try:
      picture = readers.read(short)
    except ValueError as error:
      assert '\n' not in str(error) and ' at 0x' not in str(error)
    else:
      pytest.fail(f'{length} of {len(content)} bytes read as {picture}')


@pytest.mark.parametrize(
  'name, kwargs',
  [
    ('a.png', {}),
    ('a.npz', {}),
    ('a.mha', {'useCompression': True}),
  ],
)
def test_flipped_bits_never_give_other_pixels(tmp_path, name, kwargs):
  content = bytearray(save(tmp_path / name, PLANE, **kwargs).read_bytes())
  changed = 0
  # The header of a .mha carries no checksum.
  start = content.find(b'LOCAL') + 6 if name == 'a.mha' else 0
  for at in range(start, len(content)):
    content[at] ^= 0x10
    (tmp_path / name).write_bytes(content)
    content[at] ^= 0x10
    try:
      array = readers.read(tmp_path / name).array
    except (ValueError, NotImplementedError):
      changed += 1
    else:
      np.testing.assert_array_equal(array, PLANE)
  assert changed > len(PLANE.tobytes())


def test_mha_of_another_file_is_refused(tmp_path):
  path = save(tmp_path / 'a.mha', PLANE)
  (tmp_path / 'secret').write_bytes(bytes(100))
  content = path.read_bytes().replace(b'= LOCAL\n', b'= secret\n')
  path.write_bytes(content)
  assert 'ElementDataFile secret' in refusal(path)


def test_mha_of_too_few_compressed_pixels_is_refused(tmp_path):
  path = save(tmp_path / 'a.mha', PLANE, useCompression=True)
  head, _, pixels = path.read_bytes().partition(b'LOCAL\n')
  fewer = zlib.compress(zlib.decompress(pixels)[:-5])
  size = f'CompressedDataSize = {len(pixels)}'.encode()
  assert size in head
  head = head.replace(size, f'CompressedDataSize = {len(fewer)}'.encode())
  path.write_bytes(head + b'LOCAL\n' + fewer)
  assert 'MHA: truncated' in refusal(path)


def test_mha_components_are_grey_or_refused(tmp_path):
  image = sitk.GetImageFromArray(GREY_RGB, isVector=True)
  sitk.WriteImage(image, str(tmp_path / 'a.mha'))
  np.testing.assert_array_equal(readers.read(tmp_path / 'a.mha').array, PLANE)
  image = sitk.GetImageFromArray(COLOUR, isVector=True)
  sitk.WriteImage(image, str(tmp_path / 'a.mha'))
  assert '3 planes' in refusal(tmp_path / 'a.mha')
  image = sitk.GetImageFromArray(VOLUME[None], isVector=False)
  sitk.WriteImage(image, str(tmp_path / 'b.mha'))
  assert '[1, 2, 3, 4]' in refusal(tmp_path / 'b.mha')


@pytest.mark.parametrize('orientation', ['LPS', 'RAS', 'PIR', 'SLA', 'ARI'])
def test_mha_and_nifti_volumes_lie_in_the_same_place(tmp_path, orientation):
  """One body, stored in any orientation, in two formats: one array."""
  image = sitk.GetImageFromArray(VOLUME)
  image.SetSpacing((0.5, 0.75, 2))
  image.SetOrigin((3, -4, 5))
  turned = sitk.DICOMOrient(image, orientation)
  for name in ('a.mha', 'a.nii.gz'):
    sitk.WriteImage(turned, str(tmp_path / name))
    picture = readers.read(tmp_path / name)
    np.testing.assert_array_equal(picture.array, VOLUME)
    np.testing.assert_allclose(picture.spacing_mm, (2, 0.75, 0.5), rtol=1e-6)
    for index in np.ndindex(2, 3, 4):
      x, y, z = image.TransformIndexToPhysicalPoint(index[::-1])
      np.testing.assert_allclose(
        picture.affine @ [*index, 1], (-x, -y, z, 1), atol=1e-5
      )


def test_frame_ignores_the_orientation_of_its_header(tmp_path):
  image = sitk.GetImageFromArray(np.stack([PLANE] * 3))
  image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
  sitk.WriteImage(image, str(tmp_path / 'a.mha'))
  frame = readers.read_frame(tmp_path / 'a.mha')
  np.testing.assert_array_equal(frame, PLANE)
  turned = readers.read(tmp_path / 'a.mha').array
  np.testing.assert_array_equal(turned[0], PLANE[::-1, ::-1])
  save(tmp_path / 'b.mha', np.moveaxis(COLOUR, -1, 0))
  assert '3 planes' in refusal(tmp_path / 'b.mha', readers.read_frame)


@pytest.mark.parametrize(
  'name, write, reason',
  [
    ('a.jpg', lambda path: path.write_bytes(b''), r'\.png, .*\.nii\.gz'),
    ('a.png', lambda path: path.write_text('text'), 'PNG: .*another format'),
    ('a.tif', lambda path: path.write_text('text'), 'TIFF: .*another format'),
    ('a.npy', lambda path: np.save(path, np.array([{}])), 'damaged'),
    ('a.npy', lambda path: np.save(path, np.zeros(5)), r'\[5\]'),
    ('a.npy', lambda path: np.save(path, np.zeros((2, 2), complex)), 'complex'),
    ('a.npz', lambda path: np.savez(path, a=[1], b=[2]), 'one array, found a'),
    ('a.nii', lambda path: path.write_text('text'), 'NIfTI'),
  ],
)  # fmt: skip
def test_what_is_no_picture_is_refused(tmp_path, name, write, reason):
  path = tmp_path / name
  write(path)
  with pytest.raises(ValueError, match=reason):
    readers.read(path)


def test_npy_whose_header_lies_needs_no_memory(tmp_path):
  np.save(tmp_path / 'a.npy', np.zeros((100, 1)))
  content = (tmp_path / 'a.npy').read_bytes()
  huge = content.replace(
    b'(100, 1)', b'(10**9)'.replace(b'**9)', b'000, 1000000)')
  )
  (tmp_path / 'a.npy').write_bytes(huge)
  assert 'truncated or damaged' in refusal(tmp_path / 'a.npy')


@pytest.mark.parametrize('values', [(0, 255), (255, 0), (7, 0, 255)])
def test_labels_become_indices(values):
  mask = np.random.default_rng(0).choice(values, (5, 6))
  indices = readers.index_labels(mask, values)
  assert indices.dtype == np.uint8
  np.testing.assert_array_equal(np.array(values)[indices], mask)


@pytest.mark.parametrize('odd', [1, 0.5, -1, np.nan])
def test_unknown_labels_are_refused(odd):
  with pytest.raises(ValueError, match=f'unknown label {odd:g}; .*0, 255'):
    readers.index_labels(np.array([[0, 255, odd]]), (0, 255))
