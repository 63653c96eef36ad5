"""Pytrees on disk by Orbax, with checksums and a fall-back.

Orbax writes atomically, but a flipped byte in array data restores as wrong
values without a word, and an unreadable latest step hides the good one before
it. So every step carries a digest of its arrays, and `restore` walks back to
the last step that is whole.
"""

import hashlib
import pathlib
import shutil
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from ppcmi_jax import processes

# Orbax numbers its writes for the whole process, and takes those of several
# threads for one another's.
_SAVING = threading.Lock()


def digest(tree: Any) -> str:
  """Returns the SHA-256 of a tree's paths, dtypes, shapes and bytes, as hex."""
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.ascontiguousarray(leaf)
    where = jax.tree_util.keystr(path)
    sha.update(f'{where} {array.dtype} {array.shape}\n'.encode())
    sha.update(array.tobytes())
  return sha.hexdigest()


def exist(directory: pathlib.Path) -> bool:
  """Says whether a task has a checkpoint, whole or not."""
  return any(step.name.isdigit() for step in directory.glob('*'))


class Checkpoints:
  """The checkpoints of one task: `<directory>/<step>`, the newest two kept.

  With several processes, process 0 has them and the others make none: a state
  is the same on all, and whoever is left can stop without waiting for the rest.

  Args:
    directory: created where it is missing.
    warn: called with one line for each checkpoint that is passed over.
    read_only: whether to leave the folder as it is, so that a training which
      writes there at the same time is not disturbed.
  """

  def __init__(
    self,
    directory: str | pathlib.Path,
    *,
    warn: Callable[[str], None] = logging.warning,
    read_only: bool = False,
  ):
    self._directory = pathlib.Path(directory).absolute()
    self._warn = warn
    several = processes.count() > 1
    if several and not read_only:
      self._directory.mkdir(parents=True, exist_ok=True)
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=None if read_only else 2,
        create=not read_only and not several,
        # Orbax's own read_only would warn each time that it is.
        cleanup_tmp_directories=not read_only,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
          active_processes={0} if several else None
        ),
      ),
      item_names=('state', 'meta'),
    )

  def save(self, step: int, state: Any) -> None:
    """Starts writing `state`; `close` or the next save waits for it.

    Not in the main thread it is written when this returns.

    Raises:
      OSError: the disk has less room than the arrays need.
    """
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(self._directory).free
    if free < needed:
      raise OSError(
        f'checkpoint {self._directory / str(step)}: {needed / 2**20:.1f} MiB '
        f'are needed, {free / 2**20:.1f} MiB are free on the disk; make room '
        'and start again: training continues from the last checkpoint'
      )
    values = jax.device_get(state)
    with _SAVING:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          # Of arrays on other processes' devices, all would have to save.
          state=ocp.args.StandardSave(
            state if processes.count() == 1 else values
          ),
          meta=ocp.args.JsonSave({'sha256': digest(values)}),
        ),
      )
      if threading.current_thread() is not threading.main_thread():
        self._manager.wait_until_finished()

  def restore(self, like: Any, *, move_aside: bool = False) -> Any | None:
    """Returns the newest whole state, or None where there is none.

    A step that is truncated, altered or of another structure is reported by
    `warn` and passed over.

    Args:
      like: a pytree of arrays or ShapeDtypeStructs of the state's structure.
      move_aside: whether to rename such a step to `<step>.damaged`, so that
        training can write it anew.
    """
    # A state has no device axis: one that N devices saved restores on one.
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
    )
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        restored = self._manager.restore(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract),
            meta=ocp.args.JsonRestore(),
          ),
        )
        if digest(jax.device_get(restored.state)) == restored.meta['sha256']:
          return restored.state
        reason = 'its arrays do not match their checksum'
      except Exception as error:  # Orbax raises many kinds for damaged files
        first_line = str(error).strip().partition('\n')[0][:200]
        reason = f'{type(error).__name__}: {first_line}'
      self._warn(
        f'checkpoint {self._directory / str(step)} cannot be used ({reason}); '
        'falling back to the one before it'
      )
      if move_aside:
        self._move_aside(self._directory / str(step))
    return None

  def _move_aside(self, path: pathlib.Path) -> None:
    target = path.with_name(f'{path.name}.damaged')
    shutil.rmtree(target, ignore_errors=True)
    path.rename(target)
    self._manager.reload()

  def close(self) -> None:
    """Waits for writes to end and releases the directory."""
    self._manager.wait_until_finished()
    self._manager.close()
