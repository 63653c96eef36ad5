"""The folder of one run: its configuration, metrics, secrets and results.

config.json               the configuration it was started with
split.csv                 case, subject, site, split of every example
metrics.jsonl             one JSON line a validation
clients.json              whose keys must be there
secrets_name              of the folder of keys, where these are elsewhere
secrets/                  keys, mode 0600 in folders of mode 0700: `enrolment`
  clients/  server/       sealed: of each side
  <client>.key            klt, official: of a client and the server
checkpoints/<task>/<step>
messages/<client>/        what the client sent to the server
privacy_guarantee.json    what DP-SGD promises, where it trained
eval/results.json         what was evaluated; tables.txt, as it was printed
eval/privacy.json         what attackers reached, attack by attack
eval/privacy_examples.npz what they drew of patients' images
report/                   tables and pictures
"""

import contextlib
import fcntl
import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any


def read_object(path: pathlib.Path, remedy: str) -> dict[str, Any]:
  """Returns the JSON object in a file; ValueError, with a remedy, otherwise."""
  try:
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
      raise ValueError
  except ValueError:
    raise ValueError(f'{path}: damaged, not a JSON object; {remedy}') from None
  return found


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, data: bytes, *, mode: int = 0o666) -> None:
  """Writes a file whole or not at all; `mode` is subject to the umask."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + '.partial')
  partial.unlink(missing_ok=True)
  with open(
    partial, 'wb', opener=lambda name, flags: os.open(name, flags, mode)
  ) as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, path)


def essence(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a configuration as JSON keeps it, less what is no part of a run.

  Where its data are is none, nor how many networks train at once.
  """
  kept = json.loads(json.dumps(config))
  for name in ('data_dir', 'manual_dir', 'side_by_side'):
    kept.pop(name, None)
  return kept


# What a start leaves that fails before anything is made of its configuration.
_OF_ANY_START = {'config.json', 'split.csv', 'secrets', 'secrets_name', '.lock'}


class Workdir:
  """Opens a folder for a configuration, creating it where it is missing.

  A folder of another configuration is refused, unless nothing but the start
  that made it is in it: then it takes the new one.

  Args:
    path: the folder.
    config: the whole configuration, JSON-able.
    create: whether a missing folder is made; an error otherwise.

  Raises:
    ValueError: the folder holds a run of another configuration, cannot be
      written to, or (create=False) holds no run.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    create: bool = True,
  ):
    self.path = pathlib.Path(path).absolute()
    self._config = essence(config)
    config_path = self.path / 'config.json'
    if not create and not config_path.exists():
      raise ValueError(
        f'workdir {self.path}: expected a trained run, found no config.json; '
        'run train.py with this --workdir first'
      )
    try:
      self.path.mkdir(mode=0o700, parents=True, exist_ok=True)  # patients' data
      self.secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
      self.secrets.chmod(0o700)
      if not config_path.exists():
        self._write_config()
      elif not os.access(self.path, os.W_OK):
        raise PermissionError(13, 'Permission denied')
    except OSError as error:
      raise ValueError(
        f'workdir {self.path}: cannot be written to ({error.strerror}); '
        'choose another with --workdir'
      ) from None
    if create and self._read_config() != self._config and self._is_unused():
      with self._locked():
        if self._is_unused():
          self._write_config()
    self._check_config()

  @property
  def secrets(self) -> pathlib.Path:
    """Where keys are.

    Below PPCMI_JAX_SECRETS_ROOT of the environment, if that is set, in a folder
    that no other run has.
    """
    elsewhere = os.environ.get('PPCMI_JAX_SECRETS_ROOT')
    if not elsewhere:
      return self.path / 'secrets'
    note = self.path / 'secrets_name'
    if not note.exists():
      write_text(note, f'{self.path.name}-{os.urandom(4).hex()}\n')
    return pathlib.Path(elsewhere).absolute() / note.read_text().strip()

  def checkpoints(self, task: str) -> pathlib.Path:
    return self.path / 'checkpoints' / task

  def messages(self, client: str) -> pathlib.Path:
    return self.path / 'messages' / client

  @contextlib.contextmanager
  def lock(self):
    """Holds the folder for one training; ends with the process at the latest.

    Raises:
      ValueError: another process trains in it, or gave it another
        configuration since it was opened.
    """
    with self._locked():
      self._check_config()
      yield

  @contextlib.contextmanager
  def evaluation_lock(self):
    """Holds the results for one evaluation; a training may go on beside it.

    Raises:
      ValueError: another process evaluates in the folder.
    """
    with self._locked('.eval.lock', 'evaluates'):
      yield

  @contextlib.contextmanager
  def _locked(self, name='.lock', doing='trains'):
    with open(self.path / name, 'w') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError:
        raise ValueError(
          f'workdir {self.path}: another process {doing} in it; wait for it or '
          'choose another --workdir'
        ) from None
      yield

  def log(self, row: Mapping[str, Any]) -> None:
    """Appends one line of metrics, with the time of day, in Unix seconds."""
    with open(self.path / 'metrics.jsonl', 'a') as file:
      file.write(json.dumps({**row, 'time': time.time()}) + '\n')

  def read_log(self) -> list[dict[str, Any]]:
    """Returns what was logged, less lines that a kill cut short."""
    path = self.path / 'metrics.jsonl'
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
      with contextlib.suppress(json.JSONDecodeError):
        rows.append(json.loads(line))
    return rows

  def _is_unused(self) -> bool:
    names = {path.name for path in self.path.iterdir()}
    return names <= _OF_ANY_START and not any(self.secrets.iterdir())

  def _read_config(self):
    remedy = 'restore it or choose another --workdir'
    return essence(read_object(self.path / 'config.json', remedy))

  def _write_config(self):
    text = json.dumps(self._config, indent=2, sort_keys=True)
    write_text(self.path / 'config.json', text + '\n')

  def _check_config(self):
    found, config = self._read_config(), self._config
    missing = object()
    shown = lambda tree, key: repr(tree[key]) if key in tree else 'not set'
    differing = sorted(
      key
      for key in {*found, *config}
      if found.get(key, missing) != config.get(key, missing)
    )
    if differing:
      changes = '; '.join(
        f'{key} was {shown(found, key)}, now {shown(config, key)}'
        for key in differing[:3]
      )
      raise ValueError(
        f'workdir {self.path}: holds a run of another configuration '
        f'({changes}); choose another --workdir or the configuration it had'
      )
