"""The command: flags, rows as they are measured, a table, a JSON file."""

import itertools
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from absl import app, flags, logging

from benchmarks import comparison, machine, measure, networks, sections
from benchmarks import sizes as sizes_lib
from ppcmi_jax import tables, workdir

_SIZE = flags.DEFINE_enum(
  'size', 'default', list(sizes_lib.SIZES), 'Of networks and images.'
)
_ONLY = flags.DEFINE_list(
  'only',
  [],
  f'Sections, of {", ".join(sections.SECTIONS)}, with --against of networks, '
  'defaults, steps, layers; all by default.',
)
_AGAINST = flags.DEFINE_enum(
  'against', None, ['torch'], 'Times the same layers there, turn by turn.'
)
_SECONDS = flags.DEFINE_float(
  'seconds', 1.0, 'For what is timed as one, compilation aside.', 0.0
)
_BATCH = flags.DEFINE_integer(
  'step_batch', None, "Of training steps; the configuration's by default.", 1
)
_BATCHES = flags.DEFINE_list(
  'batches', None, "Of inference; the size's by default."
)
_STEPS = flags.DEFINE_list(
  'steps', [], 'Of the section steps, such as mapping; all by default.'
)
_DTYPE = flags.DEFINE_enum(
  'dtype',
  'float32',
  ['float32', 'bfloat16'],
  'That networks compute in, and of the matmul that they are compared with.',
)
_CORES = flags.DEFINE_integer(
  'cores',
  None,
  'Of the CPU to use; all by default. Take 1 beside other work, from which '
  'threads that wait for each other suffer most.',
  1,
)
_JSON = flags.DEFINE_string('json', 'runs/benchmarks.json', 'File to write.')


def main(argv: list[str]) -> None:
  """Measures what the flags say."""
  if len(argv) > 1:
    raise ValueError(f'unexpected argument {argv[1]!r}; options begin with --')
  if _AGAINST.value and (_BATCHES.value or _DTYPE.value != 'float32'):
    raise ValueError(
      'against: takes neither batches nor another dtype; leave them out'
    )
  if _CORES.value:
    machine.confine(_CORES.value)
  environment = machine.describe()
  size = sizes_lib.SIZES[_SIZE.value].computing_in(_DTYPE.value)
  torch_pairs = _torch_pairs() if _AGAINST.value else None
  known = torch_pairs.STEPS if torch_pairs else networks.STEPS
  steps = sections.chosen(_STEPS.value, known, 'steps')
  size = size._replace(
    batches=_batches(size.batches),
    step_batch=_BATCH.value,
    steps=tuple(steps),
  )
  budget_s = _SECONDS.value
  result = {'size': _SIZE.value, 'dtype': _DTYPE.value}
  result['environment'] = environment
  if torch_pairs:
    environment |= torch_pairs.describe()
    names = sections.chosen(_ONLY.value, torch_pairs.SECTIONS)
    found = result['ratios'] = []
    rows = (
      comparison.ratios(
        name, torch_pairs.SECTIONS[name](size), budget_s=budget_s
      )
      for name in _told(names)
    )
  else:
    names = sections.chosen(_ONLY.value, sections.SECTIONS)
    result['peaks'] = machine.peaks(dtype=_DTYPE.value)
    found = result['rows'] = []
    rows = (
      measure.rows(
        name,
        sections.SECTIONS[name](size),
        peaks=result['peaks'],
        budget_s=budget_s,
      )
      for name in _told(names)
    )
  path = pathlib.Path(_JSON.value)
  path.parent.mkdir(parents=True, exist_ok=True)
  # A row at a time, as whoever stops this has paid for what was measured.
  for row in itertools.chain.from_iterable(rows):
    found.append(row)
    text = json.dumps(measure.jsonable(result), indent=1) + '\n'
    workdir.write_text(path, text)
    took = row['p50_ms'] if 'p50_ms' in row else row['ours_ms']
    said = f'{row["name"]}, batch {row["batch"]}: {took:.3g} ms'
    print(said, file=sys.stderr, flush=True)
  title = _title(environment, result.get('peaks'))
  print(
    tables.text(
      comparison.table(found, title, 'PyTorch')
      if torch_pairs
      else measure.table(found, title)
    )
  )
  print(f'All digits are in {path}.')


def _batches(default: tuple[int, ...]) -> tuple[int, ...]:
  if _BATCHES.value is None:
    return default
  try:
    batches = tuple(map(int, _BATCHES.value))
    if min(batches) < 1:
      raise ValueError
  except ValueError:
    found = ','.join(_BATCHES.value)
    raise ValueError(
      f'batches: expected numbers of 1 or more, found {found!r}'
    ) from None
  return batches


def _torch_pairs() -> Any:
  """Returns the module; PyTorch is an extra, which nothing else needs."""
  try:
    from benchmarks import torch_pairs
  except ImportError as error:
    raise ValueError(
      f'against: PyTorch cannot be imported ({error}); python -m pip install '
      "-e '.[bench]'"
    ) from None
  return torch_pairs


def _told(names: Iterable[str]) -> Iterator[str]:
  for name in names:
    print(f'measuring {name} ...', file=sys.stderr, flush=True)
    yield name


def _title(environment: dict[str, Any], peaks: dict | None = None) -> str:
  load = ', '.join(map(str, environment['load_average']))
  text = (
    f'{_SIZE.value} size on {environment["device"]} ({environment["cpu"]}, '
    f'cores: {environment["cores"]}, load average at the start: {load}), jax '
    f'{environment["jax"]}, Python {environment["python"]}, '
    f'{environment["started"]}'
  )
  if 'torch' in environment:
    return (
      f'{text}, torch {environment["torch"]} '
      f'({environment["torch_threads"]} threads)'
    )
  return (
    f'{text}; networks in {_DTYPE.value}, peaks '
    f'{peaks["flops"] / 1e9:.1f} GFLOP/s of matmul, '
    f'{peaks["bandwidth"] / 1e9:.1f} GB/s of memory'
  )


def _run(argv: list[str]) -> None:
  logging.set_verbosity(logging.WARNING)
  try:
    main(argv)
  except (ValueError, OSError) as error:
    print(f'benchmarks: {" ".join(str(error).split())}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  # What a cache has would not be compiled.
  jax.config.update('jax_enable_compilation_cache', False)
  app.run(_run)
