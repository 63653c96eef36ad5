"""Clocks and ratios: how often to call, in what turn, what to say of it.

A turn is some calls of one function; turns of two functions alternate, A, B,
A, B, so that what else the machine does hits both. Axes: R rounds.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ppcmi_jax import profiling, tables

SHORT_S = 0.1  # a turn is no shorter, by repeating its call


def repeats(one_s: float, budget_s: float, least: int, most: int) -> int:
  """Returns how many things of one_s seconds fit into a budget, within limits.

  >>> repeats(0.1, 1.0, 3, 100), repeats(5.0, 1.0, 3, 100)
  (10, 3)
  """
  return int(np.clip(budget_s / max(one_s, 1e-9), least, most))


def stages(
  steps: Sequence[tuple[str, Callable[[Any], Any]]],
  query: Any = None,
  *,
  budget_s: float,
) -> dict[str, dict[str, float]]:
  """Times the stages of a query for about a budget; see `profiling.profile`.

  Returns:
    For each stage, and for 'total': 'p50_ms', 'p90_ms', and 'repeats'.
  """
  # The first call compiles, the second says how many there is time for.
  first = profiling.profile(steps, query, repeats=1, warmup=1)
  count = repeats(first['total']['p50_ms'] / 1e3, budget_s, 3, 200)
  timed = profiling.profile(steps, query, repeats=count, warmup=0)
  return {
    name: {'p50_ms': t['p50_ms'], 'p90_ms': t['p90_ms'], 'repeats': count}
    for name, t in timed.items()
  }


def alternate(
  functions: Sequence[Callable[[], Any]],
  *,
  budget_s: float,
  clocks: Mapping[str, Callable[[], float]] | None = None,
) -> dict[str, np.ndarray]:
  """Times functions turn by turn: A, B, A, B, ...

  Functions that return before their work is done have to wait for it
  themselves. A turn of a short function begins with a call that isn't timed,
  as the other's threads may still be spinning and the caches hold its data.

  Args:
    functions: called without arguments; each once before, to compile.
    budget_s: for all rounds together; at least five are taken.
    clocks: {name: seconds()}; the wall's and the process' CPU time.

  Returns:
    {clock: seconds of a call, float64 [R, functions]}.
  """
  clocks = clocks or {'wall': time.perf_counter, 'cpu': time.process_time}
  watch = next(iter(clocks.values()))
  counts = []
  for function in functions:
    function()
    start = watch()
    function()
    counts.append(repeats(watch() - start, SHORT_S, 1, 1000))
  seconds = {name: [] for name in clocks}
  start = watch()
  while True:
    turns = {name: [] for name in clocks}
    for function, count in zip(functions, counts):
      if count > 1:
        function()
      before = {name: clock() for name, clock in clocks.items()}
      for _ in range(count):
        function()
      for name, clock in clocks.items():
        turns[name].append((clock() - before[name]) / count)
    for name, turn in turns.items():
      seconds[name].append(turn)
    done = len(seconds[next(iter(clocks))])
    if done >= 5 and (done + 1) / done * (watch() - start) > budget_s:
      return {name: np.array(turn) for name, turn in seconds.items()}


def ratio(seconds: np.ndarray) -> tables.Interval:
  """Returns the first column over the second, [R, 2], round by round.

  Returns:
    The median of the ratios, and their 10th and 90th percentiles; those of
    pairs, so a load that comes and goes with rounds takes no part.
  """
  pairs = seconds[:, 0] / seconds[:, 1]
  return tables.Interval(*np.percentile(pairs, (50, 10, 90)).tolist())


def wait(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
  """Returns a call of a function of JAX that ends when its arrays are there."""
  return lambda: jax.block_until_ready(function(*args))
