"""What README.md and docs/ tell people to type exists, and runs."""

import importlib
import pathlib
import re
import shlex

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
COMMAND = re.compile(r'python (train|eval)\.py( [^`|&\n]*)?')
# What the scripts take beside the fields of a configuration.
FLAGS = {
  'train': {'config', 'workdir', 'coordinator_address', 'num_processes',
            'process_id'},
  'eval': {'config', 'workdir', 'eval_names', 'study'},
}  # fmt: skip


def commands():
  """Returns (page, script, arguments) of each command of a page."""
  return [
    (page.name, script, tuple(shlex.split(' '.join((rest or '').split()))))
    for page in PAGES
    for script, rest in COMMAND.findall(page.read_text())
  ]


def test_there_are_commands_to_check():
  assert len(commands()) > 15


@pytest.mark.parametrize('page, script, arguments', sorted(set(commands())))
def test_flags_and_fields_of_commands_exist(page, script, arguments):
  del page
  given = dict(arg[2:].split('=', 1) for arg in arguments if arg[:2] == '--')
  path, _, method = given.get('config', 'configs/abdomen.py').partition(':')
  module = importlib.import_module(path.removesuffix('.py').replace('/', '.'))
  config = module.get_config(method) if method else module.get_config()
  for name in given:
    if not name.startswith('config.'):
      assert name in FLAGS[script]
      continue
    here = config
    for field in name.split('.')[1:]:
      assert field in here or name.startswith('config.dataset_options.')
      here = here.get(field)


def test_the_snippets_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  text = (ROOT / 'README.md').read_text()
  first, layers, _ = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  found = {}
  exec(first + layers, found)
  for name, z in found['z'].items():
    assert abs(found['restored'][name] - z).max() < 1e-4
    assert found['masked'][name]['words'].size == -(-z.size // 4)
