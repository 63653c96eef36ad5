"""What one pair and one query cost on this machine, by doing them.

Messages are sealed, sent through files and opened as in a run; weights are
random, latents those of noise. Axes: B batch.
"""

import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import measure, networks, query
from benchmarks import sizes as sizes_lib
from benchmarks.scale import arithmetic
from ppcmi_jax import channel, contributions, input_pipeline
from ppcmi_jax import client as client_lib
from ppcmi_jax import server as server_lib

DTYPES = ('int8', 'float16')  # measured in the first
PAIRS = max(contributions.BATCHES)  # in a message


class Seconds(NamedTuple):
  """Of a call: until its arrays are there, and of computing, by all threads."""

  wall: float
  cpu: float


def measure_costs(
  size: sizes_lib.Size, *, repeats: int = 5, rows: int = 10**7
) -> arithmetic.Costs:
  """Returns what `arithmetic` multiplies.

  Args:
    size: of images and networks.
    repeats: calls to time of each function, after one that compiles.
    rows: pairs that batches are drawn from.
  """
  pair_bytes, query_bytes = {}, {}
  for dtype in DTYPES:
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      parties = query.meet(size, 'sealed', folder / 'run', wire_dtype=dtype)
      pair = contribution(size, parties)
      pair_bytes[dtype] = sum(map(len, pair)) / PAIRS
      image = size.images(1)
      query_bytes[dtype] = len(parties.client.protect(parties.state, image)[0])
      if dtype == DTYPES[0]:
        found = _journey(size, parties, folder, repeats)
  config = size.method()
  count = size.step_batch or config.mapping_batch_size
  mapping, batch = networks.mapping_task(size), networks.mapping_batch
  variables = networks.variables_of(mapping, batch(size, 1))
  answer = measure.cost(
    jax.jit(mapping.predict),
    variables,
    batch(size, 1)['image'],
  )
  step = networks.step(
    'mapping', mapping, networks.optimizer(config), batch(size, count)
  )
  ((_, run),) = step.stages
  order = np.arange(rows)
  # A pass's first whole batch draws the order of all of it.
  begin = lambda turn: input_pipeline.batch_at(
    {}, -(-turn * rows // count), order=order, batch_size=count, seed=0
  )
  return arithmetic.Costs(
    pair_bytes,
    query_bytes,
    train_flops=step.costs['mapping'].flops / count,
    query_flops=answer.flops,
    train_s=_seconds(run, range(repeats + 1)).cpu / count,
    order_s=_seconds(begin, range(repeats + 1)).cpu / rows,
    **found,
  )


def contribution(
  size: sizes_lib.Size, parties: query.Parties, row: int = 0
) -> tuple[bytes, bytes]:
  """Returns an image and a mask message of noise, of PAIRS from a row on."""
  origin = channel.Origin('train', 0, row)
  return parties.client.contribute(
    parties.state, size.images(PAIRS), size.masks(PAIRS), origin
  )


def _journey(size, parties, folder, repeats) -> dict[str, Any]:
  """Returns what is measured of messages between a client and its server."""
  sent = []
  contribute = lambda i: sent.append(contribution(size, parties, i * PAIRS))
  contribute_s = _seconds(contribute, range(repeats + 1)).cpu / PAIRS
  paths = []
  for i, pair in enumerate(sent):
    for modality, message in zip(client_lib.MODALITIES, pair, strict=True):
      paths.append(folder / f'train-000-{i * PAIRS:06d}.{modality}.msg')
      paths[-1].write_bytes(message)
  read = lambda _: server_lib.read_contributions(
    paths,
    channel=parties.server_channel,
    latents=size.learners().latents,
    dtype=np.float16,
  )['train']
  # The first reading also keeps the messages' keys.
  open_s = _seconds(read, range(3)).cpu / (PAIRS * len(sent))
  pairs = read(None)
  queries = [
    parties.client.protect(parties.state, size.images(1))[0]
    for _ in range(4 * repeats + 1)
  ]
  respond = lambda message: parties.server.respond(parties.variables, message)
  replied = _seconds(respond, queries)
  server = folder / 'run' / 'secrets' / 'server'
  kept = next((server / 'kept').glob('*/*.kept'))
  return {
    'held_bytes': sum(
      z.nbytes // len(z)
      for modality in client_lib.MODALITIES
      for z in pairs[modality].values()
    ),
    'contribute_s': contribute_s,
    'open_s': open_s,
    'respond_s': replied.cpu,
    'respond_wall_s': replied.wall,
    'key_bytes': sum(path.stat().st_size for path in server.glob('A.*')),
    'kept_bytes': kept.stat().st_size,
  }


def _seconds(function: Callable[[Any], Any], inputs: Iterable[Any]) -> Seconds:
  """Returns the medians of calls, the first aside, which compiles."""
  stamps = []
  for value in inputs:
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(function(value))
    stamps.append((time.perf_counter() - wall, time.process_time() - cpu))
  return Seconds(*np.median(stamps[1:], axis=0).tolist())
