"""What runs beside the networks: the input pipeline and the scores."""

import functools
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks import measure, networks
from benchmarks import sizes as sizes_lib
from ppcmi_jax import (
  augmentation,
  image_metrics,
  images,
  input_pipeline,
  metrics,
  train_step,
)

STORED = 512  # side of a stored case, as CT slices have
CASES = 256


def pipeline(size: sizes_lib.Size) -> Iterator[measure.Case]:
  """Yields what makes batches: fitting, drawing, transfer, augmentation."""
  config, rng = size.method(), np.random.default_rng(0)
  channels = config.image_channels
  case = {
    'image': rng.integers(0, 256, (STORED, STORED, channels), np.uint8),
    'mask': np.zeros((STORED, STORED), np.uint8),
    'spacing_mm': np.ones(2, np.float32),
    'position': 0,
    **dict.fromkeys(('subject', 'site', 'case'), b'1'),
  }
  fit = lambda _: images.fit(case, config.image_size)
  yield measure.Case([(f'fit {STORED}x{STORED}', fit)], 1)

  batch = size.step_batch or config.autoencoder_batch_size
  arrays = {'image': size.images(CASES), 'mask': size.masks(CASES)}
  yield _batches('images', arrays, batch)
  pairs = jax.device_get(networks.mapping_batch(size, CASES))
  yield _batches('latents', pairs, size.step_batch or config.mapping_batch_size)
  options = dict(config.augment)
  augment = lambda keys, image, mask: augmentation.augment(
    keys, images.unit_image(image), mask, **options
  )
  keys = jax.random.split(jax.random.key(0), batch)
  yield measure.jitted(
    'augment', augment, keys, size.images(batch), size.masks(batch), batch=batch
  )


def _batches(what, arrays, batch_size):
  """Returns the case of a batch drawn, and put where a step takes it."""
  turn = iter(range(2**31))
  shared = train_step.sharding(jax.devices(), 'batch')

  def draw(_):
    return input_pipeline.batch_at(
      arrays, next(turn), order=np.arange(CASES), batch_size=batch_size, seed=0
    )

  put = lambda batch: jax.device_put(batch, shared)
  stages = [(f'draw {what}', draw), (f'{what} to the devices', put)]
  return measure.Case(stages, batch_size)


def scores(size: sizes_lib.Size) -> Iterator[measure.Case]:
  """Yields the evaluation's metrics, one structure of all cases."""
  batch = max(size.batches)
  truth, prediction = (size.masks(batch, seed) == 1 for seed in (0, 1))
  image, other = (size.images(batch, seed) / 255 for seed in (0, 1))
  score = functools.partial(
    metrics.segmentation_scores,
    prediction=prediction,
    truth=truth,
    spacing_mm=np.ones((batch, 2)),
  )
  yield measure.Case([('segmentation scores', lambda _: score())], batch)
  for name, metric in (
    ('PSNR', image_metrics.psnr),
    ('SSIM', image_metrics.ssim),
  ):
    compare = functools.partial(metric, prediction=other, truth=image)
    yield measure.Case([(name, lambda _, compare=compare: compare())], batch)
