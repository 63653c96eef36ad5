"""The scripts in processes of their own, as users start them."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def xla_flags(devices: int) -> str:
  """Returns what makes a process of its own see so many devices."""
  ours = os.environ.get('XLA_FLAGS', '')
  return f'{ours} --xla_force_host_platform_device_count={devices}'


def environment(**variables):
  """Returns this process' environment with some variables of its own."""
  fixed = {'JAX_PLATFORMS': 'cpu', 'PYTHONWARNINGS': 'ignore'}
  return os.environ | fixed | variables


def start(*arguments, folder=ROOT, **variables):
  """Starts python with arguments, and some variables of its environment."""
  return subprocess.Popen(
    [sys.executable, *map(str, arguments)],
    cwd=folder,
    env=environment(**variables),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def smoke(
  name, workdir, data_dir, *flags, config='configs/smoke.py', folder=ROOT
):
  """Starts a script on the smoke configuration."""
  return start(
    ROOT / name,
    f'--config={config}',
    f'--workdir={workdir}',
    f'--config.data_dir={data_dir}',
    *flags,
    folder=folder,
  )


def finish(process, seconds=600):
  """Returns exit code, stdout and stderr; no process is left behind."""
  try:
    out, err = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    process.kill()
    raise
  return process.returncode, out, err


def refused(process, seconds=600):
  """Asserts exit code 2 and returns the one line that says why."""
  code, _, err = finish(process, seconds)
  assert code == 2, err
  assert 'Traceback' not in err
  lines = [line for line in err.splitlines() if '.py: ' in line]
  assert len(lines) == 1, err
  return lines[0]
