"""Tests of command.py: flags and configuration files, and mistakes in them."""

import pytest
import scripts

from configs import smoke
from ppcmi_jax import command, processes


@pytest.fixture
def script(tmp_path):
  """Returns a function that starts a script on the smoke configuration."""

  def start(name, workdir, *flags, **options):
    return scripts.smoke(name, workdir, tmp_path / 'data', *flags, **options)

  return start


def test_unknown_config_is_one_line(script, tmp_path):
  line = scripts.refused(
    script('eval.py', tmp_path / 'w', config='configs/none.py')
  )
  assert "found no 'configs/none.py' in" in line


@pytest.mark.parametrize(
  'text, expected',
  [
    ('a = 1 / 0', ', line 1: ZeroDivisionError: division by zero'),
    ('def get_config(:', ', line 1: invalid syntax'),
    ('def get_config():\n  int("x")', ', line 2: invalid literal'),
    ('def get_config():\n  pass', ': expected get_config to return a Config'),
    ('', ": AttributeError: module 'config' has no attribute 'get_config'"),
    (
      'from configs import smoke\nsmoke.get_config("unett")',
      ', line 2: method: expected one of ppcmi_sf, published, .*unett',
    ),
  ],
)
def test_a_broken_config_is_one_line(tmp_path, monkeypatch, text, expected):
  def leave(why):
    raise SystemExit(why)

  monkeypatch.setattr(processes, 'leave', leave)
  path = tmp_path / 'mine.py'
  path.write_text(text)
  with pytest.raises(SystemExit, match=f'^{path}{expected}'):
    command._fail_if_unreadable(str(path))


def test_unknown_method_is_one_line(script, tmp_path):
  process = script('train.py', tmp_path / 'w', config='configs/smoke.py:resnet')
  line = scripts.refused(process)
  assert "'resnet'" in line and 'ppcmi_sf, published' in line


def test_help_names_the_flags():
  commands = {
    'train.py': ('config', 'workdir', 'coordinator_address'),
    'eval.py': ('config', 'workdir', 'eval_names', 'study'),
    '-m ppcmi_jax.conversion': ('config', 'workdir', 'read', 'write'),
  }
  started = [scripts.start(*name.split(), '--help') for name in commands]
  for process, names in zip(started, commands.values(), strict=True):
    _, found, _ = scripts.finish(process)
    assert [name for name in names if f'  --{name}:' not in found] == []


def test_unknown_field_is_one_line(script, tmp_path):
  line = scripts.refused(
    script('train.py', tmp_path / 'w', '--config.mapping_stepz=1')
  )
  assert "no field 'mapping_stepz'" in line
  assert line.endswith(
    'Did you mean "mapping_steps" instead of "mapping_stepz"?'
  )


def test_unknown_nested_field_is_one_line(script, tmp_path):
  flag = '--config.mapping_options.wide=3'
  line = scripts.refused(script('train.py', tmp_path / 'w', flag))
  assert "no field 'wide'" in line


def test_unknown_field_of_the_default_configuration_is_one_line():
  process = scripts.start('train.py', '--config.nonsense=1')
  assert "no field 'nonsense'" in scripts.refused(process)


def test_a_field_is_known_by_its_whole_name():
  names = set(command._fields(smoke.get_config()))
  assert 'mapping_options.widths' in names and 'pretrained.image' in names
  names = set(command._fields(smoke.get_config('unet')))
  assert 'pretrained.segmentation' in names and 'pretrained.image' not in names


def test_unwritable_workdir_is_one_line(script, tmp_path):
  (tmp_path / 'file').write_text('')
  line = scripts.refused(script('train.py', tmp_path / 'file' / 'run'))
  assert 'cannot be written to' in line and '--workdir' in line


def test_evaluating_an_untrained_workdir_is_one_line(script, tmp_path):
  line = scripts.refused(script('eval.py', tmp_path / 'nothing'))
  assert 'run train.py' in line
  assert not (tmp_path / 'nothing').exists()
