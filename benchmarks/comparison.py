"""One function twice, ours and another's: checked to be one, then timed.

Or two functions for one purpose, whose results are not compared.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import timing
from ppcmi_jax import tables

TOLERANCE = 1e-4  # relative to the largest value


class Pair(NamedTuple):
  """One function twice.

  Attributes:
    name: of it.
    batch: examples that it deals with.
    ours, theirs: called without arguments; both wait for their results.
    parameters: how many both have, or ours where they are two functions.
    error: what `error` found of their results; NaN where they are two.
  """

  name: str
  batch: int
  ours: Callable[[], Any]
  theirs: Callable[[], Any]
  parameters: int
  error: float


def error(name: str, ours: Any, theirs: Any) -> float:
  """Returns the largest difference, relative to the largest value.

  Args:
    name: of what is compared.
    ours, theirs: trees of arrays of the same shapes.

  Raises:
    ValueError: it is above `TOLERANCE`, or not a number: these are two
      functions, and comparing their times would say nothing.
  """
  found = 0.0
  for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape:
      raise ValueError(
        f'{name}: expected results of one shape, found {list(x.shape)} here '
        f'and {list(y.shape)} there'
      )
    scale = np.max(np.abs(y)) or 1.0
    found = np.fmax(found, np.max(np.abs(x - y)) / scale)
    if np.isnan(x).any() or np.isnan(y).any() or found > TOLERANCE:
      raise ValueError(
        f'{name}: expected the same of both up to {TOLERANCE} of the largest '
        f'value, found a difference of {found:.1e}'
      )
  return float(found)


def same_count(name: str, ours: int, theirs: int) -> int:
  """Returns the number of parameters; ValueError where there are two."""
  if ours != theirs:
    raise ValueError(
      f'{name}: expected as many parameters as ours, {ours}, found {theirs}'
    )
  return ours


def ratios(
  section: str, pairs: Iterable[Pair], *, budget_s: float
) -> Iterator[dict[str, Any]]:
  """Times pairs turn by turn; yields a row for each.

  Args:
    section: which yields them.
    pairs: one after the other.
    budget_s: seconds for each; more where five rounds take more.

  Returns:
    {'section', 'name', 'batch', 'parameters', 'error', 'rounds', 'ours_ms',
    'theirs_ms', 'ratio', 'cpu_ratio'}: medians, and ours / theirs as
    `timing.ratio` has them, of wall-clock and of the process' CPU time.
  """
  for pair in pairs:
    seconds = timing.alternate([pair.ours, pair.theirs], budget_s=budget_s)
    ours_s, theirs_s = np.median(seconds['wall'], axis=0).tolist()
    yield {
      'section': section,
      'name': pair.name,
      'batch': pair.batch,
      'parameters': pair.parameters,
      'error': pair.error,
      'rounds': len(seconds['wall']),
      'ours_ms': 1e3 * ours_s,
      'theirs_ms': 1e3 * theirs_s,
      'ratio': timing.ratio(seconds['wall']),
      'cpu_ratio': timing.ratio(seconds['cpu']),
    }


def table(
  found: Sequence[Mapping[str, Any]], title: str, other: str
) -> tables.Table:
  """Returns the table of rows; `other` is whose functions theirs are."""
  fields = 'section', 'name', 'batch', 'parameters', 'rounds'
  fields += 'ours_ms', 'theirs_ms', 'ratio', 'cpu_ratio'
  return tables.Table(
    'ratios',
    title,
    (
      'section',
      'what',
      'batch',
      'parameters',
      'rounds',
      'JAX ms',
      f'{other} ms',
      f'JAX / {other}',
      'in CPU time',
    ),
    [[row[field] for field in fields] for row in found],
    'Below 1, JAX is faster. Medians of rounds, in which both took turns, and '
    '10th to 90th\npercentile of the ratios of a round. CPU time counts all '
    'threads, also those that wait\nby spinning. Before, both were checked to '
    'have the same parameters and results, but for\nour default networks, '
    'which are beside official ones.',
  )
