"""Studies run what is missing, once, and say it in one table."""

import importlib
import json
import math
import re
import types

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from configs import smoke, study
from ppcmi_jax import (
  collaboration,
  evaluation,
  evaluators,
  studies,
  tables,
  workdir,
)
from ppcmi_jax.studies import plans, summary


@pytest.fixture
def config(tmp_path_factory):
  config = smoke.get_config()
  config.data_dir = str(tmp_path_factory.getbasetemp() / 'study_data')
  return config


def get_config(method):
  config = smoke.get_config(method)
  config.data_dir = 'here'
  return config


def test_every_study_can_be_planned():
  config = study.get_config()
  for name, plan in plans.STUDIES.items():
    variants = plan(study.get_config, config)
    names = [variant.name for variant in variants]
    assert len(set(names)) == len(names) > 2, name
    configs = [v.config.to_json_best_effort() for v in variants]
    assert len(set(configs)) == len(configs), name


def test_the_client_study_needs_names(config):
  with pytest.raises(ValueError, match='needs the names of two clients'):
    plans.clients(get_config, config)


@pytest.mark.parametrize('name', ['ablation', 'noise'])
def test_a_baseline_has_no_parts_to_vary(name):
  base = smoke.get_config('unet')
  with pytest.raises(ValueError, match=f"method: .*{name}.* found 'unet'"):
    plans.STUDIES[name](get_config, base)


def test_an_unknown_study_is_refused(config, tmp_path):
  with pytest.raises(ValueError, match='study: expected one of comparison'):
    studies.run('all', get_config, config, tmp_path)


def test_a_study_in_the_folder_of_a_run_is_refused(config, tmp_path):
  workdir.Workdir(tmp_path, config.to_dict())
  with pytest.raises(ValueError, match=r'found a run .*another --workdir'):
    studies.run('clients', get_config, config, tmp_path)


def test_a_study_takes_no_names_of_evaluations(config, tmp_path):
  script = importlib.import_module('eval')
  with flagsaver.flagsaver():
    flags.FLAGS(['eval.py', '--study=clients', '--eval_names=query'])
    with pytest.raises(ValueError, match=r'eval_names: .*study=clients'):
      script.evaluate(config, tmp_path)


def test_a_stopped_study_goes_on(tmp_path, monkeypatch, capsys):
  config = smoke.get_config('unet')
  config.data_dir = str(tmp_path / 'data')
  config.baseline_steps = 4

  def plan(get_config, base):
    local = plans.changed(base, pooled=False, clients=('1', '2'))
    return [
      plans.Variant('all, pooled', base),
      plans.Variant('two', local),
    ]

  monkeypatch.setitem(plans.STUDIES, 'pooling', plan)
  train, trained = collaboration.train, []

  def stopped(config, path):
    if trained:
      raise KeyboardInterrupt
    trained.append(path.name)
    train(config, path)

  run = lambda: studies.run('pooling', get_config, config, tmp_path / 'study')
  monkeypatch.setattr(collaboration, 'train', stopped)
  with pytest.raises(KeyboardInterrupt):
    run()
  assert 'all, pooled: done' in capsys.readouterr().out
  so_far = (tmp_path / 'study' / 'pooling.txt').read_text()
  rows = re.findall(r'^ *(all, pooled|two)  ', so_far, re.MULTILINE)
  assert rows == ['all, pooled']
  monkeypatch.setattr(collaboration, 'train', train)
  table = run()
  out = capsys.readouterr().out
  assert re.search(r'all, pooled +4 +done\n +two +4 +\d\n', out)
  assert [row[0] for row in table.rows] == ['all, pooled', 'two']
  first, second = (dict(zip(table.headers, row)) for row in table.rows)
  # All that training took, of however many starts.
  rows = workdir.Workdir(
    tmp_path / 'study' / 'all-pooled', config.to_dict()
  ).read_log()
  spent = sum(row['seconds'] for row in rows) / 60
  assert spent > 0 and first['minutes'] == f'{spent:.1f}'
  assert first['leaves the hospital'] == 'images and masks'
  assert second['leaves the hospital'] == 'nothing'
  assert first['at most, steps x batch'] == f'4 x {config.baseline_batch_size}'
  assert math.isnan(first['alone']) and 0 <= first['prior'] <= 1
  assert float(second['KiB sent']) == 0 < float(first['KiB sent'])
  assert first['Dice'].value == pytest.approx(
    sum(first[f'of {k}'] for k in '123') / 3
  )
  assert math.isnan(second['of 3']) and not math.isnan(second['of 2'])
  for suffix in ('csv', 'tex', 'txt'):
    assert (tmp_path / 'study' / f'pooling.{suffix}').stat().st_size > 100
  picture = (tmp_path / 'study' / 'pooling.png').read_bytes()
  assert picture.startswith(b'\x89PNG')
  # Again: nothing is trained, and the table is the same.
  monkeypatch.setattr(collaboration, 'train', None)
  again = run()
  assert tables.text(again) == tables.text(table)
  # Another study of the same workdir finds the run of its configuration.
  other = [plans.Variant('everything', config)]
  monkeypatch.setitem(plans.STUDIES, 'other', lambda *_: other)
  (row,) = studies.run('other', get_config, config, tmp_path / 'study').rows
  assert repr(row[1:]) == repr(table.rows[0][1:])
  assert not (tmp_path / 'study' / 'everything').exists()
  # What was promised of a private network stands in its row.
  file = tmp_path / 'study' / 'all-pooled' / 'eval' / 'results.json'
  done = {'noise 4': {**json.loads(file.read_text()), 'epsilon': 4.87}}
  private = summary.build('noise', {'noise 4': config}, done)
  assert private.rows[0][0] == 'noise 4, epsilon 4.9'
  assert 'epsilon: of (epsilon, delta)' in private.notes
  # A variant that changed is not mistaken for what is there.
  config.seed = 1
  with pytest.raises(ValueError, match='seed was 0, now 1'):
    run()


def test_trainings_side_by_side_took_their_time_once():
  rows = [
    {'task': 'image of 1', 'seconds': 10.0, 'time': 110.0},
    {'task': 'image of 2', 'seconds': 12.0, 'time': 113.0},  # from 101 on
    {'task': 'image of 1', 'seconds': 5.0, 'time': 115.0},
    {'task': 'mapping', 'seconds': 20.0, 'time': 1020.0},  # started again
    {'task': 'of before rows had a time', 'seconds': 7.0},
  ]
  assert studies._seconds_trained(rows) == pytest.approx(15 + 20)


def test_a_client_without_structures_is_in_no_mean(config):
  truth = np.zeros((4, 8, 8), np.uint8)
  truth[:, :4] = 1

  def scores(mask):
    subject = [f'p{i}' for i in range(len(mask))]
    examples = types.SimpleNamespace(
      image=mask[..., None] / 1, mask=mask, spacing_mm=np.ones((4, 2)),
      subject=subject, site=subject, case=subject,
    )  # fmt: skip
    return {
      name: evaluators.segmentation(
        lambda image, by=by: np.uint8(image[..., 0] * by),
        examples,
        class_names=('background', 'organ'),
      )
      for name, by in (('scores', 1), ('alone', 0), ('fused', 1))
    }

  def row(**masks):
    result = {
      'segmentation': {k: scores(mask) for k, mask in masks.items()},
      'networks': {},
      'query': {'1': {'image_bytes': 0, 'latency': {'total': {'p50_ms': 1}}}},
      'minutes': 0.0,
    }
    # As it is read back: what is undefined is None.
    result = json.loads(json.dumps(evaluation._jsonable(result)))
    table = summary.build('few', {'all': config}, {'all': result})
    return dict(zip(table.headers, table.rows[0]))

  full, none = row(a=truth), row(b=truth * 0)
  both = row(a=truth, b=truth * 0)
  for name in ('Dice', 'HD95', 'ASD', 'alone', 'fused', 'worst structure'):
    assert both[name] == full[name]
  assert both['Dice'] == (1, 1, 1)
  assert both['alone'] == 0 and both['fused'] == 1
  assert math.isnan(both['of b']) and tables.show(none['of b']) == '-'
  for name in ('Dice', 'HD95', 'ASD', 'alone', 'fused', 'worst structure'):
    assert tables.show(none[name]) == '-', name


def test_clients_tested_on_the_same_cases_are_no_more_cases():
  rng = np.random.default_rng(0)
  dice = rng.uniform(0.5, 1, 20)

  def parts(prefix):
    rows = [
      {
        'index': i,
        'case': f'{prefix}c{i:02d}',
        'subject': f'{prefix}s{i:02d}',
        'class': 'organ',
        'dice': value,
      }
      for i, value in enumerate(dice)
    ]
    scores = {
      'mean': {'dice': dice.mean()},
      'organ': {'n': 20, 'n_spurious': 0},
      'per_case': rows,
    }
    return {'scores': scores}

  width = lambda found: found.high - found.low
  one = summary._mean({'a': parts('')}, 'dice')
  same = summary._mean({k: parts('') for k in 'abc'}, 'dice')
  apart = summary._mean({k: parts(k) for k in 'abc'}, 'dice')
  assert tuple(same) == pytest.approx(tuple(one))
  # Three times as many independent cases: an interval of 1 / sqrt(3).
  assert width(apart) == pytest.approx(width(one) / 3**0.5, rel=0.1)


def test_a_run_that_was_not_scored_to_the_end_is_not_done(config, tmp_path):
  variant = plans.Variant('all', config)
  file = tmp_path / 'all' / 'eval' / 'results.json'
  assert not studies._is_done(tmp_path, variant)
  file.parent.mkdir(parents=True)
  # What a kill between two evaluations leaves.
  file.write_text('{"segmentation": {}}')
  assert not studies._is_done(tmp_path, variant)
  file.write_text('{"segmentation": {}, "minutes": 1.0}')
  assert studies._is_done(tmp_path, variant)


def test_autoencoders_are_copied_where_they_cannot_differ(config, tmp_path):
  workdir.Workdir(tmp_path / 'all', config.to_dict())
  for task in ('image_1', 'mask_1', 'image_2', 'mask_2', 'mapping'):
    folder = tmp_path / 'all' / 'checkpoints' / task
    folder.mkdir(parents=True)
    (folder / 'weights').write_text(task)

  def copied(name, **fields):
    variant = plans.Variant(name, plans.changed(config, **fields))
    studies._reuse_autoencoders(variant, tmp_path)
    found = (tmp_path / name / 'checkpoints').glob('*/weights')
    return sorted(path.parent.name for path in found)

  assert copied('wire', wire_dtype='float32') == [
    'image_1', 'image_2', 'mask_1', 'mask_2',
  ]  # fmt: skip
  assert copied('one', clients=('2',), copies=3) == ['image_2', 'mask_2']
  assert copied('skips', skips=False) == []
  assert copied('longer', mask_steps=7) == ['image_1', 'image_2']
  assert copied('plain', segmentation_weight=0.0) == ['mask_1', 'mask_2']
