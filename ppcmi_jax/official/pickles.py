"""Pickles of tensors, read without unpickling and written without PyTorch.

A pickle is a program for a small machine with a stack, and unpickling runs
whatever it names. `parse` follows the few instructions that a dict of tensors
needs, each of which only builds data, and refuses a pickle at the first other
one. Nothing is imported, called or executed.
"""

import math
import pickletools
import struct
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

DTYPES = {
  'torch FloatStorage': np.dtype('<f4'),
  'torch DoubleStorage': np.dtype('<f8'),
  'torch HalfStorage': np.dtype('<f2'),
  'torch LongStorage': np.dtype('<i8'),
  'torch IntStorage': np.dtype('<i4'),
}
RESAVE = 'save it again with torch.save(module.state_dict(), path)'
RESTORE = 'copy it again, or restore it from its backup'

_DICT = 'collections OrderedDict'
_TENSOR = 'torch._utils _rebuild_tensor_v2'


class Refusal(ValueError):
  """Says in one line what is wrong with a file, without its name."""

  def __init__(self, expected, found, todo=RESAVE):
    super().__init__(f'expected {expected}, found {found}; {todo}')


class Storage(NamedTuple):
  """A piece of memory: numbers of one dtype, and the name of their entry."""

  dtype: np.dtype
  key: str


class Tensor(NamedTuple):
  """Where a tensor's numbers are; unchecked, in numbers rather than bytes."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Name(str):
  """Something that a pickle names."""


def parse(data: bytes) -> dict[str, Tensor]:
  """Returns the tensors that the pickle of a state_dict describes.

  Raises:
    Refusal: it describes something else, names a function or is broken.
  """
  try:
    (value,) = _follow(data)
  except Refusal:
    raise
  except Exception as error:  # whatever comes of instructions without sense
    found = f'a broken pickle ({first_line(error)})'
    raise Refusal('a dict of tensors', found, RESTORE) from None
  if not isinstance(value, dict):
    raise Refusal('a dict of tensors', f'a {type(value).__name__}')
  for name, tensor in value.items():
    if not isinstance(tensor, Tensor):
      found = f'a {type(tensor).__name__} at {name!r:.80}'
      raise Refusal('a dict of tensors alone', found)
  return value


def dump(arrays: Mapping[str, np.ndarray]) -> bytes:
  """Returns the pickle (protocol 2) of arrays whose storages are '0', '1', ...

  Args:
    arrays: {name: array} of the dtypes in DTYPES.
  """
  classes = {dtype: name for name, dtype in DTYPES.items()}
  length = lambda s: struct.pack('<I', len(s.encode()))
  text = lambda s: b'X' + length(s) + s.encode()  # BINUNICODE
  whole = lambda n: b'J' + struct.pack('<i', n)  # BININT
  group = lambda *items: b'(' + b''.join(items) + b't'  # MARK ... TUPLE
  name = lambda s: b'c' + s.replace(' ', '\n').encode() + b'\n'  # GLOBAL
  empty_dict = name(_DICT) + b')R'  # EMPTY_TUPLE REDUCE

  def tensor(i, x):
    strides = [math.prod(x.shape[axis + 1 :]) for axis in range(x.ndim)]
    dtype, device = name(classes[x.dtype]), text('cpu')
    place = group(text('storage'), dtype, text(f'{i}'), device, whole(x.size))
    arguments = group(
      place + b'Q',  # BINPERSID
      whole(0),
      group(*map(whole, x.shape)),
      group(*map(whole, strides)),
      b'\x89',  # NEWFALSE: needs no gradient
      empty_dict,  # no hooks
    )
    return name(_TENSOR) + arguments + b'R'

  items = [text(key) + tensor(i, arrays[key]) for i, key in enumerate(arrays)]
  # PROTO 2, the dict, MARK, its items, SETITEMS, STOP
  return b'\x80\x02' + empty_dict + b'(' + b''.join(items) + b'u.'


def first_line(error: Exception) -> str:
  """Returns the first line of an error's text, or its kind."""
  return str(error).partition('\n')[0][:100] or type(error).__name__


def _follow(data):
  """Follows a pickle that only builds data; returns the stack at its end."""
  stack, marks, memo = [], [], {}

  def pop(start):
    items = stack[start:]
    del stack[start:]
    return items

  for opcode, argument, _ in pickletools.genops(data):
    match opcode.name:
      case 'PROTO' | 'STOP':
        pass
      case 'BINUNICODE' | 'BININT' | 'BININT1' | 'BININT2' | 'LONG1':
        stack.append(argument)
      case 'NEWTRUE' | 'NEWFALSE':
        stack.append(opcode.name == 'NEWTRUE')
      case 'EMPTY_TUPLE':
        stack.append(())
      case 'EMPTY_DICT':
        stack.append({})
      case 'MARK':
        marks.append(len(stack))
      case 'TUPLE':
        stack.append(tuple(pop(marks.pop())))
      case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
        stack.append(tuple(pop(-int(opcode.name[-1]))))
      case 'SETITEM' | 'SETITEMS':
        items = pop(-2 if opcode.name == 'SETITEM' else marks.pop())
        # Nothing else is hashed: that of a deep tuple overflows the C stack.
        if not all(isinstance(key, str) for key in items[::2]):
          raise Refusal('names of tensors', 'keys that are no strings')
        stack[-1].update(zip(items[::2], items[1::2], strict=True))
      case 'BINPUT' | 'LONG_BINPUT':
        memo[argument] = stack[-1]
      case 'BINGET' | 'LONG_BINGET':
        stack.append(memo[argument])
      case 'GLOBAL':
        if argument not in (_DICT, _TENSOR, *DTYPES):
          found = f'a pickle that names {argument.replace(" ", "."):.80}'
          raise Refusal('tensors alone', found)
        stack.append(_Name(argument))
      case 'BINPERSID':  # ('storage', class, key, device, length)
        _, name, key, *_ = stack.pop()
        if not isinstance(name, _Name) or not isinstance(key, str):
          raise ValueError('a storage without class or key')
        stack.append(Storage(DTYPES[name], key))
      case 'REDUCE':
        stack.append(_build(*pop(-2)))
      case 'BUILD':  # the modules' versions, an attribute of the dict
        stack.pop()
      case _:
        raise Refusal('tensors alone', f'a pickle with {opcode.name}')
  return stack


def _build(name, arguments):
  """Returns what the call of a name stands for."""
  if isinstance(name, _Name) and name == _DICT and not arguments:
    return {}
  if isinstance(name, _Name) and name == _TENSOR:
    storage, offset, shape, strides = arguments[:4]
    if isinstance(storage, Storage):
      return Tensor(storage, offset, shape, strides)
  raise ValueError('a call of something else')
