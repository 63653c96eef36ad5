"""From what is to be timed to rows of a table.

A section yields cases one at a time, so that what one needs is freed before the
next is made. Axes: B batch.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import library_calls, timing
from ppcmi_jax import profiling, tables


class Cost(NamedTuple):
  """What XLA says of a compiled function.

  Attributes:
    compile_s: wall-clock seconds of tracing and compiling it.
    flops: of a call; a multiplication and an addition are two. Of the program
      as it was written: some backends leave the operations of library calls
      out of a compiled one's.
    bytes: that its operations, fused, read and write, from caches or not.
    memory: bytes that it holds at once, arguments and results included.
  """

  compile_s: float
  flops: float
  bytes: float
  memory: float


class Case(NamedTuple):
  """What is timed as one: a function, or stages that hand on their results.

  Attributes:
    stages: (name, function) in order, as `profiling.profile` takes them.
    batch: examples that it deals with.
    costs: {name: Cost} of the stages that are one compiled function.
    query: what the first stage gets.
    total: what the sum of several stages is called; '' to leave it out.
    calls: that a stage makes of its function each time. Times are those of one,
      on the mean; how single calls vary, p90, is then not known.
  """

  stages: Sequence[tuple[str, Callable[[Any], Any]]]
  batch: int
  costs: Mapping[str, Cost] = {}
  query: Any = None
  total: str = ''
  calls: int = 1


def cost(function: Any, *args: Any) -> Cost:
  """Compiles a jitted or pmapped function; a call then needn't do it again."""
  compiled, found = profiling.compile_and_ask(function, *args)
  found['bytes'] += library_calls.num_bytes(compiled.as_text())
  memory = compiled.memory_analysis()
  held = math.nan
  if memory is not None:
    held = float(
      memory.temp_size_in_bytes
      + memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
    )
  return Cost(**found, memory=held)


def jitted(
  name: str, function: Callable[..., Any], *args: Any, batch: int
) -> Case:
  """Returns the case of one function, to be jitted, of arrays."""
  args = jax.device_put(args)
  function = jax.jit(function)
  costs = {name: cost(function, *args)}
  return Case([(name, lambda _: function(*args))], batch, costs)


def rows(
  section: str,
  cases: Iterable[Case],
  *,
  peaks: Mapping[str, float],
  budget_s: float,
) -> Iterator[dict[str, Any]]:
  """Times cases; yields a row for each stage and total.

  Args:
    section: which yields them.
    cases: to be timed, one after the other.
    peaks: as `machine.peaks` returns them.
    budget_s: seconds for each case, compilation aside.

  Returns:
    {'section', 'name', 'batch', 'p50_ms', 'p90_ms', 'repeats', 'per_s',
    'compile_s', 'flops', 'bytes', 'memory', 'flops_per_s', 'flops_share',
    'bandwidth_share', 'roofline_share'}; what a row has not is NaN. One that
    does not fit into the device's memory has no times.
  """
  for case in cases:
    timed = _timed(case, budget_s)
    total = timed.pop('total')
    if case.total:
      timed[case.total] = total
    for name, times in timed.items():
      if case.calls > 1:
        p50_ms = times['p50_ms'] / case.calls
        times = {**times, 'p50_ms': p50_ms, 'p90_ms': math.nan}
      yield {
        'section': section,
        'name': name,
        'batch': case.batch,
        **times,
        **rates(times['p50_ms'] / 1e3, case.batch, case.costs.get(name), peaks),
      }


def _timed(case, budget_s):
  """Returns the times of a case; NaN where it does not fit into memory."""
  try:
    return timing.stages(case.stages, case.query, budget_s=budget_s)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
  missing = {'p50_ms': math.nan, 'p90_ms': math.nan, 'repeats': 0}
  return {name: missing for name, _ in case.stages} | {'total': missing}


def rates(
  seconds: float, batch: int, cost: Cost | None, peaks: Mapping[str, float]
) -> dict[str, float]:
  """Returns what a call of so many seconds achieves, next to the peaks.

  >>> of = Cost(compile_s=1.0, flops=4e9, bytes=1e9, memory=0.0)
  >>> found = rates(2.0, 4, of, {'flops': 8e9, 'bandwidth': 1e9})
  >>> found['per_s'], found['flops_share'], found['bandwidth_share']
  (2.0, 0.25, 0.5)
  >>> found['roofline_share']
  0.5
  """
  cost = cost or Cost(*[math.nan] * len(Cost._fields))
  shares = {
    'flops_share': cost.flops / seconds / peaks['flops'],
    'bandwidth_share': cost.bytes / seconds / peaks['bandwidth'],
  }
  return {
    'per_s': batch / seconds,
    **cost._asdict(),
    'flops_per_s': cost.flops / seconds,
    **shares,
    'roofline_share': float(np.max([*shares.values()])),
  }


def jsonable(value: Any) -> Any:
  """Returns what JSON can hold: NaN becomes null, intervals say what is what.

  >>> jsonable({'a': (float('nan'), 1.5)})
  {'a': [None, 1.5]}
  """
  if isinstance(value, tables.Interval):
    value = value._asdict()
  if isinstance(value, dict):
    return {name: jsonable(part) for name, part in value.items()}
  if isinstance(value, list | tuple):
    return [jsonable(part) for part in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


COLUMNS = {  # header -> (field, what one is)
  'batch': ('batch', 1),
  'p50 ms': ('p50_ms', 1),
  'p90 ms': ('p90_ms', 1),
  'images/s': ('per_s', 1),
  'compile s': ('compile_s', 1),
  'MiB': ('memory', 2**20),
  'GFLOP': ('flops', 1e9),
  'GB': ('bytes', 1e9),
  'GFLOP/s': ('flops_per_s', 1e9),
  '% of matmul': ('flops_share', 0.01),
  '% of memory': ('bandwidth_share', 0.01),
  '% of roofline': ('roofline_share', 0.01),
}


def table(found: Sequence[Mapping[str, Any]], title: str) -> tables.Table:
  """Returns the table of rows."""
  return tables.Table(
    'benchmarks',
    title,
    ('section', 'what', *COLUMNS),
    [
      (
        row['section'],
        row['name'],
        *(
          row[field] if unit == 1 else row[field] / unit
          for field, unit in COLUMNS.values()
        ),
      )
      for row in found
    ],
    'MiB: held at once, arguments and results included. GFLOP and GB: by '
    "XLA's cost analysis;\nGB are those of its operations, which caches serve "
    'too, so that their share of the\nmemory bandwidth may exceed 100 %; that '
    'of the roofline is the larger of both shares.\nOf '
    "a step on several devices MiB, GFLOP and GB are of one device's program, "
    'batch and\nimages/s of all. What is undefined or not one compiled '
    'function: -.',
  )
