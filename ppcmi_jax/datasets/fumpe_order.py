"""Which slice of a CT an embolism mask belongs to: verified, not assumed.

A mask that comes as one array, [slices of it], says nothing about the files its
slices were drawn on. File names, instance numbers and positions give candidate
orders, each of them forwards and backwards; where the names do not follow the
body, a wrong choice puts every mask on another slice.

The test is what an embolism is: a filling defect, of the density of clotted
blood, inside a vessel that contrast medium makes bright. A voxel is called a
defect where its density is that of `CLOT_HU` and a voxel of `VESSEL_HU` or more
lies within `NEAR_MM`, in its slice. The score of an order is

    share of defects among mask voxels - share of defects in their rim,

1 at best and about 0 where masks lie anywhere. The rim (`RIM_MM` around a mask)
keeps an order from scoring by soft tissue that goes on outside of the mask.

The thresholds come from anatomy and from phantoms; they were not fitted to the
data set.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ppcmi_jax.datasets import manual

CLOT_HU = (-50.0, 200.0)
VESSEL_HU = 200.0
NEAR_MM = 8.0
RIM_MM = 2.5
MIN_SCORE = 0.35
MIN_MARGIN = 0.2


class Choice(NamedTuple):
  """An order of files, and how sure it is.

  Attributes:
    name: what the order is called.
    order: int [N], the file that each slice of the mask belongs to.
    scores: name -> score of the orders that put the masks on other files.
    verified: no other order comes close; else `order` is the first candidate.
  """

  name: str
  order: np.ndarray
  scores: dict[str, float]
  verified: bool


def candidates(
  names: Sequence[str],
  *,
  instance_numbers: Sequence[int] | None = None,
  heights_mm: Sequence[float] | None = None,
) -> dict[str, np.ndarray]:
  """Returns name -> order, int [N], of the orders that masks may follow.

  Args:
    names: of the N files.
    instance_numbers: of the files, where they have them.
    heights_mm: positions of the files along the body, where they have them.

  Returns:
    File names by their numbers first, then in alphabetical order (IM10 before
    IM2), instance numbers and heights; then the reverse of each. Orders that
    are equal stand once, under the first of their names.
  """
  keys = {
    'file names': [manual.natural_key(name) for name in names],
    'file names, alphabetical': list(names),
    'InstanceNumber': instance_numbers,
    'position': heights_mm,
  }
  forwards = {
    what: np.array(sorted(range(len(names)), key=values.__getitem__))
    for what, values in keys.items()
    if values is not None
  }
  backwards = {f'{what}, reversed': o[::-1] for what, o in forwards.items()}
  return _distinct(forwards | backwards, np.arange(len(names)))


def _distinct(
  orders: Mapping[str, np.ndarray], rows: np.ndarray
) -> dict[str, np.ndarray]:
  """Keeps the first of the orders that agree in the given rows."""
  seen = {}
  for name, order in orders.items():
    seen.setdefault(tuple(order[rows].tolist()), name)
  return {name: orders[name] for name in seen.values()}


def score(
  volume: np.ndarray,
  mask: np.ndarray,
  order: np.ndarray,
  *,
  spacing_mm: Sequence[float],
) -> float:
  """Says how well masks lie on filling defects if they follow an order.

  Args:
    volume: [N, H, W] in HU, by files.
    mask: bool [N, H, W], in its own order, not empty.
    order: int [N], the file of each slice of the mask.
    spacing_mm: of rows and columns.

  Returns:
    Share of defects in the mask minus share in its rim, -1 to 1.
  """
  margin = np.ceil((NEAR_MM + RIM_MM) / np.asarray(spacing_mm)).astype(int)
  defects, sizes = np.zeros(2), np.zeros(2)  # of masks, of rims
  for row in np.flatnonzero(mask.any((1, 2))):
    window = tuple(
      slice(max(0, where.min() - extra), where.max() + extra + 1)
      for where, extra in zip(np.nonzero(mask[row]), margin)
    )
    plane, inside = volume[order[row]][window], mask[row][window]
    distance = lambda away: ndimage.distance_transform_edt(
      away, sampling=spacing_mm
    )
    bright = plane >= VESSEL_HU
    defect = (CLOT_HU[0] <= plane) & (plane < CLOT_HU[1]) & bright.any()
    if bright.any():
      defect &= distance(~bright) <= NEAR_MM
    rim = ~inside & (distance(~inside) <= max(RIM_MM, *spacing_mm))
    for index, region in enumerate((inside, rim)):
      defects[index] += defect[region].sum()
      sizes[index] += region.sum()
  shares = defects / np.maximum(sizes, 1)
  return float(shares[0] - shares[1])


def choose(
  volume: np.ndarray,
  mask: np.ndarray,
  orders: Mapping[str, np.ndarray],
  *,
  spacing_mm: Sequence[float],
) -> Choice:
  """Finds the order in which masks lie on filling defects.

  Args:
    volume: [N, H, W] in HU, by files.
    mask: bool [N, H, W], in its own order.
    orders: from `candidates`.
    spacing_mm: of rows and columns.

  Returns:
    The best order, `verified` if its score is at least `MIN_SCORE` and
    `MIN_MARGIN` above that of every other; else the first of `orders`. Orders
    that put all masks on the same files count as one. An empty mask has
    no scores and the first order.
  """
  first = next(iter(orders))
  rows = np.flatnonzero(mask.any((1, 2)))
  if not rows.size:
    return Choice(first, orders[first], {}, verified=False)
  scores = {
    name: score(volume, mask, order, spacing_mm=spacing_mm)
    for name, order in _distinct(orders, rows).items()
  }
  best, *others = sorted(scores, key=scores.get, reverse=True)
  clear = scores[best] >= MIN_SCORE and all(
    scores[best] - scores[other] >= MIN_MARGIN for other in others
  )
  name = best if clear else first
  return Choice(name, orders[name], scores, verified=clear)
