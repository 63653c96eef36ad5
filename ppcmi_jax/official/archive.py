"""PyTorch's checkpoint files as named arrays, in and out, without PyTorch.

`torch.save(module.state_dict(), path)` writes a zip archive, nothing in it
compressed, with these entries in one folder of any name:

  entry      content
  ---------  -----------------------------------------------------------------
  data.pkl   a pickle of {name: tensor}; a tensor is a shape, strides and the
             place of its numbers in a storage
  data/N     the numbers of storage N
  byteorder  'little'; old versions of PyTorch leave it out
  version    '3'

Reading executes nothing (see `pickles`), believes no length before it has
compared it with what is there, and checks each entry's CRC-32, which catches
accidental damage only.

  >>> import pathlib, tempfile
  >>> import numpy as np
  >>> from ppcmi_jax.official import archive
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder) / 'model.pt'
  ...   archive.write(path, {'weight': np.ones([2, 3], np.float32)})
  ...   {name: x.shape for name, x in archive.read(path).items()}
  {'weight': (2, 3)}
"""

import contextlib
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from ppcmi_jax.official import pickles

MAX_PICKLE_BYTES = 2**22  # 60 times that of the official mapping network
ALIGNMENT = 64  # of storages, as in PyTorch's own files


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Returns the tensors of a file that `torch.save` wrote of a state_dict.

  Args:
    path: the file.

  Returns:
    {name: array} in the file's order, in PyTorch's layouts; float32, float64,
    float16, int64 or int32. The arrays are read-only views: tensors that share
    memory in the file share it here.

  Raises:
    ValueError: the file is missing, no zip archive of PyTorch (as its formats
      before 1.6), truncated or damaged, or holds anything but tensors; a
      pickle that names a function is refused, not run.
  """
  try:
    with open(path, 'rb') as file:
      _check_format(file)
      return _read(file)
  except OSError as error:
    expected, todo = 'a readable file', 'check the path'
    error = pickles.Refusal(expected, error.strerror, todo)
    raise ValueError(f'{os.fspath(path)}: {error}') from None
  except pickles.Refusal as error:
    raise ValueError(f'{os.fspath(path)}: {error}') from None


def write(
  path: str | os.PathLike[str],
  tensors: Mapping[str, Any],
  *,
  private: bool = False,
) -> None:
  """Writes named arrays as `torch.save` writes a state_dict of them.

  `torch.load(path, weights_only=True)` reads the file. It is written whole or
  not at all, and the same arrays give the same bytes.

  Args:
    path: the file; one that is there is replaced.
    tensors: {name: array}, float32, float64, float16, int64 or int32, in the
      order and the layouts that PyTorch expects.
    private: whether only the file's owner may read it, mode 0600.

  Raises:
    ValueError: an array of another dtype, or the file cannot be written.
  """
  path = os.fspath(path)
  arrays = {}
  for name, x in tensors.items():
    x = np.asarray(x)
    arrays[name] = x.astype(x.dtype.newbyteorder('<'), copy=False)
    if arrays[name].dtype not in pickles.DTYPES.values():
      expected, todo = 'float32, another float or int', 'convert it first'
      error = pickles.Refusal(expected, x.dtype, todo)
      raise ValueError(f'{path}: {name}: {error}')
  # A new file beside it, so that its mode is the one asked for.
  partial = os.path.join(os.path.dirname(path), f'.new-{os.urandom(8).hex()}')
  flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
  try:
    descriptor = os.open(partial, flags, 0o600 if private else 0o666)
    try:
      with os.fdopen(descriptor, 'wb') as file:
        _write(file, arrays)
        file.flush()
        os.fsync(descriptor)
      os.replace(partial, path)
    except BaseException:
      with contextlib.suppress(OSError):
        os.unlink(partial)
      raise
  except OSError as error:
    todo = 'choose a folder that exists and may be written to'
    error = pickles.Refusal('to write a file', error.strerror, todo)
    raise ValueError(f'{path}: {error}') from None


def _check_format(file):
  start = file.read(512)
  file.seek(0)
  if start[:2] == b'PK':
    return
  if start[257:262] == b'ustar':
    found = 'a tar archive, as PyTorch before 0.1.10 wrote'
  elif start[:1] == b'\x80':
    found = 'a bare pickle, as PyTorch before 1.6 wrote'
  else:
    found = 'something else' if start else 'an empty file'
  todo = f'load it with PyTorch and {pickles.RESAVE}'
  raise pickles.Refusal('a zip archive of PyTorch', found, todo)


def _read(file):
  size = os.fstat(file.fileno()).st_size
  try:
    with zipfile.ZipFile(file) as archive:
      root = _check_entries(archive, size)
      tensors = pickles.parse(archive.read(f'{root}data.pkl'))
      keys = dict.fromkeys(t.storage.key for t in tensors.values())
      storages = {key: archive.read(f'{root}data/{key}') for key in keys}
    return {
      name: _array(name, tensor, storages[tensor.storage.key])
      for name, tensor in tensors.items()
    }
  except pickles.Refusal:
    raise
  except Exception as error:  # zipfile raises many kinds for damaged files
    found = f'a damaged one ({pickles.first_line(error)})'
    expected = 'a whole zip archive of PyTorch'
    raise pickles.Refusal(expected, found, pickles.RESTORE) from None


def _check_entries(archive, size):
  """Returns the folder that the entries are in, once they can be believed."""
  entries = {entry.filename: entry for entry in archive.infolist()}
  if any(entry.compress_type for entry in entries.values()):
    raise pickles.Refusal('entries stored as they are', 'compressed ones')
  if sum(entry.file_size for entry in entries.values()) > size:
    found = 'more of them than the file has room for'
    raise pickles.Refusal('entries', found, pickles.RESTORE)
  programs = [name for name in entries if name.split('/')[1:] == ['data.pkl']]
  if len(programs) != 1:
    raise pickles.Refusal('one data.pkl', f'{len(programs)} in the archive')
  if entries[programs[0]].file_size > MAX_PICKLE_BYTES:
    raise pickles.Refusal('a dict of tensors', 'a pickle far too long for one')
  root = programs[0].removesuffix('data.pkl')
  order = f'{root}byteorder'
  if order in entries and archive.read(order) != b'little':
    raise pickles.Refusal("byteorder 'little'", 'another')
  return root


def _array(name, tensor, data):
  """Returns a view of a storage's bytes as a tensor describes it."""
  storage = np.frombuffer(data, tensor.storage.dtype)
  _, offset, shape, strides = tensor
  end = offset + 1 + sum((n - 1) * s for n, s in zip(shape, strides))
  if (
    len(shape) != len(strides)
    or any(type(n) is not int or n < 0 for n in (offset, *shape, *strides))
    or math.prod(shape) > len(storage)  # before memory is taken for it
    or (0 not in shape and end > len(storage))
  ):
    found = f'{name!r} of shape {list(shape)} in {len(storage)} numbers'
    expected = 'tensors inside their storages'
    raise pickles.Refusal(expected, found[:200], pickles.RESTORE)
  strides = [s * storage.itemsize for s in strides]
  return np.lib.stride_tricks.as_strided(
    storage[offset:], shape, strides, writeable=False
  )


def _write(file, arrays):
  with zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:

    def add(name, data):
      entry = zipfile.ZipInfo(f'archive/{name}')  # dated 1980
      # A field without meaning moves the numbers to a round address.
      start = archive.start_dir + 30 + len(entry.filename) + 4
      filling = -start % ALIGNMENT
      entry.extra = struct.pack('<HH', 0x4246, filling) + filling * b'Z'
      archive.writestr(entry, data)

    add('data.pkl', pickles.dump(arrays))
    add('byteorder', b'little')
    for i, x in enumerate(arrays.values()):
      add(f'data/{i}', x.tobytes())
    add('version', b'3\n')
