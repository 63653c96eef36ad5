"""Tests of checkpoints.py: what is damaged is noticed and passed over."""

import gc
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ppcmi_jax import checkpoints

# Orbax leaves the other reads of a damaged checkpoint unawaited.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


@pytest.fixture(autouse=True)
def collect():
  yield
  gc.collect()  # so that such warnings come here, not in another file


class State(NamedTuple):
  step: Any
  variables: Any
  opt_state: Any


def state_of(step):
  rng = np.random.default_rng(step)
  return State(
    step=jnp.int32(step),
    variables={
      'params': {'kernel': jnp.asarray(rng.normal(size=(3, 700)), jnp.float32)},
      'batch_stats': {'mean': jnp.asarray(rng.normal(size=9), jnp.bfloat16)},
    },
    opt_state=(jnp.asarray(rng.integers(0, 9, 4), jnp.int32), None),
  )


def assert_states_equal(found, expected):
  assert type(found) is type(expected)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    assert a.dtype == b.dtype and a.shape == b.shape
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save(directory, steps):
  keeper = checkpoints.Checkpoints(directory)
  for step, state in steps.items():
    keeper.save(step, state)
  keeper.close()


def restore(directory, like=None, move_aside=True):
  warnings = []
  keeper = checkpoints.Checkpoints(directory, warn=warnings.append)
  state = keeper.restore(
    state_of(0) if like is None else like, move_aside=move_aside
  )
  keeper.close()
  return state, warnings


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """Steps 1, 2 and 3 were saved."""
  directory = tmp_path_factory.mktemp('written') / 'made' / 'task'
  save(directory, {step: state_of(step) for step in (1, 2, 3)})
  return directory


@pytest.fixture
def directory(written, tmp_path):
  return pathlib.Path(shutil.copytree(written, tmp_path / 'task'))


def test_a_state_comes_back_bit_for_bit(directory):
  state, warnings = restore(directory)
  assert_states_equal(state, state_of(3))
  assert not warnings


def test_shapes_are_enough_to_restore(directory):
  like = jax.eval_shape(lambda: state_of(0))
  assert_states_equal(restore(directory, like)[0], state_of(3))


def test_two_are_kept(directory):
  assert sorted(path.name for path in directory.iterdir()) == ['2', '3']
  save(directory, {9: state_of(9)})
  assert sorted(path.name for path in directory.iterdir()) == ['3', '9']


def test_there_may_be_none(tmp_path):
  state, warnings = restore(tmp_path / 'new')
  assert state is None and not warnings
  assert (tmp_path / 'new').is_dir()


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def largest(step):
  """The file of a step that holds the largest array."""
  files = (path for path in step.rglob('*') if path.is_file())
  return max(files, key=lambda path: path.stat().st_size)


def shorten(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
  'flipped byte': lambda step: flip(largest(step)),
  'truncated file': lambda step: shorten(largest(step)),
  'empty file': lambda step: largest(step).write_bytes(b''),
  'no array metadata': lambda step: (step / 'state/_METADATA').unlink(),
  'no checksum': lambda step: (step / 'meta/metadata').unlink(),
  'no meta': lambda step: shutil.rmtree(step / 'meta'),
  'no state': lambda step: shutil.rmtree(step / 'state'),
  'other checksum': lambda step: flip(step / 'meta/metadata'),
  'other state': lambda step: (
    shutil.rmtree(step / 'state'),
    shutil.copytree(step.parent / '2/state', step / 'state'),
  ),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_step_is_passed_over(directory, damage):
  DAMAGES[damage](directory / '3')
  state, warnings = restore(directory)
  assert_states_equal(state, state_of(2))
  assert len(warnings) == 1 and '\n' not in warnings[0]
  assert f'{directory / "3"} cannot be used' in warnings[0]
  # Training goes on from there, and may write that step again.
  save(directory, {3: state_of(3)})
  state, warnings = restore(directory)
  assert_states_equal(state, state_of(3))
  assert not warnings


def test_what_cannot_be_used_is_never_deleted(directory):
  """A state of another structure may be a good one under a newer program."""
  before = sorted(p for p in directory.rglob('*'))
  other = {'weights': np.zeros(3)}
  state, warnings = restore(directory, other, move_aside=False)
  assert state is None and len(warnings) == 2
  assert sorted(p for p in directory.rglob('*')) == before
  restore(directory, other)
  assert {p.name for p in directory.iterdir()} == {'2.damaged', '3.damaged'}
  (directory / '3.damaged').rename(directory / '3')
  assert_states_equal(restore(directory)[0], state_of(3))


def test_a_full_disk_is_said_before_writing(directory, monkeypatch):
  full = shutil.disk_usage(directory)._replace(free=10)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: full)
  with pytest.raises(OSError, match=r'are needed, 0\.0 MiB are free'):
    save(directory, {4: state_of(4)})
  assert_states_equal(restore(directory)[0], state_of(3))


def test_an_empty_directory_is_passed_over(directory):
  (directory / '7').mkdir()
  state, warnings = restore(directory)
  assert_states_equal(state, state_of(3))
  assert len(warnings) == 1 and str(directory / '7') in warnings[0]


def test_an_unfinished_write_is_no_step(directory):
  (directory / '7.orbax-checkpoint-tmp-0').mkdir()
  state, warnings = restore(directory)
  assert_states_equal(state, state_of(3))
  assert not warnings


@pytest.mark.parametrize(
  'change',
  [
    lambda state: {'weights': np.zeros(3)},
    lambda state: state._replace(opt_state=()),
    lambda state: state._replace(step=jnp.zeros(2, jnp.int32)),
    lambda state: state._replace(step=jnp.float32(3)),
    lambda state: state._replace(variables={}),
  ],
  ids=['dict', 'leaf missing', 'shape', 'dtype', 'branch missing'],
)
def test_a_state_of_another_structure_is_passed_over(tmp_path, change):
  save(tmp_path, {2: state_of(2), 3: change(state_of(3))})
  state, warnings = restore(tmp_path)
  assert_states_equal(state, state_of(2))
  assert len(warnings) == 1 and str(tmp_path / '3') in warnings[0]


def test_none_is_left_when_all_are_damaged(directory):
  for step in ('2', '3'):
    flip(largest(directory / step))
  state, warnings = restore(directory)
  assert state is None
  assert [str(directory / s) in w for s, w in zip('32', warnings)] == [True] * 2
  save(directory, {1: state_of(1)})
  assert_states_equal(restore(directory)[0], state_of(1))


def test_an_error_without_a_message_is_passed_over(directory, monkeypatch):
  whole = ocp.CheckpointManager.restore

  def fail_silently(self, step, **kwargs):
    if step == 3:
      raise TimeoutError
    return whole(self, step, **kwargs)

  monkeypatch.setattr(ocp.CheckpointManager, 'restore', fail_silently)
  state, warnings = restore(directory)
  assert_states_equal(state, state_of(2))
  assert len(warnings) == 1 and 'TimeoutError' in warnings[0]


def test_no_flipped_byte_gives_a_wrong_state(written, tmp_path):
  """Any byte of any file: the state is whole, or the one before it."""
  rng = np.random.default_rng(0)
  names = [path.relative_to(written) for path in (written / '3').rglob('*')]
  fallen = 0
  files = sorted(name for name in names if (written / name).is_file())
  for i, name in enumerate(files):
    for trial in range(3):
      directory = shutil.copytree(written, tmp_path / f'{i} {trial}')
      data = bytearray((directory / name).read_bytes())
      data[rng.integers(len(data))] ^= 1 << rng.integers(8)
      (directory / name).write_bytes(data)
      state, warnings = restore(directory)
      assert_states_equal(state, state_of(3 - len(warnings)))
      fallen += len(warnings)
  assert fallen > 5


def test_digest_sees_names_dtypes_shapes_and_values():
  tree = {'a': np.arange(6, dtype=np.float32), 'b': np.int32(1)}
  others = [
    {'a': tree['a'], 'c': tree['b']},
    {'a': tree['a'].reshape(2, 3), 'b': tree['b']},
    {'a': tree['a'].astype(np.float64), 'b': tree['b']},
    {'a': tree['a'].view(np.int32), 'b': tree['b']},
    {'a': -tree['a'], 'b': tree['b']},
    {'a': tree['a']},
  ]
  digests = {checkpoints.digest(t) for t in (tree, *others)}
  assert len(digests) == 1 + len(others)
  assert all(len(d) == 64 for d in digests)
  same = {'b': jnp.int32(1), 'a': jnp.arange(6, dtype=jnp.float32)}
  assert checkpoints.digest(same) == checkpoints.digest(tree)
