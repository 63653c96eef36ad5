"""Tests of profiling.py: the order of the stages, and what the clock covers."""

import time

import jax
import jax.numpy as jnp
import pytest

from ppcmi_jax import profiling


def test_profile_orders_stages_and_measures_time():
  log = []

  def slow(value):
    log.append(value)
    time.sleep(0.004)
    return value + 1

  timings = profiling.profile(
    [('protect', slow), ('respond', slow), ('reveal', jnp.sqrt)],
    1,
    repeats=4,
    warmup=1,
  )
  assert log == [1, 2] * 5
  assert list(timings) == ['protect', 'respond', 'reveal', 'total']
  for name in ('protect', 'respond'):
    assert timings[name]['p50_ms'] >= 4
    assert timings[name]['p90_ms'] >= timings[name]['p50_ms']
  assert timings['total']['p50_ms'] >= 8


def test_profile_waits_for_the_arrays(monkeypatch):
  waited = []
  wait = jax.block_until_ready
  monkeypatch.setattr(
    jax, 'block_until_ready', lambda x: waited.append(x) or wait(x)
  )
  stages = [('a', lambda _: {'z': jnp.ones(3)}), ('b', lambda x: (x, b'wire'))]
  profiling.profile(stages, repeats=1, warmup=0)
  assert [type(x) for x in waited] == [type(None), dict, tuple]


@pytest.mark.parametrize(
  'stages, repeats, warmup, message',
  [
    ([], 1, 0, 'distinct names'),
    ([('a', abs), ('a', abs)], 1, 0, 'distinct names'),
    ([('total', abs)], 1, 0, 'distinct names'),
    ([('a', abs)], 0, 0, 'repeats'),
    ([('a', abs)], 1, -1, 'warmup'),
  ],
)
def test_bad_profiles_are_refused(stages, repeats, warmup, message):
  with pytest.raises(ValueError, match=message):
    profiling.profile(stages, 1, repeats=repeats, warmup=warmup)
