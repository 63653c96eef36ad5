"""Timing of a query, stage by stage, as a user waits for it.

>>> timings = profile([('double', lambda x: 2 * x)], 21, repeats=3, warmup=0)
>>> list(timings), timings['total']['p90_ms'] >= timings['total']['p50_ms']
(['double', 'total'], True)
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache


def cost(function: Callable[..., Any], *args: Any) -> dict[str, float]:
  """Compiles a function anew and asks XLA what a call of it costs.

  Args:
    function: to be jitted.
    *args: arrays, or ShapeDtypeStructs.

  Returns:
    As `compile_and_ask`.
  """
  cached = jax.config.jax_enable_compilation_cache
  try:
    _use_cache(False)
    # A new function, as JAX remembers what it compiled of an old one.
    return compile_and_ask(jax.jit(lambda *args: function(*args)), *args)[1]
  finally:
    _use_cache(cached)


def _use_cache(value: bool) -> None:
  """Sets whether compiled programs on disk are used, from now on.

  JAX asks once whether they are, and remembers.
  """
  jax.config.update('jax_enable_compilation_cache', value)
  compilation_cache.reset_cache()


def compile_and_ask(
  function: Any, *args: Any
) -> tuple[jax.stages.Compiled, dict[str, float]]:
  """Compiles a jitted or pmapped function and asks XLA what a call costs.

  Returns:
    What was compiled, and 'compile_s' of wall-clock time, 'flops'
    (multiplications and additions counted apart) of the program as it was
    written, as some backends leave library calls out of a compiled one's, and
    'bytes' read and written by XLA's operations.
  """
  start = time.perf_counter()
  lowered = function.lower(*args)
  compiled = lowered.compile()
  compile_s = time.perf_counter() - start
  analysis = compiled.cost_analysis() or {}
  written = lowered.cost_analysis() or {}
  return compiled, {
    'compile_s': compile_s,
    'flops': float(written.get('flops', np.nan)),
    'bytes': float(analysis.get('bytes accessed', np.nan)),
  }


def profile(
  stages: Sequence[tuple[str, Callable[[Any], Any]]],
  query: Any = None,
  *,
  repeats: int = 50,
  warmup: int = 5,
) -> dict[str, dict[str, float]]:
  """Times the stages of one query, such as protect, respond, reveal.

  Args:
    stages: (name, function) in order; each function gets the result of the
      one before. A stage ends when the arrays in its result are computed.
    query: what the first function gets.
    repeats: queries to time.
    warmup: queries before those, for compilation; not counted.

  Returns:
    For each stage, and for 'total' of a whole query: wall-clock 'p50_ms',
    'p90_ms' and 'p99_ms' over the repeats. The p50 of stages need not add up
    to the total's.

  Raises:
    ValueError: no stages, names that repeat or are 'total', repeats below 1,
      or warmup below 0.
  """
  names = [name for name, _ in stages]
  if not names or len({*names, 'total'}) != len(names) + 1:
    raise ValueError(
      f"stages must have distinct names other than 'total', found {names}"
    )
  if repeats < 1 or warmup < 0:
    raise ValueError(
      'profile needs repeats of at least 1 and warmup of at least 0, found '
      f'{repeats} and {warmup}'
    )
  stamps = np.zeros((warmup + repeats, len(names) + 1))
  for i in range(len(stamps)):
    value = jax.block_until_ready(query)
    stamps[i, 0] = time.perf_counter()
    for j, (_, function) in enumerate(stages, start=1):
      value = jax.block_until_ready(function(value))
      stamps[i, j] = time.perf_counter()
  stamps = stamps[warmup:] * 1e3
  durations = dict(zip(names, np.diff(stamps, axis=1).T))
  durations['total'] = stamps[:, -1] - stamps[:, 0]
  return {
    name: {
      'p50_ms': float(np.percentile(duration, 50)),
      'p90_ms': float(np.percentile(duration, 90)),
      'p99_ms': float(np.percentile(duration, 99)),
    }
    for name, duration in durations.items()
  }
