"""Evaluates a run: python eval.py --config=CONFIG --workdir=WORKDIR.

With --study=NAME it trains and evaluates the runs of a study instead.
"""

from typing import Any

from absl import flags

from ppcmi_jax import command, evaluation, report, studies
from ppcmi_jax.studies import plans

_NAMES = flags.DEFINE_list(
  'eval_names',
  None,
  f'Evaluations to run, of {", ".join(evaluation.EVALUATIONS)}, which are all '
  f'run by default, and {", ".join(evaluation.ON_DEMAND)}, which take long '
  '(privacy.linking is one attack alone). What was evaluated before is kept.',
)
_STUDY = flags.DEFINE_enum(
  'study',
  None,
  sorted(plans.STUDIES),
  'Study to run in the workdir, beside what it holds of that study already.',
)


def evaluate(config: Any, path: str) -> None:
  """Evaluates what the flags say."""
  if _STUDY.value is None:
    report.evaluate(config, path, _NAMES.value)
  elif _NAMES.value is not None:
    raise ValueError(
      f'eval_names: expected none with --study={_STUDY.value}, which has its '
      f'own, found {",".join(_NAMES.value)}; leave one of the flags out'
    )
  else:
    studies.run(_STUDY.value, command.get_config, config, path)


if __name__ == '__main__':
  flags.declare_key_flag('config')
  flags.declare_key_flag('workdir')
  command.run(evaluate)
