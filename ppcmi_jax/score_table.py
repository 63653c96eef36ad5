"""The table of scores of predicted labels: classes, merged foreground, mean.

`evaluators` make the labels, `metrics` the scores of one class; here they
become the result that every evaluator of masks returns:

* each foreground class name: what `metrics.summarize` returns (means, 'std',
  counts), 'n_subjects' that define Dice, and 'ci95', {metric: [low, high]};
* 'foreground': the same of all classes but background merged into one;
* 'mean': each metric's unweighted mean over the classes that the truth of some
  example contains, 'n_classes' of them; the counts summed over all foreground
  classes, so that a class invented everywhere still shows; 'std' of the mean
  over those classes of a case; 'ci95' of the mean over classes;
* 'per_case': one JSON-able row for each example and foreground class, example
  by example: index (into examples), case, subject, site, class, the metrics
  (None where undefined), missed, spurious, empty;
* 'per_case_foreground': the same rows of the merged foreground;
* 'settings': what the numbers depend on, in words or numbers.

Standard deviations are over cases. Intervals are over subjects: 95 % percentile
bootstrap of the mean over cases, drawing whole subjects, all classes in the
same draws (`intervals`); NaN where fewer than two subjects define the metric,
and for 'mean' where that holds for one of its classes. They say nothing of
another training run. Where the subjects of a data set are unknown, groups of
near-duplicate images stand for them (`splits.together`), and they may still be
too narrow.

Axes: N examples, H height, W width, K classes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ppcmi_jax import intervals, metrics, official_metrics

COUNTS = ('n', 'n_missed', 'n_spurious', 'n_empty')
FOREGROUND = 'foreground'
RESERVED = ('mean', 'per_case', 'per_case_foreground', 'settings')
PRESETS = ('default', 'official')
UNITS = ('mm', 'pixels')


def score_labels(
  predicted: ArrayLike,
  examples: Any,
  *,
  class_names: Sequence[str],
  preset: str = 'default',
  tolerance_mm: float = metrics.TOLERANCE_MM,
  distance_unit: str = 'mm',
) -> dict[str, Any]:
  """Scores labels: the result that the module docstring describes.

  Args:
    predicted: integer [N, H, W].
    examples: with the attributes mask [N, H, W], spacing_mm [N, 2], subject,
      site and case [N], as in `evaluators`.
    class_names: K names, background first. 'foreground' may name the only
      class beside it, which is what it means.
    preset: 'default' scores as `metrics`; 'official' as `official_metrics`,
      to compare with published numbers: hd95_px and asd_px instead of hd95_mm
      and asd_mm, no nsd, cases with an empty mask left out.
    tolerance_mm: of nsd, in the unit below.
    distance_unit: 'pixels' where spacing_mm is 1 for unknown, so that a mm is
      a pixel of the case before resizing. It only labels the result.

  Raises:
    ValueError: no examples, labels of the wrong shape or outside the classes,
      class names that clash with each other or with the result's own, names
      of another number, an unknown preset or unit; with 'official', no
      case with a mask that is not empty.
  """
  class_names = list(class_names)
  _check_names(class_names)
  for name, value, known in (
    ('preset', preset, PRESETS),
    ('distance_unit', distance_unit, UNITS),
  ):
    if value not in known:
      raise ValueError(f'{name} must be one of {known}, found {value!r}')
  truth, predicted = np.asarray(examples.mask), np.asarray(predicted)
  for name, labels in (('prediction', predicted), ('mask', truth)):
    metrics.check_labels(labels, num_classes=len(class_names), name=name)
  if not len(truth):
    raise ValueError('examples must hold at least one example, found none')
  if predicted.shape != truth.shape:
    raise ValueError(
      'prediction and mask must both be [N, H, W], found '
      f'{list(predicted.shape)} and {list(truth.shape)}'
    )
  kept = np.arange(len(truth))
  if preset == 'official':
    kept = np.flatnonzero(official_metrics.scored_cases(truth))
    if not len(kept):
      raise ValueError(
        "preset 'official' leaves out cases with an empty mask, found only "
        "such; use preset 'default'"
      )
  truth, predicted = truth[kept], predicted[kept]
  spacing_mm = np.asarray(examples.spacing_mm)
  if preset == 'default':
    score = lambda inside, drawn: metrics.segmentation_scores(
      prediction=drawn,
      truth=inside,
      spacing_mm=spacing_mm,
      tolerance_mm=tolerance_mm,
    )
  else:
    score = lambda inside, drawn: official_metrics.segmentation_scores(
      prediction=drawn, truth=inside
    )
  by_class = {
    class_name: score(truth == label, predicted == label)
    for label, class_name in enumerate(class_names[1:], start=1)
  }
  if len(class_names) == 2:
    merged = by_class[class_names[1]]
  else:
    merged = score(truth != 0, predicted != 0)
  present = [
    class_name
    for label, class_name in enumerate(class_names[1:], start=1)
    if np.any(truth == label)
  ]
  identity = {'index': kept.tolist()}
  for name in ('case', 'subject', 'site'):
    names = _names(getattr(examples, name))
    if len(names) != len(examples.mask):
      raise ValueError(
        f'{name} must name each of the {len(examples.mask)} examples, found '
        f'{len(names)}'
      )
    identity[name] = [names[i] for i in kept]
  settings = {
    'preset': preset,
    'distance_unit': distance_unit if preset == 'default' else 'pixels',
    'num_cases': len(kept),
    'num_left_out': len(examples.mask) - len(kept),
    'num_subjects': len(set(identity['subject'])),
    'std': 'over cases',
    'ci95': f'over subjects, percentile bootstrap, {intervals.NUM_DRAWS} draws',
  }
  if preset == 'default':
    settings['nsd_tolerance'] = float(tolerance_mm)
  return {
    **_summaries(by_class, merged, present, identity['subject']),
    'per_case': _rows(by_class, identity),
    'per_case_foreground': _rows({FOREGROUND: merged}, identity),
    'settings': settings,
  }


def _check_names(class_names: list[str]) -> None:
  """Raises a ValueError where a name clashes with another or the result's."""
  reserved = {*RESERVED, FOREGROUND}
  if class_names[1:] == [FOREGROUND]:
    reserved.remove(FOREGROUND)
  clash = len(set(class_names)) != len(class_names)
  if clash or not reserved.isdisjoint(class_names):
    raise ValueError(
      f'class_names must be distinct and none of {sorted(reserved)}, found '
      f'{class_names}'
    )


def _summaries(
  by_class: Mapping[str, Mapping[str, np.ndarray]],
  merged: Mapping[str, np.ndarray],
  present: Sequence[str],
  subject: Sequence[Any],
) -> dict[str, Any]:
  """Returns the entries of the classes, 'foreground' and 'mean'."""
  entries = {**by_class, FOREGROUND: merged}
  names = [name for name in merged if name not in metrics.FLAGS]
  table = np.stack(  # [N, entries, metrics]
    [
      np.stack([scores[name] for name in names], axis=-1)
      for scores in entries.values()
    ],
    axis=1,
  )
  # Numbered, so that names of several types do not meet in one array.
  numbers = {name: i for i, name in enumerate(dict.fromkeys(subject))}
  subject = np.array([numbers[name] for name in subject])
  draws = intervals.bootstrap_means(table, subject=subject)
  bounds = intervals.percentile_interval(draws)

  def ci95(bounds):
    return {name: pair.tolist() for name, pair in zip(names, bounds)}

  def count_subjects(defined):
    return len(np.unique(subject[defined]))

  result = {}
  for i, (entry, scores) in enumerate(entries.items()):
    result[entry] = {
      **metrics.summarize(scores),
      'n_subjects': count_subjects(np.isfinite(scores['dice'])),
      'ci95': ci95(bounds[i]),
    }
  columns = [list(entries).index(class_name) for class_name in present]
  counted = [result[class_name] for class_name in by_class]
  mean = {
    name: metrics.mean_defined([result[c][name] for c in present])
    for name in names
  }
  per_case = _mean_defined(table[:, columns], axis=1)
  mean['std'] = {
    name: metrics.std_defined(values) for name, values in zip(names, per_case.T)
  }
  mean['n_classes'] = len(present)
  mean |= {name: sum(summary[name] for summary in counted) for name in COUNTS}
  mean['n_subjects'] = count_subjects(
    np.isfinite(per_case[:, names.index('dice')])
  )
  of_mean = intervals.mean_of_columns(draws[:, columns], table[:, columns])
  mean['ci95'] = ci95(intervals.percentile_interval(of_mean))
  return {**result, 'mean': mean}


def _rows(
  by_class: Mapping[str, Mapping[str, np.ndarray]],
  identity: Mapping[str, Sequence[Any]],
) -> list[dict[str, Any]]:
  """Returns a JSON-able row for each example and class, example by example."""
  return [
    {
      **{name: values[i] for name, values in identity.items()},
      'class': class_name,
      **{
        name: bool(values[i])
        if name in metrics.FLAGS
        else _json_number(values[i])
        for name, values in scores.items()
      },
    }
    for i in range(len(identity['index']))
    for class_name, scores in by_class.items()
  ]


def _mean_defined(values: np.ndarray, *, axis: int) -> np.ndarray:
  """Averages over an axis what is not NaN; NaN where all is."""
  defined = ~np.isnan(values)
  total, count = np.where(defined, values, 0).sum(axis), defined.sum(axis)
  undefined = np.full(total.shape, np.nan)
  return np.divide(total, count, out=undefined, where=count > 0)


def _names(values: ArrayLike) -> list[Any]:
  """Returns names as plain str or numbers; tfds reads text back as bytes."""
  values = np.asarray(values).tolist()
  return [v.decode() if isinstance(v, bytes) else v for v in values]


def _json_number(value: float) -> float | None:
  return None if math.isnan(value) else float(value)
