"""The tables of a run, from what `evaluation.evaluate` returns."""

from collections.abc import Mapping
from typing import Any

from ppcmi_jax import (
  cross_client,
  evaluation,
  hospitals,
  official_metrics,
  score_table,
  tables,
)
from ppcmi_jax.report import attack_tables, cost_tables

METRICS = (
  ('dice', 'Dice'),
  ('iou', 'IoU'),
  ('sensitivity', 'sens.'),
  ('specificity', 'spec.'),
  ('hd95_mm', 'HD95 {unit}'),
  ('asd_mm', 'ASD {unit}'),
  ('nsd', 'NSD'),
)
# What a score is to be seen beside, where the method has it.
REFERENCES = {
  'shape_prior': 'prior',
  'alone': 'alone',
  'fused': 'fused',
  'ceiling': 'ceiling',
  'ceiling_train': 'c. train',
}
Results = Mapping[str, Any]


def build(
  config: Any, run: evaluation.Run, results: Results
) -> list[tables.Table]:
  """Returns the tables of whatever was evaluated, most wanted first."""
  builders = {
    'segmentation': (_segmentation, _intervals),
    'official_scores': (_official_scores,),
    'autoencoders': (_autoencoders,),
    'cross_client': (_cross_client,),
    'query': (cost_tables.query,),
    'wire': (cost_tables.wire,),
    'payload': (cost_tables.payload,),
    'networks': (cost_tables.networks,),
  }
  built = [
    builder(config, run, results[name])
    for name, some in builders.items()
    if name in results
    for builder in some
  ]
  return [*built, *attack_tables.build(results)]


def scope(run: evaluation.Run) -> str:
  """Says in a sentence what a score of the test split is worth."""
  data = run.data
  if not data.subjects_are_known and data.within_subject:
    return (
      'Subjects are not known, and near-duplicates of test images are in the '
      'training or validation split, so this is no measure of new patients.'
    )
  if not data.subjects_are_known:
    return (
      'Subjects are not known: near-duplicates of test images are in no other '
      'split, but other images of the same patients may be.'
    )
  if data.within_subject:
    return (
      'Within subject: subjects of the test split are in the training or '
      'validation split too, so this is no measure of new patients.'
    )
  return 'Subjects of the test split are in no other split.'


def _structures(run, scores):
  """Returns (label, scores): classes that are somewhere, foreground, mean."""
  names = list(run.data.class_names[1:])
  shown = [n for n in names if scores[n]['n'] or len(names) == 1]
  if len(names) > 1:
    shown += ['foreground', 'mean']
  labels = {'foreground': 'all as one', 'mean': 'mean of structures'}
  return [(labels.get(name, name), name) for name in shown]


def _segmentation(config, run, result):
  private = bool(run.hospitals)
  rows = []
  for client, parts in result.items():
    for label, name in _structures(run, parts['scores']):
      scores = parts['scores'][name]
      low, high = (tables.number(x) for x in scores['ci95']['dice'])
      rows.append(
        [
          client,
          label,
          tables.Interval(tables.number(scores['dice']), low, high),
          *(tables.number(scores[metric]) for metric, _ in METRICS[1:]),
          *(scores[count] for count in score_table.COUNTS),
          *(
            tables.number(parts[key][name]['dice'])
            for key in REFERENCES
            if key in parts
          ),
        ]
      )
  unit = 'px' if config.distance_unit == 'pixels' else config.distance_unit
  settings = next(iter(result.values()))['scores']['settings']
  headers = ['client', 'structure']
  headers += [header.format(unit=unit) for _, header in METRICS]
  headers += ['n', 'missed', 'spurious', 'empty']
  headers += [
    header
    for key, header in REFERENCES.items()
    if key in next(iter(result.values()))
  ]
  size = config.image_size
  notes = (
    'Means over test cases; Dice with a 95 % bootstrap interval over subjects '
    'where there are two or more. n: cases\nwhere truth or prediction holds '
    'the structure. Dice, IoU, HD95, ASD and NSD are means over those: a '
    'missed\nstructure, and a spurious one, counts as Dice and NSD 0 and as '
    'the image diagonal. NSD at '
    f'{settings["nsd_tolerance"]:g} {unit}. sens.: over\ncases that hold the '
    'structure; spec.: over all cases. all as one: all structures merged. '
    'prior: Dice of the\nbest constant mask.'
  )
  if private:
    notes += (
      ' ceiling: Dice of the mask autoencoder on the true test masks; '
      'c. train: on its training masks.'
    )
    if 'alone' in next(iter(result.values())):
      notes += (
        '\nalone: Dice of the masks that its own image autoencoder tells, '
        'without server and other hospitals.'
      )
    if 'fused' in next(iter(result.values())):
      notes += (
        ' fused:\nby the mean of the class probabilities of that and of the '
        'reply, which a client can take by itself.'
      )
    for client, parts in result.items():
      weak = hospitals.weak_classes(run.data, client, parts['ceiling_train'])
      for item in weak.items():
        line = hospitals.describe_weak_class(client, *item)
        notes += f'\nWARNING {line}'
  return tables.Table(
    'segmentation',
    f'Segmentation of the test split, method {config.method}, at {size}x{size} '
    f'pixels. {scope(run)}',
    headers,
    rows,
    notes,
  )


def _intervals(config, run, result):
  rows = []
  for client, parts in result.items():
    for label, name in _structures(run, parts['scores']):
      scores = parts['scores'][name]
      for metric, header in METRICS:
        low, high = scores['ci95'][metric]
        rows.append(
          [
            client,
            label,
            header.format(unit=config.distance_unit),
            tables.number(scores[metric]),
            tables.number(scores['std'][metric]),
            tables.number(low),
            tables.number(high),
            scores['n'],
            scores['n_subjects'],
          ]
        )
  return tables.Table(
    'segmentation_spread',
    'Spread of every score of the test split.',
    ['client', 'structure', 'score', 'mean', 'std', '95 % from', 'to', 'n',
     'subjects'],
    rows,
    'std: over cases. 95 %: percentile bootstrap over subjects; undefined with '
    'one subject. It says nothing of another training run.',
  )  # fmt: skip


def _official_scores(config, run, result):
  del config
  rows = [
    [client, label]
    + [tables.number(scores[name][key]) for key in official_metrics.MEANS]
    + [scores[name]['n'], scores['settings']['num_left_out']]
    for client, scores in result.items()
    for label, name in _structures(run, scores)
  ]
  return tables.Table(
    'official_scores',
    'The same predictions, scored as the official code does.',
    ['client', 'structure', 'Dice', 'IoU', 'sens.', 'spec.', 'HD95 px',
     'ASD px', 'n', 'left out'],
    rows,
    'Cases without any structure are left out; missed structures are left out '
    'of HD95 and ASD, which are in pixels. For\ncomparison with published '
    'figures only: misses improve them.',
  )  # fmt: skip


def _autoencoders(config, run, result):
  del config
  rows = [
    [
      client,
      tables.number(scores['image']['psnr_db']),
      tables.number(scores['image']['ssim']),
      tables.number(scores['mask_psnr_db']),
      scores['image']['n'],
    ]
    for client, scores in result.items()
  ]
  return tables.Table(
    'autoencoders',
    f'Autoencoders on the test split. {scope(run)}',
    ['client', 'image PSNR dB', 'image SSIM', 'mask PSNR dB', 'n'],
    rows,
    'The Dice of masks is the ceiling of the segmentation table.',
  )


def _cross_client(config, run, result):
  del run
  rows = []
  scores = (('dice', 'Dice of masks'), ('ssim', 'SSIM of images'))
  for key, opened in zip(cross_client.KEYS, ("opener's", "sender's")):
    for score, label in scores:
      matrix = result[score][key]
      for sender, row in matrix.items():
        rows.append([label, opened, sender, *map(tables.number, row.values())])
  clients = next(iter(result['dice'].values()))
  return tables.Table(
    'cross_client',
    "Every client's messages opened by every client's decoder, protection "
    f'{config.protection!r}.',
    ['score', 'secret', 'sender', *(f'opened by {c}' for c in clients)],
    rows,
    "secret: the opener's is what an interceptor has; the sender's shows what "
    'decoders alone withhold once a key has leaked. -: no message opened.',
  )
