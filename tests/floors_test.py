"""The house keeps its floors: a module imports from lower floors only.

The imports are read from the sources, those inside functions included, so
that no module needs to be loaded. A sub-package is one unit on one floor;
inside it members may import each other as long as no cycle arises.
"""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

import ppcmi_jax

ROOT = pathlib.Path(ppcmi_jax.__file__).parent

# A new module gets a place here, as low as what it imports allows.
FLOORS = {
  0: 'channel keyed losses metrics images image_metrics augmentation '
  'intervals profiling workdir processes examples '
  'content_groups official_draws tables',
  1: 'checkpoints command keyring wire models datasets official_metrics '
  'splits partitions privacy_guarantee side_by_side',
  2: 'client server keyed_channel sealed key_store input_pipeline official '
  'score_table',
  3: 'tasks hospital_data contributions roundings',
  4: 'train_step evaluators figures private_training',
  5: 'training',
  6: 'learners attacks',
  7: 'enrolment exposure config_checks pretraining',
  8: 'hospitals privacy server_training client_training',
  9: 'collaboration',
  10: 'cross_client conversion payload',
  11: 'evaluation',
  12: 'report studies',
}

# Package -> the units that are about it. Elsewhere it would make everybody
# wait for, or install, what few need.
HEAVY = {
  'SimpleITK': 'datasets',
  'cryptography': 'keyring sealed',
  'dp_accounting': 'privacy_guarantee',
  'flwr': '',
  'jax_privacy': 'attacks private_training',
  'grpc': '',
  'matplotlib': 'figures',
  'nibabel': 'datasets',
  'orbax': 'checkpoints',
  'pydicom': 'datasets',
  'scipy.ndimage': 'datasets metrics',
  'skimage': 'image_metrics',
  'sklearn': 'figures',
  'tensorflow': '',
  'tensorflow_datasets': 'datasets',
  'torch': 'official',
}

# What `import ppcmi_jax`, and the journey of a query, must not load.
SLOW = (
  'matplotlib',
  'orbax.checkpoint',
  'scipy.ndimage',
  'skimage',
  'sklearn',
  'tensorflow',
  'tensorflow_datasets',
)
JOURNEY = ('keyed', 'keyring', 'wire', 'losses', 'models', 'client', 'server')


def floor_of(floors):
  return {u: floor for floor, units in floors.items() for u in units.split()}


def read_modules(root):
  """Returns {'datasets.phantom': path}; a package is its `__init__`."""
  modules = {}
  for path in root.rglob('*.py'):
    parts = path.relative_to(root).with_suffix('').parts
    parts = parts[:-1] if parts[-1] == '__init__' else parts
    modules['.'.join(parts)] = path
  return modules


def imported_names(path):
  """Lists the dotted names that a file imports, wherever in it."""
  names = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      origin = '.' * node.level + (node.module or '')
      names += [f'{origin}.{alias.name}' for alias in node.names]
  return names


def unit_of(module):
  return module.partition('.')[0]


def read_graph(root):
  """Returns {module: modules of the house that it imports}."""
  modules = read_modules(root)
  graph = {}
  for module, path in modules.items():
    graph[module] = set()
    for name in imported_names(path):
      house, *parts = name.split('.')
      if house not in ('ppcmi_jax', ''):
        continue
      # A name inside a module counts as that module.
      while '.'.join(parts) not in modules:
        parts.pop()
      graph[module].add('.'.join(parts) if house else '.')
  return graph


def find_violations(root, floors):
  """Says in one line each where the house at `root` breaks its rules."""
  floor, graph, found = floor_of(floors), read_graph(root), []
  for module, targets in graph.items():
    unit = unit_of(module)
    if not unit:  # the front door, which may show any room
      continue
    if unit not in floor:
      found.append(f'{module}: on no floor, give it one in FLOORS')
      continue
    for target in targets:
      other = unit_of(target)
      if not other:
        found.append(f'{module}: imports by way of the whole package')
      elif other != unit and floor.get(other, -1) >= floor[unit]:
        found.append(
          f'{module}: floor {floor[unit]} imports {target} of {floor[other]}'
        )
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as error:
    found.append(f'cycle: {" -> ".join(error.args[1])}')
  return sorted(found)


def test_every_module_imports_lower_floors_only():
  assert find_violations(ROOT, FLOORS) == []


def test_no_unit_is_on_two_floors():
  units = ' '.join(FLOORS.values()).split()
  assert len(units) == len(set(units))


def test_client_and_server_never_see_each_other():
  graph = read_graph(ROOT)
  pairs = ('client', 'server'), ('server', 'client')
  for start, other in (*pairs, ('server_training', 'client')):
    seen, waiting = set(), [start]
    while waiting:
      module = waiting.pop()
      if module not in seen:
        seen.add(module)
        waiting += graph[module]
    assert other not in seen
    assert {start, 'channel'} <= seen


def test_heavy_packages_are_imported_only_by_modules_about_them():
  for module, path in read_modules(ROOT).items():
    for name in imported_names(path):
      for package, units in HEAVY.items():
        if f'{name}.'.startswith(f'{package}.'):
          assert unit_of(module) in units.split(), f'{module} imports {name}'


@pytest.mark.parametrize(
  'files, expected',
  [
    ({'low': '', 'high': 'from ppcmi_jax import low'}, None),
    ({'low': 'import ppcmi_jax.high', 'high': ''}, 'low: floor 0 imports high'),
    ({'low': 'from ppcmi_jax.high import x', 'high': ''}, 'low: floor 0'),
    ({'low': 'from ppcmi_jax import beside', 'beside': ''}, 'low: floor 0'),
    ({'low': 'def f():\n  from ppcmi_jax import high', 'high': ''}, 'low: fl'),
    ({'low': 'from . import beside', 'beside': ''}, 'whole package'),
    ({'high': 'import ppcmi_jax'}, 'whole package'),
    ({'attic': ''}, 'attic: on no floor'),
    ({'attic/__init__': '', 'attic/box': ''}, 'attic.box: on no floor'),
    ({'high/__init__': '', 'high/a': 'from ppcmi_jax import low'}, None),
    ({'high/a': 'from ppcmi_jax.high import b', 'high/b': ''}, None),
    (
      {
        'high/a': 'from ppcmi_jax.high import b',
        'high/b': 'import ppcmi_jax.high.a',
      },
      'cycle: ',
    ),
    ({'__init__': 'from ppcmi_jax import high', 'high': ''}, None),
  ],
)
def test_rules_find_what_breaks_them(tmp_path, files, expected):
  for name, source in {'__init__': '', 'low': '', **files}.items():
    path = tmp_path / f'{name}.py'
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
  found = find_violations(tmp_path, {0: 'low beside', 1: 'high'})
  if expected is None:
    assert found == []
  else:
    assert expected in '; '.join(found)


def run_import(*modules):
  """Imports in a fresh interpreter; returns seconds and what was loaded."""
  code = (
    'import sys, time; start = time.process_time(); '
    f'import {", ".join(modules)}; '
    'print(time.process_time() - start, *sys.modules)'
  )
  run = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  seconds, *loaded = run.stdout.split()
  return float(seconds), set(loaded)


def test_import_is_quick_and_loads_nothing_heavy():
  """Under two seconds of processor time, which other work does not stretch."""
  runs = [run_import('ppcmi_jax') for _ in range(3)]
  assert runs[0][1].isdisjoint(SLOW)
  assert min(seconds for seconds, _ in runs) < 2


def test_the_journey_loads_nothing_heavy():
  _, loaded = run_import(*(f'ppcmi_jax.{module}' for module in JOURNEY))
  assert 'ppcmi_jax.client' in loaded and loaded.isdisjoint(SLOW)
