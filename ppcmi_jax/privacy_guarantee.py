"""What a training with differential privacy promises, and its accountant.

Who receives the trained network learns little about any one unit of the
training data, measured by (epsilon, delta). `private_training` trains so; this
computes epsilon from its settings, before any data are there. The accountant is
that of dp_accounting, which the optional package jax-privacy brings.

  >>> print(Guarantee(2.0, 1e-5, 'subject', 1.1, 0.05, 800, 1.0, 200, ()))
  (2.000, 1e-05)-DP for one subject of 200, added or removed: noise 1.1, \
sampling rate 0.05, 800 steps, clipped at 1
"""

import importlib.util
import json
import math
from typing import NamedTuple

from ppcmi_jax import workdir as workdir_lib

FILE = 'privacy_guarantee.json'  # in the workdir


class Guarantee(NamedTuple):
  """What a private training promises; print it.

  Attributes:
    epsilon, delta: of (epsilon, delta)-differential privacy.
    unit: 'subject' or another, that may be added or removed.
    noise_multiplier: standard deviation of the noise over clip_norm.
    sampling_rate: probability of a unit to be in a step's batch.
    steps: taken.
    clip_norm: largest norm of a unit's gradient.
    num_units: there were.
    notes: lines on what limits the guarantee.
  """

  epsilon: float
  delta: float
  unit: str
  noise_multiplier: float
  sampling_rate: float
  steps: int
  clip_norm: float
  num_units: int
  notes: tuple[str, ...]

  def __str__(self) -> str:
    lines = (
      f'({self.epsilon:.3f}, {self.delta:g})-DP for one {self.unit} of '
      f'{self.num_units}, added or removed: noise {self.noise_multiplier:g}, '
      f'sampling rate {self.sampling_rate:.3g}, {self.steps} steps, clipped at '
      f'{self.clip_norm:g}',
      *self.notes,
    )
    return '; '.join(lines)

  def write(self, workdir: workdir_lib.Workdir) -> None:
    """Writes it to a run's privacy_guarantee.json."""
    text = json.dumps(self._asdict(), indent=2) + '\n'
    workdir_lib.write_text(workdir.path / FILE, text)

  @classmethod
  def read(cls, workdir: workdir_lib.Workdir) -> 'Guarantee':
    """Returns what `write` wrote; ValueError if that is damaged."""
    path = workdir.path / FILE
    remedy = 'restore it, or train again in another --workdir'
    if not path.exists():
      raise ValueError(f'{path}: missing; {remedy}')
    found = workdir_lib.read_object(path, remedy)
    if set(found) != set(cls._fields):
      raise ValueError(
        f'{path}: expected {", ".join(cls._fields)}, found '
        f'{", ".join(found)}; {remedy}'
      )
    return cls(**{**found, 'notes': tuple(found['notes'])})


def check(*, noise_multiplier: float, clip_norm: float, delta: float) -> None:
  """Raises ValueError for settings that no data could make sense of.

  Where there is noise, that is also said of a missing package, which could only
  be missed after hours of preparation otherwise.
  """
  for name, value, good, expected in (
    ('noise_multiplier', noise_multiplier, noise_multiplier >= 0, 'at least 0'),
    ('clip_norm', clip_norm, clip_norm > 0, 'above 0'),
    ('delta', delta, 0 < delta < 1, 'between 0 and 1'),
  ):
    if not (good and math.isfinite(value)):
      raise ValueError(f'{name}: expected a number {expected}, found {value}')
  if noise_multiplier and importlib.util.find_spec('jax_privacy') is None:
    raise ValueError(
      'noise_multiplier: above 0 needs the package jax-privacy, which is not '
      "installed; run python -m pip install -e '.[privacy]'"
    )


def check_units(num_units: int, *, expected_batch: int, delta: float) -> None:
  """Raises ValueError for settings that so many units make no sense of."""
  if not 0 < delta < 1 / num_units:
    raise ValueError(
      f'delta: expected above 0 and below one over the {num_units} units, '
      f'found {delta:g}; a tenth of that is usual'
    )
  if not 1 <= expected_batch <= num_units:
    raise ValueError(
      f'expected_batch: expected 1 to the {num_units} units, found '
      f'{expected_batch}; for the mapping network it is mapping_batch_size'
    )


def epsilon(
  *,
  noise_multiplier: float,
  num_units: int,
  expected_batch: int,
  steps: int,
  delta: float,
) -> float:
  """Returns epsilon of DP-SGD with Poisson sampling.

  By the privacy loss distributions of dp-accounting, one unit added or removed;
  infinite without noise.
  """
  if noise_multiplier == 0:
    return math.inf
  import dp_accounting  # optional, and slow to import

  accountant = dp_accounting.pld.PLDAccountant(
    dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
  )
  step = dp_accounting.PoissonSampledDpEvent(
    expected_batch / num_units, dp_accounting.GaussianDpEvent(noise_multiplier)
  )
  return float(accountant.compose(step, steps).get_epsilon(delta))
