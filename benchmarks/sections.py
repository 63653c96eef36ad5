"""What can be measured, by name."""

from benchmarks import host, messages, networks, query

SECTIONS = {
  'query': query.journey,
  'networks': networks.networks,
  'steps': networks.steps,
  'memory': networks.memory,
  'pipeline': host.pipeline,
  'transform': messages.transform,
  'wire': messages.carry,
  'metrics': host.scores,
}


def chosen(only, known, flag='only'):
  """Returns the names to measure, in the order of `known`.

  Args:
    only: names, or nothing for all.
    known: names there are.
    flag: that gave them, for the error.

  Raises:
    ValueError: a name that is not known.
  """
  unknown = [name for name in only or () if name not in known]
  if unknown:
    raise ValueError(
      f'{flag}: expected some of {", ".join(known)}, found {unknown[0]!r}'
    )
  return [name for name in known if not only or name in only]
