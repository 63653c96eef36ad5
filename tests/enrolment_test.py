"""Tests of enrolment.py: what is said and done where a run's keys are lost."""

import types

import numpy as np
import pytest

from ppcmi_jax import channel, enrolment, keyring
from ppcmi_jax import workdir as workdir_lib
from ppcmi_jax.keyring import epochs, kept

NAMES = ('north', 'south')
LATENTS = {'image': {'s': np.zeros((1, 2, 2, 4), np.float32)}}
SEALED = types.SimpleNamespace(protection='sealed', wire_dtype='int8')
KLT = types.SimpleNamespace(protection='klt', wire_dtype='float32')


@pytest.fixture
def workdir(tmp_path):
  return workdir_lib.Workdir(tmp_path / 'run', {'seed': 0})


def contribution(config, workdir):
  """Returns a message of north's."""
  end = enrolment.client_channel(config, workdir, 'north', LATENTS)
  route = channel.Route('north', 'contribution', 'image', bytes(16))
  draft = end.draft(route, LATENTS['image'])
  covered = end.codec.cover(draft.keys, LATENTS['image'])
  return draft.seal(np.asarray(covered))


def open_contribution(server, message):
  return server.open(
    message,
    direction='contribution',
    modality='image',
    like=LATENTS['image'],
  )


def test_lost_keys_of_sealed_are_made_anew(workdir):
  enrolment.enrol(SEALED, workdir, NAMES)
  clients, server = (workdir.secrets / s for s in ('clients', 'server'))
  (clients / 'north.epoch').unlink()
  for call in (
    lambda: enrolment.enrol(SEALED, workdir, NAMES),
    lambda: enrolment.client_channel(SEALED, workdir, 'north', LATENTS),
  ):
    with pytest.raises(ValueError, match=r'; check .* or enrol the client a'):
      call()
  epochs.erase(server / 'north.epoch')
  _, export = epochs.enrol(clients, 'north')
  epochs.import_key(server, export)
  enrolment.enrol(SEALED, workdir, NAMES)
  enrolment.client_channel(SEALED, workdir, 'north', LATENTS)
  enrolment.server_channel(SEALED, workdir, NAMES, LATENTS)


def test_a_copy_without_its_key_is_to_be_erased(workdir):
  enrolment.enrol(SEALED, workdir, NAMES)
  (workdir.path / 'clients.json').unlink()  # as before the first start ended
  (workdir.secrets / 'clients' / 'north.epoch').unlink()
  message = 'found none; erase the copy to enrol the client again'
  with pytest.raises(ValueError, match=message):
    enrolment.enrol(SEALED, workdir, NAMES)
  epochs.erase(workdir.secrets / 'server' / 'north.epoch')
  enrolment.enrol(SEALED, workdir, NAMES)


def test_the_key_of_another_client_is_told_what_to_do_with(workdir):
  enrolment.enrol(SEALED, workdir, NAMES)
  folder = workdir.secrets / 'clients'
  (folder / 'north.epoch').rename(folder / 'south.epoch')
  message = "of client 'south', found that of 'north'; rename it, or erase it"
  with pytest.raises(ValueError, match=message):
    enrolment.client_channel(SEALED, workdir, 'south', LATENTS)


def test_a_lost_storage_key_is_made_anew_by_people_alone(workdir):
  enrolment.enrol(SEALED, workdir, NAMES)
  path = workdir.secrets / 'server' / 'storage.key'
  path.unlink()
  enrolment.enrol(SEALED, workdir, NAMES)
  with pytest.raises(ValueError, match=r'replace it as docs/keys\.md says'):
    enrolment.server_channel(SEALED, workdir, NAMES, LATENTS)
  keyring.create(path)
  enrolment.server_channel(SEALED, workdir, NAMES, LATENTS)


def test_lost_keys_of_klt_are_not(workdir):
  enrolment.enrol(KLT, workdir, NAMES)
  path = workdir.secrets / 'north.key'
  line = path.read_bytes()
  path.unlink()
  for call in (
    lambda: enrolment.enrol(KLT, workdir, NAMES),
    lambda: enrolment.client_channel(KLT, workdir, 'north', LATENTS),
  ):
    with pytest.raises(ValueError, match=r'replace it as docs/keys\.md says'):
      call()
  keyring.create(path)
  with pytest.raises(ValueError, match='wrong key: use the file'):
    enrolment.enrol(KLT, workdir, NAMES)
  path.write_bytes(line)
  enrolment.client_channel(KLT, workdir, 'north', LATENTS)


def test_a_server_that_runs_goes_on_with_the_next_storage_key(workdir):
  enrolment.enrol(SEALED, workdir, NAMES)
  server = enrolment.server_channel(SEALED, workdir, NAMES, LATENTS)
  first, second = (contribution(SEALED, workdir) for _ in range(2))
  open_contribution(server, first)
  assert kept.rotate(workdir.secrets / 'server') == 1
  open_contribution(server, second)
  for name in ('clients', 'server'):
    epochs.rotate(workdir.secrets / name / 'north.epoch')
  for end in (
    server,
    enrolment.server_channel(SEALED, workdir, NAMES, LATENTS),
  ):
    for message in (first, second):
      assert open_contribution(end, message).client == 'north'
