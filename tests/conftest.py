"""All tests, and the scripts that they start, share what XLA compiles.

It is compiled without LLVM's optimisations and by XLA's older emitters, an
autoencoder's training step in 1.4 s for 8.4: what must hold to the bit with
users' settings, too, is tested by `sealed_processes_test`.
"""

import importlib.metadata
import os
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix='ppcmi_jax_compiled')

_FLAGS = '--xla_backend_optimization_level=0'
# A flag that it does not know ends a process: these jaxlibs know this one.
if importlib.metadata.version('jaxlib').startswith(('0.10.', '0.11.', '0.12.')):
  _FLAGS += ' --xla_cpu_use_fusion_emitters=false'

# Before jax is imported, which reads them.
os.environ.setdefault('XLA_FLAGS', _FLAGS)
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', _CACHE.name)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

# What takes minutes starts first, so that nobody waits for it at the end.
_FIRST = (
  'train_test.py',
  'processes_test.py',
  'members_test.py',
  'methods_test.py',
)


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.name not in _FIRST)
