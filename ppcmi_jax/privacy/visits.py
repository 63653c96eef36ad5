"""Several images of each subject, to be linked.

Best are the data set's own, such as frames of a video. A phantom can be
visited as often as one likes. Else augmented copies of one image stand for
visits, an easier task in the same anatomy and a harder one in its place: that
has to be said beside the figure.

Axes: N images, H height, W width, C channels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ppcmi_jax import augmentation, images
from ppcmi_jax import examples as examples_lib
from ppcmi_jax.datasets import phantom_rendering

LEAST_SUBJECTS = 8
LINKED_PAIRS = 4000  # of images of one subject, where they can be had


class Visits(NamedTuple):
  """Images of subjects, in no order.

  Attributes:
    image: float32 [N, H, W, C] in [0, 1]; N is 0 where there are none.
    subject: strings [N].
    note: what they are, or why there are none.
  """

  image: np.ndarray
  subject: np.ndarray
  note: str


def collect(
  config: Any,
  parts: Mapping[str, examples_lib.Examples],
  *,
  most: int,
  seed: int,
) -> Visits:
  """Returns several images of each subject of one client.

  Args:
    config: of the run.
    parts: {split: Examples} of the client.
    most: images.
    seed: of augmentation.
  """
  whole = jax.tree.map(lambda *a: np.concatenate(a), *parts.values())
  image = np.asarray(images.unit_image(whole.image))
  names, first, count = np.unique(
    whole.subject, return_index=True, return_counts=True
  )
  several = names[count > 1]
  if len(several) >= LEAST_SUBJECTS:
    rows = _whole_subjects(whole.subject, several, most)
    return Visits(image[rows], whole.subject[rows], 'images of the data set')
  if len(names) < LEAST_SUBJECTS:
    why = f'{len(names)} subjects, fewer than {LEAST_SUBJECTS}'
    return Visits(image[:0], whole.subject[:0], why)

  some = _spread(len(names), most // 2)
  names, first = names[some], first[some]
  each = _each(len(names), most // len(names))
  subject = np.repeat(names, each)
  if config.dataset == 'phantom':
    visits = np.stack(
      [
        _visit(config, whole.subject[row], whole.site[row], visit)
        for row in first
        for visit in range(each)
      ]
    )
    visits = np.broadcast_to(visits, (*visits.shape[:-1], image.shape[-1]))
    return Visits(visits, subject, f'{each} visits of each phantom')
  if not config.augment:
    why = 'one image of each subject, and nothing is augmented'
    return Visits(image[:0], whole.subject[:0], why)
  note = 'augmented copies of one image, as there are no visits'
  return Visits(
    augmented(config, image[np.repeat(first, each)], seed=seed)[0],
    subject,
    note,
  )


def _whole_subjects(subject, several, most):
  """Returns the rows of at most so many images, 2 or more of each subject."""
  several = several[_spread(len(several), most // 2)]
  each = _each(len(several), most // LEAST_SUBJECTS)
  rows, room = [], most
  for number, name in enumerate(several):
    # What is left, and not so much that the next are left without.
    fair = max(2, room // (len(several) - number))
    own = np.flatnonzero(subject == name)
    rows.append(own[_spread(len(own), min(each, fair))])
    room -= len(rows[-1])
  return np.sort(np.concatenate(rows))


def _each(subjects, most):
  """Returns how many images of each subject make enough pairs, 2 at least."""
  # f (f - 1) / 2 pairs a subject.
  each = np.ceil(0.5 + np.sqrt(0.25 + 2 * LINKED_PAIRS / subjects))
  return int(np.clip(each, 2, max(2, most)))


def _spread(count, most):
  """Returns at most so many of the numbers below count, evenly spread."""
  return np.linspace(0, count - 1, min(most, count)).astype(int)


def augmented(
  config: Any,
  image: np.ndarray,
  mask: np.ndarray | None = None,
  *,
  seed: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns a variation of each pair, as contributions are varied.

  Args:
    config: of the run.
    image: float32 [N, H, W, C] in [0, 1].
    mask: uint8 [N, H, W], or None for zeros.
    seed: of the draws.
  """
  if mask is None:
    mask = np.zeros(image.shape[:3], np.uint8)
  options = {**config.augment, 'probability': 1.0}
  augment = jax.jit(lambda *batch: augmentation.augment(*batch, **options))
  keys = jax.random.split(jax.random.key(seed), max(1, len(image)))
  batches = [
    jax.device_get(augment(keys[part], image[part], mask[part]))
    for part in np.array_split(np.arange(len(image)), -(-len(image) // 64))
  ]
  return tuple(np.concatenate(x) for x in zip(*batches))


def _visit(config, subject, site, visit):
  options = dict(config.dataset_options)
  image, mask, spacing_mm = phantom_rendering.render(
    seed=options.get('seed', 0),
    subject=int(subject[1:]),
    site=int(site),
    visit=visit,
    size=options.get('size', 256),
  )
  case = {
    'image': image,
    'mask': mask,
    'spacing_mm': spacing_mm,
    'position': visit,
    **dict.fromkeys(('subject', 'site', 'case'), b''),
  }
  return np.float32(images.fit(case, config.image_size)['image']) / 255
