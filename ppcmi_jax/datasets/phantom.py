"""Serves seeded transperineal ultrasound phantoms with tfds.

The PSFH / FH-PS-AOP images cannot be shipped, so tests and first experiments
run on phantoms in their likeness: a convex probe looks at a pubic symphysis and
at a fetal head whose skull reflects and shadows. Every phantom is a pure
function of (seed, subject, visit, site), drawn by `phantom_rendering.render`.
How far a network has to look is measured, not assumed: see `phantom_criteria`.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ppcmi_jax.datasets import phantom_rendering


def site_of(subject: int) -> int:
  """Names the site that a subject of `Phantom` belongs to."""
  return subject % len(phantom_rendering.SITES) + 1


@dataclasses.dataclass(eq=False, kw_only=True)
class PhantomConfig(tfds.core.BuilderConfig):
  """Says which phantoms a builder draws; its name encodes all of it.

  Raises ValueError if a count is below 1.
  """

  name: str = ''
  num_subjects: int = 240
  visits: int = 1
  size: int = 256
  seed: int = 0

  def __post_init__(self):
    for field, least in (('num_subjects', 1), ('visits', 1), ('seed', 0)):
      if getattr(self, field) < least:
        raise ValueError(
          f'{field} must be at least {least}, got {getattr(self, field)}'
        )
    if self.size < 16:
      raise ValueError(f'size must be at least 16 pixels, got {self.size}')
    self.name = (
      f'subjects{self.num_subjects}_visits{self.visits}'
      f'_size{self.size}_seed{self.seed}'
    )


class Phantom(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Builds phantoms of three sites; subject i belongs to `site_of(i)`.

      builder = Phantom(data_dir=..., config=PhantomConfig(num_subjects=60))
      builder.download_and_prepare()
      source = builder.as_data_source('all')

  The only split is stored as 'train', as 'all' is tensorflow-datasets' word for
  the union of the splits. Examples lie in the order of (subject, visit).
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: dict[str, str] = {'1.0.0': 'First release.'}  # noqa: RUF012
  BUILDER_CONFIGS: list[PhantomConfig] = [PhantomConfig()]  # noqa: RUF012

  def __init__(self, *, file_format: Any = 'array_record', **kwargs: Any):
    # The default of tensorflow-datasets needs TensorFlow to be read.
    super().__init__(file_format=file_format, **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    size = self.builder_config.size
    return tfds.core.DatasetInfo(
      builder=self,
      description='Seeded transperineal ultrasound phantoms.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Tensor(shape=(size, size, 1), dtype=np.uint8),
          'mask': tfds.features.Tensor(shape=(size, size), dtype=np.uint8),
          'spacing_mm': tfds.features.Tensor(shape=(2,), dtype=np.float32),
          'subject': tfds.features.Text(),
          'site': tfds.features.Text(),
          'case': tfds.features.Text(),
          'position': tfds.features.Scalar(np.int32),
        }
      ),
      metadata=tfds.core.MetadataDict(
        {'classes': list(phantom_rendering.CLASSES)}
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    config = self.builder_config
    for subject in range(config.num_subjects):
      for visit in range(config.visits):
        image, mask, spacing_mm = phantom_rendering.render(
          seed=config.seed,
          subject=subject,
          visit=visit,
          site=site_of(subject),
          size=config.size,
        )
        case = f's{subject:05d}v{visit:03d}'
        yield (
          subject * config.visits + visit,
          {
            'image': image,
            'mask': mask,
            'spacing_mm': spacing_mm,
            'subject': f's{subject:05d}',
            'site': str(site_of(subject)),
            'case': case,
            'position': visit,
          },
        )
