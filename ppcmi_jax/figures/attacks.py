"""Pictures of what attackers draw, beside the truth, by protection.

Axes: N cases, H height, W width, C channels.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ppcmi_jax import image_metrics
from ppcmi_jax.figures import case_panels, panels, sheets

PANEL_MM = 18.0  # wide; a score fits
GAP_MM = 1.0
LABEL_GAP_MM = 0.8


def draw_attacks(
  path: str | os.PathLike,
  examples: Mapping[str, ArrayLike],
  *,
  labels: Mapping[str, str],
  protections: Sequence[str],
  spacing_mm: ArrayLike = (1.0, 1.0),
  distance_unit: str = 'pixels',
  title: str = '',
  note: str = '',
) -> bool:
  """Draws a row an attack: the truth, and what is drawn of it, by protection.

  All are of the first case. Beside the truth is what is drawn without any
  message, the prior. In each corner stands the PSNR in dB, of masks the Dice;
  what was not measured is left blank.

  Args:
    path: the file to write, .png, .pdf or .svg; folders are made.
    examples: 'truth' float [N, H, W, C] in [0, 1], 'mask' integer [N, H, W],
      above 0 is foreground, their priors 'prior' [H, W, C] and 'prior_mask'
      bool [H, W], and '<attack>|<protection>': images as the truth, or bool
      masks as the mask.
    labels: {attack: as people read it}, in the order of the rows.
    protections: the columns.
    spacing_mm: [2], size of a pixel, row then column.
    distance_unit: of the spacing; 'mm' if it is given in mm.
    title: above the picture.
    note: below the picture.

  Returns:
    Whether there was anything to draw; without an attack no file is written.

  Raises:
    ValueError: arrays that do not fit, or a file name of another format.
  """
  path = sheets.check_path(path)
  rows = {
    attack: {
      protection: np.asarray(examples[f'{attack}|{protection}'])[0]
      for protection in protections
      if f'{attack}|{protection}' in examples
    }
    for attack in labels
  }
  rows = {attack: drawn for attack, drawn in rows.items() if drawn}
  if not rows:
    return False
  truth = {
    3: np.asarray(examples['truth'])[0],
    2: np.asarray(examples['mask'])[0] > 0,
  }
  prior = {3: examples['prior'], 2: examples['prior_mask']}
  extent_mm = np.asarray(spacing_mm) * truth[2].shape
  columns = ['truth', 'no message', *protections]
  inner_mm = len(columns) * (PANEL_MM + GAP_MM) - GAP_MM
  sheet = sheets.Sheet(width_mm=inner_mm + 2 * sheets.MARGIN_MM, title=title)
  height_mm = case_panels.scan_height(PANEL_MM, extent_mm)
  starts = sheets.MARGIN_MM + np.arange(len(columns)) * (PANEL_MM + GAP_MM)
  heads = [
    sheet.wrap(name, width_mm=PANEL_MM, weight='bold') for name in columns
  ]
  most = max(map(len, heads))
  for x_mm, lines in zip(starts, heads):
    for k, line in enumerate(lines, most - len(lines)):
      y_mm = sheet.top_mm + (k + 0.5) * sheets.LINE_MM
      style = {'ha': 'center', 'weight': 'bold'}
      sheet.text(x_mm + PANEL_MM / 2, y_mm, line, **style)
  sheet.top_mm += most * sheets.LINE_MM + LABEL_GAP_MM
  for attack, drawn in rows.items():
    middle_mm = sheet.top_mm + sheets.LINE_MM / 2
    label = sheet.shorten(labels[attack], width_mm=sheet.inner_mm)
    sheet.text(sheets.MARGIN_MM, middle_mm, label)
    sheet.top_mm += sheets.LINE_MM + LABEL_GAP_MM
    kind = next(iter(drawn.values())).ndim
    own = truth[kind]
    drawn = {'truth': own, 'no message': np.asarray(prior[kind]), **drawn}
    for x_mm, column in zip(starts, columns):
      if column not in drawn:
        continue
      shown = drawn[column]
      if shown.shape != own.shape:
        raise ValueError(
          f'{attack}|{column}: expected shape {list(own.shape)}, found '
          f'{list(shown.shape)}; give drawings of the same cases'
        )
      panel = case_panels.scan_panel(sheet, x_mm, PANEL_MM, height_mm)
      grey = shown.mean(axis=-1) if shown.ndim == 3 else np.float64(shown)
      is_first = column == 'truth' and attack == next(iter(rows))
      unit = distance_unit if is_first else ''
      panels.draw_scan(panel, grey=grey, extent_mm=extent_mm, scale_bar=unit)
      if column != 'truth':
        panels.write_in_corner(panel, _score(shown, own))
    sheet.top_mm += height_mm + GAP_MM
  sheet.paragraph(note, color='0.35')
  sheet.save(path)
  return True


def _score(shown: np.ndarray, truth: np.ndarray) -> str:
  """Returns what a drawing is worth, in a few letters."""
  if truth.ndim == 3:
    psnr = image_metrics.psnr(prediction=shown[None], truth=truth[None])
    return f'{psnr[0]:.1f} dB'
  total = np.sum(shown) + np.sum(truth)
  return f'Dice {2 * np.sum(shown & truth) / total:.2f}' if total else ''
