"""A query as its client waits for it: images in, masks out, bytes between."""

import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks import measure, networks
from benchmarks import sizes as sizes_lib
from ppcmi_jax import channel as channel_lib
from ppcmi_jax import client as client_lib
from ppcmi_jax import enrolment, hospitals, learners, workdir
from ppcmi_jax import server as server_lib

PROTECTIONS = ('klt', 'sealed')


class Parties(NamedTuple):
  """A client and a server who know each other; their weights are random.

  Attributes:
    client, state: the client's functions, and its autoencoders' variables.
    server, variables: the server's functions, and its network's variables.
    server_channel: the server's end.
  """

  client: client_lib.Client
  state: client_lib.ClientState
  server: server_lib.Server
  variables: Any
  server_channel: channel_lib.Channel


def journey(size: sizes_lib.Size) -> Iterator[measure.Case]:
  """Yields the three steps of a query, under each protection."""
  for protection in PROTECTIONS:
    with tempfile.TemporaryDirectory() as folder:
      stages = stages_of(meet(size, protection, pathlib.Path(folder) / 'run'))
      for batch in size.batches:
        yield measure.Case(
          [(f'{protection}: {name}', function) for name, function in stages],
          batch,
          query=size.images(batch),
          total=f'{protection}: whole query',
        )


def meet(
  size: sizes_lib.Size, protection: str, folder: pathlib.Path, **options: Any
) -> Parties:
  """Returns client 'A' and its server, enrolled.

  Args:
    size: of what they exchange.
    protection: of their messages.
    folder: for their keys.
    **options: of their channels, such as wire_dtype.
  """
  config, autoencoders = size.method(), size.learners()
  config.protection = protection
  if config.wire_dtype not in learners.WIRE_DTYPES[protection]:
    config.wire_dtype = 'float16'
  place = workdir.Workdir(folder, config.to_dict())
  enrolment.enrol(config, place, ['A'])
  pair = size.pairs(1)
  latents = autoencoders.latents
  mapping = networks.mapping_task(size)
  channel = enrolment.server_channel(config, place, ['A'], latents, **options)
  return Parties(
    hospitals.make_client(
      'A',
      enrolment.client_channel(config, place, 'A', latents, **options),
      autoencoders,
    ),
    client_lib.ClientState(
      *(
        networks.variables_of(task, pair)
        for task in (autoencoders.image_task, autoencoders.mask_task)
      )
    ),
    server_lib.make_server(
      predict=mapping.predict, channel=channel, latents=latents
    ),
    networks.variables_of(mapping, networks.mapping_batch(size, 1)),
    channel,
  )


def stages_of(parties: Parties) -> list[tuple[str, Any]]:
  """Returns protect, respond and reveal, as `profiling.profile` takes them.

  They take images uint8 [B, H, W, C].
  """
  client, state, server, variables, _ = parties

  def respond(sent):
    message, ticket = sent
    return server.respond(variables, message), ticket

  return [
    ('protect', lambda image: client.protect(state, image)),
    ('respond', respond),
    ('reveal', lambda answer: client.reveal(state, *answer)),
  ]
