"""Tests of input_pipeline.py: data sets loaded and joined, batches."""

import collections
import dataclasses
import threading

import hypothesis
import jax
import ml_collections
import numpy as np
import pytest
from hypothesis import strategies as st

from ppcmi_jax import datasets, input_pipeline
from ppcmi_jax import examples as examples_lib
from ppcmi_jax.datasets import manual

SETTINGS = hypothesis.settings(deadline=None, max_examples=60)
PHANTOM = {'num_subjects': 4, 'size': 32}


def test_balanced_order_repeats_the_small_groups():
  groups = np.array([3, 0, 0, 3, 0, 0, 1, 0, 3])
  order = input_pipeline.balanced_order(groups)
  assert collections.Counter(groups[order]) == {0: 5, 1: 5, 3: 5}
  times = np.bincount(order, minlength=9)
  for group in (0, 1, 3):
    own = times[groups == group]
    assert own.min() >= 1 and own.max() - own.min() <= 1


def draw(steps, batch_size, order, seed=0):
  arrays = {'row': np.arange(100), 'tree': {'twice': 2 * np.arange(100)}}
  batches = [
    input_pipeline.batch_at(
      arrays, step, order=order, batch_size=batch_size, seed=seed
    )
    for step in steps
  ]
  for batch in batches:
    assert batch['row'].shape == (1, batch_size)  # [devices, B / devices]
    np.testing.assert_array_equal(batch['tree']['twice'], 2 * batch['row'])
    np.testing.assert_array_equal(batch['slot'][0], np.arange(batch_size))
    assert batch['slot'].dtype == np.int32
  return np.concatenate([batch['row'][0] for batch in batches])


@SETTINGS
@hypothesis.given(
  order=st.lists(st.integers(0, 99), min_size=1, max_size=12),
  batch_size=st.integers(1, 9),
  seed=st.integers(0, 3),
)
def test_epochs_are_permutations_laid_end_to_end(order, batch_size, seed):
  order = np.array(order)  # rows may stand there several times
  epochs = 3
  steps = -(-epochs * len(order) // batch_size)
  stream = draw(range(steps), batch_size, order, seed)
  for epoch in stream[: epochs * len(order)].reshape(epochs, -1):
    np.testing.assert_array_equal(np.sort(epoch), np.sort(order))
  # A pure function of the step: the last one alone is the same.
  np.testing.assert_array_equal(
    stream[-batch_size:], draw([steps - 1], batch_size, order, seed)
  )


def test_epochs_and_seeds_differ():
  order = np.arange(40)
  a, b = draw([0], 40, order), draw([1], 40, order)
  c = draw([0], 40, order, seed=1)
  assert len({tuple(rows) for rows in (a, b, c, order)}) == 4


def test_a_pass_is_ordered_once(monkeypatch):
  drawn, generator = [], np.random.default_rng
  monkeypatch.setattr(
    np.random, 'default_rng', lambda s: drawn.append(s) or generator(s)
  )
  draw(range(25), 4, np.arange(40), seed=97)  # two passes and a half
  assert drawn == [[97, 0], [97, 1], [97, 2]]


def test_networks_side_by_side_keep_their_orders(monkeypatch):
  drawn, generator = [], np.random.default_rng
  monkeypatch.setattr(
    np.random, 'default_rng', lambda s: drawn.append(s) or generator(s)
  )
  turns = [
    input_pipeline.ahead(
      lambda step, seed=seed: draw([step], 4, np.arange(40), seed), range(20)
    )
    for seed in (97, 98, 99)
  ]
  for _ in zip(*turns, strict=True):  # two passes of each, in turn
    pass
  assert sorted(drawn) == [[s, e] for s in (97, 98, 99) for e in (0, 1)]


def test_processes_and_devices_share_a_batch(monkeypatch):
  arrays, order = {'row': np.arange(20)}, np.arange(20)
  at = lambda: input_pipeline.batch_at(
    arrays, 3, order=order, batch_size=8, seed=5
  )
  whole = at()
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(jax, 'local_device_count', lambda: 2)
  shares = []
  for index in (0, 1):
    monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
    shares.append(at())
    assert shares[-1]['row'].shape == (2, 2)
  for name in ('row', 'slot'):
    together = np.concatenate([share[name].ravel() for share in shares])
    np.testing.assert_array_equal(together, whole[name].ravel())


def test_a_prepared_data_set_is_loaded(tmp_path):
  load = lambda size: input_pipeline.load(
    'phantom',
    image_size=size,
    data_dir=tmp_path,
    options={'num_subjects': 4, 'size': 32},
  )
  examples, class_names = load(32)
  assert class_names[0] == 'background' and len(class_names) == 3
  assert examples.image.shape == (4, 32, 32, 1)
  assert examples.mask.shape == (4, 32, 32)
  assert examples.image.dtype == examples.mask.dtype == np.uint8
  assert examples.spacing_mm.dtype == np.float32
  assert examples.position.dtype == np.int32
  assert list(examples.subject) == [f's{i:05d}' for i in range(4)]
  assert list(examples.site) == ['1', '2', '3', '1']
  assert set(np.unique(examples.mask)) <= {0, 1, 2}
  assert set(examples.arrays()) == {'image', 'mask'}
  small, _ = load(16)
  np.testing.assert_allclose(small.spacing_mm, 2 * examples.spacing_mm)
  blocks = np.float32(examples.image).reshape(4, 16, 2, 16, 2, 1)
  # Pillow rounds after each of the two axes.
  np.testing.assert_allclose(small.image, blocks.mean((2, 4)), atol=1)


@dataclasses.dataclass(eq=False, kw_only=True)
class FolderConfig(manual.ManualConfig):
  """Of the data sets that tests make up."""


def folder_of(name, dtype=np.uint8, channels=1, classes=('background', 'a')):
  """Returns a builder class that makes four cases of 12 x 10 pixels."""

  def records(self, folder):
    def read(number):
      image = np.full((12, 10, channels), number, dtype)
      mask = np.zeros((12, 10), np.uint8)
      mask[2:8, 2:6] = len(classes) - 1
      mask[0, 0] = 1
      return [
        {
          'image': image,
          'mask': mask,
          'spacing_mm': np.float32([1, 2]),
          'subject': f's{number}',
          'site': 'x',
          'case': f'c{number}',
          'position': number,
        }
      ]

    (folder / 'here').stat()  # the right folder
    return [
      manual.Record(f'{i}', lambda i=i: read(np.array(i, dtype)))
      for i in range(4)
    ]

  return type(
    name.capitalize(),
    (manual.ManualBuilder,),
    {
      'DESCRIPTION': name,
      'DTYPE': dtype,
      'CHANNELS': channels,
      'classes': property(lambda self: classes),
      'records': records,
      'name': name,
      '__module__': __name__,
    },
    skip_registration=True,
  )


@pytest.fixture
def add(monkeypatch, tmp_path):
  """Puts a made-up data set into the registry, and its folder into a folder."""

  def add_one(name, **kwargs):
    monkeypatch.setitem(datasets.DATASETS, name, folder_of(name, **kwargs))
    monkeypatch.setitem(datasets.CONFIGS, name, FolderConfig)
    (tmp_path / 'manual' / name).mkdir(parents=True)
    (tmp_path / 'manual' / name / 'here').touch()

  return add_one


@pytest.fixture
def load(tmp_path):
  def load_at(dataset, size=12, **kwargs):
    folder = tmp_path / 'manual'
    return input_pipeline.load(
      dataset,
      image_size=size,
      data_dir=tmp_path / 'data',
      manual_dir=folder if '+' in dataset else folder / dataset,
      **kwargs,
    )

  return load_at


def test_data_sets_are_joined(load, add):
  add('rays', classes=('background', 'bone', 'pubic symphysis'))
  examples, names = load(
    'phantom+rays',
    options=ml_collections.ConfigDict({'phantom': PHANTOM}),
  )
  assert names == ('background', 'pubic symphysis', 'fetal head', 'bone')
  assert examples.image.shape == (8, 12, 12, 1)
  assert [str(s) for s in examples.site] == [
    'phantom-1', 'phantom-2', 'phantom-3', 'phantom-1', *4 * ['rays-x']
  ]  # fmt: skip
  assert list(examples.subject[3:5]) == ['phantom-s00003', 'rays-s0']
  assert list(examples.case[3:5]) == ['phantom-s00003v000', 'rays-c0']
  assert list(examples.position) == [0, 0, 0, 0, 0, 1, 2, 3]
  assert examples.position.dtype == np.int32
  assert examples.spacing_mm.dtype == np.float32
  alone, _ = load('rays')
  np.testing.assert_array_equal(
    examples.mask[4:], np.array([0, 3, 1])[alone.mask]
  )
  np.testing.assert_array_equal(examples.image[4:], alone.image)
  assert list(alone.site) == 4 * ['x'] and alone.case[0] == 'c0'
  phantom, _ = load('phantom', options=PHANTOM)
  np.testing.assert_array_equal(examples.mask[:4], phantom.mask)


def test_grey_images_are_repeated_without_memory(load, add):
  add('grey')
  examples, _ = load('grey', channels=3)
  assert examples.image.shape == (4, 12, 12, 3)
  assert examples.image.strides[-1] == 0
  part = examples_lib.take(examples, np.array([2, 0]))
  assert part.image.shape == (2, 12, 12, 3) and part.image.strides[-1] == 0
  assert part.image[:, 5, 5].tolist() == [[2, 2, 2], [0, 0, 0]]
  batch = input_pipeline.batch_at(
    examples.arrays(), 0, order=np.arange(4), batch_size=4, seed=0
  )
  assert batch['image'].shape == (1, 4, 12, 12, 3)
  assert jax.numpy.asarray(batch['image']).shape == (1, 4, 12, 12, 3)


def test_grey_beside_colour(load, add):
  add('grey')
  add('colour', channels=3)
  examples, _ = load('grey+colour', channels=3)
  assert examples.image.shape == (8, 12, 12, 3)
  for row in range(8):
    assert np.all(examples.image[row, 5, 5] == row % 4)
  for dataset, channels, expected in (
    ('grey+colour', None, 'found grey 1, colour 3; set channels to 3, which'),
    ('grey+colour', 1, 'channels: expected 1, found grey 1, colour 3'),
    ('colour', 1, 'expected 1, found colour 3; set channels to 3'),
    ('colour', 2, 'expected 2, found colour 3'),
  ):
    with pytest.raises(ValueError, match=expected):
      load(dataset, channels=channels)


def test_hounsfield_units_are_windowed(load, add):
  add('ct', dtype=np.int16)
  examples, _ = load('ct', window=(0, 2))
  assert examples.image.dtype == np.uint8
  assert examples.image[:, 5, 5, 0].tolist() == [0, 128, 255, 255]
  add('grey')
  for window in (
    (0, 2),
    {'ct': (0, 2)},
    ml_collections.ConfigDict({'ct': (0, 2)}),
  ):
    both, _ = load('ct+grey', window=window)
    assert both.image[:, 5, 5, 0].tolist() == [0, 128, 255, 255, 0, 1, 2, 3]


@pytest.mark.parametrize(
  'dataset, window, expected',
  [
    (
      'ct',
      None,
      r'images of ct are int16 \(HU\) and need one, found none; set',
    ),
    ('ct', (), 'need one, found none'),
    ('ct', (2, 0), r'expected \(lowest, highest\), found \(2, 0\)'),
    ('ct', (0, 0), r'found \(0, 0\)'),
    ('ct', (0, 1, 2), r'found \(0, 1, 2\)'),
    ('ct', (0, float('nan')), r'found \(0, nan\)'),
    ('grey', (0, 2), 'only int16 images have one, and grey have uint8; remove'),
    ('ct+grey', {'grey': (0, 2)}, 'images of ct are int16'),
    ('ct+grey', {'cd': (0, 2)}, "expected one for each of ct, grey, as {'ct'"),
  ],
)
def test_windows_that_do_not_fit_are_refused(
  load, add, dataset, window, expected
):
  add('ct', dtype=np.int16)
  add('grey')
  with pytest.raises(ValueError, match=expected) as error:
    load(dataset, window=window)
  assert '\n' not in str(error.value)


def test_floats_are_stored_in_a_byte(load, add):
  add('unit', dtype=np.float32)
  with pytest.raises(ValueError, match=r'float in \[0, 1\], found 2 to 2'):
    load('unit')


@pytest.mark.parametrize(
  'dataset, options, expected',
  [
    ('abdomenn', {}, "expected one of abdomen, .*found 'abdomenn'"),
    ('phantom', {'sise': 3}, 'has no option sise; it has: .*size'),
    ('abdomen', {'size': 3}, 'has no option size; it has: none'),
    ('phantom', {'size': 3}, 'at least 16'),
    ('phantom+', {}, "expected one of .*found ''"),
    ('phantom+phantom', {}, r"once, found 'phantom\+phantom'"),
    ('phantom+abdomen', {'size': 32}, 'dataset_options: expected one for each'),
    ('phantom+abdomen', {'phantom': {'sise': 3}}, 'has no option sise'),
  ],
)
def test_unknown_names_are_refused_in_one_line(
  tmp_path, dataset, options, expected
):
  with pytest.raises(ValueError, match=expected) as error:
    input_pipeline.load(
      dataset,
      image_size=32,
      data_dir=tmp_path,
      options={'phantom': PHANTOM} if dataset == 'phantom+' else options,
    )
  assert '\n' not in str(error.value)


def test_two_names_of_the_background_are_refused(load, add):
  add('grey')
  add('other', classes=('rest', 'a'))
  with pytest.raises(ValueError, match='differently: background, rest'):
    load('grey+other')


def test_vanished_structures_are_reported(load, add):
  add('tiny', classes=('background', 'lesion', 'organ'))
  lines = []
  load('tiny', size=12, warn=lines.append)
  assert lines == []
  load('tiny', size=4, warn=lines.append)
  assert lines == [
    "tiny: at 4 pixels the class 'lesion' vanishes from 4 cases; a larger "
    'image_size keeps more of them'
  ]


def test_damaged_data_are_reported_in_one_line(load, add, tmp_path):
  add('grey')
  load('grey')
  for path in (tmp_path / 'data' / 'grey').rglob('*.array_record*'):
    path.write_bytes(b'x' * path.stat().st_size)
  with pytest.raises(ValueError, match='delete its folder grey') as error:
    load('grey')
  assert '\n' not in str(error.value)


def test_batches_are_made_before_they_are_asked_for():
  made, second = [], threading.Event()

  def make(step):
    made.append(step)
    if step == 1:
      second.set()
    return step

  batches = input_pipeline.ahead(make, range(100))
  assert next(batches) == 0
  assert second.wait(timeout=60)  # without anybody having asked for it
  batches.close()
  assert len(made) <= 4  # it does not go on when nobody takes them


def test_an_error_is_raised_where_its_batch_would_be():
  batches = input_pipeline.ahead(lambda step: 1 // (step - 2), range(5))
  assert [next(batches), next(batches)] == [-1, -1]
  with pytest.raises(ZeroDivisionError):
    next(batches)
