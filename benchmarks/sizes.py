"""How large: which configurations and shapes a size stands for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from configs import abdomen, smoke, study
from ppcmi_jax import learners


class Size(NamedTuple):
  """What is measured at a size.

  Attributes:
    config: method -> configuration.
    num_classes: of masks, background included.
    batches: of inference.
    step_batch: of training steps; None for the configuration's.
    steps: names of those to take; all if empty.
  """

  config: Callable[[str], Any]
  num_classes: int
  batches: tuple[int, ...] = (1, 16)
  step_batch: int | None = None
  steps: tuple[str, ...] = ()

  @property
  def image_size(self) -> int:
    return self.config('ppcmi_sf').image_size

  def method(self) -> Any:
    """Returns the configuration of the protected method at this size."""
    return self.config('ppcmi_sf')

  def computing_in(self, dtype: str) -> 'Size':
    """Returns the same size with networks that compute in a dtype."""

    def configured(method):
      config = self.config(method)
      config.compute_dtype = dtype
      return config

    return self._replace(config=configured)

  def learners(self) -> learners.Learners:
    """Returns the autoencoders at this size."""
    config = self.method()
    return learners.autoencoders(
      config, channels=config.image_channels, num_classes=self.num_classes
    )

  def images(self, batch: int, seed: int = 0) -> np.ndarray:
    """Returns noise as images, uint8 [B, H, W, C]."""
    config, rng = self.method(), np.random.default_rng(seed)
    shape = batch, config.image_size, config.image_size, config.image_channels
    return rng.integers(0, 256, shape, np.uint8)

  def masks(self, batch: int, seed: int = 0) -> np.ndarray:
    """Returns masks of one disc a class, uint8 [B, H, W]."""
    rng, size = np.random.default_rng(seed), self.image_size
    y, x = np.mgrid[:size, :size] / size
    masks = np.zeros((batch, size, size), np.uint8)
    for mask in masks:
      for k in range(1, self.num_classes):
        (row, column), radius = rng.uniform(0.2, 0.8, 2), rng.uniform(0.05, 0.2)
        mask[(y - row) ** 2 + (x - column) ** 2 < radius**2] = k
    return masks

  def pairs(self, batch: int) -> dict[str, np.ndarray]:
    """Returns images and masks as a training batch."""
    return {'image': self.images(batch), 'mask': self.masks(batch)}


def _official(method: str) -> Any:
  return abdomen.get_full_config('official' if method == 'ppcmi_sf' else method)


# Of the configurations' data sets: smoke and study have two structures, abdomen
# seven, the data set of the official code two. Full is our default at the size
# of the paper's data, official what the official code has there.
SIZES = {
  'small': Size(smoke.get_config, 3, batches=(1,)),
  'study': Size(study.get_config, 3),
  'default': Size(abdomen.get_config, 8),
  'full': Size(abdomen.get_full_config, 8),
  'official': Size(_official, 3),
}
