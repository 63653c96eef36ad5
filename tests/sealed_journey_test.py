"""The journey of an image under `sealed`: what opens, and what never does."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds

from ppcmi_jax import channel as channel_lib
from ppcmi_jax.keyring import epochs
from ppcmi_jax.sealed import envelope, session

Rejected = session.MessageRejected


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp('world')
  return worlds.World('sealed', 'float32', folder)


def ask(world, name='north', count=2):
  message, ticket = world.clients[name].protect(
    world.states[name], world.images(count)
  )
  return message, ticket


def test_the_mask_is_that_of_the_unprotected_network(world):
  message, ticket = ask(world)
  reply = world.server.respond(world.server_state, message)
  mask = world.clients['north'].reveal(world.states['north'], reply, ticket)
  logits = world.unprotected_logits('north', world.images())
  scale = float(jnp.max(jnp.abs(logits)))
  clear = np.ptp(np.sort(logits, -1)[..., -2:], axis=-1) > 1e-5 * scale
  assert clear.mean() > 0.5
  np.testing.assert_array_equal(mask[clear], np.argmax(logits, -1)[clear])


def test_int8_is_a_quarter_and_stays_near(world, tmp_path):
  narrow = worlds.World('sealed', 'int8', tmp_path)
  message, _ = ask(narrow)
  full, _ = ask(world)
  payload = lambda data: len(data) - 352  # header, tag, norms and scales of two
  assert payload(message) * 4 == payload(full)
  like = narrow.latents['image']
  opened = narrow.server_channel.peek(message, owner='north', like=like)
  z = narrow.server_channel.codec.uncover(opened.keys, opened.covered, like)
  expected = worlds.encode(narrow.states['north'].image, narrow.images())
  for name, value in z.items():
    error = np.linalg.norm(value - expected[name])
    assert error < 0.03 * np.linalg.norm(expected[name])


def test_nothing_is_answered_or_shown_twice(world):
  client, state = world.clients['north'], world.states['north']
  message, ticket = ask(world)
  reply = world.server.respond(world.server_state, message)
  with pytest.raises(Rejected):
    world.server.respond(world.server_state, message)
  client.reveal(state, reply, ticket)
  with pytest.raises(Rejected):
    client.reveal(state, reply, ticket)


def test_messages_in_the_wrong_place_are_rejected(world):
  north, state = world.clients['north'], world.states['north']
  message, ticket = ask(world)
  other, other_ticket = ask(world)
  reply = world.server.respond(world.server_state, message)
  assert len(message) == len(other)  # whatever the image
  for call in (
    lambda: north.reveal(state, reply, other_ticket),  # another query's
    lambda: north.reveal(state, message, ticket),  # another direction
    lambda: world.server.respond(world.server_state, reply),
    lambda: world.clients['south'].reveal(state, reply, ticket),
  ):
    with pytest.raises(Rejected):
      call()
  assert north.reveal(state, reply, ticket).shape == (2, 32, 64)
  message, ticket = ask(world)
  reply = world.server.respond(world.server_state, message)
  with pytest.raises(ValueError, match='of 3 images'):
    north.reveal(state, reply, ticket._replace(batch=3))


def test_damaged_messages_are_rejected_without_being_noted(world):
  message, ticket = ask(world, count=1)
  rng = np.random.default_rng(0)
  places = [*range(0, 340), *rng.integers(340, len(message), 100)]
  for place in map(int, places):
    damaged = bytearray(message)
    damaged[place] ^= 1 << int(rng.integers(8))
    with pytest.raises(Rejected):
      world.server.respond(world.server_state, bytes(damaged))
  for length in (0, 10, 300, len(message) - 1):
    with pytest.raises(Rejected):
      world.server.respond(world.server_state, message[:length])
  reply = world.server.respond(world.server_state, message)
  mask = world.clients['north'].reveal(world.states['north'], reply, ticket)
  assert mask.shape == (1, 32, 64)


def test_two_messages_of_one_image_share_nothing(world):
  one, _ = ask(world, count=1)
  two, _ = ask(world, count=1)
  a, b = (np.frombuffer(m[352:], np.uint8).astype(float) for m in (one, two))
  assert abs(np.corrcoef(a, b)[0, 1]) < 0.15
  z = worlds.encode(world.states['north'].image, world.images(1))
  raw = np.asarray(z['s3']).tobytes()[:64]
  assert raw not in one and raw not in two


def test_a_key_opens_its_own_client_alone(world):
  message, _ = ask(world)
  like = world.latents['image']
  opened = world.channels['north'].peek(message, owner='north', like=like)
  assert opened.client == 'north' and opened.batch == 2
  with pytest.raises(Rejected):
    world.channels['south'].peek(message, owner='south', like=like)
  # To peek is not to note: the server answers it yet.
  world.server.respond(world.server_state, message)


def test_both_sides_go_on_to_the_next_epoch(tmp_path):
  world = worlds.World('sealed', 'float32', tmp_path)
  late, _ = ask(world)
  paths = worlds.write_contributions(world, tmp_path / 'messages', count=1)
  before = worlds.read(world, paths)

  for name in worlds.NAMES:
    epochs.rotate(tmp_path / 'clients' / f'{name}.epoch')
  after = reopened(world, tmp_path)
  message, ticket = ask(after)
  reply = after.server.respond(after.server_state, message)
  after.clients['north'].reveal(after.states['north'], reply, ticket)
  path = tmp_path / 'server' / 'north.epoch'
  assert epochs.load(path).epoch == 1
  with pytest.raises(Rejected):
    after.server.respond(after.server_state, late)
  # What the server had read it reads again; what it had not is gone.
  again = worlds.read(after, paths)
  jax.tree.map(np.testing.assert_array_equal, again, before)
  shutil.rmtree(tmp_path / 'kept')
  with pytest.raises(ValueError, match=r'msg: message rejected.*contribute'):
    worlds.read(after, paths)


def reopened(world, folder):
  """Returns the world as another process finds it."""
  channels, server = worlds.ends_in(folder, 'float32')
  return worlds.World('sealed', 'float32', ends=(channels, server))


def later(path, count):
  """Returns the key that follows from that of a file so many epochs later."""
  key = epochs.load(path)
  return epochs.ratchet(key, key.epoch + count)


def test_a_full_disk_at_the_change_of_epochs_strands_nobody(
  tmp_path, monkeypatch
):
  path, _ = epochs.enrol(tmp_path / 'client', 'north')

  def fail(*_):
    raise OSError(28, 'No space left on device')

  key = later(path, 1)
  with monkeypatch.context() as context:
    context.setattr(os, 'replace', fail)
    with pytest.raises(ValueError, match='found No space'):
      session.Party(path).believe(key, 1)
  party = session.Party(path)
  assert party.ledger.reserve(party.key.epoch) == 1
  party.believe(key, 1)
  assert session.Party(path).key == key
  with pytest.raises(Rejected):
    party.believe(key, 1)


def test_a_message_of_an_epoch_that_is_over_on_the_disk_is_rejected(tmp_path):
  path, _ = epochs.enrol(tmp_path / 'client', 'north')
  party = session.Party(path)
  first, second = later(path, 1), later(path, 2)
  epochs.rotate(path, 2)
  with pytest.raises(Rejected):
    party.believe(first, 1)
  party.believe(second, 1)


def test_a_running_server_opens_nothing_of_a_key_that_was_erased(tmp_path):
  """And what was enrolled anew is left alone by the one before."""
  world, folder = worlds.World('sealed', 'float32', tmp_path), tmp_path
  message, _ = ask(world)
  stolen = later(folder / 'clients' / 'north.epoch', 5)
  epochs.erase(folder / 'server' / 'north.epoch')
  with pytest.raises(ValueError, match=r'north\.epoch.*found No such file'):
    world.server.respond(world.server_state, message)
  with pytest.raises(ValueError, match=r'north\.epoch.*found No such file'):
    world.server_channel.draft(
      channel_lib.Route('north', 'reply', 'mask', bytes(16)),
      world.latents['mask'],
    )
  epochs.erase(folder / 'clients' / 'north.epoch')
  _, export = epochs.enrol(folder / 'clients', 'north')
  path = epochs.import_key(folder / 'server', export)
  new = epochs.load(path)
  with pytest.raises(Rejected):
    world.server.respond(world.server_state, message)
  assert not epochs.follow(path, stolen) and epochs.load(path) == new
  # Both ends run on, with the new key.
  message, ticket = ask(world)
  reply = world.server.respond(world.server_state, message)
  world.clients['north'].reveal(world.states['north'], reply, ticket)


def test_an_old_state_that_is_restored_repeats_no_key(tmp_path):
  """Counters it does repeat, so that the server refuses the messages."""
  world = worlds.World('sealed', 'float32', tmp_path)
  shutil.copytree(tmp_path / 'clients', tmp_path / 'old')
  before = [ask(world)[0] for _ in range(2)]
  for message in before:
    world.server.respond(world.server_state, message)
  shutil.rmtree(tmp_path / 'clients')
  (tmp_path / 'old').rename(tmp_path / 'clients')
  after = [ask(reopened(world, tmp_path))[0] for _ in range(2)]
  headers = [envelope.read(message) for message in (*before, *after)]
  assert len({header.nonce for header in headers}) == 4
  assert headers[0].counter == headers[2].counter
  with pytest.raises(Rejected):
    world.server.respond(world.server_state, after[0])


def test_who_rotates_need_not_start_anew(tmp_path):
  world = worlds.World('sealed', 'float32', tmp_path)
  late, _ = ask(world)
  for side in ('clients', 'server'):
    epochs.rotate(tmp_path / side / 'north.epoch')
  with pytest.raises(Rejected):
    world.server.respond(world.server_state, late)
  message, ticket = ask(world)
  reply = world.server.respond(world.server_state, message)
  world.clients['north'].reveal(world.states['north'], reply, ticket)


def test_a_draft_is_of_one_key_though_another_thread_goes_on(tmp_path):
  class Moving(session.Party):
    """Goes on to the next epoch whenever it is looked at."""

    @property
    def key(self):
      key = epochs.load(self._path)
      epochs.rotate(self._path)
      return key

  world = worlds.World('sealed', 'float32', tmp_path)
  parties = {'north': Moving(tmp_path / 'clients' / 'north.epoch')}
  world.channels['north'] = session.make(
    parties=parties, model_id='test', wire_dtype='float32'
  )
  ends = world.channels, world.server_channel
  world = worlds.World('sealed', 'float32', ends=ends)
  message, _ = ask(world)
  assert world.server.respond(world.server_state, message)


def test_a_copied_contribution_is_refused_by_name(tmp_path):
  world = worlds.World('sealed', 'float32', tmp_path)
  paths = worlds.write_contributions(world, tmp_path / 'messages', count=1)
  for path in paths[:2]:
    shutil.copy(path, path.with_name(path.name.replace('train-0', 'train-9')))
  paths = sorted((tmp_path / 'messages').glob('*/*.msg'))
  with pytest.raises(ValueError, match=r'train-9: the same.*train-0; delete'):
    worlds.read(world, paths)


def test_what_a_client_took_back_opens_no_more_after_rotation(tmp_path):
  world = worlds.World('sealed', 'float32', tmp_path)
  paths = worlds.write_contributions(world, tmp_path / 'messages', count=2)
  worlds.read(world, paths)
  old = [path for path in paths if path.match('north/train-0.*')]
  new = [path for path in paths if path not in old]
  for side in ('clients', 'server'):
    epochs.rotate(tmp_path / side / 'north.epoch')
  after = reopened(world, tmp_path)
  assert worlds.read(after, old)
  after = reopened(world, tmp_path)
  assert worlds.read(after, new)
  stray = tmp_path / 'kept' / 'north' / f'.new-{"0" * 16}'  # left by a crash
  os.link(next((tmp_path / 'kept' / 'north').iterdir()), stray)
  after.server_channel.forget()
  assert not stray.exists()
  assert {path.parent.name for path in (tmp_path / 'kept').glob('*/*')} == {
    *worlds.NAMES
  }
  assert worlds.read(after, new)
  with pytest.raises(ValueError, match=r'train-0.*message rejected'):
    worlds.read(after, old)


def test_a_damaged_kept_key_is_named(tmp_path):
  world = worlds.World('sealed', 'float32', tmp_path)
  paths = worlds.write_contributions(world, tmp_path / 'messages', count=1)
  worlds.read(world, paths)
  kept = sorted((tmp_path / 'kept').glob('*/*'))
  assert len(kept) == len(paths)
  assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
  kept[0].write_bytes(bytes(48))
  with pytest.raises(
    ValueError, match=rf'{kept[0].name}.*that the storage key wrapped'
  ) as caught:
    worlds.read(world, paths)
  # That the server lost a key is no fault of the contribution.
  assert 'delete the file' not in str(caught.value)


def test_a_client_without_a_key_here_is_told_to_enrol(world):
  stranger = world.channels['north']
  with pytest.raises(ValueError, match=r"'south': no key here.*enrol"):
    stranger.draft(
      channel_lib.Route('south', 'query', 'image', bytes(16)),
      world.latents['image'],
    )
