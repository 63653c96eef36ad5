"""From prepared data sets to batches: load, batch_at(step).

    examples, class_names = load('abdomen', image_size=128)
    splits = splits.split(examples, mode='blocks')
    hospitals = partitions.partition(examples, splits)

gives {client: {split: Examples}}. Axes: N examples, H height, W width, C
channels, B batch.
"""

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, TypeVar

import jax
import numpy as np
import tqdm
from absl import logging

from ppcmi_jax import datasets, images, processes
from ppcmi_jax import examples as examples_lib

Examples = examples_lib.Examples
T = TypeVar('T')

Window = tuple[float, float]


def load(
  dataset: str,
  *,
  image_size: int,
  data_dir: str | os.PathLike | None = None,
  manual_dir: str | os.PathLike | None = None,
  options: Mapping[str, Any] | None = None,
  channels: int | None = None,
  window: Window | Mapping[str, Window] | None = None,
  warn: Callable[[str], None] = logging.warning,
) -> tuple[Examples, tuple[str, ...]]:
  """Prepares data sets where that was not done before, and reads them.

  Several, joined by '+' ('phantom+abdomen'), are put one behind the other: the
  classes become the union by name, and sites, subjects and cases begin with the
  data set's name ('abdomen-A'), which keeps them apart.

  Args:
    dataset: a name in `datasets.DATASETS`, or several joined by '+'.
    image_size: side of the square that cases are fitted into, pixels.
    data_dir: where prepared data live; tensorflow-datasets' default if None.
    manual_dir: folder of a data set that the user has; of several, the folder
      that holds one of each name.
    options: fields of the builder's configuration (phantom: num_subjects...);
      of several, {name: options}.
    channels: C; 3 repeats grey images, without memory where all are grey.
      As the data are if None.
    window: (lowest, highest) value shown of int16 images; of several data sets,
      one for all that are int16, or {name: window}.
    warn: called with a line about skipped files and vanished structures.

  Returns:
    All examples, and the names of the classes, background first.

  Raises:
    ValueError: an unknown data set or option, damaged files, or images that do
      not go with `channels` or `window`.
  """
  names = dataset.split('+')
  if len(set(names)) < len(names):
    raise ValueError(f'dataset: expected each once, found {dataset!r}')
  several = len(names) > 1
  options = _of_each('dataset_options', options, names)
  windows = _of_each('window', window, names)
  sources, class_names, stored = [], [], []
  for name in names:
    with _readable(name, data_dir):
      builder = datasets.prepare(
        name,
        data_dir=data_dir,
        manual_dir=os.path.join(manual_dir, name)
        if several and manual_dir
        else manual_dir,
        options=options[name],
        warn=warn,
      )
      sources.append(builder.as_data_source('all'))
      class_names.append(tuple(builder.info.metadata['classes']))
      stored.append(builder.info.features['image'])
  _check_windows(windows, {n: f.numpy_dtype for n, f in zip(names, stored)})
  depths = {name: feature.shape[-1] for name, feature in zip(names, stored)}
  channels = _check_channels(depths, channels)
  union = tuple(dict.fromkeys(k for some in class_names for k in some))
  if len({some[0] for some in class_names}) > 1:
    raise ValueError(
      f'dataset: {dataset} name their backgrounds differently: '
      f'{", ".join(some[0] for some in class_names)}; rename class 0 in one'
    )
  count, size = sum(map(len, sources)), image_size
  image = np.zeros((count, size, size, max(depths.values())), np.uint8)
  mask = np.zeros((count, size, size), np.uint8)
  rest = {k: [] for k in Examples._fields[2:]}
  row = 0
  for name, source, some in zip(names, sources, class_names):
    number = np.array([union.index(k) for k in some], np.uint8)
    vanished = np.zeros(len(some), int)
    with _readable(name, data_dir):
      for case in tqdm.tqdm(
        source,
        desc=f'reading {name}',
        leave=False,
        disable=not processes.is_first(),
      ):
        fitted = images.fit(case, size, windows[name])
        image[row] = fitted.pop('image')  # grey spreads over the channels
        mask[row] = number[fitted['mask']]
        pixels, left = (
          np.bincount(one.ravel(), minlength=len(some))
          for one in (case['mask'], fitted.pop('mask'))
        )
        vanished += (pixels > 0) & (left == 0)
        for k, value in fitted.items():
          is_name = several and k in ('subject', 'site', 'case')
          rest[k].append(f'{name}-{value}' if is_name else value)
        row += 1
    for k in np.flatnonzero(vanished[1:]) + 1:
      warn(
        f'{name}: at {size} pixels the class {some[k]!r} vanishes from '
        f'{vanished[k]} cases; a larger image_size keeps more of them'
      )
  image = np.broadcast_to(image, (*image.shape[:-1], channels))
  return Examples(
    image, mask, **{k: np.array(v) for k, v in rest.items()}
  ), union


@contextlib.contextmanager
def _readable(name: str, data_dir: Any) -> Iterator[None]:
  """Says in one line where prepared data are damaged."""
  try:
    yield
  except (ValueError, OSError):
    raise
  except Exception as error:  # damaged files give errors of many kinds
    raise ValueError(
      f'data set {name}: what was prepared in '
      f'{data_dir or "the default folder of tensorflow-datasets"} cannot be '
      f'read ({type(error).__name__}: {error}); delete its folder {name} '
      'there and start again'
    ) from error


def _of_each(field: str, value: Any, names: Sequence[str]) -> dict[str, Any]:
  """Returns {data set: its part of an argument of `load`}."""
  if len(names) == 1 or not value or isinstance(value, (tuple, list)):
    return dict.fromkeys(names, value or None)
  value = dict(value)
  if set(value) - set(names):
    raise ValueError(
      f'{field}: expected one for each of {", ".join(names)}, as '
      f'{{{names[0]!r}: ...}}, found {value}'
    )
  return {name: value.get(name) or None for name in names}


def _check_windows(
  windows: Mapping[str, Window | None], dtypes: Mapping[str, Any]
) -> None:
  for name, window in windows.items():
    if window is None:
      if dtypes[name] == np.int16:
        raise ValueError(
          f'window: the images of {name} are int16 (HU) and need one, found '
          'none; set it to (lowest, highest), such as (-160, 240) for soft '
          'tissue'
        )
    elif (
      len(window) != 2
      or not np.all(np.isfinite(window))
      or not window[0] < window[1]
    ):
      raise ValueError(
        f'window: expected (lowest, highest), found {tuple(window)}'
      )
  if any(windows.values()) and np.int16 not in dtypes.values():
    raise ValueError(
      f'window: only int16 images have one, and {" and ".join(dtypes)} have '
      f'{" and ".join(str(np.dtype(d)) for d in dtypes.values())}; remove it'
    )


def _check_channels(depths: Mapping[str, int], channels: int | None) -> int:
  """Returns C; grey images go with any."""
  found = channels or max(depths.values())
  wrong = {d for d in depths.values() if d not in (1, found)}
  mixed = channels is None and len(set(depths.values())) > 1
  if wrong or mixed:
    text = ', '.join(f'{name} {depth}' for name, depth in depths.items())
    raise ValueError(
      f'channels: expected {found}, found {text}; set channels to '
      f'{max(depths.values())}'
      + (', which repeats grey images' if mixed else '')
    )
  return found


def balanced_order(groups: np.ndarray) -> np.ndarray:
  """Returns row numbers in which every group occurs (nearly) equally often.

  Args:
    groups: integer [N], the group of each row, such as its client.
  """
  rows = [np.flatnonzero(groups == g) for g in np.unique(groups)]
  longest = max(map(len, rows))
  return np.concatenate([np.resize(r, longest) for r in rows])


_last = threading.local()


def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
  """Returns the order of an epoch.

  Each thread keeps its last, as the next steps ask for it again: networks that
  train side by side have a thread each.
  """
  drawn = seed, epoch, length
  if getattr(_last, 'drawn', None) != drawn:
    _last.order = np.random.default_rng([seed, epoch]).permutation(length)
    _last.drawn = drawn
  return _last.order


def batch_at(
  arrays: Any,
  step: int,
  *,
  order: np.ndarray,
  batch_size: int,
  seed: int,
  parts: int | None = None,
) -> dict[str, Any]:
  """Returns the batch of a step, [parts, B / all parts, ...].

  A pure function: epochs are permutations of `order` drawn from (seed, epoch),
  laid end to end and cut into batches. Each process makes its own share.

  Args:
    arrays: a dict of arrays, or trees of arrays, [N, ...].
    step: from 0.
    order: rows to draw from; a row may stand there several times.
    batch_size: B, over all devices of all processes.
    seed: of the order.
    parts: devices of this process that share it; by default all.

  Returns:
    The rows drawn, and 'slot' int32, the place of each in the global batch.
  """
  slots = np.arange(batch_size).reshape(jax.process_count(), -1)
  slots = slots[jax.process_index()]
  stream = step * batch_size + slots
  rows = np.empty(len(slots), np.int64)
  for epoch in np.unique(stream // len(order)):
    here = stream // len(order) == epoch
    places = _permutation(seed, int(epoch), len(order))
    rows[here] = order[places[stream[here] % len(order)]]
  batch = {**examples_lib.take(arrays, rows), 'slot': slots.astype(np.int32)}
  parts = parts or jax.local_device_count()
  return jax.tree.map(
    lambda a: a.reshape(parts, len(slots) // parts, *a.shape[1:]), batch
  )


def ahead(
  call: Callable[[int], T], numbers: Iterable[int], *, depth: int = 2
) -> Iterator[T]:
  """Yields call(number) for each, made by a thread before it is asked for.

  What a call raises is raised where its result would be; closing the iterator
  ends the thread.

  >>> list(ahead(lambda step: step**2, range(4)))
  [0, 1, 4, 9]

  Args:
    call: such as `batch_at` of a step.
    numbers: of the calls.
    depth: how many results may wait.
  """
  with futures.ThreadPoolExecutor(max_workers=1) as pool:
    waiting: collections.deque[futures.Future[T]] = collections.deque()
    for number in numbers:
      waiting.append(pool.submit(call, number))
      if len(waiting) > depth:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
