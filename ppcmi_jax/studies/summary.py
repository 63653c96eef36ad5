"""The table of a study: a row a run, from its eval/results.json."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ppcmi_jax import intervals, learners, metrics, tables

# What a hospital lets out, by kind of method.
LEAVES = {
  'ppcmi_sf': 'latents, protected by {protection!r}',
  'baseline': 'images and masks',
  'local': 'nothing',
}


def build(
  name: str, configs: Mapping[str, Any], done: Mapping[str, Any]
) -> tables.Table:
  """Returns the table of a study, a row a variant.

  Args:
    name: of the study.
    configs: {variant: its configuration}.
    done: {variant: what its eval/results.json holds}.
  """
  names = sorted({name for r in done.values() for name in r['segmentation']})
  rows = [
    _row(variant, config, done[variant], names)
    for variant, config in configs.items()
  ]
  config = next(iter(configs.values()))
  return tables.Table(
    name,
    f'Study {name!r} on {config.dataset}, {config.image_size}x'
    f'{config.image_size}, test split.',
    ['variant', 'Dice', *(f'of {name}' for name in names), 'prior', 'alone',
     'fused', 'HD95', 'ASD', 'worst structure', 'parameters', 'GFLOP', 'ms',
     'KiB sent', 'at most, steps x batch', 'minutes', 'leaves the hospital'],
    rows,
    'Dice, HD95, ASD: mean over the structures, then over the clients that '
    'have any, with a 95 % bootstrap interval over\nsubjects where there are '
    'two or more of each client; they say nothing of another training run. '
    'prior: Dice of the\nbest constant mask. alone: Dice of what the image '
    'autoencoder tells without the server; fused: of that\nand the reply '
    'together, which a client can have. worst structure: lowest Dice of a '
    'client and structure. parameters,\nGFLOP: of a query. ms: median of a '
    'query of batch 1. KiB sent: of a query, one way. at most, steps x batch: '
    'of the image\nand the mask autoencoder of each client, and of the mapping '
    'network; or of the baseline; fewer where a training stopped\nearly. '
    'minutes: of wall clock, of its trainings, less what was copied from an '
    'earlier variant.'
    + any('epsilon' in results for results in done.values())
    * (
      '\nepsilon: of (epsilon, delta)-differential privacy for one training '
      "image; delta and what limits it are in the run's\nreport."
    ),
  )  # fmt: skip


def _row(variant, config, results, names) -> list[Any]:
  segmentation = results['segmentation']
  means = {
    metric: _mean(segmentation, metric)
    for metric in ('dice', 'hd95_mm', 'asd_mm')
  }
  worst = min(
    (
      (scores['dice'], f'{label}, {client}')
      for client, parts in segmentation.items()
      for label, scores in parts['scores'].items()
      if label not in ('foreground', 'mean')
      and isinstance(scores, dict)
      and scores.get('dice') is not None
    ),
    default=None,
  )
  query = next(iter(results['query'].values()))
  costs = list(results['networks'].values())
  is_baseline = config.method in learners.BASELINES
  kind = 'baseline' if is_baseline else 'ppcmi_sf'
  if is_baseline and not config.pooled:
    kind = 'local'
  sent = query.get(
    'query_bytes', 0 if kind == 'local' else query['image_bytes']
  )
  if 'epsilon' in results:
    variant = f'{variant}, epsilon {results["epsilon"]:.2g}'
  return [
    variant,
    means['dice'],
    *(
      tables.number(segmentation[name]['scores']['mean']['dice'])
      if name in segmentation
      else math.nan
      for name in names
    ),
    *(
      _reference(segmentation, key) for key in ('shape_prior', 'alone', 'fused')
    ),
    means['hd95_mm'],
    means['asd_mm'],
    worst and f'{worst[0]:.3f} ({worst[1]})',
    f'{sum(cost["parameters"] for cost in costs):,}',
    f'{sum(cost["flops"] or 0 for cost in costs) / 1e9:.2f}',
    f'{query["latency"]["total"]["p50_ms"]:.1f}',
    f'{sent / 1024:.1f}',
    _budget(config),
    f'{results["minutes"]:.1f}',
    LEAVES[kind].format(protection=config.get('protection')),
  ]


def _budget(config) -> str:
  if config.method in learners.BASELINES:
    return f'{config.baseline_steps} x {config.baseline_batch_size}'
  batch = config.autoencoder_batch_size
  return (
    f'{config.image_steps} x {batch}, {config.mask_steps} x {batch}, '
    f'{config.mapping_steps} x {config.mapping_batch_size}'
  )


def _reference(segmentation, key) -> float:
  """Returns the mean Dice over clients of what a score is seen beside."""
  return metrics.mean_defined(
    [
      tables.number(parts[key]['mean']['dice'])
      for parts in segmentation.values()
      if key in parts
    ]
  )


def _mean(segmentation: Mapping[str, Any], metric: str) -> tables.Interval:
  """Averages a score over structures, then clients, with its interval."""
  scored = [
    (client, parts['scores'])
    for client, parts in segmentation.items()
    if parts['scores']['mean'][metric] is not None  # some structure to score
  ]
  if not scored:
    return tables.Interval(math.nan, math.nan, math.nan)
  values = [scores['mean'][metric] for _, scores in scored]
  # A column a client and structure, a row a case: clients that are tested on
  # the same cases get the same draws of their subjects.
  columns = [
    (client, name)
    for client, scores in scored
    for name in sorted({row['class'] for row in scores['per_case']})
    if scores[name]['n'] > scores[name]['n_spurious']
  ]
  subject = {
    row['case']: row['subject']
    for _, scores in scored
    for row in scores['per_case']
  }
  cases = sorted(subject)
  table = np.full((len(cases), len(columns)), np.nan)
  place = {key: n for keys in (cases, columns) for n, key in enumerate(keys)}
  for client, scores in scored:
    for row in scores['per_case']:
      column = client, row['class']
      if row[metric] is not None and column in place:
        table[place[row['case']], place[column]] = row[metric]
  of_columns = intervals.bootstrap_means(
    table, subject=[subject[case] for case in cases]
  )
  draws = [
    intervals.mean_of_columns(of_columns[:, here], table[:, here])
    for client, _ in scored
    for here in [[c == client for c, _ in columns]]
  ]
  low, high = intervals.percentile_interval(np.mean(draws, axis=0))
  return tables.Interval(float(np.mean(values)), float(low), float(high))
