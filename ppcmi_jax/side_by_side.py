"""Independent trainings side by side, each on devices of its own.

A step of a small network leaves most of a machine idle: on several devices its
batch has little for each, and one device waits for its host. So the clients'
networks of a simulation train at once, in threads. What one learns does not
depend on the others.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent import futures

import jax

from ppcmi_jax import processes

Devices = tuple[jax.Device, ...]
# (devices to train on, says whether to stop early) -> None
Job = Callable[[Devices, Callable[[], bool]], None]


def groups(count: int) -> list[Devices]:
  """Returns the devices of each of so many trainings at once.

  Equal shares where there are devices enough, the rest idle; one device each,
  some shared, where there are not. Several processes train together: one group
  of all their devices.

  Args:
    count: at least 1.
  """
  if processes.count() > 1:
    return [tuple(jax.devices())]
  devices = tuple(jax.devices())
  share = max(1, len(devices) // count)
  starts = (i * share % len(devices) for i in range(count))
  return [devices[start : start + share] for start in starts]


def run(jobs: Sequence[Job], at_once: int) -> None:
  """Calls every job, several at once, each with a group of the devices.

  When one raises, the others are told to stop, and none begins; so they are
  when the user interrupts.

  Args:
    jobs: in the order in which they begin.
    at_once: at most; one where several processes train together.

  Raises:
    Exception: what the first job to fail raised.
  """
  some = groups(at_once)
  if len(some) == 1:
    for job in jobs:
      job(some[0], lambda: False)
    return
  stop, free = threading.Event(), queue.SimpleQueue()
  for devices in some:
    free.put(devices)

  def call(job):
    devices = free.get()
    try:
      if not stop.is_set():
        job(devices, stop.is_set)
    except BaseException:
      stop.set()
      raise
    finally:
      free.put(devices)

  with futures.ThreadPoolExecutor(len(some)) as pool:
    try:
      for done in futures.as_completed([pool.submit(call, j) for j in jobs]):
        done.result()
    finally:
      stop.set()
