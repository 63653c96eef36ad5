"""Draws transperineal ultrasound phantoms, each a pure function of its name.

A convex probe looks at the anatomy of `phantom_anatomy`; the echo is simulated
on the probe's own grid (depth by beam) and then scan converted. The rendering
is frozen; a change of it, or of the anatomy, needs a new `Phantom.VERSION`,
since every recorded figure depends on it.

>>> image, mask, spacing_mm = render(seed=0, subject=3, site=1, size=64)
>>> image.shape, mask.shape, sorted(set(mask.flat)) == [0, 1, 2]
((64, 64, 1), (64, 64), True)

Axes: R depth samples, T beams, H height, W width. Lengths are in mm, x to the
right and y down from the middle of the probe's face.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ppcmi_jax.datasets import phantom_anatomy

CLASSES = ('background', 'pubic symphysis', 'fetal head')

_GRID = (288, 176)
_FULL_SIZE = 256


class Probe(NamedTuple):
  """Describes a site's probe and machine settings."""

  radius_mm: float
  half_angle_deg: float
  depth_mm: float
  axial_mm: float
  lateral_deg: float
  slope_db_per_mm: float
  floor_db: float
  gain_db: float
  range_db: float
  gamma: float


SITES = {
  1: Probe(46.0, 34.0, 146.0, 0.70, 0.62, 0.045, -24.0, 26.0, 52.0, 1.0),
  2: Probe(34.0, 38.0, 132.0, 0.50, 0.50, 0.070, -29.0, 25.0, 48.0, 1.1),
  3: Probe(20.0, 43.0, 160.0, 1.00, 0.95, 0.060, -21.0, 28.0, 62.0, 0.95),
}


@functools.cache
def _beams(probe):
  """Gives the probe's grid: x, y [R, T] float32 and beam directions [1, T]."""
  angle = np.deg2rad(probe.half_angle_deg) * np.linspace(-1, 1, _GRID[1])
  r = probe.radius_mm + np.linspace(0, probe.depth_mm, _GRID[0])[:, None]
  across, down = np.sin(angle)[None], np.cos(angle)[None]
  grid = (r * across, r * down - probe.radius_mm, across, down)
  return tuple(g.astype(np.float32) for g in grid)


@functools.lru_cache(maxsize=16)
def _pixels(probe, size):
  """Gives pixel centres x, y and field of view [H, W], spacing_mm [2]."""
  reach = probe.radius_mm + probe.depth_mm
  half = np.deg2rad(probe.half_angle_deg)
  # The frame hugs the sector, so pixels are not square, as in the real set.
  top = probe.radius_mm * (np.cos(half) - 1.0) * 0.6
  height, width = 1.02 * (probe.depth_mm - top), 2.04 * reach * np.sin(half)
  step = (np.arange(size) + 0.5) / size
  y, x = np.meshgrid(
    top + height * (step - 0.01), width * (step - 0.5), indexing='ij'
  )
  r = np.hypot(x, y + probe.radius_mm)
  angle = np.arctan2(x, y + probe.radius_mm)
  row = (r - probe.radius_mm) / probe.depth_mm * (_GRID[0] - 1)
  column = (angle / half + 1.0) / 2.0 * (_GRID[1] - 1)
  view = (row >= 0) & (row <= _GRID[0] - 1)
  view &= (column >= 0) & (column <= _GRID[1] - 1)
  spacing_mm = np.array([height / size, width / size], np.float32)
  return x, y, view, np.stack([row, column]), spacing_mm


def _echo(structures, waves, probe):
  """Computes diffuse and specular amplitude and loss in dB, each [R, T]."""
  x, y, across, down = _beams(probe)
  texture = np.zeros(_GRID, np.float32)
  for kx, ky, phase, amplitude in waves.astype(np.float32):
    texture += amplitude * np.sin(kx * x + ky * y + phase)
  # Skin and perineal layers: brighter and striped close to the probe's face.
  depth = np.linspace(0, probe.depth_mm, _GRID[0], dtype=np.float32)[:, None]
  layers = 5.0 * np.exp(-depth / 9.0) * (1.0 + np.sin(1.3 * depth + texture))
  diffuse_db = texture + layers
  specular = np.zeros(_GRID, np.float32)
  loss = np.full(_GRID, probe.slope_db_per_mm, np.float32)
  for s in structures:
    distance, nx, ny = phantom_anatomy.distance(x, y, s.shape)
    inside = 0.5 - 0.5 * np.tanh(distance / 0.9)
    edge = np.exp(-0.5 * (distance / s.edge_mm) ** 2)
    facing = np.maximum(-(nx * across + ny * down), 0.0)
    back = np.maximum(nx * across + ny * down, 0.0)
    share = (1 - s.specular) + s.specular * (facing**2 + 0.45 * back**2)
    level_db = s.inside_db + 0.6 * texture
    diffuse_db += inside * (level_db - diffuse_db)
    specular *= 1.0 - inside * (1.0 - edge)
    specular += edge * share * (10 ** (s.edge_db / 20) - 1.0)
    loss += inside * (s.loss_db_per_mm - (loss - probe.slope_db_per_mm))
    loss += edge * (s.edge_loss_db / (2.5 * s.edge_mm))
  return 10 ** (diffuse_db / 20), specular, loss


def _scan(structures, waves, probe, rng):
  """Simulates the grey levels on the probe's grid: [R, T] float32, 0 to 1."""
  diffuse, specular, loss = _echo(structures, waves, probe)
  step_mm = probe.depth_mm / (_GRID[0] - 1)
  step_deg = 2 * probe.half_angle_deg / (_GRID[1] - 1)
  # A beam's width is constant in angle, so it widens with depth in mm.
  sigma = (probe.axial_mm / step_mm, probe.lateral_deg / step_deg)
  blur = functools.partial(ndimage.gaussian_filter, sigma=sigma, truncate=3.0)
  # Interfaces are rough, so a part of their echo is speckle too. The factor
  # undoes what the point spread function takes from white noise's power.
  rough = diffuse + 0.8 * specular
  rough *= np.sqrt(2.0 * np.pi * sigma[0] * sigma[1])
  power = np.zeros(_GRID, np.float32)
  for _ in range(2):  # Looks compounded; each has a real and imaginary part.
    power += blur(rough * rng.standard_normal(_GRID, np.float32)) ** 2
    power += blur(rough * rng.standard_normal(_GRID, np.float32)) ** 2
  power = 0.5 * power + blur(0.6 * specular) ** 2
  power *= 10 ** (-np.cumsum(loss, axis=0) * (step_mm / 10))
  floor = rng.standard_exponential(_GRID, np.float32)
  power_db = 10 * np.log10(power + 10 ** (probe.floor_db / 10) * floor)
  # Contact with the skin varies along the probe's face.
  contact = ndimage.gaussian_filter1d(rng.standard_normal(_GRID[1]), 9.0)
  power_db += 12.0 * contact.astype(np.float32) + rng.uniform(-2.0, 2.0)
  grey = (power_db + probe.gain_db) / probe.range_db
  return np.clip(grey, 0.0, 1.0) ** probe.gamma


def render(
  *,
  seed: int,
  subject: int,
  site: int,
  visit: int = 0,
  size: int = 256,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws one phantom.

  A subject's anatomy depends on (seed, subject) alone; a visit adds a small
  motion of the probe and new speckle; the site gives probe and settings.

  Args:
    seed: of the whole set, at least 0.
    subject: at least 0.
    site: 1, 2 or 3, a key of `SITES`.
    visit: at least 0.
    size: H and W in pixels, at least 16.

  Returns:
    image [H, W, 1] uint8, mask [H, W] uint8 (index into `CLASSES`), spacing_mm
    [2] float32 (row, column).

  Raises:
    ValueError: if an argument is out of range.
  """
  for name, value in (('seed', seed), ('subject', subject), ('visit', visit)):
    if value < 0:
      raise ValueError(f'{name} must be at least 0, got {value}')
  if site not in SITES:
    raise ValueError(f'site must be one of {list(SITES)}, got {site!r}')
  if size < 16:
    raise ValueError(f'size must be at least 16 pixels, got {size}')
  probe = SITES[site]
  anatomy = phantom_anatomy.draw_anatomy(seed=seed, subject=subject)
  rng = np.random.default_rng((seed, subject, 1, visit, site))
  motion = (rng.uniform(-2, 2), rng.uniform(-2, 2), rng.uniform(-0.05, 0.05))
  # What is drawn later covers the earlier; the two classes never overlap.
  layers = (*anatomy.others, anatomy.symphysis, anatomy.head, anatomy.midline)
  layers = [
    s._replace(shape=phantom_anatomy.move(s.shape, *motion)) for s in layers
  ]
  polar = _scan(layers, anatomy.waves, probe, rng)
  # Below the full size pixels average what finer ones would show.
  factor = -(-_FULL_SIZE // size)
  _, _, view, index, _ = _pixels(probe, size * factor)
  fine = ndimage.map_coordinates(polar, index, order=1, mode='nearest') * view
  grey = fine.reshape(size, factor, size, factor).mean((1, 3))
  image = np.round(255.0 * grey).astype(np.uint8)[..., None]
  x, y, view, _, spacing_mm = _pixels(probe, size)
  mask = np.zeros((size, size), np.uint8)
  for label, structure in enumerate(layers[-3:-1], start=1):
    distance, _, _ = phantom_anatomy.distance(x, y, structure.shape)
    mask[view & (distance < 0.0)] = label
  return image, mask, spacing_mm.copy()
