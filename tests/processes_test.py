"""Several processes on one machine: they train as one, and end as one."""

import importlib.util
import json
import signal
import socket
import time
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import scripts

from configs import smoke
from ppcmi_jax import collaboration, command, config_checks, processes

# What compiles in seconds: a U-Net of one level, or a single client.
CONFIG = """
from configs import smoke

def get_config(method='ppcmi_sf'):
  config = smoke.get_config(method)
  config.clients = ('1',)
  config.eval_every = 2
  if method == 'unet':
    config.baseline_options = {'width': 4, 'depth': 1}
    config.baseline_steps = 24
  else:
    config.image_steps = config.mask_steps = config.mapping_steps = 2
  config.data_dir = DATA_DIR
  return config
"""


@pytest.fixture(scope='module')
def config_path(tmp_path_factory):
  folder = tmp_path_factory.mktemp('config')
  path = folder / 'tiny.py'
  path.write_text(CONFIG.replace('DATA_DIR', repr(str(folder / 'data'))))
  return path


@pytest.fixture(scope='module')
def script(config_path):
  """Returns a function that starts a script, of one process or of several."""

  def start(*flags, name='train.py', method='unet', devices=1):
    return scripts.start(
      name,
      f'--config={config_path}:{method}',
      *flags,
      XLA_FLAGS=scripts.xla_flags(devices),
    )

  return start


@pytest.fixture(scope='module')
def pair(script):
  """Returns a function that starts two processes of one run."""

  def start(*workdirs, **options):
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    return [
      script(
        f'--workdir={workdir}',
        f'--coordinator_address=127.0.0.1:{port}',
        '--num_processes=2',
        f'--process_id={i}',
        **options,
      )
      for i, workdir in enumerate(workdirs)
    ]

  return start


def all_finish(started):
  results = [scripts.finish(process) for process in started]
  for code, _, err in results:
    assert code == 0, err
  return results


def final_state(workdir, like=None):
  """Returns what was saved last, wherever its devices were."""
  if like is not None:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like
    )
  folder = workdir / 'checkpoints' / 'segmentation'
  with ocp.CheckpointManager(folder, item_names=('state', 'meta')) as manager:
    args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
    return manager.restore(manager.latest_step(), args=args).state


def test_one_killed_both_restarted_equals_uninterrupted(pair, script, tmp_path):
  whole, killed, alone = (tmp_path / name for name in ('a', 'b', 'c'))
  all_finish(pair(whole, whole))
  rows = (whole / 'metrics.jsonl').read_text().splitlines()
  assert len(rows) == 12  # of process 0 alone

  first, second = pair(killed, killed)
  deadline = time.monotonic() + 120
  while not (killed / 'checkpoints' / 'segmentation' / '4').exists():
    assert first.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  second.send_signal(signal.SIGKILL)
  scripts.finish(second)
  line = scripts.refused(first, seconds=60)
  assert 'another process of the run has ended' in line
  assert int(max((killed / 'metrics.jsonl').read_text().count('\n'), 2)) < 12
  all_finish(pair(killed, killed))
  state = final_state(whole)
  assert int(state['step']) == 24
  jax.tree.map(np.testing.assert_array_equal, final_state(killed), state)

  # One process of two devices draws and adds the same numbers, up to the last
  # bits, which depend on the machine and grow from step to step.
  assert scripts.finish(script(f'--workdir={alone}', devices=2))[0] == 0
  losses = np.array([
    [[row['loss'], row['valid_loss']] for row in map(json.loads, lines)]
    for lines in (rows, (alone / 'metrics.jsonl').read_text().splitlines())
  ])  # fmt: skip
  # Biases before a BatchNorm have gradients of rounding alone, which Adam makes
  # steps of: the loss in training does not see them, that in validation does.
  np.testing.assert_allclose(*losses[:, :3, 0], rtol=1e-5)
  np.testing.assert_allclose(*losses, rtol=1e-2)
  # Four times what was seen to differ in such a bias (5e-3, on one core).
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-2),
    final_state(alone, like=state)['variables'],
    state['variables'],
  )


def test_two_processes_train_the_whole_method(pair, config_path, tmp_path):
  workdir = tmp_path / 'w'
  (_, out, _), (_, silent, err) = all_finish(
    pair(workdir, workdir, method='ppcmi_sf')
  )
  assert 'cases' in out and 'cases' not in silent
  assert 'step/s' not in err
  assert not list(workdir.glob('.shared-*'))
  messages = list((workdir / 'messages' / '1').glob('*.msg'))
  kept = list((workdir / 'secrets' / 'server' / 'kept' / '1').iterdir())
  assert len(messages) == len(kept) > 2
  spec = importlib.util.spec_from_file_location('tiny', config_path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  run = collaboration.restore(module.get_config(), workdir)
  image = run.data.hospitals['1']['test'].image
  assert run.predict['1'](image).shape == image.shape[:3]


def test_a_workdir_that_is_not_shared_is_one_line(pair, tmp_path):
  for process in pair(tmp_path / 'here', tmp_path / 'there'):
    line = scripts.refused(process)
    assert 'put --workdir on a disk that all processes share' in line


def test_a_coordinator_that_does_not_answer_is_one_line(script, tmp_path):
  flags = ['--coordinator_address=127.0.0.1:9', '--num_processes=2']
  flags += ['--process_id=1', '--coordinator_timeout=1']
  line = scripts.refused(script(f'--workdir={tmp_path / "w"}', *flags))
  assert 'no answer from process 0 at 127.0.0.1:9 within 1 s' in line
  assert not (tmp_path / 'w').exists()


def test_evaluation_is_of_one_process(script, tmp_path):
  flags = [f'--workdir={tmp_path}', '--num_processes=2', '--process_id=0']
  line = scripts.refused(script(*flags, name='eval.py'))
  assert 'start it once' in line


@pytest.mark.parametrize(
  'arguments, words',
  [
    ((None, 2, None), 'num_processes: goes with --coordinator_address'),
    ((None, None, 0), 'process_id: goes with --coordinator_address'),
    (('host', 2, 0), "expected 'HOST:PORT' or 'auto', found 'host'"),
    (('host:1', None, 0), 'needs --num_processes and --process_id'),
    (('host:1', 2, 2), 'process_id: expected 0 to 1.*found 2 of 2'),
    (('host:1', 2, -1), 'process_id: expected 0 to 1'),
    (('host:1', 0, 0), 'num_processes'),
    (('auto', 2, 0), 'num_processes: goes with'),
  ],
)
def test_flags_that_do_not_go_together(arguments, words):
  with pytest.raises(ValueError, match=words):
    processes.start(*arguments)


def test_a_batch_that_devices_cannot_share(monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 3)
  config = smoke.get_config()
  with pytest.raises(
    ValueError, match=r'mapping_batch_size: .* of the 3 devices, found 4'
  ):
    config_checks.check_networks(config)


def test_one_process_is_the_call_itself():
  assert processes.first(lambda: 1) == processes.in_turn(lambda: 1) == 1
  assert processes.total(0.1) == 0.1
  processes.check_shared('/nowhere')
  with pytest.raises(KeyError, match='own'):
    processes.first(lambda: {}['own'])


@pytest.mark.parametrize(
  'error, words',
  [
    ('RESOURCE_EXHAUSTED: Out of memory', '--config.microbatches=2'),
    ('INTERNAL: something else', 'the device failed: INTERNAL'),
  ],
)
def test_a_device_that_fails_is_one_line(monkeypatch, capsys, error, words):
  def call(config, workdir):
    raise jax.errors.JaxRuntimeError(error)

  monkeypatch.setattr(command, '_CONFIG', types.SimpleNamespace(value=None))
  monkeypatch.setattr(command, '_WORKDIR', types.SimpleNamespace(value=None))
  monkeypatch.setattr(command, '_join', lambda several: None)
  with pytest.raises(SystemExit):
    command._run(call, False)
  assert words in capsys.readouterr().err
