"""The journey of an image through client, server and back, in bytes."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds
from worlds import World, decode, encode, read, write_contributions

from ppcmi_jax import channel, wire

ORIGIN = channel.Origin('train', 0, 0)


@pytest.fixture(scope='module')
def world():
  return World()


def test_protected_path_equals_the_unprotected_network(world):
  image = world.images()
  client, state = world.clients['north'], world.states['north']
  message, ticket = client.protect(state, image)
  reply = world.server.respond(world.server_state, message)
  latents = world.transform.inverse(
    world.secrets['north']['mask'],
    jax.tree.map(jnp.asarray, wire.decode(reply).latents),
  )
  logits = decode(state.mask, latents)
  expected = world.unprotected_logits('north', image)
  scale = float(jnp.max(jnp.abs(expected)))
  np.testing.assert_allclose(logits, expected, atol=1e-4 * scale)
  mask = client.reveal(state, reply, ticket)
  assert mask.dtype == np.uint8 and mask.shape == (2, 32, 64)
  clear = np.ptp(np.sort(expected, -1)[..., -2:], axis=-1) > 1e-3 * scale
  np.testing.assert_array_equal(mask[clear], np.argmax(expected, -1)[clear])


def test_what_a_hospital_says_itself_is_half_of_the_answer(world):
  image = world.images()
  client, state = world.clients['north'], world.states['north']
  logits = world.unprotected_logits('north', image)
  own = jax.nn.softmax(jnp.roll(logits, 1, axis=1))
  expected = jax.nn.softmax(logits) + own

  def ask(own):
    message, ticket = client.protect(state, image)
    reply = world.server.respond(world.server_state, message)
    return client.reveal(state, reply, ticket, own)

  mask = ask(own)
  clear = np.ptp(np.sort(expected, -1)[..., -2:], axis=-1) > 1e-3
  np.testing.assert_array_equal(mask[clear], np.argmax(expected, -1)[clear])
  assert np.any(mask != ask(None)) and np.any(mask != np.argmax(own, -1))
  with pytest.raises(ValueError, match='own: expected probabilities'):
    ask(own[..., :1])


def test_what_crosses_does_not_look_like_latents(world):
  image = world.images()
  state = world.states['north']
  message, _ = world.clients['north'].protect(state, image)
  z = encode(state.image, image)
  for name, w in wire.decode(message).latents.items():
    correlation = np.corrcoef(w.ravel(), np.asarray(z[name]).ravel())[0, 1]
    assert abs(correlation) < 0.5
    assert not np.allclose(w, z[name], atol=0.1)


def test_another_clients_secret_gives_noise(world):
  image = world.images()
  client, state = world.clients['north'], world.states['north']
  message, _ = client.protect(state, image)
  z = encode(state.image, image)
  protected = jax.tree.map(jnp.asarray, wire.decode(message).latents)

  def relative_error(secret):
    guess = world.transform.inverse(secret, protected)
    error = sum(float(jnp.sum((guess[k] - z[k]) ** 2)) for k in z)
    return error / sum(float(jnp.sum(z[k] ** 2)) for k in z)

  assert relative_error(world.secrets['north']['image']) < 1e-9
  assert relative_error(world.secrets['south']['image']) > 0.5
  assert relative_error(world.secrets['north']['mask']) > 0.5


@pytest.mark.parametrize(
  'dtype, tolerance', [('bfloat16', 3e-2), ('float16', 4e-3)]
)
def test_narrow_wire_stays_near(world, dtype, tolerance):
  narrow = World(wire_dtype=dtype)
  image = narrow.images()
  client, state = narrow.clients['north'], narrow.states['north']
  message, _ = client.protect(state, image)
  full, _ = world.clients['north'].protect(world.states['north'], image)
  assert len(message) < 0.6 * len(full)
  a, b = wire.decode(message).latents, wire.decode(full).latents
  for name in a:
    np.testing.assert_allclose(
      a[name].astype(np.float32),
      b[name],
      atol=tolerance * np.abs(b[name]).max(),
    )


def test_without_protection_the_message_holds_the_latents():
  world = World(protection='none')
  image = world.images()
  client, state = world.clients['south'], world.states['south']
  message, ticket = client.protect(state, image)
  z = encode(state.image, image)
  for name, w in wire.decode(message).latents.items():
    np.testing.assert_allclose(w, z[name], atol=1e-5)
  reply = world.server.respond(world.server_state, message)
  assert client.reveal(state, reply, ticket).shape == (2, 32, 64)


def test_wrong_replies_are_refused(world):
  image = world.images()
  north, south = world.clients['north'], world.clients['south']
  state = world.states['north']
  message, ticket = north.protect(state, image)
  reply = world.server.respond(world.server_state, message)
  _, other_ticket = north.protect(state, image)
  with pytest.raises(ValueError, match='message_id'):
    north.reveal(state, reply, other_ticket)
  with pytest.raises(ValueError, match="unknown client 'north'"):
    south.reveal(world.states['south'], reply, ticket)
  with pytest.raises(ValueError, match='direction'):
    north.reveal(state, message, ticket)
  with pytest.raises(ValueError, match='of 3 images'):
    north.reveal(state, reply, ticket._replace(batch=3))
  with pytest.raises(ValueError):
    north.reveal(state, reply[:-1], ticket)


def test_wrong_queries_are_refused(world):
  message, _ = world.clients['north'].protect(
    world.states['north'], world.images()
  )
  decoded = wire.decode(message)
  for change, match in (
    ({'client': 'east'}, "unknown client 'east'"),
    ({'key_id': '0' * 16}, 'key_id'),
    ({'protection': 'none'}, 'protection'),
    ({'direction': 'contribution'}, 'direction'),
    ({'modality': 'mask'}, 'modality'),
  ):
    bad = wire.encode(decoded._replace(**change))
    with pytest.raises(ValueError, match=match):
      world.server.respond(world.server_state, bad)


def test_a_mask_with_unknown_classes_is_refused(world):
  mask = np.full((1, 32, 64), worlds.NUM_CLASSES, np.uint8)
  with pytest.raises(ValueError, match='classes 0 to 2, found 3'):
    world.clients['north'].contribute(
      world.states['north'], world.images(1), mask, ORIGIN
    )


def test_contributions_come_back_as_the_latents_they_were(world, tmp_path):
  pairs = read(world, write_contributions(world, tmp_path))
  assert pairs['client'].tolist() == [0] * 6 + [1] * 6
  image = np.random.default_rng(0).random((2, 32, 64, 1), np.float32)
  z = encode(world.states['north'].image, image)
  for name in z:
    np.testing.assert_allclose(pairs['image'][name][:2], z[name], atol=1e-4)


def test_damaged_contributions_are_named(world, tmp_path):
  paths = write_contributions(world, tmp_path, count=1)
  victim = paths[1]
  whole = victim.read_bytes()
  victim.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match=f'{victim.name}.*contribute again'):
    read(world, paths)
  victim.unlink()
  with pytest.raises(ValueError, match=f'{victim.name}: missing'):
    read(world, paths)
  other = paths[3]
  shutil.copy(other, victim)
  with pytest.raises(ValueError, match='not of one contribution'):
    read(world, paths)
  with pytest.raises(ValueError, match='no contributions'):
    read(world, [])


def test_a_huge_file_is_not_read(world, tmp_path):
  for modality in ('image', 'mask'):
    with (tmp_path / f'train-0.{modality}.msg').open('wb') as file:
      file.truncate(2**40)
  with pytest.raises(ValueError, match=r'train-0.*at most \d+ bytes, found'):
    worlds.read(world, sorted(tmp_path.glob('*.msg')))


def test_messages_of_other_shapes_are_refused(world, tmp_path):
  """What the networks were not made for is refused before they see it."""
  client, state = world.clients['north'], world.states['north']
  message, ticket = client.protect(state, world.images())
  decoded = wire.decode(message)
  some = {k: z for k, z in decoded.latents.items() if k != 'b'}
  wide = {k: np.tile(z, 2) for k, z in decoded.latents.items()}
  for latents in (some, wide):
    forged = wire.encode(decoded._replace(latents=latents))
    with pytest.raises(ValueError, match='latent'):
      world.server.respond(world.server_state, forged)
    reply = decoded._replace(
      latents=latents, direction='reply', modality='mask'
    )
    with pytest.raises(ValueError, match='latent'):
      client.reveal(state, wire.encode(reply), ticket)
  path = write_contributions(world, tmp_path, count=1)[0]
  decoded = wire.decode(path.read_bytes())
  path.write_bytes(
    wire.encode(decoded._replace(latents={'s3': decoded.latents['s3']}))
  )
  with pytest.raises(ValueError, match=path.name):
    read(world, [path])


def test_pairs_that_do_not_fit_are_refused(world):
  client, state = world.clients['north'], world.states['north']
  mask = np.zeros((2, 32, 64), np.int32)
  with pytest.raises(ValueError, match='one of each image'):
    client.contribute(state, world.images(1), mask, ORIGIN)
  with pytest.raises(ValueError, match='found -1'):
    client.contribute(state, world.images(), mask - 1, ORIGIN)
  with pytest.raises(ValueError, match=r'int16.*window'):
    client.protect(state, world.images().astype(np.int16))
