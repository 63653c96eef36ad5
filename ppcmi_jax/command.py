"""What train.py and eval.py share: flags, one-line errors, exit codes."""

import importlib.util
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from ppcmi_jax import processes

DEFAULT = 'configs/abdomen.py'
_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  f'Configuration file ({DEFAULT} if none is named), with the method behind a '
  'colon: configs/abdomen.py:unet. Fields are overridden by '
  '--config.FIELD=VALUE.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/abdomen', 'Folder of the run: checkpoints, keys, results.'
)
_ADDRESS = flags.DEFINE_string(
  'coordinator_address',
  None,
  'HOST:PORT of process 0, where several train together; auto where a TPU pod, '
  'SLURM or MPI says who takes part. They share --workdir.',
)
_COUNT = flags.DEFINE_integer('num_processes', None, 'Processes that train.')
_NUMBER = flags.DEFINE_integer('process_id', None, 'Of this one, from 0.')
_TIMEOUT = flags.DEFINE_integer(
  'coordinator_timeout', 300, 'Seconds to wait for all to be there.', 1
)

_LOST = (
  'another process of the run has ended or cannot be reached; start all of '
  'them again: training continues from the last checkpoint'
)

_TOO_LARGE = (
  "a device's memory is too small; take each batch in parts, with "
  '--config.microbatches=2 or more, or smaller batches of the configuration, '
  'and a new --workdir, as that is another run'
)


def get_config(method: str) -> Any:
  """Returns what the configuration file of --config has for another method.

  Fields that flags override are overridden where that method has them.
  """
  path = config_flags.get_config_filename(flags.FLAGS['config'])
  config = _load(path).get_config(method)
  overrides = config_flags.get_override_values(flags.FLAGS['config'])
  has = set(_fields(config))
  config.update_from_flattened_dict(
    {name: value for name, value in overrides.items() if name in has}
  )
  return config


def _fields(config, prefix=''):
  """Yields the names that flags can have, 'mapping_options.widths' too."""
  for name, value in config.items():
    yield prefix + name
    if hasattr(value, 'items'):
      yield from _fields(value, f'{prefix}{name}.')


def run(
  call: Callable[[Any, str], Any], *, several_processes: bool = False
) -> None:
  """Parses the flags and calls `call(config, workdir)`.

  Where `several_processes` can do it together, flags may start them. Bad input
  (a ValueError of the library, an unusable flag or file, a full disk) becomes
  one line on stderr and exit code 2; what was computed stays.
  """
  jax.config.config_with_absl()
  if not _named_config(sys.argv):
    # A default of the flag itself would be read, and might fail, on import.
    sys.argv.insert(1, f'--config={DEFAULT}')
  app.run(lambda _: _run(call, several_processes), flags_parser=_parse)


def _run(call: Callable[[Any, str], Any], several_processes: bool) -> None:
  logging.set_verbosity(logging.WARNING)
  try:
    _keep_compiled()
    _join(several_processes)
    call(_CONFIG.value, _WORKDIR.value)
    processes.first(lambda: None)  # what it still writes, the others await
  except jax.errors.JaxRuntimeError as error:
    if processes.is_lost(error):
      _fail(f'{_LOST} ({error})')
    if 'RESOURCE_EXHAUSTED' in str(error):
      _fail(f'{_TOO_LARGE} ({error})')
    _fail(f'the device failed: {error}')
  except (ValueError, FloatingPointError, OSError, MemoryError) as error:
    _fail(f'{_LOST} ({error})' if processes.is_lost(error) else error)


def _join(several_processes: bool) -> None:
  """Joins the other processes that the flags speak of."""
  given = _ADDRESS.value, _COUNT.value, _NUMBER.value
  if not several_processes and any(value is not None for value in given):
    raise ValueError(
      'coordinator_address, num_processes, process_id: this runs as one '
      'process; start it once, without them'
    )
  processes.start(*given, timeout_s=_TIMEOUT.value)
  if not processes.is_first():
    logging.set_verbosity(logging.ERROR)  # process 0 warns for all


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
    _CONFIG.value.lock()  # a file that is missing is missed on use only
  except Exception as error:  # a configuration file may raise anything
    _fail_if_unreadable(_named_config(argv))
    if isinstance(error, (AttributeError, KeyError)):
      while isinstance(error.args[0], Exception):
        error = error.args[0]
      field, _, hint = str(error.args[0]).partition('\n')
      field = field.strip("'")
      _fail(
        f'the configuration has no field {field!r}, which a flag names. {hint}'
      )
    _fail(error)
  if len(rest) > 1:
    _fail(
      f'unexpected argument {rest[1]!r}; options are --config and --workdir'
    )
  return rest


def _named_config(argv: Sequence[str]) -> str:
  """Returns what --config names, FILE or FILE:METHOD; '' if it is not given."""
  for flag, following in zip(argv, [*argv[1:], '']):
    name, equals, value = flag.partition('=')
    if name in ('-config', '--config'):
      return value if equals else following
  return ''


def _fail_if_unreadable(named: str) -> None:
  """Says what is wrong with a configuration file, and where, if something is.

  What absl says of it has neither the line nor, mostly, the file.
  """
  name, _, method = named.partition(':')
  path = pathlib.Path(name).absolute()
  if not path.is_file():
    _fail(
      f'--config: expected a configuration file, found no {name!r} in '
      f'{os.getcwd()}; name one that is there, or start in the folder that '
      'holds configs/'
    )
  try:
    config = _load(path).get_config(*[method] if method else [])
  except SyntaxError as error:
    _fail(f'{error.filename}, line {error.lineno}: {error.msg}')
  except Exception as error:
    kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
    _fail(f'{_place(error, path)}: {kind}{error}')
  if not isinstance(config, config_dict.ConfigDict):
    _fail(
      f'{path}: expected get_config to return a ConfigDict, found {config!r}'
    )


def _place(error: Exception, path: pathlib.Path) -> str:
  """Returns the last line that raised it of a file, or of one beside it."""
  found = str(path)
  for step in traceback.extract_tb(error.__traceback__):
    if pathlib.Path(step.filename).parent == path.parent:
      found = f'{step.filename}, line {step.lineno}'
  return found


def _load(path: str | os.PathLike) -> Any:
  """Returns the module of a configuration file."""
  spec = importlib.util.spec_from_file_location('config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _keep_compiled() -> None:
  """Keeps compiled programs in the user's cache: a second start is fast."""
  if jax.config.jax_compilation_cache_dir is None:
    cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update(
      'jax_compilation_cache_dir', str(pathlib.Path(cache) / 'ppcmi_jax')
    )
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def _fail(error: Any) -> None:
  processes.leave(' '.join(str(error).split()) or type(error).__name__)
