"""Evaluates a run: python eval.py --config=CONFIG --workdir=WORKDIR."""

from ppcmi_jax import command, report

if __name__ == '__main__':
  command.run(report.evaluate)
