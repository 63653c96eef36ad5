"""All arrays of a message as one: what crosses between device and host.

A transfer costs by the piece more than by the byte, on an accelerator about
0.1 ms each. So a message is one array there, uint32 [N]: each latent's words by
sorted name, then each one's numbers, bit by bit, in the order in which
`envelope` has their bytes. Arrays are NumPy's or JAX's, and results alike.

  >>> import numpy as np
  >>> from ppcmi_jax.sealed import body
  >>> masked = {'b': {'words': np.arange(2, dtype=np.uint32),
  ...                 'numbers': np.ones([1, 2], np.float32)}}
  >>> joined = body.join(masked)
  >>> [hex(word) for word in joined]
  ['0x0', '0x1', '0x3f800000', '0x3f800000']
  >>> found = body.split(joined, {'b': (1, 8)}, dtype='int8')
  >>> found['b']['numbers'].tolist()
  [[1.0, 1.0]]
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ppcmi_jax.sealed import envelope


def join(masked: Mapping[str, Mapping[str, Any]]) -> Any:
  """Returns {name: {'words': uint32, 'numbers': float32}} as uint32 [N]."""
  parts = [
    masked[name][part].reshape(-1).view(np.uint32)
    for part in ('words', 'numbers')
    for name in sorted(masked)
  ]
  on_host = all(isinstance(part, np.ndarray) for part in parts)
  return (np if on_host else jnp).concatenate(parts)


def split(
  joined: Any, shapes: Mapping[str, tuple[int, ...]], *, dtype: str
) -> dict[str, dict[str, Any]]:
  """Undoes `join`.

  Args:
    joined: uint32 [N].
    shapes: {name: (B, ..., C)} of the latents.
    dtype: of their numbers, one of `envelope.BITS`.

  Returns:
    {name: {'words': uint32 [n], 'numbers': float32 [B, 2]}}.

  Raises:
    ValueError: if N is not what the shapes say.
    KeyError: for another dtype.
  """
  entries = [
    (name, part, of, shape)
    for wanted in ('words', 'numbers')
    for name in sorted(shapes)
    for part, of, shape in envelope.parts(shapes[name], dtype)
    if part == wanted
  ]
  expected = sum(math.prod(shape) for *_, shape in entries)
  if len(joined) != expected:
    raise ValueError(
      f'body: expected {expected} words of {dtype} {dict(shapes)}, found '
      f'{len(joined)}; use what belongs to this message'
    )
  found, offset = {name: {} for name in shapes}, 0
  for name, part, of, shape in entries:
    end = offset + math.prod(shape)
    found[name][part] = joined[offset:end].view(of).reshape(shape)
    offset = end
  return found


def batch(count: int, like: Mapping[str, Any], *, dtype: str) -> int:
  """Returns B of a joined message of `count` words.

  Args:
    count: N.
    like: {name: array or ShapeDtypeStruct [any, ..., C]}.
    dtype: as for `split`.
  """
  # Each latent's words may be filled up, by less than its numbers take.
  elements = sum(math.prod(z.shape[1:]) for z in like.values())
  example = elements * envelope.BITS[dtype] + 64 * len(like)
  return 32 * count // example
