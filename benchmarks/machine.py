"""What the figures were measured on: the machine, its load, its peaks."""

import datetime
import os
import pathlib
import platform
import time
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from ppcmi_jax import evaluation


def confine(cores: int) -> None:
  """Keeps this process to some cores; before the first use of a device.

  XLA and PyTorch then start as many threads.

  Raises:
    ValueError: there aren't so many, or the system can't do it.
  """
  if not hasattr(os, 'sched_setaffinity'):
    raise ValueError(
      'cores: this system cannot confine a process; leave it out'
    )
  usable = sorted(os.sched_getaffinity(0))
  if cores > len(usable):
    raise ValueError(f'cores: expected at most {len(usable)}, found {cores}')
  os.sched_setaffinity(0, usable[-cores:])


def describe() -> dict[str, Any]:
  """Returns the device, versions, cores and load, to be called at the start."""
  affinity = getattr(os, 'sched_getaffinity', None)
  return {
    **evaluation.environment(),
    'jaxlib': jaxlib.__version__,
    'numpy': np.__version__,
    'platform': platform.platform(),
    'cpu': _cpu(),
    'cores': len(affinity(0)) if affinity else os.cpu_count(),
    'load_average': [round(x, 2) for x in os.getloadavg()],
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'matmul_precision': jax.config.jax_default_matmul_precision or 'default',
    'started': datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds'),
  }


def _cpu() -> str:
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor()
  names = [x.partition(':')[2].strip() for x in lines if 'model name' in x]
  return names[0] if names else platform.processor()


def peaks(
  *, dtype: str = 'float32', target_s: float = 0.02
) -> dict[str, float]:
  """Measures what the device can do: the best of some calls of each.

  Args:
    dtype: of the matmul.
    target_s: the size is doubled until a call takes so long.

  Returns:
    'flops', operations a second of a square matmul at XLA's default precision
    (of float32 that is TF32 on NVIDIA's accelerators), and 'bandwidth', bytes a
    second that x + 1 reads and writes.
  """
  multiply = jax.jit(jnp.matmul)
  # In place: new memory would be measured, too.
  increment = jax.jit(lambda x: x + 1, donate_argnums=0)
  normal = lambda *shape: jax.random.normal(jax.random.key(0), shape, dtype)
  return {
    'flops': _best(
      lambda scale: normal(512 * scale, 512 * scale),
      lambda x: (multiply(x, x), x),
      lambda x: 2 * len(x) ** 3,
      target_s,
    ),
    # From 64 MiB on, beyond the caches of most CPUs.
    'bandwidth': _best(
      lambda scale: jnp.ones((scale, 2**24)),
      lambda x: (increment(x),) * 2,
      lambda x: 2 * x.nbytes,
      target_s,
    ),
  }


def _best(make, call, work, target_s, largest=64) -> float:
  """Returns work a second, at the first size that takes long enough.

  An accelerator gets several calls before it is waited for, as a launch would
  take long beside them.

  Args:
    make: scale -> x.
    call: x -> (what to wait for, the next x).
    work: x -> what a call does.
    target_s, largest: a scale that takes so long, or is so large, is enough.
  """
  scale, calls = 1, 1 if jax.default_backend() == 'cpu' else 10
  while True:
    x, times = make(scale), []
    for _ in range(6):  # the first compiles
      start = time.perf_counter()
      for _ in range(calls):
        result, x = call(x)
      jax.block_until_ready(result)
      times.append((time.perf_counter() - start) / calls)
    if min(times) >= target_s or scale >= largest:
      return work(x) / min(times)
    scale *= 2
