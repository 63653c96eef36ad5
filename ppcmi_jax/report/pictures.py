"""The pictures of a run's report."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ppcmi_jax import (
  evaluation,
  exposure,
)
from ppcmi_jax import workdir as workdir_lib
from ppcmi_jax.figures import (
  attacks,
  curves,
  latents,
  matrices,
  reconstructions,
  roc,
  scores,
  segmentations,
)
from ppcmi_jax.privacy import notebook
from ppcmi_jax.report import attack_tables, result_tables

LATENT_CASES = 60  # of a client, in the picture of latents


class Figure(NamedTuple):
  """A picture that was drawn: its file, and what the page says of it."""

  path: pathlib.Path
  section: str
  caption: str
  alt: str


def draw(
  config: Any,
  run: evaluation.Run,
  results: Mapping[str, Any],
  workdir: workdir_lib.Workdir,
) -> list[Figure]:
  """Draws the pictures of what was evaluated into workdir/report.

  Args:
    config: of the run.
    run: what `collaboration.restore` returns.
    results: what `evaluation.evaluate` returns.
    workdir: of the run.

  Returns:
    Those that there was something to draw for.
  """
  folder = workdir.path / 'report'
  drawn = []
  if 'segmentation' in results:
    drawn += _cases(config, run, results['segmentation'], folder)
    drawn += _boxplots(config, results['segmentation'], folder)
  if run.hospitals:
    drawn += _reconstructions(config, run, folder)
    drawn += _latents(config, run, folder)
  if 'cross_client' in results:
    drawn += _matrices(results['cross_client'], folder)
  if 'privacy' in results:
    drawn += _attacks(config, run, results['privacy'], workdir.path)
  if 'roc_fprs' in results.get('membership', {}):
    drawn += _roc(results['membership'], folder)
  path = folder / 'training.png'
  # DP-SGD logs its time only.
  rows = [row for row in workdir.read_log() if 'loss' in row]
  if curves.draw_curves(path, rows):
    text = 'Training and validation loss of every task.'
    drawn.append(Figure(path, 'Training', text, text))
  return drawn


def _cases(config, run, result, folder, count: int = 3) -> list[Figure]:
  """Draws the best, the median and the worst test case of each client."""
  drawn = []
  for name, parts in run.data.hospitals.items():
    test = parts['test']
    per_case = result[name]['scores']['per_case']
    chosen = segmentations.select_cases(per_case, count=count)
    if not chosen:
      continue
    rows = np.array([entry['index'] for entry in chosen])
    title = (
      f'Client {name}: best, median and worst of {len(test.case)} test cases '
      'by mean Dice'
    )
    path = folder / f'{name}.png'
    segmentations.draw_segmentations(
      path,
      title=title,
      image=test.image[rows],
      truth=test.mask[rows],
      prediction=np.asarray(run.predict[name](test.image[rows])),
      class_names=run.data.class_names,
      spacing_mm=test.spacing_mm[rows],
      distance_unit=config.distance_unit,
      case=[entry['case'] for entry in chosen],
      scores=[entry['dice'] for entry in chosen],
      note=result_tables.scope(run),
    )
    alt = f'{title}: image, truth, prediction, errors'
    drawn.append(Figure(path, 'Segmentation', f'{title}.', alt))
  return drawn


def _boxplots(config, result, folder) -> list[Figure]:
  drawn = []
  rows = {name: parts['scores']['per_case'] for name, parts in result.items()}
  for metric, label in (('dice', 'Dice'), ('hd95_mm', 'HD95')):
    path = folder / f'boxplots_{metric.partition("_")[0]}.png'
    unit = config.distance_unit
    if scores.draw_boxplots(path, rows, metric=metric, distance_unit=unit):
      text = f'{label} of every test case, by structure and client.'
      drawn.append(Figure(path, 'Segmentation', text, text))
  return drawn


def _reconstructions(config, run, folder, count: int = 3) -> list[Figure]:
  drawn = []
  for name, hospital in run.hospitals.items():
    test = run.data.hospitals[name]['test']
    rows = np.unique(np.linspace(0, len(test.case) - 1, count).astype(int))
    path = folder / f'reconstructions_{name}.png'
    image, mask = test.image[rows], test.mask[rows]
    if reconstructions.draw_reconstructions(
      path,
      image=image,
      reconstruction=np.asarray(hospital.reconstruct_image(image)),
      truth=mask,
      reconstructed_mask=np.asarray(hospital.reconstruct_mask(mask)),
      class_names=run.data.class_names,
      spacing_mm=test.spacing_mm[rows],
      distance_unit=config.distance_unit,
      case=[str(test.case[row]) for row in rows],
      title=f'Client {name}: what its autoencoders keep',
    ):
      text = f'Client {name}: images and masks, and what autoencoders keep.'
      drawn.append(Figure(path, 'Autoencoders', text, text))
  return drawn


def _latents(config, run, folder) -> list[Figure]:
  """Draws image latents of the training cases, and as they are sent."""
  before, after = {}, {}
  encode = jax.jit(run.networks['image encoder'][0])
  for name, hospital in run.hospitals.items():
    image = run.data.hospitals[name]['train'].image[:LATENT_CASES]
    plain = jax.device_get(encode(hospital.state.image, image))
    sent = exposure.observe(config.protection, plain)
    before[name], after[name] = (
      np.concatenate(
        [
          np.asarray(z[scale], np.float32).reshape(len(image), -1)
          for scale in sorted(z)
        ],
        axis=1,
      )
      for z in (plain, sent)
    )
  path = folder / 'latents.png'
  if not latents.draw_latents(path, before=before, after=after):
    return []
  text = (
    'Image latents of training cases before and after the protection '
    f'{config.protection!r}, a point a case. Points of a client that keep '
    'their places among themselves show that distances survive.'
  )
  heading = 'What crosses, and who can open it'
  return [Figure(path, heading, text, text)]


def _attacks(config, run, result, workdir) -> list[Figure]:
  """Draws what each attacker makes of one test case."""
  file = workdir / 'eval' / notebook.EXAMPLES
  if not file.exists():
    return []
  with np.load(file, allow_pickle=False) as arrays:
    examples = {key: arrays[key] for key in arrays}
  path = workdir / 'report' / 'attacks.png'
  shown = result['attacks']
  victim = run.data.hospitals[result['setting']['victim']]['test']
  if not attacks.draw_attacks(
    path,
    examples,
    labels={name: attack['label'] for name, attack in shown.items()},
    protections=[
      name
      for name in exposure.PROTECTIONS
      if any(name in attack['cells'] for attack in shown.values())
    ],
    title='What each attacker makes of one test image',
    spacing_mm=victim.spacing_mm[0],
    distance_unit=config.distance_unit,
    note='The same image and attackers throughout; see the table for means.',
  ):
    return []
  text = 'What each attacker makes of one test image, by protection.'
  return [Figure(path, 'Attacks', text, text)]


def _roc(result, folder) -> list[Figure]:
  path = folder / 'membership.png'
  if not roc.draw_roc(
    path,
    result['experiments'],
    fprs=result['roc_fprs'],
    losses=attack_tables.LOSSES,
    title='How many members are told, at how many false alarms',
  ):
    return []
  text = 'ROC curves of membership attacks, and of their controls.'
  return [Figure(path, 'Attacks', text, text)]


def _matrices(result, folder) -> list[Figure]:
  drawn = []
  for score, label in (('dice', 'Dice of masks'), ('ssim', 'SSIM of images')):
    path = folder / f'cross_client_{score}.png'
    matrix = result[score]['own']
    if matrices.draw_matrix(
      path, matrix, value_label=label, title="Opened with the opener's secret"
    ):
      text = (
        f"{label}: messages of the row's client, opened by the column's "
        'client with its own secret.'
      )
      heading = 'What crosses, and who can open it'
      drawn.append(Figure(path, heading, text, text))
  return drawn
