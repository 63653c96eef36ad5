"""The data of a run: several data sets, their splits, who takes part."""

import csv
import types

import numpy as np
import pytest
from PIL import Image

from configs import folder, mixed
from ppcmi_jax import hospital_data
from ppcmi_jax import workdir as workdir_lib
from ppcmi_jax.report import result_tables

NAMES = [f'{data}-{site}' for data, sites in (('abdomen', 'ABC'),
         ('phantom', '123')) for site in sites]  # fmt: skip


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  config = mixed.get_config()
  config.dataset_options = {'phantom': {'num_subjects': 15, 'size': 32}}
  config.image_size = 32
  config.data_dir = str(tmp_path_factory.mktemp('data'))
  return config


def load(config, path):
  workdir = workdir_lib.Workdir(path, config.to_dict())
  return hospital_data.load(config, workdir)


def changed(config, **fields):
  config = config.copy_and_resolve_references()
  config.update(fields)
  return config


@pytest.mark.filterwarnings('ignore:.*vanishes')
def test_clients_of_several_data_sets_share_the_classes(config, tmp_path):
  data = load(config, tmp_path)
  assert list(data.hospitals) == NAMES
  assert len(data.class_names) == 1 + 2 + 7
  assert data.class_names[:3] == ('background', 'pubic symphysis', 'fetal head')
  for name, parts in data.hospitals.items():
    seen = set(np.unique(parts['train'].mask).tolist())
    own = {1, 2} if name.startswith('phantom') else set(range(3, 10))
    assert seen <= own | {0} and len(seen) > 2
  # Phantoms are split by subject, volumes in blocks: a word for both.
  assert data.within_subject
  with open(tmp_path / 'split.csv') as file:
    rows = list(csv.DictReader(file))
  splits = {row['split'] for row in rows if row['subject'].startswith('abd')}
  assert splits == {'train', 'valid', 'test', 'gap'}
  splits = {row['split'] for row in rows if row['subject'].startswith('pha')}
  assert splits == {'train', 'valid', 'test'}


def test_only_those_named_take_part(config, tmp_path):
  data = load(changed(config, clients=('phantom-2', 'abdomen-A')), tmp_path)
  assert list(data.hospitals) == ['phantom-2', 'abdomen-A']
  assert 'phantom-2' in data.table and 'phantom-1' not in data.table


@pytest.mark.parametrize('partition', ['by_site', 'iid'])
def test_another_training_is_tested_on_the_same_cases(
  partition, config, tmp_path
):
  config = changed(config, dataset='phantom', split='subjects', image_size=16)
  config.dataset_options = {'num_subjects': 15, 'size': 32}
  config = changed(config, partition=partition, num_clients=3)

  def cases(name, **fields):
    hospitals = load(changed(config, **fields), tmp_path / name).hospitals
    return [
      parts[split].case.tolist()
      for parts in hospitals.values()
      for split in sorted(parts)
    ]

  first = cases('first')
  assert cases('seed', seed=1) == first
  assert cases('split', split_seed=1) != first


def test_a_run_keeps_the_split_that_it_was_trained_by(config, tmp_path):
  config = changed(config, dataset='phantom', split='subjects', image_size=16)
  config.dataset_options = {'num_subjects': 15, 'size': 32}
  load(config, tmp_path)
  path = tmp_path / 'split.csv'
  text = path.read_text()
  path.write_text(text.replace('test', 'train', 1))
  load(config, tmp_path)  # nothing was trained by it
  assert path.read_text() == text
  (tmp_path / 'checkpoints').mkdir()
  load(config, tmp_path)
  other = text.replace('test', 'train', 1)
  path.write_text(other)
  with pytest.raises(ValueError, match='data that differ in 2 lines') as error:
    load(config, tmp_path)
  assert '\n' not in str(error.value) and path.read_text() == other


@pytest.fixture
def frames(tmp_path):
  """Returns the configuration of a folder with 12 videos of 4 frames."""
  rng = np.random.default_rng(0)
  for name in ('images', 'masks'):
    (tmp_path / 'raw' / name).mkdir(parents=True)
  for video in range(12):
    scene = rng.integers(50, 200, (32, 32))
    for frame in range(4):
      noisy = scene + rng.integers(-3, 4, scene.shape)
      for name, pixels in (('images', noisy), ('masks', scene > 120)):
        file = tmp_path / 'raw' / name / f'{video:02d}{frame}.png'
        Image.fromarray(pixels.astype(np.uint8)).save(file)
  config = folder.get_config()
  config.update(
    data_dir=str(tmp_path / 'data'), manual_dir=str(tmp_path / 'raw')
  )
  config.image_size, config.num_clients = 32, 1
  return config


def test_frames_of_unknown_patients_are_judged_as_videos(frames, tmp_path):
  data = load(frames, tmp_path / 'w')
  assert not data.subjects_are_known and not data.within_subject
  for parts in data.hospitals.values():
    for examples in parts.values():
      videos = [case.rpartition('/')[2][:2] for case in examples.case]
      pairs = {*zip(videos, examples.subject)}
      assert len(pairs) == len(set(videos)) == len(set(examples.subject))
  run = types.SimpleNamespace(data=data)
  assert 'other images of the same patients may be' in result_tables.scope(run)


def test_frames_drawn_at_random_are_no_new_patients(frames, tmp_path):
  frames.split = frames.partition = 'official'
  data = load(frames, tmp_path / 'w')
  assert not data.subjects_are_known and data.within_subject
  run = types.SimpleNamespace(data=data)
  assert 'no measure of new patients' in result_tables.scope(run)


def test_who_chose_the_weights_is_not_new(config, tmp_path):
  alone = changed(config, dataset='phantom', split='subjects')
  alone.dataset_options = {'num_subjects': 15, 'visits': 2, 'size': 32}
  data = load(alone, tmp_path / 'a')
  assert data.subjects_are_known and not data.within_subject
  with open(tmp_path / 'a' / 'split.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  one = next(row for row in rows if row['split'] == 'test')
  one['split'] = 'valid'  # one visit chooses weights, the other is tested on
  with open(tmp_path / 'mine.csv', 'w', newline='') as file:
    writer = csv.DictWriter(file, one)
    writer.writeheader()
    writer.writerows(rows)
  alone.update(split='csv', split_path=str(tmp_path / 'mine.csv'))
  assert load(alone, tmp_path / 'b').within_subject


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'clients': ('phantom-9',)}, "clients: expected some of .*'phantom-9'"),
    ({'split': 'subjects+blocks+csv'}, 'expected one mode, or one for each'),
    ({'split': 'subjects'}, 'abdomen-A.*too few'),
    ({'window': (0, 1)}, 'window'),
    ({'dataset': 'phantom+phantom'}, 'dataset: expected each once'),
  ],
)
def test_what_does_not_go_together_is_refused(
  config, tmp_path, fields, message
):
  with pytest.raises(ValueError, match=message):
    load(changed(config, **fields), tmp_path)
