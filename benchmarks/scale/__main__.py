"""The command: options, three tables, a JSON file. See the package."""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

import jax

from benchmarks import machine, measure
from benchmarks import sizes as sizes_lib
from benchmarks.scale import arithmetic, costs, results
from ppcmi_jax import tables

HOSPITALS = (10, 100, 1000)
IMAGES = (10**4, 10**5, 10**6)


def main(arguments: Sequence[str]) -> None:
  """Measures, multiplies, prints and writes what the options say."""
  options = _parser().parse_args(arguments)
  machine.confine(1)
  environment = machine.describe()
  size = sizes_lib.SIZES[options.size]
  config = size.method()
  print('measuring ...', file=sys.stderr, flush=True)
  measured = costs.measure_costs(size)
  assumed = arithmetic.Assumptions(
    peak_flops=options.peak_tflops * 1e12,
    utilisation=options.utilisation,
    chips=options.chips,
    line_bits_s=options.line_mbit_s * 1e6,
    memory_bytes=options.memory_gb * 1e9,
  )
  copies = config.copies if options.copies is None else options.copies
  federations = [
    arithmetic.Federation(count, images, copies, options.passes, options.dtype)
    for count in HOSPITALS
    for images in IMAGES
  ]
  rows = [(f, arithmetic.needs(measured, f, assumed)) for f in federations]
  limits = results.limits(measured, federations[0], assumed, config)
  title = (
    f'{config.image_size}x{config.image_size}, one core of '
    f'{environment["device"]} ({environment["cpu"]}, load average '
    f'{environment["load_average"][0]}), jax {environment["jax"]}, Python '
    f'{environment["python"]}, {environment["started"]}'
  )
  for table in (
    results.costs_table(measured, title),
    results.limits_table(limits),
    results.needs_table(rows, assumed),
  ):
    print(f'{tables.text(table)}\n')
  result = {
    'size': options.size,
    'environment': environment,
    'costs': measured._asdict(),
    'assumed': assumed._asdict(),
    'limits': dict(limits),
    'needs': [{**f._asdict(), **need} for f, need in rows],
  }
  path = pathlib.Path(options.json)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(measure.jsonable(result), indent=1) + '\n')
  print(f'All digits are in {path}.')


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    'python -m benchmarks.scale',
    description='What many hospitals would need, from what one pair costs.',
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  add = parser.add_argument
  add('--size', choices=list(sizes_lib.SIZES), default='full', help='of images')
  add('--copies', type=int, help="of each pair; the configuration's if None")
  add('--dtype', choices=costs.DTYPES, default='int8', help='of messages')
  add('--passes', type=float, default=1.0, help='over all contributions')
  add('--peak_tflops', type=float, default=197.0, help="maker's figure, a chip")
  add('--utilisation', type=float, default=0.2, help='assumed, of that peak')
  add('--chips', type=int, default=256, help='of a pod')
  add('--line_mbit_s', type=float, default=100.0, help='assumed, a hospital')
  add('--memory_gb', type=float, default=64.0, help='assumed, of a host')
  add('--json', default='runs/scale.json', help='file to write')
  return parser


if __name__ == '__main__':
  # What a cache has would not be compiled.
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    main(sys.argv[1:])
  except (ValueError, OSError) as error:
    print(f'benchmarks.scale: {" ".join(str(error).split())}', file=sys.stderr)
    sys.exit(2)
