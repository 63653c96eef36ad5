"""What eval.py leaves: tables, pictures, and one page to read them on.

workdir/eval/results.json   everything, per case too
workdir/eval/tables.txt     what is printed
workdir/report/index.html   one page with all of it, works offline
workdir/report/*.png        the pictures alone
workdir/report/tables/      each table as CSV and LaTeX
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppcmi_jax import (
  collaboration,
  evaluation,
  figures,
  report_tables,
  tables,
  workdir,
)

# Printed are those that fit a screen; the page has all.
UNPRINTED = ('segmentation_spread',)


def evaluate(
  config: Any, path: str | pathlib.Path, names: Sequence[str] | None = None
) -> dict[str, Any]:
  """Evaluates a trained workdir on its test split; prints and writes results.

  Args:
    config: the configuration that the run was trained with.
    path: of the workdir.
    names: of evaluations, see `evaluation.evaluate`; all if None.

  Returns:
    What is written to eval/results.json.

  Raises:
    ValueError: as `collaboration.restore` and `evaluation.evaluate`.
  """
  run = collaboration.restore(config, path)
  results = evaluation.evaluate(config, path, run, names)
  folder = workdir.Workdir(path, config.to_dict(), create=False)
  built = report_tables.build(config, run, results)
  printed = '\n\n'.join(
    tables.text(table) for table in built if table.name not in UNPRINTED
  )
  print(printed)
  folder.write_text(folder.path / 'eval' / 'tables.txt', printed + '\n')
  report = folder.path / 'report'
  for table in built:
    for suffix, render in (('csv', tables.csv), ('tex', tables.latex)):
      file = report / 'tables' / f'{table.name}.{suffix}'
      folder.write_text(file, render(table))
  draw(run, results, report)
  print(f'written: {folder.path / "eval" / evaluation.RESULTS}, {report}')
  return results


def draw(
  run: collaboration.Collaboration,
  results: dict[str, Any],
  folder: pathlib.Path,
) -> None:
  """Draws the pictures of a run into a folder."""
  if 'segmentation' in results:
    for name in run.data.hospitals:
      _draw_client(run, name, results['segmentation'][name]['scores'], folder)


def _draw_client(run, name, scores, folder, count: int = 3) -> None:
  """Draws the best, the median and the worst test case of a client."""
  test = run.data.hospitals[name]['test']
  chosen = figures.select_cases(scores['per_case'], count=count)
  if not chosen:
    return
  rows = np.array([entry['index'] for entry in chosen])
  figures.draw_segmentations(
    folder / f'{name}.png',
    title=f'Client {name}: best, median and worst of {len(test.case)} '
    'test cases by mean Dice',
    image=test.image[rows],
    truth=test.mask[rows],
    prediction=np.asarray(run.predict[name](test.image[rows])),
    class_names=run.data.class_names,
    spacing_mm=test.spacing_mm[rows],
    case=[entry['case'] for entry in chosen],
    scores=[entry['dice'] for entry in chosen],
    note=report_tables.scope(run),
  )
