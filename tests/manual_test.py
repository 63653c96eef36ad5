"""The base of builders that read a folder of the user, on a toy data set."""

import json
import os
import pathlib
import re
import shutil

import numpy as np
import pytest

from ppcmi_jax import datasets
from ppcmi_jax.datasets import manual


class Toy(manual.ManualBuilder, skip_registration=True):
  """Reads NAME.npy files: an image, whose mask is where it is over 5."""

  DESCRIPTION = 'toy'

  @property
  def classes(self):
    return ('background', 'bright')

  def records(self, folder):
    def read(path):
      image = np.load(path, allow_pickle=False)
      case = path.stem.partition('-')[0]
      yield {
        'image': image, 'mask': image > 5, 'spacing_mm': (1.0, 2.0),
        'subject': case, 'site': '1', 'case': case, 'position': 0,
      }  # fmt: skip

    return [
      manual.Record(path.name, lambda path=path: read(path))
      for path in sorted(folder.glob('*.npy'))
    ]


@pytest.fixture
def toy(tmp_path, monkeypatch):
  """Returns (folder of four images, a function that prepares it)."""
  monkeypatch.setitem(datasets.DATASETS, 'toy', Toy)
  monkeypatch.setitem(datasets.CONFIGS, 'toy', manual.ManualConfig)
  folder = tmp_path / 'raw'
  folder.mkdir()
  for i in range(4):
    image = np.arange(12, dtype=np.uint8).reshape(3, 4) + i
    np.save(folder / f'{i}.npy', image)
  warnings = []

  def prepare(**options):
    builder = datasets.prepare(
      'toy',
      data_dir=tmp_path / 'data',
      manual_dir=folder,
      options=options,
      warn=warnings.append,
    )
    return builder.as_data_source('all')

  return folder, prepare, warnings


def test_examples_come_back_as_they_were(toy):
  _, prepare, warnings = toy
  source = prepare()
  assert len(source) == 4 and not warnings
  assert [source[i]['case'] for i in range(4)] == [b'0', b'1', b'2', b'3']
  np.testing.assert_array_equal(
    source[2]['image'][..., 0], np.arange(12).reshape(3, 4) + 2
  )
  assert source[2]['image'].dtype == source[2]['mask'].dtype == np.uint8
  np.testing.assert_array_equal(source[0]['mask'].ravel(), np.arange(12) > 5)
  assert source[0]['spacing_mm'].tolist() == [1.0, 2.0]


def test_the_copy_is_for_the_owner_only_and_said_once(toy, tmp_path, caplog):
  _, prepare, _ = toy
  before = os.umask(0o022)
  try:
    prepare()
    prepare()
    assert os.umask(0o022) == 0o022
  finally:
    os.umask(before)
  (found,) = re.findall(r'now lie in (\S+),', caplog.text)
  folder = pathlib.Path(found)
  assert folder.is_relative_to(tmp_path / 'data')
  assert list(folder.glob('*array_record*'))
  for path in (folder, *folder.rglob('*')):
    assert not path.stat().st_mode & 0o077, path


def test_prepared_data_are_found_without_the_folder(toy):
  folder, prepare, _ = toy
  prepare()
  shutil.rmtree(folder)
  assert len(prepare()) == 4


@pytest.mark.parametrize('change', ['add', 'remove', 'edit'])
def test_a_changed_folder_is_refused(toy, change):
  folder, prepare, _ = toy
  prepare()
  (folder / '.DS_Store').write_bytes(b'hidden files do not count')
  prepare()
  if change == 'add':
    shutil.copy(folder / '0.npy', folder / '9.npy')
  elif change == 'remove':
    (folder / '0.npy').unlink()
  else:
    os.utime(folder / '0.npy', (0, 0))
  with pytest.raises(ValueError, match='has changed since it was prepared'):
    prepare()


def test_a_bad_file_is_named_or_skipped_and_listed(toy):
  folder, prepare, warnings = toy
  (folder / '2.npy').write_bytes((folder / '2.npy').read_bytes()[:-1])
  with pytest.raises(ValueError, match=r'raw/2\.npy: .*on_error=') as error:
    prepare()
  assert '\n' not in str(error.value)
  for _ in range(2):  # the second run reads what was prepared, and says so too
    warnings.clear()
    source = prepare(on_error='skip')
    assert [source[i]['case'] for i in range(3)] == [b'0', b'1', b'3']
    assert len(warnings) == 2
    assert warnings[0].startswith('toy: skipped 2.npy: ')
    assert '1 records were skipped' in warnings[1]
  note = json.loads(pathlib.Path(warnings[1].rpartition(': ')[2]).read_text())
  assert list(note['skipped']) == ['2.npy']


def test_nothing_usable_is_refused_even_when_skipping(toy):
  folder, prepare, _ = toy
  for path in folder.iterdir():
    path.write_bytes(b'')
  with pytest.raises(ValueError, match=r'none of 4 records.*0\.npy'):
    prepare(on_error='skip')


def test_an_empty_or_missing_folder_is_refused(toy):
  folder, prepare, _ = toy
  for path in folder.iterdir():
    path.unlink()
  with pytest.raises(ValueError, match='expected images and masks, found none'):
    prepare()
  folder.rmdir()
  with pytest.raises(ValueError, match=r'raw: expected the folder.*manual_dir'):
    prepare()


def test_two_examples_of_one_name_are_refused(toy):
  folder, prepare, _ = toy
  shutil.copy(folder / '1.npy', folder / '1-copy.npy')
  with pytest.raises(ValueError, match=r"the case '1' is there already"):
    prepare()


def test_the_folder_has_to_be_named(tmp_path, monkeypatch):
  monkeypatch.setitem(datasets.DATASETS, 'toy', Toy)
  with pytest.raises(ValueError, match=r'--config\.manual_dir=FOLDER'):
    datasets.prepare('toy', data_dir=tmp_path)


@pytest.mark.parametrize(
  'name, options, message',
  [
    ('toy', {'speed': 1}, r'toy has no option speed; it has: on_error'),
    ('toy', {'on_error': 'hope'}, 'on_error: expected one of stop, skip'),
    ('abdomen', {'speed': 1}, 'abdomen has no option speed; it has: none'),
    ('heart', {}, 'dataset: expected one of abdomen, '),
  ],
)
def test_unknown_names_and_options_are_refused(
  toy, tmp_path, name, options, message
):
  with pytest.raises(ValueError, match=message):
    datasets.prepare(
      name, data_dir=tmp_path, manual_dir=tmp_path, options=options
    )


GOOD = {
  'image': np.zeros((3, 4), np.uint8),
  'mask': np.zeros((3, 4)),
  'spacing_mm': (1.0, 1.0),
  'position': 0,
}


@pytest.mark.parametrize(
  'change, message',
  [
    ({'image': np.zeros((3, 4, 3), np.uint8)}, '1 channels, found shape'),
    ({'image': np.zeros((2, 3, 4, 1), np.uint8)}, r'shape \[2, 3, 4, 1\]'),
    ({'mask': np.zeros((4, 3))}, r'same size, found \[3, 4\] and \[4, 3\]'),
    ({'image': np.zeros((3, 4), np.int16)}, 'expected uint8, found int16'),
    ({'mask': np.full((3, 4), np.nan)}, 'mask: expected finite numbers'),
    ({'mask': np.full((3, 4), 255)}, 'unknown label 255; expected 0 to 1'),
    ({'mask': np.full((3, 4), -1)}, 'unknown label -1'),
    ({'mask': np.full((3, 4), 0.5)}, r'unknown label 0\.5'),
    ({'spacing_mm': (0.0, 1.0)}, 'spacing_mm: expected two positive'),
    ({'spacing_mm': (1.0, np.nan)}, 'spacing_mm: expected two positive'),
    ({'spacing_mm': 1.0}, 'spacing_mm: expected two positive'),
  ],
)
def test_an_example_that_breaks_the_contract_is_refused(change, message):
  manual.checked(GOOD, ('background', 'bright'), np.uint8, 1)
  with pytest.raises(ValueError, match=message):
    manual.checked({**GOOD, **change}, ('background', 'bright'), np.uint8, 1)


def test_nan_in_a_float_image_is_refused():
  image = np.full((3, 4), np.nan, np.float32)
  with pytest.raises(ValueError, match='image: expected finite numbers'):
    manual.checked(
      {**GOOD, 'image': image}, ('background', 'bright'), np.float32, 1
    )
