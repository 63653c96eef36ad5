"""What of `sealed` must hold across processes: bits, nonces and counters."""

import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppcmi_jax.keyring import epochs, ledger
from ppcmi_jax.sealed import chacha, masking, mixing

SHAPES = {'s3': (2, 8, 8, 12), 'b': (2, 2, 2, 32)}
PROTECT = """
import sys
sys.path.insert(0, sys.argv[2])
import numpy as np
import sealed_processes_test as test
np.savez(sys.argv[1], **test.protected())
"""
FORK = """
import os
from ppcmi_jax.sealed import sealing
def nonce():
  return sealing.draft(
    bytes(32), client='a', epoch=0, direction='query', modality='image',
    model_id='m', dtype='int8', shapes={'b': (1, 8, 8, 4)}, counter=1,
  ).header.nonce.hex()
nonce()
child = os.fork()
os.write(1, f'{nonce()}\\n'.encode())
if child:
  os.waitpid(child, 0)
"""
COUNT = """
import sys
from ppcmi_jax.keyring import ledger
counts, number = ledger.Ledger(sys.argv[1]), int(sys.argv[2])
while True:
  number += 1
  seen = number if counts.accept(0, number) else 0
  print(counts.reserve(0), seen, flush=True)
"""


def message(number=0):
  """Returns the keys and the latents of a message."""
  keys = {
    name: chacha.key_words(bytes([number + i]) * 32)
    for i, name in enumerate(SHAPES)
  }
  rng = np.random.default_rng(number)
  latents = {
    name: rng.standard_normal(shape, np.float32)
    for name, shape in SHAPES.items()
  }
  return keys, latents


def protect(keys, latents):
  """Returns all that the keys of a message make, and latents mixed by them."""
  mix, mask = mixing.mix(), masking.mask('float16')
  secret = mix.init(keys, latents)
  mixed = mix.forward(secret, latents)
  # Of one float everywhere, so that its bits don't depend on mixing's rounding.
  flat = {
    name: {'values': z, 'norm': jnp.ones(len(z))} for name, z in latents.items()
  }
  return {
    'secret': secret,
    'mixed': mixed,
    'stream': {k: chacha.keystream(key, 99) for k, key in keys.items()},
    'masked': mask.forward(mask.init(keys, flat), flat),
  }


alone = jax.jit(protect)


def protected():
  """Returns the same of one message, by name."""
  found = alone(*message())
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found)
  }


def same(one, other, loose=False):
  """Compares to the bit, or as mixing may round."""
  if loose:
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)
  else:
    np.testing.assert_array_equal(one, other)


def test_two_processes_protect_alike_to_the_bit(tmp_path):
  """One of them compiles as the tests do, the other as users do."""
  file = tmp_path / 'protected.npz'
  command = [sys.executable, '-c', PROTECT, str(file)]
  here = str(pathlib.Path(__file__).parent)
  as_users = {**os.environ, 'XLA_FLAGS': ''}
  subprocess.run([*command, here], check=True, timeout=300, env=as_users)
  ours = protected()
  with np.load(file) as theirs:
    assert set(theirs) == set(ours)
    for name, values in ours.items():
      same(values, theirs[name], loose=name.startswith("['mixed']"))


def test_vmap_protects_several_messages_as_one_by_one():
  some = [message(number) for number in range(3)]
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *some)
  found = jax.jit(jax.vmap(protect))(*stacked)
  for i, one in enumerate(some):
    ours, expected = (
      jax.tree_util.tree_leaves_with_path(tree)
      for tree in (jax.tree.map(lambda a, i=i: a[i], found), alone(*one))
    )
    for (path, values), (_, wanted) in zip(ours, expected, strict=True):
      same(values, wanted, loose=path[0].key == 'mixed')


def test_a_forked_process_draws_nonces_of_its_own():
  run = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', FORK],
    check=True,
    capture_output=True,
    text=True,
    timeout=300,
  )
  nonces = run.stdout.split()
  assert len(nonces) == len(set(nonces)) == 2


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='POSIX only')
def test_counters_survive_being_killed(tmp_path):
  """What was promised before kill -9 holds for whoever comes next."""
  path, _ = epochs.enrol(tmp_path / 'client', 'clinic-1')
  reserved, accepted, start = [], [], 0
  for _ in range(3):
    command = [sys.executable, '-c', COUNT, path, str(start)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
      lines = [run.stdout.readline() for _ in range(5)]
      run.send_signal(signal.SIGKILL)
      lines += run.communicate()[0].splitlines(keepends=True)
    for line in lines:
      if line.endswith('\n'):
        sent, seen = map(int, line.split())
        reserved.append(sent)
        accepted.append(seen)
    start = accepted[-1] + 1  # one more may be noted that was not printed
  counts = ledger.Ledger(path)
  reserved.append(counts.reserve(0))
  assert len(set(reserved)) == len(reserved)
  assert all(accepted)
  assert not any(counts.accept(0, seen) for seen in accepted)
