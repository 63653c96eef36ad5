"""Pictures of latents before and after the keyed transform.

The paper shows where the latents of its clients lie before and after they are
keyed (its figure of t-SNE). PCA stands beside it here: t-SNE shows clusters,
whose distances mean nothing; PCA keeps distances, as far as two axes can.

Needs scikit-learn.

Axes: N points, D latent dimensions.
"""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib import lines
from numpy.typing import ArrayLike

from ppcmi_jax.figures import panels, sheets

MAX_POINTS = 300  # of a panel
PERPLEXITY = 30
MIN_TSNE = 4  # points; below that there are no neighbourhoods to keep
DIMENSIONS = 50  # that t-SNE starts from
LAYERS = 4  # of points


def draw_latents(
  path: str | os.PathLike,
  *,
  before: Mapping[str, ArrayLike],
  after: Mapping[str, ArrayLike],
) -> bool:
  """Draws PCA and t-SNE of latents, before and after the keyed transform.

  Each panel is fitted to what it shows, all clients together, so that the axes
  of two panels are not comparable. Latents that are not finite, before or
  after, are left out; of more than `MAX_POINTS` so many are drawn, at random,
  clients alike.

  Args:
    path: the file to write, .png, .pdf or .svg; folders are made.
    before: {client: floating [N, D]}; N may differ by client.
    after: the same latents keyed, of the same clients; D may differ.

  Returns:
    Whether there was anything to draw; without points no file is written.

  Raises:
    ValueError: other clients before than after, or another N, arrays that are
      not [N, D] or of several D, or a file name of another format.
  """
  path = sheets.check_path(path)
  if list(before) != list(after):
    raise ValueError(
      'after must hold the clients of before, in their order, '
      f'{list(before)}, found {list(after)}'
    )
  stages = [_arrays(before, 'before'), _arrays(after, 'after')]
  rows = []
  rng = np.random.default_rng(0)
  for name, one, other in zip(before, *stages):
    if len(one) != len(other):
      raise ValueError(
        f'after must hold as many latents of client {name!r} as before, '
        f'{len(one)}, found {len(other)}'
      )
    finite = np.isfinite(one).all(axis=1) & np.isfinite(other).all(axis=1)
    shuffled = rng.permutation(np.flatnonzero(finite))
    rows.append(np.sort(shuffled[: max(1, MAX_POINTS // len(before))]))
  sizes = [len(chosen) for chosen in rows]
  if not sum(sizes):
    return False
  stages = [
    np.concatenate([array[chosen] for array, chosen in zip(arrays, rows)])
    for arrays in stages
  ]

  sheet = sheets.Sheet()
  label_mm = sheets.LINE_MM + 0.5
  panel_mm = sheet.inner_mm / 2 - label_mm - 0.5
  starts = sheets.MARGIN_MM + label_mm + np.array([0, sheet.inner_mm / 2])
  for x, name in zip(starts, ('before the transform', 'after the transform')):
    middle, y = x + panel_mm / 2, sheet.top_mm + sheets.LINE_MM / 2
    sheet.text(middle, y, name, ha='center', weight='bold')
  sheet.top_mm += sheets.LINE_MM + 0.5
  styles = sheets.series_styles(len(before))
  for project in (_pca, _tsne):
    for x, stage in zip(starts, stages):
      panel = sheet.panel(x, sheet.top_mm, panel_mm, panel_mm)
      panel.set(xticks=[], yticks=[])
      projected, labels = project(stage)
      for axis, label in enumerate(labels):
        place = (x + panel_mm / 2, sheet.top_mm + panel_mm + sheets.LINE_MM / 2)
        if axis:
          place = x - sheets.LINE_MM / 2, sheet.top_mm + panel_mm / 2
        sheet.text(*place, label, ha='center', rotation=90 * axis)
      _scatter(panel, projected, sizes, styles)
    sheet.top_mm += panel_mm + sheets.LINE_MM + 1.5
  sheet.legend(
    [
      lines.Line2D([], [], label=f'{name} (n = {size})', **_look(style))
      for style, name, size in zip(styles, before, sizes)
    ],
    'clients',
  )
  sheet.paragraph(
    'Axes have no unit; each panel is fitted to its own points. Distances '
    'between the clusters of t-SNE mean nothing.',
    color='0.35',
  )
  sheet.save(path)
  return True


def _arrays(points: Mapping[str, ArrayLike], name: str) -> list[np.ndarray]:
  """Returns float64 [N, D] for each client."""
  arrays = [np.asarray(array, np.float64) for array in points.values()]
  shapes = [list(array.shape) for array in arrays]
  flat = all(array.ndim == 2 for array in arrays)
  if not flat or len({array.shape[1] for array in arrays}) > 1:
    raise ValueError(f'{name} must be [N, D] of one D, found {shapes}')
  return arrays


def _components(points: np.ndarray, dimensions: int) -> np.ndarray:
  """Returns the principal components, [N, dimensions], padded with zeros."""
  from sklearn import decomposition

  components = np.zeros((len(points), dimensions))
  if len(points) > 1 and np.ptp(points, axis=0).max() > 0:
    kept = min(dimensions, *points.shape)
    pca = decomposition.PCA(kept, svd_solver='full')
    components[:, :kept] = pca.fit_transform(points)
  return components


def _pca(points: np.ndarray) -> tuple[np.ndarray, list[str]]:
  """Returns two coordinates, and what to write along the axes."""
  components = _components(points, 2)
  total = np.sum(np.var(points, axis=0))
  shares = np.var(components, axis=0) / total if total else np.zeros(2)
  return components, [
    f'PC {i} ({share:.0%} of variance)' for i, share in enumerate(shares, 1)
  ]


def _tsne(points: np.ndarray) -> tuple[np.ndarray | None, list[str]]:
  """Returns two coordinates, None for too few points, and the axes' labels."""
  from sklearn import manifold

  labels = ['t-SNE 1', 't-SNE 2']
  components = _components(points, DIMENSIONS)
  if len(points) < MIN_TSNE or not np.any(components):
    return None, labels
  perplexity = max(1.0, min(PERPLEXITY, (len(points) - 1) / 3))
  start = components[:, :2] / np.std(components[:, 0]) * 1e-4
  tsne = manifold.TSNE(
    2,
    perplexity=perplexity,
    init=start.astype(np.float32),
    method='exact',  # the other's result depends on the number of threads
    random_state=0,
    n_jobs=1,
  )
  labels[0] += f' (perplexity {perplexity:.0f})'
  return tsne.fit_transform(components), labels


def _scatter(panel, points, sizes, styles) -> None:
  """Draws the points of all clients, none always on top of another's."""
  if points is None:
    panels.write_in_middle(panel, 'too few points')
    return
  client = np.repeat(np.arange(len(sizes)), sizes)
  # A marker is one call: in shuffled layers rather than a client at a time.
  layer = np.random.default_rng(0).integers(0, LAYERS, len(points))
  for depth in range(LAYERS):
    for i, style in enumerate(styles):
      chosen = points[(client == i) & (layer == depth)]
      if len(chosen):
        panel.plot(*chosen.T, **_look(style), zorder=2 + depth)
  panel.margins(0.06)


def _look(style: sheets.Style) -> dict:
  """Returns how a point looks, in the panels and in the legend."""
  return {
    'color': style.color,
    'marker': style.marker,
    'linestyle': '',
    'markersize': 3.2,
    'markeredgewidth': 0.3,
    'markeredgecolor': 'white',
  }
