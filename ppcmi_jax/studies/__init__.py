r"""Studies: several runs that differ in one thing, and one table of them.

    python eval.py --config=configs/study.py --study=comparison \
      --workdir=runs/study

Each variant is a run of its own under the workdir, trained and evaluated where
that was not done before: a study that was stopped goes on where it was, and
studies in one workdir share the runs that they have in common. Autoencoders
that do not differ between runs are trained once and copied.

    comparison   this method, its stand-ins, and privacy-agnostic networks
    ablation     the method less one of its parts
    clients      one mapping network of the first 1, 2, ... clients against one
                 for each client alone
    noise        the mapping network trained by DP-SGD with ever more noise
    seeds        one configuration with three seeds, on the same splits
"""

import itertools
import json
import pathlib
import shutil
import time
from typing import Any

import numpy as np

from ppcmi_jax import (
  client,
  collaboration,
  config_checks,
  evaluation,
  learners,
  tables,
  workdir,
)
from ppcmi_jax.figures import methods
from ppcmi_jax.studies import plans, summary

# What a variant may change without changing its autoencoders.
MAPPING_FIELDS = (
  'clients',
  'copies',
  'dp',
  'mapping',
  'mapping_batch_size',
  'mapping_learning_rate',
  'mapping_options',
  'mapping_steps',
  'protection',
  'wire_dtype',
)
# And what only the other one's training sees.
OTHERS_FIELDS = {
  'image': ('mask_steps',),
  'mask': (
    'image_blocks',
    'image_full_size',
    'image_steps',
    'segmentation_weight',
  ),
}
EXAMPLES = 'examples.npz'


def run(
  name: str,
  get_config: plans.GetConfig,
  base: Any,
  path: str | pathlib.Path,
) -> tables.Table:
  """Trains and evaluates what is missing of a study; prints its table.

  Args:
    name: a key of `plans.STUDIES`.
    get_config: (method) -> configuration, with the user's overrides.
    base: the configuration of the method that the user named.
    path: of the study's workdir; each variant has a folder in it.

  Returns:
    The table, which workdir/<name>.csv, .tex and .txt hold, too, as far as it
    is done; <name>.png shows a test case of each client.

  Raises:
    ValueError: an unknown study, a workdir that is a run, or what training a
      variant raises; what was computed stays.
  """
  if name not in plans.STUDIES:
    raise ValueError(
      f'study: expected one of {", ".join(plans.STUDIES)}, found {name!r}'
    )
  root = pathlib.Path(path).absolute()
  if (root / 'config.json').exists():
    raise ValueError(
      f'workdir {root}: expected the folder of studies, found a run '
      '(config.json); name another --workdir'
    )
  variants = plans.STUDIES[name](get_config, base)
  for variant in variants:
    config_checks.check(variant.config)
    if not _is_done(root, variant):
      config_checks.check_networks(variant.config)
  _print_plan(name, variants, root)
  done: dict[str, Any] = {}
  spent: list[float] = []
  for i, variant in enumerate(variants, start=1):
    missing = [v for v in variants[i - 1 :] if not _is_done(root, v)]
    start = time.monotonic()
    done[variant.name] = _evaluated(variant, root)
    configs = {v.name: v.config for v in variants[:i]}
    table = summary.build(name, configs, done)
    _write(root, table)
    if variant in missing:
      spent.append((time.monotonic() - start) / 60)
      print(
        f'{variant.name}: done after {spent[-1]:.1f} min; {len(missing) - 1} '
        f'left, about {(len(missing) - 1) * np.mean(spent):.0f} min',
        flush=True,
      )
  print('\n' + tables.text(table))
  _draw(name, variants, root)
  return table


def _write(root, table) -> None:
  """Writes the table of what is done so far."""
  for suffix, render in (
    ('txt', tables.text),
    ('csv', tables.csv),
    ('tex', tables.latex),
  ):
    workdir.write_text(root / f'{table.name}.{suffix}', render(table) + '\n')


def _folder(root, variant) -> pathlib.Path:
  """Returns where a variant is, or belongs: a run of its configuration."""
  wanted = workdir.essence(variant.config.to_dict())
  for folder, config in _runs(root):
    if config == wanted:
      return folder
  return root / variant.name.replace(' ', '-').replace(',', '')


def _runs(root) -> list[tuple[pathlib.Path, dict[str, Any]]]:
  """Returns the folder and the configuration of every run of the workdir."""
  read = lambda file: workdir.read_object(
    file, 'restore it or delete its folder'
  )
  return [
    (file.parent, workdir.essence(read(file)))
    for file in sorted(root.glob('*/config.json'))
  ]


def _steps(config) -> int:
  if config.method in learners.BASELINES:
    return config.baseline_steps
  return config.image_steps + config.mask_steps + config.mapping_steps


def _print_plan(name, variants, root):
  rows, pace = [], _minutes_a_step(variants, root)
  for variant in variants:
    steps, done = _steps(variant.config), _is_done(root, variant)
    estimate = (
      'done' if done else f'{steps * pace:.0f}' if pace else 'not known'
    )
    rows.append([variant.name, steps, estimate])
  print(
    tables.text(
      tables.Table(
        name,
        f'Study {name!r}: {len(variants)} runs under {root}',
        ['variant', 'steps of a client and the server', 'minutes, about'],
        rows,
        'Minutes by what the runs that are done took a step, whatever their '
        'networks. A run says what is left when it is done; stop and start as '
        'you like.',
      )
    ),
    flush=True,
  )


def _minutes_a_step(variants, root) -> float:
  """Returns what the runs that are done took; 0 if none is."""
  done = [v for v in variants if _is_done(root, v)]
  spent = sum(_results(_folder(root, v))['minutes'] for v in done)
  return spent / sum(_steps(v.config) for v in done) if done else 0.0


def _is_done(root, variant) -> bool:
  # The minutes are written last, after every evaluation.
  return 'minutes' in _results(_folder(root, variant))


def _results(folder) -> dict[str, Any]:
  """Returns what was evaluated of a run so far."""
  file = folder / 'eval' / evaluation.RESULTS
  if not file.exists():
    return {}
  return workdir.read_object(file, 'delete it to run it again')


def _evaluated(variant, root) -> dict[str, Any]:
  """Trains and evaluates a variant, as far as that is to be done."""
  config, path = variant.config, _folder(root, variant)
  if not _is_done(root, variant):
    _reuse_autoencoders(variant, root)
    collaboration.train(config, path)
    trained = collaboration.restore(config, path)
    names = ('segmentation', 'query', 'networks')
    results = evaluation.evaluate(config, path, trained, names)
    _keep_examples(trained, path)
    folder = workdir.Workdir(path, config.to_dict(), create=False)
    results['minutes'] = _seconds_trained(folder.read_log()) / 60
    if trained.guarantee:
      results['epsilon'] = trained.guarantee.epsilon
    file = folder.path / 'eval' / evaluation.RESULTS
    workdir.write_text(file, json.dumps(results, indent=1) + '\n')
  # Opening it compares its configuration with the variant's.
  return _results(workdir.Workdir(path, config.to_dict(), create=False).path)


def _seconds_trained(rows) -> float:
  """Returns the wall clock of trainings: once, where some went side by side."""
  rows = [r for r in rows if 'seconds' in r and 'time' in r]
  spent, until = 0.0, 0.0
  for start, end in sorted((r['time'] - r['seconds'], r['time']) for r in rows):
    spent += max(end - max(start, until), 0.0)
    until = max(until, end)
  return spent


def _keep_examples(trained, path) -> None:
  """Writes one test case of each client, to be drawn beside other variants."""
  kept: dict[str, list[Any]] = {
    key: [] for key in ('image', 'truth', 'prediction', 'spacing_mm', 'case')
  }
  for name, parts in trained.data.hospitals.items():
    test = parts['test']
    row = slice(len(test.case) // 2, len(test.case) // 2 + 1)
    values = (
      test.image[row],
      test.mask[row],
      np.asarray(trained.predict[name](test.image[row])),
      test.spacing_mm[row],
      test.case[row],
    )
    for key, value in zip(kept, values):
      kept[key].append(value)
  arrays = {key: np.concatenate(values) for key, values in kept.items()}
  np.savez(
    path / 'eval' / EXAMPLES,
    class_names=np.array(trained.data.class_names),
    **arrays,
  )


def _draw(name, variants, root) -> None:
  """Draws what the variants of the same test cases make of them."""
  first, predictions = None, {}
  for variant in variants:
    file = _folder(root, variant) / 'eval' / EXAMPLES
    if not file.exists():
      continue
    with np.load(file, allow_pickle=False) as arrays:
      found = {key: arrays[key] for key in arrays}
    first = found if first is None else first
    if np.array_equal(found['case'], first['case']):
      predictions[variant.name] = found['prediction']
  if first is None:
    return
  methods.draw_methods(
    root / f'{name}.png',
    image=first['image'],
    truth=first['truth'],
    predictions=predictions,
    class_names=first['class_names'].tolist(),
    spacing_mm=first['spacing_mm'],
    distance_unit=variants[0].config.distance_unit,
    case=first['case'].tolist(),
    title=f'Study {name!r}: one test case of each client',
    width_mm=180,
  )


def _reuse_autoencoders(variant, root) -> None:
  """Copies what another run trained with the same configuration."""
  if variant.config.method in learners.BASELINES:
    return

  def fields_of(config, modality):
    others = (*MAPPING_FIELDS, *OTHERS_FIELDS[modality])
    return {k: v for k, v in config.items() if k not in others}

  wanted = workdir.essence(variant.config.to_dict())
  names = variant.config.clients
  run = _folder(root, variant)
  target = run / 'checkpoints'
  for (folder, config), modality in itertools.product(
    _runs(root), client.MODALITIES
  ):
    if fields_of(config, modality) != fields_of(wanted, modality):
      continue
    for source in sorted((folder / 'checkpoints').glob(f'{modality}_*')):
      name = source.name.removeprefix(f'{modality}_')
      if (names and name not in names) or (target / source.name).exists():
        continue
      partial = target.with_name(f'{source.name}.partial')
      run.mkdir(mode=0o700, parents=True, exist_ok=True)
      shutil.rmtree(partial, ignore_errors=True)
      shutil.copytree(source, partial)
      target.mkdir(parents=True, exist_ok=True)
      partial.rename(target / source.name)
