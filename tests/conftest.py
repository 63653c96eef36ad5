"""All tests, and the scripts that they start, share what XLA compiles.

It is compiled in two thirds of the time, without LLVM's optimisations: what
must hold to the bit with them, too, is tested by `sealed_processes_test`.
"""

import os
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix='ppcmi_jax_compiled')

# Before jax is imported, which reads them.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', _CACHE.name)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

# What takes minutes starts first, so that nobody waits for it at the end.
_FIRST = ('train_test.py', 'processes_test.py', 'members_test.py')


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.name not in _FIRST)
