"""Tests of benchmarks/scale: sums done by hand, sizes of sealed messages."""

import doctest
import json
import math
import tracemalloc

import jax
import numpy as np
import pytest
import worlds

from benchmarks import machine, sizes
from benchmarks.scale import __main__ as command
from benchmarks.scale import arithmetic, costs, results
from ppcmi_jax import channel
from ppcmi_jax import server as server_lib
from ppcmi_jax.sealed import envelope, sealing

COSTS = arithmetic.Costs(
  pair_bytes={'float16': 1000.0, 'int8': 500.0},
  query_bytes={'float16': 600, 'int8': 300},
  held_bytes=900,
  train_flops=6e9,
  query_flops=2e9,
  train_s=0.1,
  contribute_s=0.02,
  open_s=0.01,
  respond_s=0.05,
  order_s=1e-8,
  respond_wall_s=0.06,
  key_bytes=400,
  kept_bytes=48,
)
ASSUMED = arithmetic.Assumptions(
  peak_flops=100e12,
  utilisation=0.3,
  chips=4,
  line_bits_s=1e6,
  memory_bytes=1e9,
)


@pytest.mark.parametrize('module', [arithmetic, results])
def test_docstrings_are_right(module):
  assert doctest.testmod(module).failed == 0


def test_needs_are_products():
  some = arithmetic.Federation(
    hospitals=10, images=3600, copies=1, passes=5, dtype='float16'
  )
  found = arithmetic.needs(COSTS, some, ASSUMED)
  assert found == pytest.approx(
    {
      'pairs': 72_000,  # 10 x 3600 x 2
      'stored_bytes': 72e6,
      'messages': 9000,  # of 16 pairs, two each
      'kept_bytes': 432_000,
      'memory_bytes': 129.6e6,  # 2 x 72,000 x 900
      'open_hours': 0.2,  # 720 s
      'order_s': 0.0036,  # 5 x 72,000 x 1e-8
      'flops': 2.16e15,  # 5 x 72,000 x 6e9
      'core_hours': 10.0,  # 36,000 s
      'chip_hours': 0.02,  # 2.16e15 / 3e13 = 72 s
      'pod_hours': 0.005,
      'key_bytes': 4000,
      'upload_bytes': 7.2e6,
      'upload_hours': 0.016,  # 57.6e6 bits at 1e6 a second: 57.6 s
      'contribute_hours': 0.04,  # 7200 x 0.02 s = 144 s
    }
  )


def test_int8_halves_what_is_sent_and_not_what_is_held():
  narrow = arithmetic.Federation(2, 100, copies=0)
  wide = narrow._replace(dtype='float16')
  wide, narrow = (arithmetic.needs(COSTS, f, ASSUMED) for f in (wide, narrow))
  assert 2 * narrow['stored_bytes'] == wide['stored_bytes']
  assert narrow['memory_bytes'] == wide['memory_bytes']
  with pytest.raises(ValueError, match=r"float16, int8, found 'int4'"):
    arithmetic.needs(
      COSTS, arithmetic.Federation(1, 1, 0, dtype='int4'), ASSUMED
    )


def test_limits_are_quotients():
  # 1e9 bytes hold 1e9 / (2 x 900) = 555,555 pairs, ten of each image.
  assert arithmetic.images_in_memory(COSTS, 1e9, copies=9) == 55_555
  fed = arithmetic.appetite(COSTS, ASSUMED, 'int8')
  assert fed == pytest.approx(
    {'pairs_s': 5000, 'bytes_s': 2.5e6, 'open_cores': 50}
  )
  # 100 steps of 16 pairs are 9.6e12 operations, 4800 validations.
  share = arithmetic.validation_share(
    COSTS, valid=2400, eval_every=100, batch_size=16
  )
  assert share == pytest.approx(0.5)


@pytest.mark.parametrize('dtype', costs.DTYPES)
def test_sizes_are_those_of_sealed_messages(dtype):
  shapes = {'b': (3, 1, 2, 16), 's3': (3, 4, 8, 8), 's4': (3, 2, 4, 8)}
  route = {'client': 'north', 'epoch': 0, 'direction': 'contribution'}
  draft = sealing.draft(
    bytes(32),
    **route,
    modality='mask',
    model_id='test',
    dtype=dtype,
    shapes=shapes,
    counter=1,
  )
  size = envelope.BITS[dtype] * sum(map(math.prod, shapes.values())) // 8
  words = np.zeros(size // 4 + 3 * 3 * 2, np.uint32)  # a norm and a scale each
  # `envelope`: 328 for one image at three scales, 24 for each other one.
  assert len(sealing.seal(draft, words)) == size + 328 + 2 * 24


def test_reading_holds_twice_what_it_returns(tmp_path):
  latents = {'b': np.ones((16, 4, 8, 16), np.float32)}
  clients, server = worlds.sealed_ends(tmp_path, 'float16')
  end = clients['north']
  cover = jax.jit(end.codec.cover)
  paths = []
  for i in range(24):
    message_id = channel.Origin('train', 0, 16 * i).draw_id()
    for modality in ('image', 'mask'):
      route = channel.Route('north', 'contribution', modality, message_id)
      draft = end.draft(route, latents)
      paths.append(tmp_path / f'{i}.{modality}.msg')
      paths[-1].write_bytes(draft.seal(cover(draft.keys, latents)))
  like = {'image': latents, 'mask': latents}
  read = lambda: server_lib.read_contributions(
    paths, channel=server, latents=like, dtype=np.float16
  )['train']
  read()  # compiles
  tracemalloc.start()
  try:
    pairs = read()
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  held = sum(pairs[modality]['b'].nbytes for modality in like)
  assert held == 24 * 16 * 2 * 2 * 4 * 8 * 16
  assert arithmetic.READING * held <= peak < 1.5 * arithmetic.READING * held


def test_the_command_prints_tables_and_writes_json(
  monkeypatch, tmp_path, capsys
):
  monkeypatch.setattr(machine, 'confine', lambda cores: None)
  monkeypatch.setattr(costs, 'measure_costs', lambda size: COSTS)
  path = tmp_path / 'new' / 'scale.json'
  command.main(['--size=small', '--copies=0', f'--json={path}'])
  found = json.loads(path.read_text(), parse_constant=pytest.fail)
  assert found['costs']['held_bytes'] == 900
  assert len(found['needs']) == 9
  last = found['needs'][-1]
  assert (last['hospitals'], last['images']) == (1000, 10**6)
  assert last['stored_bytes'] == 5e11
  printed = capsys.readouterr().out
  assert '500 GB' in printed and 'Assumed, not measured' in printed


def test_a_full_size_pair_is_what_its_latents_are():
  size = sizes.SIZES['full']
  latents = size.learners().latents
  assert size.image_size == 256
  for of in latents.values():
    assert sum(math.prod(z.shape) for z in of.values()) == 114_688
