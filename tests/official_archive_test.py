"""Tests of official/archive.py and pickles.py: files that may be hostile."""

import contextlib
import io
import os
import pickle
import struct
import zipfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ppcmi_jax.official import archive, pickles

DTYPES = st.sampled_from(['<f4', '<f8', '<f2', '<i8', '<i4'])
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
ARRAYS = DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, SHAPES))
NAMES = st.text(st.characters(codec='utf-8'), max_size=20)

relaxed = hypothesis.settings(
  deadline=None, derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip


def packed(entries, root='archive', compression=zipfile.ZIP_STORED):
  """Returns the bytes of a zip archive."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', compression) as file:
    for name, data in entries.items():
      file.writestr(f'{root}/{name}', data)
  return buffer.getvalue()


def write(path, data):
  path = path / 'x.pt'
  path.write_bytes(data)
  return path


def refused(path, expected):
  with pytest.raises(ValueError, match=expected) as error:
    archive.read(path)
  text = str(error.value)
  assert text.startswith(f'{path}: expected ') and '\n' not in text
  assert len(text) < 600 and text.count('; ') >= 1  # says what to do


def same(a, b):
  assert list(a) == list(b)
  for x, y in zip(a.values(), b.values(), strict=True):
    assert x.dtype == y.dtype and x.shape == y.shape
    assert x.tobytes() == y.tobytes()


@relaxed
@hypothesis.given(st.dictionaries(NAMES, ARRAYS, max_size=5))
def test_what_is_written_is_read(tmp_path, tensors):
  archive.write(tmp_path / 'x.pt', tensors)
  same(archive.read(tmp_path / 'x.pt'), tensors)


def test_any_layout_in_memory_may_be_written(tmp_path):
  x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
  tensors = {
    'transposed': x.T,
    'strided': x[:, ::2],
    'big-endian': x.astype('>f4'),
    'scalar': np.float32(3),
  }
  archive.write(tmp_path / 'x.pt', tensors)
  found = archive.read(tmp_path / 'x.pt')
  for name, expected in tensors.items():
    np.testing.assert_array_equal(found[name], expected)


def test_the_same_arrays_give_the_same_bytes(tmp_path):
  tensors = {'a': np.ones(3), 'b': np.zeros((2, 2), np.float32)}
  for name in ('x.pt', 'y.pt'):
    archive.write(tmp_path / name, tensors)
  data = (tmp_path / 'x.pt').read_bytes()
  assert data == (tmp_path / 'y.pt').read_bytes()
  assert sorted(os.listdir(tmp_path)) == ['x.pt', 'y.pt']


@pytest.mark.parametrize('private', [True, False])
def test_a_file_is_replaced_and_has_the_mode_asked_for(tmp_path, private):
  path = tmp_path / 'x.pt'
  path.write_text('old')
  path.chmod(0o666)
  before = os.umask(0o022)
  archive.write(path, {'a': np.ones(3)}, private=private)
  os.umask(before)
  assert path.stat().st_mode & 0o777 == (0o600 if private else 0o644)
  assert list(archive.read(path)) == ['a']


def test_what_cannot_be_written_leaves_nothing(tmp_path):
  for path, tensors, expected in (
    (tmp_path / 'x.pt', {'a': np.ones(2, np.complex64)}, 'a: expected float32'),
    (tmp_path / 'x.pt', {'a': np.array('text')}, 'a: expected float32'),
    (tmp_path / 'no' / 'x.pt', {'a': np.ones(2)}, 'No such file'),
    (tmp_path, {'a': np.ones(2)}, 'directory'),
  ):
    with pytest.raises(ValueError, match=expected):
      archive.write(path, tensors)
  assert not list(tmp_path.iterdir())


# Files that nobody meant to harm


def test_other_files_are_refused_by_what_they_are(tmp_path):
  legacy = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
  tar = b'pickle'.ljust(257, b'\0') + b'ustar'.ljust(255, b'\0')
  for data, expected in {
    b'': 'an empty file',
    b'\x89HDF\r\n': 'found something else',
    legacy: r'a bare pickle, as PyTorch before 1\.6',
    tar: r'a tar archive, as PyTorch before 0\.1\.10',
    packed({'weights.npy': b'1'}): 'expected one data.pkl, found 0',
    packed({'data.pkl': b'', 'byteorder': b'big'}): "byteorder 'little'",
    packed({'data.pkl': pickle.dumps({}, 2)}, 'a/b'): 'one data.pkl',
  }.items():
    refused(write(tmp_path, data), expected)
  compressed = packed({'data.pkl': b'1'}, compression=zipfile.ZIP_DEFLATED)
  refused(write(tmp_path, compressed), 'compressed')
  refused(tmp_path / 'none.pt', 'No such file')
  refused(tmp_path, 'directory')


def small_file(path):
  tensors = {'a': np.arange(6, dtype=np.float32), 'n': np.array(7)}
  archive.write(path / 'x.pt', tensors)
  return (path / 'x.pt').read_bytes(), tensors


@relaxed
@hypothesis.given(st.data())
def test_a_truncated_file_is_refused(tmp_path, data):
  whole, _ = small_file(tmp_path)
  length = data.draw(st.integers(0, len(whole) - 1))
  refused(write(tmp_path, whole[:length]), 'expected a')


@hypothesis.settings(relaxed, max_examples=400)
@hypothesis.given(st.data())
def test_a_damaged_byte_never_gives_other_numbers(tmp_path, data):
  whole, tensors = small_file(tmp_path)
  where = data.draw(st.integers(0, len(whole) - 1))
  change = data.draw(st.integers(1, 255))
  damaged = bytearray(whole)
  damaged[where] ^= change
  try:
    found = archive.read(write(tmp_path, damaged))
  except ValueError as error:
    assert '\n' not in str(error)
  else:  # a byte that says nothing, as a date
    same(found, tensors)


# Files that somebody meant to harm


class Bomb:
  """Runs a command where it is unpickled."""

  def __init__(self, command):
    self._command = command

  def __reduce__(self):
    return os.system, (self._command,)


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('nested', [True, False])
def test_code_is_refused_and_not_run(tmp_path, protocol, nested):
  bomb = Bomb(f'touch {tmp_path}/ran')
  program = pickle.dumps({'a': bomb} if nested else bomb, protocol)
  refused(write(tmp_path, packed({'data.pkl': program})), 'expected tensors')
  assert os.listdir(tmp_path) == ['x.pt']


G = b'ctorch._utils\n_rebuild_tensor_v2\n'
D = b'ccollections\nOrderedDict\n'
F = b'ctorch\nFloatStorage\n'
S = b'(X\x07\0\0\0storage' + F + b'X\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ'
KEY = b'X\x01\0\0\0a'
PARTS = [G, D, F, S, KEY, *map(bytes, zip(b'()}tQRsuqhb\x85\x86\x87\x88K'))]


def tensor(offset=b'K\x00', shape=b'(K\x04t', strides=b'(K\x01t', storage=S):
  value = G + b'(' + storage + offset + shape + strides + b'\x89' + D + b')RtR'
  return b'\x80\x02}' + KEY + value + b's.'


@pytest.mark.parametrize(
  'program, expected',
  [
    (b'\x80\x02cos\nsystem\n.', r'names os\.system'),
    (b'\x80\x02cbuiltins\neval\nX\x01\0\0\x001\x85R.', r'names builtins\.eval'),
    (b'\x80\x02(ios\nsystem\n.', 'a pickle with INST'),
    (b'\x80\x02ctorch\nload\n.', r'names torch\.load'),
    (b'\x80\x02' + D + b')\x81.', 'a pickle with NEWOBJ'),
    (b'\x80\x02' + D + b'}' + KEY + b'K\x01sb.', 'found a _Name'),
    (b'\x80\x02' + D + b'.', 'found a _Name'),
    (b'\x80\x02' + D + b'((X\x01\0\0\0aK\x01tt\x85R.', 'broken pickle'),
    (b'\x80\x02' + F + b')R.', 'broken pickle'),
    (b'\x80\x02' + G + b')R.', 'broken pickle'),
    (b'\x80\x02' + G + b'(' + D + b'K\x00))tR.', 'broken pickle'),
    (b'\x80\x02' + KEY + b')R.', 'broken pickle'),
    (b'\x80\x02' + KEY + b'Q.', 'broken pickle'),
    (b'\x80\x02})K\x01s.', 'keys that are no strings'),
    (b'\x80\x02}' + KEY + b'K\x01s.', "found a int at 'a'"),
    (b'\x80\x02}(' + KEY + b'u.', 'broken pickle'),
    (b'\x80\x02K\x01.', 'found a int'),
    (b'\x80\x02}}.', 'broken pickle'),
    (b'\x80\x02.', 'broken pickle'),
    (b'\x80\x02u.', 'broken pickle'),
    (b'\x80\x02h\x07.', 'broken pickle'),
    (b'\x80\x02}', 'broken pickle'),
    (b'\x80\x02}X\xff\xff\xff\xffa', 'broken pickle'),
    (b'\x80\x02}r\xff\xff\xff\xff.', None),  # a memo of 2 ** 32, unpickled
    # Hashing or printing this would overflow the stack.
    (b'\x80\x02})' + b'\x85' * 300_000 + b'K\x01s.', 'no strings'),
    (b'\x80\x02)' + b'\x85' * 300_000 + b'Q.', 'broken pickle'),
    (b'\x80\x02)' + b'\x85' * 300_000 + b'.', 'found a tuple'),
    (b'\x80\x02)' + b'\x85' * 300_000 + b')R.', 'broken pickle'),
    (tensor(), None),
    (tensor(storage=S.replace(b'\x03\0\0\0cpu', b'\x06\0\0\0cuda:0')), None),
    (tensor(shape=b')', strides=b')'), None),
    (tensor(shape=b'(K\x05t'), 'inside their storages'),
    (tensor(offset=b'K\x01'), 'inside their storages'),
    (tensor(offset=b'J\xff\xff\xff\xff'), 'inside their storages'),
    (tensor(shape=b'(J\xff\xff\xff\xfft'), 'inside their storages'),
    (tensor(shape=b'(K\x02t', strides=b'(K\x04t'), 'inside their storages'),
    (tensor(shape=b'(K\x02t', strides=b'(J\xff\xff\xff\xfft'), 'inside'),
    (tensor(shape=b'(K\x04K\x01t'), 'inside their storages'),
    (tensor(shape=b'(J\0\0\0\x40t', strides=b'(K\x00t'), 'inside their'),
    (tensor(shape=b'(\x88t'), 'inside their storages'),
    (tensor(shape=KEY), 'expected'),
    (tensor(storage=KEY), 'broken pickle'),
    (tensor(storage=S.replace(b'\x000X', b'\x009X')), 'no item named'),
  ],
)
def test_pickles_that_make_no_sense_are_refused(tmp_path, program, expected):
  numbers = struct.pack('<4f', 1, 2, 3, 4)
  data = packed({'data.pkl': program, 'data/0': numbers})
  path = write(tmp_path, data)
  if expected is None:
    archive.read(path)
  else:
    refused(path, expected)


@hypothesis.settings(relaxed, max_examples=300)
@hypothesis.given(st.lists(st.sampled_from(PARTS) | st.binary(max_size=4)))
def test_no_pickle_does_more_than_be_refused(parts):
  with contextlib.suppress(pickles.Refusal):
    assert isinstance(pickles.parse(b''.join(parts) + b'.'), dict)


def test_what_would_fill_the_memory_is_refused(tmp_path):
  path = write(tmp_path, packed({'data.pkl': bytes(2**22 + 1)}))
  refused(path, 'far too long')
  # An entry inside another: with many of them, far more than the file's size.
  inner = io.BytesIO()
  with zipfile.ZipFile(inner, 'w') as file:
    file.writestr('archive/data/1', bytes(10_000))
    entry, length = file.infolist()[0], file.start_dir
  outer = io.BytesIO(packed({'data.pkl': b'\x80\x02}.'}))
  with zipfile.ZipFile(outer, 'a') as file:
    start = file.start_dir + 30 + len('archive/data/0')
    file.writestr('archive/data/0', inner.getvalue()[:length])
    entry.header_offset = start
    file.filelist.append(entry)
  refused(write(tmp_path, outer.getvalue()), 'more of them than')
