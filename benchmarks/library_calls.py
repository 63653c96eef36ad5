"""What calls of libraries read and write, which XLA's cost analysis leaves out.

On NVIDIA's accelerators convolutions and larger products are calls of cuDNN and
cuBLAS. XLA counts no bytes of a custom call; its operands and results are in
the text of the compiled program. A call's workspace (bytes, beside its result)
is left out, as it need not be touched.
"""

import math
import re

_BYTES = {
  **dict.fromkeys(('pred', 's8', 'u8'), 1),
  **dict.fromkeys(('f16', 'bf16', 's16', 'u16'), 2),
  **dict.fromkeys(('f32', 's32', 'u32'), 4),
  **dict.fromkeys(('f64', 's64', 'u64'), 8),
}
_SHAPE = re.compile(rf'\b({"|".join(_BYTES)})\[([\d,]*)\]')
_LINE = re.compile(r'\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)')
_CALL = re.compile(r'custom_call_target="__(?:cudnn|cublas)')


def num_bytes(text: str) -> int:
  """Returns the bytes of all operands and results of library calls.

  Args:
    text: of a compiled program, in XLA's HLO; where there are no such calls, as
      on CPUs, the answer is 0.

  >>> num_bytes('''
  ...   %x = f32[2,3]{1,0} parameter(0)
  ...   %y = (bf16[4]{0}, u8[9]) custom-call(%x), custom_call_target="__cudnn$c"
  ...   %z = f32[2] custom-call(%x), custom_call_target="other"
  ... ''')
  32
  """
  sizes, total = {}, 0
  for line in text.splitlines():
    found = _LINE.match(line)
    if not found:
      continue
    name, shape, operation, rest = found.groups()
    is_call = operation == 'custom-call' and _CALL.search(line) is not None
    sizes[name] = sum(
      _BYTES[dtype] * math.prod(int(n) for n in sides.split(',') if n)
      for dtype, sides in _SHAPE.findall(shape)
      if not (is_call and dtype == 'u8')
    )
    if is_call:
      operands = re.findall(r'%([\w.-]+)', rest.partition('), ')[0])
      total += sizes[name] + sum(sizes.get(name, 0) for name in operands)
  return total
