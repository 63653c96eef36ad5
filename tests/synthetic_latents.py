"""Latents with a known answer, for the tests of attacks.

Smooth random images of subjects, several visits each, are filtered by random
filters at three scales and pass a ReLU: neighbours are alike, channels are
correlated and half of all values are zeros, as in an encoder's latents.

Axes: N messages, H, W sides of an image, C channels.
"""

import jax
import numpy as np

SCALES = {'s3': (16, 8), 's4': (8, 12), 'b': (4, 16)}  # side, channels
SIDE = 64


def images(num_subjects, visits=1, *, seed=0):
  """Returns ([N, H, W], subject [N]); N is num_subjects * visits."""
  rng = np.random.default_rng(seed)
  frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE))

  def smooth(count, cutoff):
    noise = np.fft.fft2(rng.standard_normal((count, SIDE, SIDE)))
    fields = np.fft.ifft2(noise * np.exp(-((frequency / cutoff) ** 2))).real
    return fields / fields.std()

  # The first field is drawn of a seed of its own: what all subjects share.
  shared = np.random.default_rng(99).standard_normal((SIDE, SIDE))
  shared = np.fft.ifft2(
    np.fft.fft2(shared) * np.exp(-((frequency / 0.06) ** 2))
  ).real
  subject = np.repeat(np.arange(num_subjects), visits)
  pixels = 1.5 * shared / shared.std() + smooth(num_subjects, 0.15)[subject]
  return pixels + 0.2 * smooth(len(subject), 0.15), subject


def encode(pixels, *, seed=0):
  """Returns {scale: float32 [N, side, side, C]} of images [N, H, W]."""
  rng = np.random.default_rng(seed)
  latents = {}
  for name, (side, channels) in SCALES.items():
    stride = SIDE // side
    width = 2 * stride - 1
    padded = np.pad(pixels, ((0, 0), (width // 2,) * 2, (width // 2,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(
      padded, (width, width), axis=(1, 2)
    )[:, ::stride, ::stride]
    patches = windows.reshape(*windows.shape[:3], -1)
    filters = rng.standard_normal((width**2, channels)) / width
    z = patches @ filters
    z = z / z.std(axis=(0, 1, 2)) - rng.uniform(-0.3, 0.3, channels)
    scale = rng.uniform(0.5, 2, channels)
    latents[name] = np.maximum(scale * z, 0).astype(np.float32)
  return latents


def protect(transform, latents, *, seed=0):
  """Returns (observed, secret) of one secret for all messages."""
  secret = transform.init(jax.random.key(seed), latents)
  return jax.device_get(transform.forward(secret, latents)), secret


def uniform(latents, *, seed=0):
  """Returns words of a sealed message, as numbers from 0 to 1, of one shape."""
  rng = np.random.default_rng(seed)
  return {
    name: rng.random(z.shape, dtype=np.float32) for name, z in latents.items()
  }


def take(latents, rows):
  """Returns some of the messages."""
  return {name: z[rows] for name, z in latents.items()}
