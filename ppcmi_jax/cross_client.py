"""What one client's decoder makes of another's messages.

For every pair of clients (i, j), the query and the reply of client i are opened
by client j: with j's own secret, which is what an interceptor has, and with i's
secret, which shows what the decoders alone withhold once a key has leaked. The
published method claims noise for the first (paper: SSIM 0.34 of images); under
`sealed` the first opens nothing at all.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppcmi_jax import collaboration, evaluators
from ppcmi_jax.sealed import session

KEYS = ('own', 'leaked')


class Matrices(NamedTuple):
  """Scores {key: {client i: {client j: score}}}; key is one of `KEYS`.

  A score is NaN where the protection let no message be opened.

  Attributes:
    dice: mean Dice over the structures, reply of i decoded by j.
    ssim: of i's images, as j's decoder makes them of i's query.
    psnr_db: likewise.
  """

  dice: Mapping[str, Mapping[str, Mapping[str, float]]]
  ssim: Mapping[str, Mapping[str, Mapping[str, float]]]
  psnr_db: Mapping[str, Mapping[str, Mapping[str, float]]]


def cross_client(run: collaboration.Collaboration) -> Matrices:
  """Scores every pair of clients on the test split of the first.

  Args:
    run: what `collaboration.restore` returns, of ppcmi_sf.
  """
  codec = next(iter(run.hospitals.values())).channel.codec

  def sending(sender):
    """Returns image -> the query and its reply, sent once an image."""
    sent = {}

    def send(image):
      key = image.tobytes()
      if key not in sent:
        query, _ = sender.client.protect(sender.state, image)
        reply = run.server.respond(run.server_state, query)
        sent[key] = {'image': query, 'mask': reply}
      return sent[key]

    return send

  def opening(modality, finish):
    """Returns what draws what a message carries, by any client's decoder."""
    model = getattr(run.autoencoders, f'{modality}_model')
    like = run.latents[modality]

    @jax.jit
    def decode(variables, keys, covered):
      z = codec.uncover(keys, covered, like)
      return finish(model.apply(variables, z, train=False, method='decode'))

    def draw(send, opener, owner, name, image):
      message = send(image)[modality]
      opened = owner.channel.peek(message, owner=name, like=like)
      variables = getattr(opener.state, modality)
      return decode(variables, opened.keys, opened.covered)

    return draw

  mask = opening('mask', lambda z: jnp.argmax(z, axis=-1).astype(jnp.uint8))
  picture = opening('image', jax.nn.sigmoid)
  names = list(run.hospitals)
  empty = lambda: {key: {i: {} for i in names} for key in KEYS}
  result = Matrices(empty(), empty(), empty())
  for i, sender in run.hospitals.items():
    test, send = run.data.hospitals[i]['test'], sending(sender)
    for j, opener in run.hospitals.items():
      for key, (owner, name) in zip(KEYS, ((opener, j), (sender, i))):
        opened = send, opener, owner, name
        try:
          segmented = evaluators.segmentation(
            functools.partial(mask, *opened),
            test,
            class_names=run.data.class_names,
          )
          drawn = evaluators.reconstruction(
            functools.partial(picture, *opened), test
          )
          found = segmented['mean']['dice'], drawn['ssim'], drawn['psnr_db']
        except session.MessageRejected:
          found = (float('nan'),) * 3
        for scores, score in zip(result, found):
          scores[key][i][j] = score
  return result
