"""All tests, and the scripts that they start, share what XLA compiles."""

import os
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix='ppcmi_jax_compiled')

# Before jax is imported, which reads them.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', _CACHE.name)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

# What takes minutes starts first, so that nobody waits for it at the end.
_FIRST = ('train_test.py', 'processes_test.py', 'members_test.py')


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.name not in _FIRST)
