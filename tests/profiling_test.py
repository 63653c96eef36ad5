"""Tests of profiling.py: the order of the stages, and what the clock covers."""

import time

import jax
import jax.numpy as jnp
import pytest
import scripts

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


def test_costs_are_of_a_compilation_though_the_cache_has_it(tmp_path):
  code = f"""
import jax, jax.numpy as jnp
from ppcmi_jax import profiling
jax.config.update('jax_compilation_cache_dir', {str(tmp_path)!r})
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
hits = lambda: sum('cache_hits' in name for name in events)
x = jnp.ones(5)
jax.jit(lambda x: x + 1)(x)
before = hits()
profiling.cost(lambda x: x * 2, x)
assert hits() == before, events
jax.jit(lambda x: x + 3)(x)
print(hits() > before)
"""
  runs = [scripts.finish(scripts.start('-c', code)) for _ in range(2)]
  # The second finds what the first has made, and behind the costs still does.
  assert [(code, out) for code, out, _ in runs] == [
    (0, 'False\n'),
    (0, 'True\n'),
  ]


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
