"""The processes of one run, on one host or on several.

Every process runs the same program and feeds its share of each batch to its
own devices; what is learnt is the same on all. Process 0 alone writes files,
makes keys and shows progress, and it reads first what reading may change:

    state = first(restore)      # process 0 calls; the others wait, and get None
    state = broadcast(state)    # what process 0 has, on all
    data = in_turn(load)        # process 0 calls, then all the others

An error of one process is raised in all of them, so that none waits for what
will not come. With one process each of these is the call itself.
"""

import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar('T')
_LINE_BYTES = 1024  # of an error told to the others
_SHARED_S = 5.0  # until a file written on one host is seen on another


def start(
  address: str | None,
  count: int | None,
  number: int | None,
  *,
  timeout_s: int = 300,
) -> None:
  """Joins the processes of a run; to be called before JAX computes anything.

  Args:
    address: 'HOST:PORT' of process 0, the same in all processes; 'auto' where
      a TPU pod, SLURM or MPI says who takes part; None for one process.
    count: processes, given with an address.
    number: of this one, from 0.
    timeout_s: how long to wait for the others. Then the process ends, with one
      line and exit code 2: JAX would abort it without a word of ours.

  Raises:
    ValueError: arguments that do not go together, 'auto' where nothing says who
      takes part, or processes with different numbers of devices.
  """
  if address in (None, 'auto'):
    given = {'num_processes': count, 'process_id': number}
    for name, value in given.items():
      if value is not None:
        raise ValueError(
          f'{name}: goes with --coordinator_address=HOST:PORT, found {value} '
          f'with {address or "none"}; name the host of process 0'
        )
    if address is None:
      return
  else:
    _check(address, count, number)
  if hasattr(jax.config, 'jax_enable_preemption_service'):
    # It would swallow SIGTERM, which ends a run as well as any.
    jax.config.update('jax_enable_preemption_service', False)
  who = f'process 0 at {address}' if number else 'the others'
  late = threading.Timer(
    timeout_s,
    leave,
    [f'no answer from {who} within {timeout_s} s; start all processes', False],
  )
  late.daemon = True
  late.start()
  try:
    jax.distributed.initialize(
      *((None, None, None) if address == 'auto' else (address, count, number)),
      initialization_timeout=timeout_s + 60,
      shutdown_timeout_seconds=60,
    )
  except (ValueError, RuntimeError) as error:
    raise ValueError(
      f'coordinator_address: {address} does not work ({error}); give each '
      'process HOST:PORT of process 0, --num_processes and --process_id'
    ) from None
  devices, own = jax.device_count(), jax.local_device_count()
  late.cancel()
  if devices != own * jax.process_count():
    raise ValueError(
      f'devices: expected as many in each process, found {own} of {devices} in '
      f'process {jax.process_index()} of {jax.process_count()}'
    )


def _check(address, count, number):
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit():
    raise ValueError(
      f"coordinator_address: expected 'HOST:PORT' or 'auto', found {address!r}"
    )
  if count is None or number is None:
    raise ValueError(
      'coordinator_address: needs --num_processes and --process_id as well'
    )
  if count < 1 or not 0 <= number < count:
    raise ValueError(
      f'process_id: expected 0 to {max(count, 1) - 1}, one less than '
      f'num_processes, found {number} of {count}'
    )


def leave(line: str, joined: bool = True) -> None:
  """Ends the process with a line on stderr and exit code 2.

  With others it does not wait for them, as JAX would for minutes. Process 0
  stays a little: with it goes the coordinator, and that aborts whoever has
  not said yet why it ends.
  """
  print(f'{pathlib.Path(sys.argv[0]).name}: {line}', file=sys.stderr)
  if joined and not jax.distributed.is_initialized():
    sys.exit(2)
  sys.stdout.flush()
  sys.stderr.flush()
  if joined and is_first():
    time.sleep(2)
  os._exit(2)


def count() -> int:
  return jax.process_count()


def is_first() -> bool:
  """Says whether this is process 0, which writes."""
  return jax.process_index() == 0


def is_lost(error: Exception) -> bool:
  """Says whether an error means that another process has gone.

  JAX tells it in the words of the library that carries arrays, or of its
  coordinator.
  """
  words = ('gloo', 'nccl', 'coordination', 'heartbeat', 'peer')
  text = str(error).lower()
  return jax.distributed.is_initialized() and any(w in text for w in words)


def first(call: Callable[[], T]) -> T | None:
  """Calls in process 0 while the others wait.

  Returns:
    What the call returned in process 0, None in the others.

  Raises:
    Exception: what the call raised; a ValueError of its text in the others.
  """
  return _call(call, here=is_first())


def in_turn(call: Callable[[], T]) -> T:
  """Calls in process 0, then in all the others; raises as `first`."""
  result = first(call)
  found = _call(call, here=not is_first())
  return result if is_first() else found


def broadcast(tree: Any) -> Any:
  """Returns process 0's arrays, to the bit; the others name the shapes."""
  if count() == 1:
    return tree
  leaves, structure = jax.tree.flatten(tree)
  leaves = [np.asarray(leaf) for leaf in leaves]
  data = _gather(_bytes(*leaves), np.uint8, from_first=True)
  ends = np.cumsum([leaf.nbytes for leaf in leaves])
  return jax.tree.unflatten(
    structure,
    [
      part.view(leaf.dtype).reshape(leaf.shape)
      for part, leaf in zip(np.split(data, ends[:-1]), leaves, strict=True)
    ],
  )


def total(value: float) -> float:
  """Returns the sum of a number over the processes, the same in all."""
  return float(sum(_gather(_bytes(np.float64(value)), np.float64)[:, 0]))


def check_equal(name: str, value: int) -> None:
  """Raises ValueError where not all processes have a number in common."""
  values = _gather(_bytes(np.int64(value)), np.int64)[:, 0]
  for number, other in enumerate(values):
    if other != values[0]:
      raise ValueError(
        f'{name}: expected as many in all processes, found {values[0]} in '
        f'process 0 and {other} in process {number}; start again'
      )


def check_shared(folder: str | os.PathLike) -> None:
  """Raises ValueError where a folder is not the same one in all processes."""
  if count() == 1:
    return
  token = broadcast(np.frombuffer(os.urandom(8), np.uint8)).tobytes().hex()
  path = pathlib.Path(folder) / f'.shared-{token}'
  first(path.touch)

  def look():
    deadline = time.monotonic() + _SHARED_S
    while not path.exists():
      if time.monotonic() > deadline:
        raise ValueError(
          f'workdir {folder}: not the folder that process 0 has under that '
          'name; put --workdir on a disk that all processes share'
        )
      time.sleep(0.1)

  try:
    in_turn(look)
  finally:
    if is_first():
      path.unlink()


def settle(arrays: Any) -> None:
  """Waits for arrays where steps that overlap could wait for each other.

  On CPUs, with several processes of several devices each, collectives of two
  steps may meet in different orders.
  """
  several = count() > 1 and jax.local_device_count() > 1
  if several and jax.default_backend() == 'cpu':
    jax.block_until_ready(arrays)


def _call(call: Callable[[], T], *, here: bool) -> T | None:
  """Calls where `here` is true; raises in all processes what one has met."""
  result, error = None, None
  if here:
    try:
      result = call()
    except Exception as raised:
      error = raised
  _share(error)
  return result


def _share(error: Exception | None) -> None:
  """Raises in all processes what one of them has met, if any has."""
  if count() > 1:
    text = '' if error is None else ' '.join(str(error).split())
    told = (text or type(error).__name__).encode() if error else b''
    line = np.zeros(_LINE_BYTES, np.uint8)
    line[: len(told)] = np.frombuffer(told, np.uint8)[:_LINE_BYTES]
    lines = _gather(line, np.uint8)
  if error is not None:
    raise error
  if count() > 1:
    for number, line in enumerate(lines):
      if line.any():
        told = line.tobytes().rstrip(b'\0').decode(errors='replace')
        raise ValueError(f'process {number}: {told}')


def _bytes(*arrays: Any) -> np.ndarray:
  """Returns arrays as one row of bytes, which no dtype of JAX's changes."""
  return np.concatenate(
    [np.frombuffer(np.asarray(a).tobytes(), np.uint8) for a in arrays]
  )


def _gather(data: np.ndarray, dtype: Any, *, from_first: bool = False) -> Any:
  """Returns the rows of all processes [P, N], or process 0's [N]."""
  if from_first:
    found = multihost_utils.broadcast_one_to_all(data)
  else:
    found = multihost_utils.process_allgather(data)
  return np.ascontiguousarray(found).view(dtype)
