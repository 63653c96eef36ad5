"""Who attacks whom with what: the data of a run, dealt to attacker and victim.

One client of a private run is the victim: the one with most images to score.
All that is its own is protected as its messages would be; the attacker holds a
part, as each attack says.

  group    images                                       the attacker has
  -------  -------------------------------------------  ----------------------
  own      the victim's training images                 messages, perhaps pairs
  others   the other clients' training images           the images and masks
  target   the victim's validation and test images      messages; to be opened
  copies   augmented copies of own, as contributions    messages, perhaps pairs

Pairs (`known`) come from own, then from others, sent through the victim's
account, then from copies, up to 1000. Messages without their images
(`intercepted`) are those of target, own and copies. Where a data set is split
within subjects, a target may show a subject that the attacker knows. Who has
the encoder makes copies of others' images, too (`public`): with as many as the
messages have, it compares like with like.

Axes: M messages, H height, W width, C channels, h, w sides of a latent.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ppcmi_jax import examples as examples_lib
from ppcmi_jax import exposure, images, wire
from ppcmi_jax.privacy import visits as visits_lib

MAX_KNOWN = 1000
MAX_TARGETS = 60
MAX_NUMBERS = 2**26  # of all latents under one protection, to bound memory
_BATCH = 64

Latents = Mapping[str, np.ndarray]


class Setting(NamedTuple):
  """What the attacks on one victim are functions of.

  Attributes:
    victim, accomplice: clients; the accomplice's encoder and decoder are the
      attacker's own. It is '' where there is no other client.
    image: float32 [M, H, W, C] in [0, 1].
    mask: uint8 [M, H, W].
    subject: strings [M].
    latents: {scale: float32 [M, h, w, C]}, of the victim's encoder.
    own_latents: the same of the accomplice's.
    groups: {group: int [.], rows of the above}.
    source: int [M], the row of which each is a copy, itself but for copies.
    prior: float32 [H, W, C], the mean of the victim's training images.
    protect: (protection, latents) -> what crosses, by one client's secret.
    seen: protection -> {scale: float32 [M, h, w, C]}, `latents` protected.
    seed: of the secret of the static transform.
    decode, own_decode: latents -> float32 images in [0, 1], of the victim's and
      of the accomplice's decoder.
    public: () -> {scale: float32 [., h, w, C]}, latents of others and of copies
      of them, in the share that messages have; where there are others.
    visits: () -> (Visits, their latents).
    once: (key, make) -> what make() gave when the key was first asked for: what
      an attack does likewise against several protections.
  """

  victim: str
  accomplice: str
  image: np.ndarray
  mask: np.ndarray
  subject: np.ndarray
  latents: Latents
  own_latents: Latents
  groups: Mapping[str, np.ndarray]
  source: np.ndarray
  prior: np.ndarray
  protect: Callable[..., Latents]
  seen: Callable[[str], Latents]
  seed: int
  decode: Callable[[Latents], np.ndarray]
  own_decode: Callable[[Latents], np.ndarray]
  public: Callable[[], Latents]
  visits: Callable[[], tuple[visits_lib.Visits, Latents]]
  once: Callable[[Any, Callable[[], Any]], Any]

  def known(self, most: int = MAX_KNOWN) -> np.ndarray:
    """Returns the rows of which the attacker has image and message.

    Those of the victim's own images first; of a group that is not all taken,
    rows spread evenly over it, as slices of one place tell little of others.
    """
    rows = []
    for name in ('own', 'others', 'copies'):
      group = self.groups[name]
      room = min(most, len(group))
      middles = (np.arange(room) + 0.5) * len(group) / max(room, 1)
      rows.append(group[middles.astype(int)])
      most -= room
    return np.concatenate(rows)

  @property
  def intercepted(self) -> np.ndarray:
    """Rows of which the attacker has the messages."""
    parts = [self.groups[name] for name in ('target', 'own', 'copies')]
    return np.concatenate(parts)[:MAX_KNOWN]


def build(config: Any, run: Any, *, seed: int = 0) -> Setting:
  """Deals the data of a trained private run to an attacker and a victim.

  Args:
    config: of the run.
    run: what `collaboration.restore` returned of it.
    seed: of augmented copies and of the static transform's secret.
  """
  data = run.data.hospitals
  size = lambda split: lambda name: len(data[name][split].case)
  victim = max(data, key=size('test'))
  others = [name for name in data if name != victim]
  accomplice = max(others, key=size('train'), default='')
  encode = _encoder(run, victim)
  sample = encode(images.unit_image(data[victim]['train'].image[:1]))
  numbers = sum(z.size for z in sample.values())
  # Those of the victim and of others, each.
  most = int(np.clip(MAX_NUMBERS // (2 * numbers), 100, MAX_KNOWN))

  parts = {
    'own': _examples([data[victim]['train']], most),
    'others': _examples([data[name]['train'] for name in others], most),
    'target': _examples(
      [data[victim][split] for split in ('valid', 'test')], MAX_TARGETS
    ),
  }
  parts = {name: part for name, part in parts.items() if part}
  image, mask, subject = parts['own']
  room = most - len(image) - len(parts.get('others', [[]])[0])
  rows, *copies = _copies(config, image, mask, room, seed=seed)
  if len(rows):
    parts['copies'] = (*copies, subject[rows])
  ends = np.cumsum([len(part[0]) for part in parts.values()])
  groups = dict.fromkeys(('own', 'others', 'target', 'copies'), np.arange(0))
  groups |= zip(parts, np.split(np.arange(ends[-1]), ends[:-1]))
  source = np.arange(ends[-1])
  source[groups['copies']] = groups['own'][rows]
  image, mask, subject = map(np.concatenate, zip(*parts.values()))

  latents = encode(image)
  model = run.autoencoders.image_model
  client = accomplice or victim

  def protect(protection, latents, *, seed=seed):
    return exposure.observe(protection, latents, seed=seed, **_dtypes(config))

  @functools.cache
  def seen(protection):
    return protect(protection, latents)

  @functools.cache
  def public():
    others = groups['others']
    messages = len(groups['target']) + len(groups['own'])
    share = len(groups['copies']) / messages  # of copies to one original
    room = min(round(share * len(others)), most - len(others))
    _, copies, _ = _copies(
      config, image[others], mask[others], room, seed=seed + 2
    )
    return encode(np.concatenate([image[others], copies]))

  @functools.cache
  def visits():
    found = visits_lib.collect(config, data[victim], most=most, seed=seed + 1)
    return found, encode(found.image) if len(found.image) else {}

  made = {}

  def once(key, make):
    if key not in made:
      made[key] = make()
    return made[key]

  return Setting(
    victim=victim,
    accomplice=accomplice,
    image=image,
    mask=mask,
    subject=subject,
    latents=latents,
    own_latents=_encoder(run, client)(image),
    groups=groups,
    source=source,
    prior=image[groups['own']].mean(axis=0),
    protect=protect,
    seen=seen,
    seed=seed,
    decode=_decoder(model, run.hospitals[victim].state.image),
    own_decode=_decoder(model, run.hospitals[client].state.image),
    public=public,
    visits=visits,
    once=once,
  )


def _copies(config, image, mask, room, *, seed):
  """Returns (row of each, images, masks) of augmented copies in turn."""
  rows = np.arange(max(room, 0) if config.augment else 0) % len(image)
  if not len(rows):
    return rows, image[:0], mask[:0]
  return rows, *visits_lib.augmented(config, image[rows], mask[rows], seed=seed)


def _dtypes(config):
  """Returns what each protection sends; the run has one of them only."""
  dtype = config.wire_dtype
  return {
    'wire_dtype': dtype if dtype in wire.DTYPES else 'float16',
    'sealed_dtype': dtype if dtype in exposure.SEALED_DTYPES else 'int8',
  }


def _encoder(run, client):
  function = jax.jit(run.networks['image encoder'][0])
  variables = run.hospitals[client].state.image

  def encode(image):
    apply = functools.partial(function, variables)
    found = examples_lib.map_batches(apply, np.asarray(image), _BATCH)
    return {k: np.float32(z) for k, z in found.items()}

  return encode


def _decoder(model, variables):
  @jax.jit
  def decode(latents):
    logits = model.apply(variables, latents, train=False, method='decode')
    return jax.nn.sigmoid(logits)

  return lambda latents: np.float32(
    examples_lib.map_batches(decode, latents, _BATCH)
  )


def _examples(some, most):
  """Returns (image, mask, subject), evenly thinned to at most; () if none."""
  some = [examples for examples in some if len(examples.case)]
  if not some:
    return ()
  whole = jax.tree.map(lambda *a: np.concatenate(a), *some)
  count = len(whole.case)
  rows = np.linspace(0, count - 1, min(most, count)).astype(int)
  image = np.asarray(images.unit_image(whole.image[rows]))
  return image, whole.mask[rows], whole.subject[rows]
