"""Evaluates a run: tables on the screen, JSON and pictures in the workdir.

workdir/eval/results.json   everything, per case too
workdir/eval/tables.txt     what is printed
workdir/report/<client>.png image, truth, prediction, errors
"""

import json
import math
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tabulate

from ppcmi_jax import (
  collaboration,
  evaluators,
  figures,
  hospitals,
  profiling,
  workdir,
)

COLUMNS = ('dice', 'iou', 'sensitivity', 'specificity', 'hd95_mm', 'asd_mm')
COUNTS = ('n', 'n_missed', 'n_spurious', 'n_empty')


def evaluate(config: Any, path: str | pathlib.Path) -> dict[str, Any]:
  """Evaluates a trained workdir on its test split; prints and writes results.

  Args:
    config: the configuration that the run was trained with.
    path: of the workdir.

  Returns:
    What is written to eval/results.json.

  Raises:
    ValueError: as `collaboration.restore`.
  """
  run = collaboration.restore(config, path)
  results = {
    'method': config.method,
    'environment': environment(),
    'clients': {},
  }
  for name in run.data.hospitals:
    results['clients'][name] = evaluate_client(run, name)
    draw_client(run, name, results['clients'][name], pathlib.Path(path))
  text = tables(config, run, results)
  print(text)
  folder = workdir.Workdir(path, config.to_dict(), create=False)
  folder.write_text(folder.path / 'eval' / 'tables.txt', text + '\n')
  folder.write_text(
    folder.path / 'eval' / 'results.json',
    json.dumps(_jsonable(results), indent=1, allow_nan=False) + '\n',
  )
  print(
    f'written: {folder.path / "eval" / "results.json"}, '
    f'{folder.path / "report"}'
  )
  return results


def environment() -> dict[str, Any]:
  """Returns what the figures depend on: device, versions."""
  return {
    'device': jax.devices()[0].device_kind,
    'num_devices': jax.device_count(),
    'jax': jax.__version__,
    'python': platform.python_version(),
    'machine': platform.machine(),
  }


def evaluate_client(
  run: collaboration.Collaboration, name: str
) -> dict[str, Any]:
  """Returns every evaluator's result on one client's test split."""
  parts, class_names = run.data.hospitals[name], run.data.class_names
  train, test = parts['train'], parts['test']
  predict = run.predict[name]
  result = {
    'segmentation': evaluators.segmentation(
      predict, test, class_names=class_names
    ),
    'shape_prior': evaluators.shape_prior(
      train.mask, test, class_names=class_names
    ),
  }
  if name not in run.hospitals:
    return result
  hospital = run.hospitals[name]
  for key, examples in (('ceiling', test), ('ceiling_train', train)):
    result[key] = evaluators.mask_reconstruction(
      hospital.reconstruct_mask, examples, class_names=class_names
    )
  result['image_autoencoder'] = evaluators.reconstruction(
    hospital.reconstruct_image, test
  )
  client, state = hospital.client, hospital.state
  image = test.image[:1]

  def protect(image):
    return client.protect(state, image)

  def respond(query):
    message, ticket = query
    return run.server.respond(run.server_state, message), ticket

  others = [other for other in run.hospitals if other != name]
  if others:
    stolen = state._replace(secrets=run.hospitals[others[0]].state.secrets)
    result['other_secret'] = evaluators.segmentation(
      lambda image: client.reveal(stolen, *respond(protect(image))),
      test,
      class_names=class_names,
    )
  query = protect(image)
  reply, _ = respond(query)
  result['query'] = {
    'latency': profiling.profile(
      [
        ('protect', protect),
        ('respond', respond),
        ('reveal', lambda reply: client.reveal(state, *reply)),
      ],
      image,
    ),
    'query_bytes': len(query[0]),
    'reply_bytes': len(reply),
    'image_bytes': int(image.nbytes),
  }
  return result


def draw_client(run, name, result, path, count: int = 3) -> None:
  """Draws the best, the median and the worst test case of a client."""
  test = run.data.hospitals[name]['test']
  chosen = figures.select_cases(result['segmentation']['per_case'], count=count)
  if not chosen:
    return
  rows = np.array([entry['index'] for entry in chosen])
  figures.draw_segmentations(
    path / 'report' / f'{name}.png',
    title=f'Client {name}: best, median and worst of {len(test.case)} '
    'test cases by mean Dice',
    image=test.image[rows],
    truth=test.mask[rows],
    prediction=np.asarray(run.predict[name](test.image[rows])),
    class_names=run.data.class_names,
    spacing_mm=test.spacing_mm[rows],
    case=[entry['case'] for entry in chosen],
    scores=[entry['dice'] for entry in chosen],
    note=_scope(run),
  )


def _scope(run) -> str:
  if run.data.within_subject:
    return (
      'Within subject: test slices are held-out blocks of the volumes that '
      'training slices come from.'
    )
  return 'Subjects of the test split are in no other split.'


def tables(config: Any, run, results: Mapping[str, Any]) -> str:
  """Returns the tables of a run as text."""
  foreground = run.data.class_names[1:]
  private = bool(run.hospitals)
  rows = []
  for name, result in results['clients'].items():
    for class_name in (*foreground, 'mean'):
      scores = result['segmentation'][class_name]
      row = [name, class_name, *(scores[c] for c in COLUMNS)]
      row += [scores[c] for c in COUNTS]
      row.append(result['shape_prior'][class_name]['dice'])
      if private:
        row.append(result['ceiling'][class_name]['dice'])
        row.append(result['ceiling_train'][class_name]['dice'])
      rows.append(row)
  headers = ['client', 'structure', 'Dice', 'IoU', 'sens.', 'spec.']
  headers += ['HD95 mm', 'ASD mm', 'n', 'missed', 'spurious', 'empty', 'prior']
  headers += ['ceiling', 'c. train'] if private else []
  size = config.image_size
  parts = [
    f'Segmentation of the test split, method {config.method}, at {size}x{size} '
    f'pixels. {_scope(run)}',
    _table(rows, headers),
    'Means over test cases. n: cases where truth or prediction holds the '
    'structure. Dice, IoU, HD95 and ASD\nare means over those: a missed '
    'structure, and a spurious one, counts as Dice 0 and the image diagonal.\n'
    'sens.: over cases that hold the structure; spec.: over all cases. '
    'prior: Dice of the best constant mask.',
  ]
  if private:
    parts[-1] += (
      '\nceiling: Dice of the mask autoencoder on the true test masks; '
      'c. train: on its training masks.'
    )
    for name, result in results['clients'].items():
      weak = hospitals.weak_classes(run.data, name, result['ceiling_train'])
      parts += [
        f'WARNING {hospitals.describe_weak_class(name, *item)}'
        for item in weak.items()
      ]
    parts += _autoencoder_and_query_tables(config, run, results)
  return '\n'.join(parts)


def _autoencoder_and_query_tables(config, run, results) -> list[str]:
  images, queries, secrets = [], [], []
  for name, result in results['clients'].items():
    scores, query = result['image_autoencoder'], result['query']
    images.append([name, scores['psnr_db'], scores['ssim'], scores['n']])
    stages = ('protect', 'respond', 'reveal', 'total')
    latency = [query['latency'][stage]['p50_ms'] for stage in stages]
    latency.append(query['latency']['total']['p90_ms'])
    sizes = [
      query[part] / 1024
      for part in ('query_bytes', 'reply_bytes', 'image_bytes')
    ]
    queries.append([name, *(f'{value:.1f}' for value in latency + sizes)])
    if 'other_secret' in result:
      own, other = result['segmentation'], result['other_secret']
      secrets.append([name, own['mean']['dice'], other['mean']['dice']])
  where = results['environment']
  parts = [
    f'\nImage autoencoders on the test split. {_scope(run)}',
    _table(images, ['client', 'PSNR dB', 'SSIM', 'n']),
    f'\nOne query, batch 1, protection {config.protection!r}, wire '
    f'{config.wire_dtype}; {where["device"]}, jax {where["jax"]}. Milliseconds '
    'are medians (p90 of the total beside it).',
    _table(
      queries,
      [
        'client',
        'protect ms',
        'respond ms',
        'reveal ms',
        'total ms',
        'p90 ms',
        'query KiB',
        'reply KiB',
        'raw image KiB',
      ],
    ),
  ]
  if secrets:
    parts += [
      f"\nMean Dice of replies revealed with the client's own secret, and with "
      f"another client's. {_scope(run)}",
      _table(secrets, ['client', 'own secret', "another's"]),
    ]
  return parts


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
  def show(value):
    if isinstance(value, float):
      return '-' if math.isnan(value) else f'{value:.3f}'
    return value

  shown = [[show(value) for value in row] for row in rows]
  return tabulate.tabulate(
    shown, headers, disable_numparse=True, stralign='right'
  )


def _jsonable(value: Any) -> Any:
  """Returns plain JSON values; NaN becomes None."""
  if isinstance(value, Mapping):
    return {str(k): _jsonable(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_jsonable(v) for v in value]
  if isinstance(value, (np.integer, np.floating)):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
