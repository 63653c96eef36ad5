"""Tests of benchmarks/: the arithmetic on made-up times, and one small run."""

import doctest
import itertools
import json
import math
import sys
import time

import baseline_models_test
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from benchmarks import __main__ as command
from benchmarks import (
  comparison,
  host,
  library_calls,
  machine,
  measure,
  networks,
  sections,
  sizes,
  timing,
)

PEAKS = {'flops': 1e9, 'bandwidth': 1e9}


class Clock:
  """A clock that moves when a function of it is called."""

  def __init__(self):
    self.now, self.calls = 0.0, []

  def __call__(self):
    return self.now

  def takes(self, name, *seconds):
    """Returns a function that takes these seconds, the last one for ever."""
    left = list(seconds)

    def call():
      self.calls.append(name)
      self.now += left.pop(0) if left[1:] else left[0]

    return call


@pytest.fixture
def run(monkeypatch, tmp_path):
  """Returns a function that runs the command with flags, in this process."""
  monkeypatch.setattr(machine, 'peaks', lambda **_: PEAKS)
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['benchmarks'])
  path = tmp_path / 'new' / 'benchmarks.json'

  def call(**values):
    values = {'size': 'small', 'seconds': 0.0, 'json': str(path), **values}
    with flagsaver.flagsaver(**values):
      command._run(['benchmarks'])
    return json.loads(path.read_text(), parse_constant=pytest.fail)

  return call


@pytest.mark.parametrize('module', [library_calls, measure, timing])
def test_docstrings_are_right(module):
  assert doctest.testmod(module).failed == 0


def test_turns_alternate():
  clock = Clock()
  # Compiled, then estimated, then timed.
  ours = clock.takes('A', 9, 1, 1, 2, 3, 4, 5)
  theirs = clock.takes('B', 9, 2)
  found = timing.alternate([ours, theirs], budget_s=0, clocks={'wall': clock})
  assert clock.calls == ['A', 'A', 'B', 'B', *'AB' * 5]
  np.testing.assert_array_equal(
    found['wall'], [[1, 2], [2, 2], [3, 2], [4, 2], [5, 2]]
  )
  ratio = timing.ratio(found['wall'])
  np.testing.assert_allclose(ratio, (1.5, 0.7, 2.3))


def test_turns_fill_the_budget():
  clock = Clock()
  functions = [clock.takes('A', 1.0), clock.takes('B', 1.0)]
  found = timing.alternate(functions, budget_s=21, clocks={'wall': clock})
  assert found['wall'].shape == (10, 2)


def test_short_functions_are_repeated_after_a_call_that_is_not_timed():
  clock = Clock()
  short, long = clock.takes('A', 0.25 * timing.SHORT_S), clock.takes('B', 1.0)
  found = timing.alternate([short, long], budget_s=0, clocks={'wall': clock})
  assert clock.calls == [*'AABB', *'AAAAAB' * 5]
  np.testing.assert_allclose(found['wall'][:, 0], 0.25 * timing.SHORT_S)


def test_every_clock_is_read():
  wall, cpu = Clock(), iter(range(1000))
  clocks = {'wall': wall, 'cpu': lambda: next(cpu)}
  one = wall.takes('A', 1.0)
  found = timing.alternate([one, one], budget_s=0, clocks=clocks)
  np.testing.assert_array_equal(found['cpu'], np.ones((5, 2)))


def test_costs_are_those_of_xla():
  x = jnp.ones((32, 32))
  cost = measure.cost(jax.jit(jnp.matmul), x, x)
  assert cost.flops == 2 * 32**3
  assert cost.memory >= 3 * x.nbytes
  assert cost.compile_s > 0


def test_rows_have_stages_and_totals():
  stages = [('a', lambda x: x + 1), ('b', lambda x: x + 1)]
  cost = measure.Cost(1.0, 1e6, 1e6, 2**20)
  case = measure.Case(stages, 4, {'a': cost}, query=0, total='both')
  rows = list(measure.rows('test', [case], peaks=PEAKS, budget_s=0))
  assert [row['name'] for row in rows] == ['a', 'b', 'both']
  assert math.isnan(rows[1]['flops_share'])
  first = rows[0]
  seconds = first['p50_ms'] / 1e3
  assert first['per_s'] == pytest.approx(4 / seconds)
  assert first['flops_share'] == pytest.approx(1e6 / seconds / 1e9)
  table = measure.table(rows, 'title')
  assert table.rows[0][table.headers.index('MiB')] == 1


def test_what_does_not_fit_is_a_row_without_times():
  def fail(_):
    raise jax.errors.JaxRuntimeError(text)

  cost = measure.Cost(1.0, 4e9, 1e9, 7)
  case = measure.Case([('step', fail)], 64, {'step': cost})
  find = lambda: [*measure.rows('s', [case], peaks=PEAKS, budget_s=0.1)]
  text = 'RESOURCE_EXHAUSTED: Out of memory'
  (row,) = find()
  assert row['memory'] == 7 and np.isnan(row['p50_ms']) and not row['repeats']
  text = 'INTERNAL: another'
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    find()


def test_several_calls_are_timed_as_one():
  slept = [('nap', lambda _: time.sleep(0.02))]
  (once,) = measure.rows(
    'test', [measure.Case(slept, 1)], peaks=PEAKS, budget_s=0
  )
  (each,) = measure.rows(
    'test', [measure.Case(slept, 1, calls=4)], peaks=PEAKS, budget_s=0
  )
  assert once['p50_ms'] >= 20 > 15 > each['p50_ms'] >= 5
  assert once['p90_ms'] >= 20 and math.isnan(each['p90_ms'])


def test_an_unknown_step_is_refused_in_one_line(run, capsys):
  with pytest.raises(SystemExit) as stopped:
    run(only=['steps'], steps=['mappings'])
  assert stopped.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert 'steps: expected some of image autoencoder' in line
  assert "found 'mappings'" in line


@pytest.mark.parametrize('values', [{'dtype': 'bfloat16'}, {'batches': ['1']}])
def test_what_pytorch_is_not_asked_for_is_refused(values, run, capsys):
  with pytest.raises(SystemExit):
    run(against='torch', **values)
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('benchmarks: against: takes neither')


def test_steps_in_a_row_are_timed_as_one(monkeypatch):
  """As on accelerators; who asks for one step gets one."""
  taken = []

  def train(state, batch, key):
    taken.append(1)
    return state, {'loss': 0.0}

  cost = measure.Cost(0.0, 6.0, 4.0, 1.0)
  monkeypatch.setattr(measure, 'cost', lambda *_: cost)
  monkeypatch.setattr(networks.train_step, 'make_train_step', lambda *_: train)
  size = sizes.SIZES['small']
  given = networks._mapping_step(size)
  for calls in (1, 5):
    case = networks.step('it', *given, microbatches=2, calls=calls)
    ((_, run),) = case.stages
    taken.clear()
    run(None)
    assert len(taken) == case.calls == calls
    assert (case.costs['it'].flops, case.costs['it'].bytes) == (12.0, 8.0)


@pytest.mark.parametrize('batches', [['0'], ['one'], []])
def test_batches_are_numbers(batches, run, capsys):
  with pytest.raises(SystemExit):
    run(only=['wire'], batches=batches)
  assert 'batches: expected numbers' in capsys.readouterr().err


def test_two_functions_are_not_compared():
  x = {'a': np.ones(3), 'b': np.ones((2, 2))}
  assert comparison.error('it', x, {**x, 'a': x['a'] + 1e-5}) < 2e-5
  for other in (
    {**x, 'a': x['a'] + 1e-3},
    {**x, 'a': x['a'] * np.nan},
    {**x, 'b': np.ones(4)},
  ):
    with pytest.raises(ValueError, match='it: expected'):
      comparison.error('it', x, other)
  with pytest.raises(ValueError, match='parameters'):
    comparison.same_count('it', 3, 4)


def test_pairs_become_ratios():
  pair = comparison.Pair('it', 2, lambda: None, lambda: None, 5, 0.0)
  (row,) = comparison.ratios('test', [pair], budget_s=0)
  table = comparison.table([row], 'title', 'theirs')
  assert row['ratio'].low <= row['ratio'].value <= row['ratio'].high
  assert table.rows[0][3] == 5 and 'JAX / theirs' in table.headers
  assert measure.jsonable(row)['ratio']['value'] == row['ratio'].value


def test_a_run_prints_a_table_and_writes_json(run, capsys):
  found = run(only=['metrics', 'wire'])
  assert found['size'] == 'small' and found['peaks'] == PEAKS
  assert {'device', 'jax', 'cores', 'load_average'} <= set(found['environment'])
  names = [(row['section'], row['name']) for row in found['rows']]
  assert names[:2] == [('wire', 'encode, float16'), ('wire', 'decode')]
  assert {section for section, _ in names} == {'wire', 'metrics'}
  for row in found['rows']:
    assert 0 < row['p50_ms'] <= row['p90_ms'] and row['repeats'] >= 3
    assert row['flops'] is None
  printed = capsys.readouterr()
  assert 'load average' in printed.out and 'segmentation scores' in printed.out
  lines = printed.err.splitlines()
  assert lines[0] == 'measuring wire ...' and 'measuring metrics ...' in lines
  assert lines[1].startswith('encode, float16, batch 1: ')
  assert len(lines) == 2 + len(found['rows'])


def test_the_networks_of_a_query_answer():
  cases = networks.networks(sizes.SIZES['small'])
  found = {}
  for case in itertools.islice(cases, 3):
    ((name, function),) = case.stages
    found[name] = function(None)
  assert list(found) == ['image encoder', 'mapping', 'mask decoder']
  assert found['image encoder'].keys() == found['mapping'].keys()
  assert found['mask decoder'].dtype == jnp.uint8


def test_batches_are_drawn_and_put_on_the_device():
  """Images, and the latents that a mapping network learns from."""
  of_images, of_latents = (
    case
    for case in host.pipeline(sizes.SIZES['small']._replace(step_batch=4))
    if len(case.stages) == 2
  )
  assert [name for name, _ in of_latents.stages] == [
    'draw latents',
    'latents to the devices',
  ]
  for case in (of_images, of_latents):
    (_, draw), (_, put) = case.stages
    batch = draw(None)
    found = put(batch)
    assert case.batch == 4
    for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(found)):
      assert isinstance(a, np.ndarray) and isinstance(b, jax.Array)
      assert a.dtype == b.dtype and a.shape[:2] == b.shape[:2] == (1, 4)
  assert set(batch) == {'image', 'mask', 'slot'}


def test_what_was_measured_stays_when_the_rest_is_stopped(
  run, monkeypatch, tmp_path
):
  def stopped(size):
    yield measure.Case([('nap', lambda _: None)], 1)
    raise KeyboardInterrupt

  monkeypatch.setitem(sections.SECTIONS, 'wire', stopped)
  with pytest.raises(KeyboardInterrupt):
    run(only=['wire'])
  (file,) = (tmp_path / 'new').iterdir()
  found = json.loads(file.read_text())
  assert [row['name'] for row in found['rows']] == ['nap']


def test_an_unknown_section_is_refused_in_one_line(run, capsys):
  with pytest.raises(SystemExit) as stopped:
    run(only=['wire', 'nope'])
  assert stopped.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "found 'nope'" in line and ', '.join(sections.SECTIONS) in line


def test_torch_is_asked_for_in_one_line(run, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(SystemExit):
    run(against='torch')
  (line,) = capsys.readouterr().err.splitlines()
  assert '[bench]' in line


def test_a_layer_of_pytorch_is_ours():
  pytest.importorskip('torch', reason='PyTorch is not installed')
  from benchmarks import torch_layers

  forward, backward = (
    pair
    for pair in torch_layers.layers(sizes.SIZES['small'])
    if 'transposed' in pair.name
  )
  assert backward.name == f'{forward.name}, gradients'
  assert forward.error < 1e-6 and backward.error < 1e-5
  assert forward.parameters == 2 * 2 * 8 * 4


def test_fatnet_of_pytorch_is_ours():
  pytest.importorskip('torch', reason='PyTorch is not installed')
  from benchmarks import torch_fatnet, torch_networks

  rng = np.random.default_rng(0)
  x = np.float32(rng.uniform(size=(2, 32, 48, 2)))
  tiny = baseline_models_test.TINY_FAT
  options = {**tiny.keywords, 'blocks': (1, 2, 1, 1), 'transformer_layers': 2}
  model = tiny(3, **options)
  variables = baseline_models_test.variables_of(model, x, train=False)
  theirs = torch_fatnet.FATNet(2, 3, **options)
  torch_networks.copy(theirs, variables)
  theirs = theirs.to(torch_networks.device()).eval()
  ours = jax.jit(lambda x: model.apply(variables, x, train=False))(x)
  found = torch_networks.arrays(theirs(torch_networks.tensors(x)))
  assert comparison.error('fatnet', ours, found) < 1e-6
