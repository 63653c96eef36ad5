"""Trainings side by side: who gets which devices, and what stops them."""

import functools
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import scripts
import training_test

from ppcmi_jax import side_by_side

SHARES = """
from ppcmi_jax import side_by_side
for count in (1, 2, 3, 4, 6):
  groups = side_by_side.groups(count)
  print([[device.id for device in devices] for devices in groups])
"""


def test_devices_are_shared_out_equally():
  run = subprocess.run(
    [sys.executable, '-c', SHARES],
    env=scripts.environment(XLA_FLAGS=scripts.xla_flags(4)),
    capture_output=True,
    check=True,
    text=True,
  )
  assert run.stdout.splitlines() == [
    '[[0, 1, 2, 3]]',
    '[[0, 1], [2, 3]]',
    '[[0], [1], [2]]',
    '[[0], [1], [2], [3]]',
    '[[0], [1], [2], [3], [0], [1]]',
  ]


def test_all_are_called_and_as_many_at_once_as_allowed():
  meeting, seen = threading.Barrier(2, timeout=60), []

  def job(devices, stopped):
    assert devices == (jax.devices()[0],) and not stopped()
    meeting.wait()  # for a second one
    seen.append(threading.current_thread().name)

  side_by_side.run([job] * 6, at_once=2)
  assert len(seen) == 6 and len(set(seen)) == 2


def test_one_at_once_is_a_loop():
  seen = []
  jobs = [lambda *_, i=i: seen.append((i, threading.get_ident())) for i in 'ab']
  side_by_side.run(jobs, at_once=1)
  assert seen == [(i, threading.get_ident()) for i in 'ab']


def test_one_that_fails_stops_the_others():
  begun = []

  def endless(devices, stopped):
    begun.append('endless')
    while not stopped():
      time.sleep(0.001)

  def failing(devices, stopped):
    while not begun:
      time.sleep(0.001)
    raise FloatingPointError('the loss is not finite')

  with pytest.raises(FloatingPointError, match='not finite'):
    side_by_side.run([endless, failing, endless], at_once=2)
  assert begun == ['endless']


def test_what_is_learnt_does_not_depend_on_the_others(tmp_path):
  trainer = training_test.trainer()
  data = training_test.arrays()
  states = {}

  def fit(devices, stopped, seed, folder):
    states[folder, seed] = trainer.fit(
      data,
      data,
      seed=seed,
      directory=tmp_path / folder / str(seed),
      devices=devices,
      stopped=stopped,
    )

  for folder, at_once in (('alone', 1), ('beside', 3)):
    jobs = [functools.partial(fit, seed=i, folder=folder) for i in range(3)]
    side_by_side.run(jobs, at_once)
  for seed in range(3):
    jax.tree.map(
      np.testing.assert_array_equal,
      states['beside', seed],
      states['alone', seed],
    )
