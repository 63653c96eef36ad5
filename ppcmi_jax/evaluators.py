"""Evaluators: score a predict function on examples, {metric: value}.

An evaluator knows nothing of networks: what it scores is a function from a
batch to a batch (for `shape_prior` the training masks), so the same code scores
this method, a baseline, or a constant. `examples` is anything with the
attributes

* image: uint8, or float32 in [0, 1], [N, H, W, C];
* mask: uint8 [N, H, W], indices into `class_names` (background first);
* spacing_mm: float [N, 2], row then column;
* subject, site, case: [N], names (text, bytes or numbers).

Axes: N examples, B batch, H height, W width, C channels, K classes.

>>> import types
>>> examples = types.SimpleNamespace(
...   image=np.zeros([2, 4, 4, 1], np.uint8),
...   mask=np.eye(4, dtype=np.uint8)[None].repeat(2, axis=0),
...   spacing_mm=np.ones([2, 2]),
...   subject=['p1', 'p2'], site=['A', 'A'], case=['p1/0', 'p2/0'],
... )
>>> result = segmentation(
...   lambda image: np.eye(4, dtype=np.uint8)[None].repeat(len(image), axis=0),
...   examples, class_names=('background', 'organ'),
... )
>>> result['organ']['dice'], result['organ']['n'], result['mean']['hd95_mm']
(1.0, 2, 0.0)
>>> result['organ']['ci95']['dice'], result['settings']['num_subjects']
([1.0, 1.0], 2)
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ppcmi_jax import examples as examples_lib
from ppcmi_jax import image_metrics, images, metrics, score_table

Predict = Callable[[np.ndarray], ArrayLike]
BATCH_SIZE = 16


def segmentation(
  predict: Predict,
  examples: Any,
  *,
  batch_size: int = BATCH_SIZE,
  **options: Any,
) -> dict[str, Any]:
  """Scores the masks predicted from images.

  Args:
    predict: image float32 [B, H, W, C] in [0, 1] -> integer labels [B, H, W].
      Every call gets the same B, so a compiled function compiles once; the
      last batch is filled up by repeating its last example.
    examples: the examples to score (module docstring).
    batch_size: B, less where there are fewer examples.
    **options: of `score_table.score_labels`, the names of the classes at least.

  Returns:
    What the docstring of `score_table` describes: for each foreground class,
    for all of them merged ('foreground') and for their 'mean', the mean of
    each metric over cases, its standard deviation over cases ('std'), its
    95 % interval over subjects ('ci95') and counts; and the rows 'per_case'.

  Raises:
    ValueError: no examples, images out of range, or what `score_labels` raises.
  """
  predicted = _in_batches(
    lambda image: predict(_unit_range(image)),
    np.asarray(examples.image),
    batch_size=batch_size,
  )
  return score_table.score_labels(predicted, examples, **options)


def mask_reconstruction(
  predict: Predict,
  examples: Any,
  *,
  batch_size: int = BATCH_SIZE,
  **options: Any,
) -> dict[str, Any]:
  """Scores masks that went through the mask autoencoder and back.

  What it loses, no mapping network can win back: the method's ceiling.

  Args:
    predict: mask uint8 [B, H, W] -> integer labels [B, H, W].
    examples: the examples to score (module docstring).
    batch_size, **options: as in `segmentation`.

  Returns:
    What `segmentation` returns.

  Raises:
    ValueError: as `segmentation`.
  """
  masks = np.asarray(examples.mask)
  predicted = _in_batches(predict, masks, batch_size=batch_size)
  return score_table.score_labels(predicted, examples, **options)


def shape_prior(
  training_masks: ArrayLike,
  examples: Any,
  *,
  class_names: Sequence[str],
  **options: Any,
) -> dict[str, Any]:
  """Scores `metrics.fit_shape_prior`, which never looks at the image.

  The floor: a segmentation is worth what it scores above this.

  Args:
    training_masks: uint8 [M, H, W], of the training split.
    examples: the examples to score (module docstring).
    class_names: K names, background first.
    **options: as in `segmentation`.

  Returns:
    What `segmentation` returns.

  Raises:
    ValueError: as `segmentation` and `metrics.fit_shape_prior`.
  """
  prior = metrics.fit_shape_prior(training_masks, len(class_names))
  predicted = np.broadcast_to(prior, (len(examples.mask), *prior.shape))
  return score_table.score_labels(
    predicted, examples, class_names=class_names, **options
  )


def reconstruction(
  predict: Predict, examples: Any, *, batch_size: int = BATCH_SIZE
) -> dict[str, float]:
  """Scores images that went through the image autoencoder and back.

  Args:
    predict: image float32 [B, H, W, C] in [0, 1] -> the same, floating point.
    examples: the examples to score (module docstring).
    batch_size: B, as in `segmentation`.

  Returns:
    'psnr_db' and 'ssim', means over the images, and their number 'n'.

  Raises:
    ValueError: no examples, or a prediction of the wrong shape or range.
  """

  def score(image):
    truth = _unit_range(image)
    prediction = np.asarray(predict(truth))
    return np.stack(
      [
        image_metrics.psnr(prediction=prediction, truth=truth),
        image_metrics.ssim(prediction=prediction, truth=truth),
      ],
      axis=-1,
    )

  scores = _in_batches(score, np.asarray(examples.image), batch_size=batch_size)
  psnr_db, ssim = np.mean(scores, axis=0)
  return {'psnr_db': float(psnr_db), 'ssim': float(ssim), 'n': len(scores)}


def _in_batches(
  predict: Predict, inputs: np.ndarray, *, batch_size: int
) -> np.ndarray:
  """Applies predict to [N, ...] in batches of one shape."""
  if batch_size < 1:
    raise ValueError(f'batch_size must be at least 1, found {batch_size}')
  if not len(inputs):
    raise ValueError('examples must hold at least one example, found none')

  def checked(batch):
    output = np.asarray(predict(batch))
    if output.shape[:1] != batch.shape[:1]:
      raise ValueError(
        f'predict must return {len(batch)} results for a batch of '
        f'{len(batch)}, found an array of shape {list(output.shape)}'
      )
    return output

  return examples_lib.map_batches(checked, inputs, batch_size)


def _unit_range(image: ArrayLike) -> np.ndarray:
  """Returns images as float32 in [0, 1]; uint8 is divided by 255."""
  image = images.unit_image(np.asarray(image))
  image_metrics.check_unit_range(image, name='image')
  return image
