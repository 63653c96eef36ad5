"""What eval.py leaves: tables, pictures, and one page to read them on.

workdir/eval/results.json   everything, per case too
workdir/eval/tables.txt     what is printed
workdir/report/index.html   one page with all of it, works offline
workdir/report/*.png        the pictures alone
workdir/report/tables/      each table as CSV and LaTeX
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from ppcmi_jax import (
  collaboration,
  evaluation,
  hospitals,
  learners,
  tables,
  workdir,
)
from ppcmi_jax.report import page, pictures, result_tables

# Printed are those that fit a screen; the page has all.
UNPRINTED = ('segmentation_spread', 'official_scores', 'privacy_spread')
# Which table stands in which section of the page.
SECTIONS = {
  'Segmentation': ('segmentation', 'segmentation_spread', 'official_scores'),
  'Autoencoders': ('autoencoders',),
  'What crosses, and who can open it': ('cross_client',),
  'Attacks': ('privacy', 'privacy_server', 'membership', 'privacy_spread'),
  'Cost of a query': ('query', 'wire', 'payload', 'networks'),
  'Training': (),  # pictures alone
}


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
  names = evaluation.choose(config, names)  # before minutes of restoring
  run = collaboration.restore(config, path)
  results = evaluation.evaluate(config, path, run, names)
  folder = workdir.Workdir(path, config.to_dict(), create=False)
  built = result_tables.build(config, run, results)
  printed = '\n\n'.join(
    tables.text(table) for table in built if table.name not in UNPRINTED
  )
  if run.guarantee:
    printed += f'\n\nMapping network: {run.guarantee}'
  if run.hospitals and config.protection != 'sealed':
    printed += f'\n\n{learners.PROTECTION_NOTES[config.protection]}'
  print(printed)
  workdir.write_text(folder.path / 'eval' / 'tables.txt', printed + '\n')
  report = folder.path / 'report'
  for table in built:
    for suffix, render in (('csv', tables.csv), ('tex', tables.latex)):
      file = report / 'tables' / f'{table.name}.{suffix}'
      workdir.write_text(file, render(table))
  figures = pictures.draw(config, run, results, folder)
  workdir.write_text(
    report / 'index.html',
    _page(config, run, results, built, figures),
  )
  print(f'written: {folder.path / "eval" / evaluation.RESULTS}, {report}')
  return results


def _page(config, run, results, built, figures) -> str:
  """Returns the whole report as HTML."""
  by_name = {table.name: table for table in built}
  summary = _summary(config, run, results)
  sections = [page.Section('What this is', summary)]
  for heading, names in SECTIONS.items():
    parts: list[Any] = []
    for name in names:
      if name not in by_name:
        continue
      table = by_name[name]
      if name in UNPRINTED:
        parts.append(page.details(table.title, table))
      else:
        parts.append(table)
    parts += [
      page.figure(figure.path, figure.caption, figure.alt)
      for figure in figures
      if figure.section == heading
    ]
    if parts:
      sections.append(page.Section(heading, parts))
  sections.append(
    page.Section(
      'Configuration',
      [
        page.definitions(json.loads(config.to_json_best_effort())),
        page.definitions(results['environment']),
      ],
    )
  )
  return page.render(
    f'{config.dataset}: {config.method}',
    'Segmentation of the test split, what it cost, and what was protected',
    sections,
  )


def _summary(config, run, results) -> list[Any]:
  parts: list[Any] = [page.note(result_tables.scope(run))]
  if run.hospitals:
    text = learners.PROTECTION_NOTES[config.protection]
    warning = config.protection != 'sealed'
    parts.append(page.note(text, label='Protection', warning=warning))
    parts.append(
      'Images, masks and autoencoders stayed with the clients; latents '
      'crossed. The server holds the keys and sees latents.'
    )
    if run.guarantee:
      text = f'The mapping network is {run.guarantee}.'
      parts.append(page.note(text, label='Differential privacy'))
  else:
    where = 'one place' if config.pooled else 'each hospital'
    parts.append(
      page.note(
        f'A baseline without protection: images and masks are in {where}.',
        warning=config.pooled,
      )
    )
  started = [f'{k} from {v}' for k, v in config.pretrained.items() if v]
  if started:
    parts.append(f'Networks started trained: {", ".join(started)}.')
  for name, parts_of in results.get('segmentation', {}).items():
    if name in run.hospitals:
      train = parts_of['ceiling_train']
      parts += [
        page.note(hospitals.describe_weak_class(name, *item), warning=True)
        for item in hospitals.weak_classes(run.data, name, train).items()
      ]
  parts.append(page.verbatim(run.data.table))
  return parts
