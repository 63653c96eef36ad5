"""What the command prints: figures, limits and needs, as tables."""

import math
from typing import Any

from benchmarks.scale import arithmetic
from ppcmi_jax import tables


def limits(
  measured: arithmetic.Costs,
  federation: arithmetic.Federation,
  assumed: arithmetic.Assumptions,
  config: Any,
) -> dict[str, float]:
  """Returns where things end, of all hospitals together, and what feeds a chip.

  Args:
    measured: what a pair and a query cost.
    federation: whose copies and dtype count.
    assumed: of the host's memory and accelerators.
    config: of the run.
  """
  own, dtype = 1 + federation.copies, federation.dtype
  of_one = arithmetic.validation_share(
    measured,
    valid=1,
    eval_every=config.eval_every,
    batch_size=config.mapping_batch_size,
  )
  feed = arithmetic.appetite(measured, assumed, dtype)
  return {
    'memory_bytes': assumed.memory_bytes,
    'pairs_an_image': own,
    'images_in_memory': arithmetic.images_in_memory(
      measured, assumed.memory_bytes, federation.copies
    ),
    'validation_pairs': 1 / of_one,
    'replies_a_core_s': 1 / measured.respond_s,
    'open_bytes_s': measured.pair_bytes[dtype] / measured.open_s,
    **{f'chip_{name}': value for name, value in feed.items()},
  }


def costs_table(measured: arithmetic.Costs, title: str) -> tables.Table:
  """Returns what was measured, a line each."""
  ms = lambda seconds: f'{1e3 * seconds:.4g} ms'
  lines = [
    *(
      (f'{name} of {dtype}', quantity(value, 'B'))
      for name, of in (
        ('pair of sealed messages', measured.pair_bytes),
        ('sealed query', measured.query_bytes),
      )
      for dtype, value in of.items()
    ),
    ("pair in the server's memory", quantity(measured.held_bytes, 'B')),
    ('training step, a pair', quantity(measured.train_flops, 'FLOP')),
    ('reply to one image', quantity(measured.query_flops, 'FLOP')),
    ('training step, a pair', ms(measured.train_s)),
    ('contribute a pair', ms(measured.contribute_s)),
    ('open a pair', ms(measured.open_s)),
    ('reply to one image', ms(measured.respond_s)),
    ('the same, until it is there', ms(measured.respond_wall_s)),
    ('order of a pass, a pair', f'{1e9 * measured.order_s:.4g} ns'),
    ("key and counters of a client, server's", f'{measured.key_bytes} B'),
    ('kept key of a message', f'{measured.kept_bytes} B'),
  ]
  return tables.Table(
    'costs',
    f'Measured: {title}.',
    ('what', 'costs'),
    lines,
    "FLOP by XLA's cost analysis; times are those of computing on one core, "
    'without\nwaiting for the disk and other programs, but for the one that '
    'says so.',
  )


def limits_table(found: dict[str, float]) -> tables.Table:
  """Returns where things end, and what feeds a chip."""
  plain = lambda name: quantity(found[name])
  rate = lambda name: f'{quantity(found[name], "B")}/s'
  lines = [
    (
      f'images whose {found["pairs_an_image"]} pairs can be read into '
      f'{quantity(found["memory_bytes"], "B")}',
      plain('images_in_memory'),
    ),
    (
      'validation pairs that cost as much as training between validations',
      plain('validation_pairs'),
    ),
    ('replies a second, a core', plain('replies_a_core_s')),
    ('opening, a core', rate('open_bytes_s')),
    (
      'an assumed accelerator learns from pairs a second',
      plain('chip_pairs_s'),
    ),
    ('which are, sealed', rate('chip_bytes_s')),
    ('and take so many cores to open', plain('chip_open_cores')),
  ]
  return tables.Table(
    'limits', 'Limits, of all hospitals together.', ('what', 'number'), lines
  )


def needs_table(
  rows: list[tuple[arithmetic.Federation, dict[str, float]]],
  assumed: arithmetic.Assumptions,
) -> tables.Table:
  """Returns what federations need, a line each."""
  hours = lambda value: quantity(value, 'h')
  first = rows[0][0]
  return tables.Table(
    'needs',
    f'Needs, each pair {1 + first.copies} times, {first.dtype}; nothing of '
    'this size was run.',
    (
      'hospitals',
      'images each',
      'upload each',
      'by its line',
      'contribute each',
      'stored',
      'files',
      'memory',
      'open',
      'order',
      'FLOP',
      'core',
      'chip',
      'pod',
    ),
    [
      (
        str(f.hospitals),
        f'{f.images:,}',
        quantity(need['upload_bytes'], 'B'),
        hours(need['upload_hours']),
        hours(need['contribute_hours']),
        quantity(need['stored_bytes'], 'B'),
        quantity(need['messages']),
        quantity(need['memory_bytes'], 'B'),
        hours(need['open_hours']),
        quantity(need['order_s'], 's'),
        f'{need["flops"]:.2g}',
        hours(need['core_hours']),
        hours(need['chip_hours']),
        hours(need['pod_hours']),
      )
      for f, need in rows
    ],
    'upload, contribute: of each hospital; contribute and open in hours of '
    'one core. files: messages, and\nas many kept keys. memory: while the '
    'server reads all. order, FLOP, core, chip, pod: of training, '
    f'{first.passes:g} pass(es) over\nall contributions. Assumed, not '
    f'measured: lines of {assumed.line_bits_s / 1e6:g} Mbit/s; a pod of '
    f'{assumed.chips} chips of {assumed.peak_flops / 1e12:g}\nTFLOP/s at '
    f'{100 * assumed.utilisation:g} % of that.',
  )


def quantity(value: float, unit: str = '') -> str:
  """Returns a number of three digits, of bytes and FLOP with a prefix.

  >>> quantity(458752, 'B'), quantity(4.1e15, 'B'), quantity(999.9, 'B')
  ('459 kB', '4.1 PB', '1 kB')
  >>> quantity(123456, 'h'), quantity(0.01234, 's'), quantity(7749.7)
  ('123,000 h', '0.0123 s', '7,750')
  """
  rounded = float(f'{value:.3g}')
  prefix = ''
  if unit in ('B', 'FLOP') and rounded >= 1000:
    power = min(int(math.log10(rounded)) // 3, 6)
    rounded, prefix = rounded / 1000**power, ' kMGTPE'[power]
  number = f'{rounded:,.0f}' if rounded >= 1000 else f'{rounded:g}'
  return f'{number} {prefix}{unit}'.rstrip()
