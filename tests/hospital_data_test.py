"""The data of a run: several data sets, their splits, who takes part."""

import csv

import numpy as np
import pytest

from configs import mixed
from ppcmi_jax import hospital_data
from ppcmi_jax import workdir as workdir_lib

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
