"""Two clients and a server of random networks, for tests of the journey."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ppcmi_jax import channel, keyed, keyed_channel, keyring, models, tasks
from ppcmi_jax import client as client_lib
from ppcmi_jax import server as server_lib
from ppcmi_jax.keyring import epochs
from ppcmi_jax.sealed import session, vault

NAMES = ('north', 'south')
NUM_CLASSES = 3
TRANSFORM = keyed.chain(keyed.orthogonal(), keyed.permutation(), keyed.shift())
WIDTHS = (4, 4, 8, 8, 16)


IMAGE_MODEL = models.MODELS['autoencoder'](channels=1, widths=WIDTHS)
MASK_MODEL = models.MODELS['autoencoder'](channels=NUM_CLASSES, widths=WIDTHS)
TASK = tasks.mapping(models.MODELS['fused_mapping'](widths=(4, 4, 4)))


@functools.cache
def networks():
  """Returns random variables {name: (image, mask)}, and the mapping's."""

  @functools.partial(jax.jit, static_argnums=0)
  def init(model, key):
    x = jnp.zeros((1, 32, 64, model.channels))
    return model.init(key, x, train=False)

  variables = {
    name: (
      init(IMAGE_MODEL, jax.random.key(i, impl='rbg')),
      init(MASK_MODEL, jax.random.key(10 + i, impl='rbg')),
    )
    for i, name in enumerate(NAMES)
  }
  z = encode(variables['north'][0], jnp.zeros((1, 32, 64, 1)))
  return variables, jax.jit(TASK.init)(
    jax.random.key(20, impl='rbg'), {'image': z}
  )


@jax.jit
def encode(variables, image):
  return IMAGE_MODEL.apply(variables, image, train=False, method='encode')


@jax.jit
def decode(variables, latents):
  return MASK_MODEL.apply(variables, latents, train=False, method='decode')


class World:
  """Two clients and a server with random networks."""

  def __init__(
    self, protection='klt', wire_dtype='float32', folder=None, ends=None
  ):
    self.transform = TRANSFORM if protection == 'klt' else keyed.chain()
    variables, self.server_state = networks()
    z = jax.eval_shape(encode, variables['north'][0], jnp.zeros((1, 32, 64, 1)))
    self.latents = {'image': z, 'mask': z}
    if ends is not None:
      self.channels, server = ends
    elif protection == 'sealed':
      self.channels, server = sealed_ends(folder, wire_dtype)
    else:
      self.channels, server = self.keyed_ends(protection, wire_dtype)
    self.states, self.clients = {}, {}
    for name in NAMES:
      image, mask = variables[name]
      self.states[name] = client_lib.ClientState(image=image, mask=mask)
      self.clients[name] = client_lib.make_client(
        name=name,
        channel=self.channels[name],
        image_model=IMAGE_MODEL,
        mask_model=MASK_MODEL,
        latents=self.latents,
      )
    self.server_channel = server
    self.server = server_lib.make_server(
      predict=TASK.predict, channel=server, latents=self.latents
    )

  def keyed_ends(self, protection, wire_dtype):
    roots = {name: keyring.derive(bytes(32), 'test', name) for name in NAMES}
    self.secrets = {
      name: keyring.draw_secrets(
        self.transform.init, roots[name], name, self.latents
      )
      for name in NAMES
    }

    def end(*names):
      return keyed_channel.make(
        transform=self.transform,
        protection=protection,
        secrets={name: self.secrets[name] for name in names},
        key_ids={name: keyring.key_id(roots[name]) for name in names},
        wire_dtype=wire_dtype,
      )

    return {name: end(name) for name in NAMES}, end(*NAMES)

  def images(self, count=2):
    return np.asarray(jax.random.uniform(jax.random.key(3), (count, 32, 64, 1)))

  def unprotected_logits(self, name, image):
    state = self.states[name]
    z = encode(state.image, image)
    w = jax.jit(TASK.predict)(self.server_state, z)
    return decode(state.mask, w)


def sealed_ends(folder, wire_dtype):
  for name in NAMES:
    _, export = epochs.enrol(folder / 'clients', name)
    epochs.import_key(folder / 'server', export)
  return ends_in(folder, wire_dtype)


def ends_in(folder, wire_dtype):
  storage = folder / 'server' / 'storage.key'
  if not storage.exists():
    keyring.create(storage)
  kept = vault.Vault(folder / 'kept', storage)

  def end(side, names, **options):
    parties = {n: session.Party(folder / side / f'{n}.epoch') for n in names}
    return session.make(
      parties=parties, model_id='test', wire_dtype=wire_dtype, **options
    )

  clients = {name: end('clients', [name]) for name in NAMES}
  return clients, end('server', NAMES, kept=kept)


def write_contributions(world, folder, count=3):
  """Returns the message files of some random pairs of every client."""
  rng = np.random.default_rng(0)
  for name in NAMES:
    for i in range(count):
      image = rng.random((2, 32, 64, 1), np.float32)
      mask = rng.integers(0, NUM_CLASSES, (2, 32, 64), np.uint8)
      origin = channel.Origin('train', 0, 2 * i)
      pair = world.clients[name].contribute(
        world.states[name], image, mask, origin
      )
      for modality, message in zip(('image', 'mask'), pair, strict=True):
        path = folder / name / f'train-{i}.{modality}.msg'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(message)
  return sorted(folder.glob('*/*.msg'))


def read(world, paths):
  """Returns the training pairs of message files."""
  return server_lib.read_contributions(
    paths, channel=world.server_channel, latents=world.latents
  )['train']
