"""The tables of what a query costs: time, bytes, operations."""

from collections.abc import Mapping
from typing import Any

from ppcmi_jax import evaluation, tables
from ppcmi_jax import payload as payload_lib


def query(
  config: Any, run: evaluation.Run, result: Mapping[str, Any]
) -> tables.Table:
  """Returns the medians of a query, stage by stage, and its sizes."""
  rows = []
  stages = ('protect', 'respond', 'reveal') if run.hospitals else ()
  has_own = all('own_latency' in parts for parts in result.values())
  for client, parts in result.items():
    latency = parts['latency']
    total = [latency['total'][f'p{p}_ms'] for p in (50, 90, 99)]
    sizes = [parts.get(k) for k in ('query_bytes', 'reply_bytes')]
    sizes = [*filter(None, sizes), parts['image_bytes']]
    own = [f'{parts["own_latency"]["own"]["p50_ms"]:.1f}'] if has_own else []
    rows.append(
      [
        client,
        *(f'{latency[stage]["p50_ms"]:.1f}' for stage in stages),
        *(f'{value:.1f}' for value in total),
        *(f'{size / 1024:.1f}' for size in sizes),
        *own,
      ]
    )
  sent = ['query KiB', 'reply KiB'] if run.hospitals else []
  how = (
    f', protection {config.protection!r}, wire {config.wire_dtype}'
    if run.hospitals
    else ', nothing is protected'
  )
  return tables.Table(
    'query',
    f'One query, batch 1{how}; medians in milliseconds.',
    ['client', *(f'{stage} ms' for stage in stages), 'total ms', 'p90 ms',
     'p99 ms', *sent, 'raw image KiB', *has_own * ['own ms']],
    rows,
    has_own * (
      "own ms: the hospital's own mask, for the fused one; it need not wait "
      'for the server, and is not in the total.'
    ),
  )  # fmt: skip


def wire(
  config: Any, run: evaluation.Run, result: Mapping[str, Any]
) -> tables.Table:
  """Returns Dice by what messages are rounded to."""
  del run
  rows = [
    [
      dtype,
      *(f'{parts[key] / 1024:.1f}' for key in ('query_bytes', 'reply_bytes')),
      *map(tables.number, parts['dice'].values()),
    ]
    for dtype, parts in result.items()
  ]
  clients = next(iter(result.values()))['dice']
  return tables.Table(
    'wire',
    f'What a message may be rounded to, protection {config.protection!r}.',
    ['dtype', 'query KiB', 'reply KiB', *(f'Dice of {c}' for c in clients)],
    rows,
    'Mean Dice over the structures of the test split, queries and replies in '
    'that dtype. The mapping network\nwas trained on contributions in '
    f'{config.wire_dtype}, the one of this run.',
  )


def payload(
  config: Any, run: evaluation.Run, result: Mapping[str, Any]
) -> tables.Table:
  """Returns Dice by how little is sent."""
  whole = result['whole']
  mean = payload_lib.mean_dice
  kib = lambda size: f'{size / 1024:.1f}'
  named = [
    ('both: nothing rounded, float16', whole),
    *(
      (f'{direction}: {way}', row)
      for direction in ('query', 'reply')
      for way, row in result[direction].items()
    ),
    *((f'both: {row["query"]}; {row["reply"]}', row) for row in result['both']),
  ]
  rows = [
    [
      name,
      kib(row['bytes']),
      kib(row['longest']),
      *map(tables.number, (*row['dice'].values(), mean(row))),
      f'{mean(row) - mean(whole):+.4f}',
    ]
    for name, row in named
  ]
  return tables.Table(
    'payload',
    'How far a message shrinks before Dice falls.',
    ['what is rounded', 'KiB', 'longest',
     *(f'Dice of {c}' for c in run.hospitals), 'mean', 'change'],
    rows,
    'Mean Dice over the structures of the test split; no network was trained '
    'anew. mixed: as sealed sends int8 and int4,\nin so many bits. coded: by '
    'an ideal entropy coder, whose messages would have to be padded to the '
    'longest, as their length\ntells of the image. of the channels: so many '
    'principal components of each scale, in float16 or in so many bits.\nLast: '
    f'the smallest of each that costs at most {payload_lib.FALL / 2:g}, '
    'together (KiB of both): of what is mixed, and of all.',
  )  # fmt: skip


def networks(
  config: Any, run: evaluation.Run, result: Mapping[str, Any]
) -> tables.Table:
  """Returns parameters and operations of each network."""
  del run
  rows = [
    [
      name,
      f'{cost["parameters"]:,}',
      '-' if cost['flops'] is None else f'{cost["flops"] / 1e9:.2f}',
      f'{cost["compile_s"]:.1f}',
    ]
    for name, cost in result.items()
  ]
  return tables.Table(
    'networks',
    f'What computes, batch 1 at {config.image_size}x{config.image_size}.',
    ['network', 'parameters', 'GFLOP', 'compile s'],
    rows,
    "FLOPs by XLA's cost analysis; a multiplication and an addition are two.",
  )
