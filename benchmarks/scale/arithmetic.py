"""What many hospitals need, from what one pair and one query cost.

Pure functions of numbers. A pair is an image and its mask, or an augmented copy
of both; all of it is for the mapping network, hospitals' autoencoders aside.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ppcmi_jax import contributions

# `server.read_contributions` holds what it read and what it makes of that.
READING = 2


class Costs(NamedTuple):
  """What was measured.

  Attributes:
    pair_bytes: {dtype: bytes of a pair's share of its two sealed messages}.
    query_bytes: {dtype: bytes of a query of one image, sealed}.
    held_bytes: of a pair in the server's memory.
    train_flops: of a training step, a pair; by XLA's cost analysis.
    query_flops: of the mapping network's answer to one image; likewise.
    train_s: of a training step, a pair. This and what follows are seconds of
      computing on one core, without waiting for disks and other programs.
    contribute_s: of encoding, protecting and sealing a pair. This and the next
      two were measured in int8, and stand for float16 too.
    open_s: of reading, checking and unprotecting a pair.
    respond_s: of a reply to one image.
    order_s: of drawing the order of a pass, a pair.
    respond_wall_s: as `respond_s`, until it is there.
    key_bytes: of a client's files at the server.
    kept_bytes: of the kept key of a message.
  """

  pair_bytes: Mapping[str, float]
  query_bytes: Mapping[str, int]
  held_bytes: int
  train_flops: float
  query_flops: float
  train_s: float
  contribute_s: float
  open_s: float
  respond_s: float
  order_s: float
  respond_wall_s: float
  key_bytes: int
  kept_bytes: int


class Federation(NamedTuple):
  """Who takes part.

  Attributes:
    hospitals: how many.
    images: for training, of each hospital.
    copies: augmented contributions of each pair, beside itself.
    passes: over all contributions, of training.
    dtype: of messages.
  """

  hospitals: int
  images: int
  copies: int
  passes: float = 1.0
  dtype: str = 'int8'

  @property
  def pairs(self) -> int:
    """Returns the pairs that a hospital contributes."""
    return self.images * (1 + self.copies)


class Assumptions(NamedTuple):
  """What was not measured.

  Attributes:
    peak_flops: operations a second of an accelerator, as its maker says.
    utilisation: the part of it that training sustains, 0 to 1.
    chips: accelerators that train together, without loss.
    line_bits_s: of a hospital's line to the server.
    memory_bytes: of the server's host, for latents.
  """

  peak_flops: float
  utilisation: float
  chips: int
  line_bits_s: float
  memory_bytes: float

  @property
  def sustained_flops(self) -> float:
    """Returns operations a second of one accelerator."""
    return self.peak_flops * self.utilisation


def needs(
  costs: Costs, federation: Federation, assumed: Assumptions
) -> dict[str, float]:
  """Returns what a federation needs.

  Returns:
    Of all hospitals: 'pairs', 'stored_bytes' of sealed messages, 'messages'
    (files, and as many kept keys), 'kept_bytes' of these, 'memory_bytes' that
    reading takes at its peak, 'open_hours' of one core, 'order_s' of drawing
    the order of all passes, 'flops', 'core_hours', 'chip_hours' and 'pod_hours'
    of training, 'key_bytes'. Of each: 'upload_bytes', 'upload_hours',
    'contribute_hours'.

  Raises:
    ValueError: a dtype that was not measured.
  """
  if federation.dtype not in costs.pair_bytes:
    raise ValueError(
      f'dtype: expected one of {", ".join(costs.pair_bytes)}, found '
      f'{federation.dtype!r}'
    )
  own, count = federation.pairs, federation.hospitals
  pairs = own * count
  upload = own * costs.pair_bytes[federation.dtype]
  trained = pairs * federation.passes
  flops = trained * costs.train_flops
  chip_hours = flops / assumed.sustained_flops / 3600
  messages = (
    count * (1 + federation.copies) * 2 * num_batches(federation.images)
  )
  return {
    'pairs': pairs,
    'stored_bytes': count * upload,
    'messages': messages,
    'kept_bytes': messages * costs.kept_bytes,
    'memory_bytes': READING * pairs * costs.held_bytes,
    'open_hours': pairs * costs.open_s / 3600,
    'order_s': trained * costs.order_s,
    'flops': flops,
    'core_hours': trained * costs.train_s / 3600,
    'chip_hours': chip_hours,
    'pod_hours': chip_hours / assumed.chips,
    'key_bytes': count * costs.key_bytes,
    'upload_bytes': upload,
    'upload_hours': 8 * upload / assumed.line_bits_s / 3600,
    'contribute_hours': own * costs.contribute_s / 3600,
  }


def num_batches(count: int) -> int:
  """Returns the messages of one modality that hold so many examples.

  >>> num_batches(32), num_batches(23)
  (2, 5)
  """
  total = 0
  for size in contributions.BATCHES:
    total, count = total + count // size, count % size
  return total


def images_in_memory(costs: Costs, memory_bytes: float, copies: int) -> int:
  """Returns how many images, of all hospitals, the server can read at once."""
  image = READING * (1 + copies) * costs.held_bytes
  return math.floor(memory_bytes / image)


def appetite(costs: Costs, assumed: Assumptions, dtype: str) -> dict[str, Any]:
  """Returns what feeds one accelerator.

  Returns:
    'pairs_s' that it learns from in a second, the 'bytes_s' that these are on
    a disk, and the 'open_cores' that unprotect as many.
  """
  pairs_s = assumed.sustained_flops / costs.train_flops
  return {
    'pairs_s': pairs_s,
    'bytes_s': pairs_s * costs.pair_bytes[dtype],
    'open_cores': pairs_s * costs.open_s,
  }


def validation_share(
  costs: Costs, *, valid: int, eval_every: int, batch_size: int
) -> float:
  """Returns operations of a validation over those of training before it.

  Args:
    costs: as measured.
    valid: pairs that are validated on.
    eval_every: training steps between validations.
    batch_size: pairs of a training step.
  """
  trained = eval_every * batch_size * costs.train_flops
  return valid * costs.query_flops / trained
