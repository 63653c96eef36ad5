"""A query as its client waits for it: images in, masks out, bytes between."""

import pathlib
import tempfile
from collections.abc import Iterator

from benchmarks import measure, networks
from benchmarks import sizes as sizes_lib
from ppcmi_jax import client as client_lib
from ppcmi_jax import enrolment, hospitals, workdir
from ppcmi_jax import server as server_lib

PROTECTIONS = ('klt', 'sealed')


def journey(size: sizes_lib.Size) -> Iterator[measure.Case]:
  """Yields the three steps of a query, under each protection."""
  for protection in PROTECTIONS:
    with tempfile.TemporaryDirectory() as folder:
      stages = parties(size, protection, pathlib.Path(folder) / 'run')
      for batch in size.batches:
        yield measure.Case(
          [(f'{protection}: {name}', function) for name, function in stages],
          batch,
          query=size.images(batch),
          total=f'{protection}: whole query',
        )


def parties(size: sizes_lib.Size, protection: str, folder: pathlib.Path):
  """Returns protect, respond and reveal of a client and a server.

  Args:
    size: of what they exchange; their weights are random.
    protection: of their messages.
    folder: for their keys.

  Returns:
    (name, function) as `profiling.profile` takes them, of images uint8
    [B, H, W, C].
  """
  config, autoencoders = size.method(), size.learners()
  config.protection = protection
  place = workdir.Workdir(folder, config.to_dict())
  enrolment.enrol(config, place, ['A'])
  pair = {'image': size.images(1), 'mask': size.masks(1)}
  state = client_lib.ClientState(
    *(
      networks.variables_of(task, pair)
      for task in (autoencoders.image_task, autoencoders.mask_task)
    )
  )
  client = hospitals.make_client(
    'A',
    enrolment.client_channel(config, place, 'A', autoencoders.latents),
    autoencoders,
  )
  mapping = networks.mapping_task(size)
  variables = networks.variables_of(mapping, networks.mapping_batch(size, 1))
  server = server_lib.make_server(
    predict=mapping.predict,
    channel=enrolment.server_channel(
      config, place, ['A'], autoencoders.latents
    ),
    latents=autoencoders.latents,
  )

  def respond(sent):
    message, ticket = sent
    return server.respond(variables, message), ticket

  return [
    ('protect', lambda image: client.protect(state, image)),
    ('respond', respond),
    ('reveal', lambda answer: client.reveal(state, *answer)),
  ]
