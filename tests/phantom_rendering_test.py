"""Tests of phantom_rendering.py: purity, sites, visits, sampling, freeze."""

import hashlib

import numpy as np
import pytest
from scipy import ndimage

from ppcmi_jax.datasets import phantom_rendering

# The frozen phantoms at 128 x 128: subject, site, visit, hash of the mask, then
# mean and spread of the image and the means of symphysis and head.
GOLDEN = (
  (0, 1, 0, '4ed1161cd62dc455', (33.69, 42.40, 79.86, 18.62)),
  (1, 2, 1, '626a6ab467477c19', (46.52, 50.76, 84.04, 25.00)),
  (2, 3, 0, '5b7a5bf01aed1d80', (37.70, 40.26, 75.83, 42.93)),
)


def dice(a, b):
  return 2 * np.sum(a & b) / (np.sum(a) + np.sum(b))


def test_render_contract():
  image, mask, spacing_mm = phantom_rendering.render(seed=0, subject=0, site=1)
  assert image.shape == (256, 256, 1) and image.dtype == np.uint8
  assert mask.shape == (256, 256) and mask.dtype == np.uint8
  assert spacing_mm.shape == (2,) and spacing_mm.dtype == np.float32
  assert np.all(spacing_mm > 0.3) and np.all(spacing_mm < 1.2)
  # Outside the sector nothing is drawn.
  assert not image[:20, :20].any() and not image[-5:, -5:].any()
  assert 30 < image.mean() < 90


def test_render_is_a_pure_function():
  first = phantom_rendering.render(seed=5, subject=7, visit=2, site=2, size=64)
  phantom_rendering.render(seed=5, subject=8, site=3, size=64)
  second = phantom_rendering.render(seed=5, subject=7, visit=2, site=2, size=64)
  for a, b in zip(first, second):
    np.testing.assert_array_equal(a, b)
  for change in ({'seed': 6}, {'subject': 8}):
    arguments = {'seed': 5, 'subject': 7, **change}
    _, mask, _ = phantom_rendering.render(visit=2, site=2, size=64, **arguments)
    assert dice(mask == 2, first[1] == 2) < 0.98


def test_spacing_is_not_shared():
  _, _, spacing_mm = phantom_rendering.render(
    seed=0, subject=0, site=1, size=64
  )
  spacing_mm[:] = 0
  assert phantom_rendering.render(seed=0, subject=0, site=1, size=64)[2].all()


def test_sites_differ_in_view_gain_and_speckle():
  views, spacings, grains, greys = [], [], [], []
  for site in phantom_rendering.SITES:
    images, rough = [], []
    for subject in range(8):
      image, _, spacing_mm = phantom_rendering.render(
        seed=0, subject=subject, site=site
      )
      images.append(image[..., 0].astype(float))
      # Tissue above the head, without its slow texture.
      patch = images[-1][30:80, 115:140]
      patch = patch - ndimage.gaussian_filter(patch, 5)
      rough.append(np.mean(np.diff(patch, axis=0) ** 2) / np.mean(patch**2))
    views.append((np.max(images, 0) > 0).mean())
    spacings.append(spacing_mm)
    grains.append(np.mean(rough))
    greys.append(np.mean([image[image > 0].mean() for image in images]))
  for a, b in ((0, 1), (1, 2), (0, 2)):
    assert abs(views[a] - views[b]) > 0.004
    assert abs(greys[a] - greys[b]) > 1.0
    assert np.abs(spacings[a] - spacings[b]).min() > 0.03
  # Site 2 has the highest frequency and so the finest speckle, site 3 the
  # lowest.
  assert grains[1] > 1.1 * grains[0] > 1.2 * grains[2]


def test_visits_share_anatomy_but_not_speckle():
  first, mask, _ = phantom_rendering.render(seed=0, subject=4, visit=0, site=1)
  again, other, _ = phantom_rendering.render(seed=0, subject=4, visit=1, site=1)
  assert dice(mask == 1, other == 1) > 0.6
  assert 0.85 < dice(mask == 2, other == 2) < 1.0
  tissue = (slice(60, 120), slice(110, 170))
  a, b = (image[..., 0][tissue].astype(float) for image in (first, again))
  rough = [p[1:] - p[:-1] for p in (a, b)]
  assert abs(np.corrcoef(rough[0].ravel(), rough[1].ravel())[0, 1]) < 0.3


@pytest.mark.parametrize('size', [64, 100, 128])
def test_size_changes_the_sampling_only(size):
  full = phantom_rendering.render(seed=0, subject=2, site=3)
  small = phantom_rendering.render(seed=0, subject=2, site=3, size=size)
  assert small[0].shape == (size, size, 1) and small[1].shape == (size, size)
  np.testing.assert_allclose(small[2] * size, full[2] * 256, rtol=1e-6)
  np.testing.assert_allclose(small[0].mean(), full[0].mean(), rtol=0.02)
  for label in (1, 2):
    np.testing.assert_allclose(
      np.mean(small[1] == label), np.mean(full[1] == label), rtol=0.06
    )


def test_pixels_average_finer_ones():
  fine, _, _ = phantom_rendering.render(seed=0, subject=2, site=3)
  coarse, _, _ = phantom_rendering.render(seed=0, subject=2, site=3, size=64)
  means = fine.reshape(64, 4, 64, 4).mean((1, 3))
  assert np.abs(means - coarse[..., 0]).max() < 1.01


def test_skull_is_bright_and_casts_a_shadow():
  near, far, beside = [], [], []
  for subject in range(6):
    image, mask, _ = phantom_rendering.render(seed=0, subject=subject, site=1)
    rows, columns = np.nonzero(mask == 2)
    column = columns[rows.argmin()]
    top = rows.min()
    strip = image[..., 0].astype(float)[:, column - 4 : column + 5]
    near.append(strip[top - 2 : top + 4].mean())
    far.append(strip[top + 20 : top + 60].mean())
    beside.append(strip[top - 16 : top - 8].mean())
  assert np.mean(near) > 1.25 * np.mean(beside)
  assert np.mean(far) < 0.6 * np.mean(beside)


@pytest.mark.parametrize(
  'change, match',
  [
    ({'seed': -1}, 'seed'),
    ({'subject': -1}, 'subject'),
    ({'visit': -1}, 'visit'),
    ({'site': 0}, 'site'),
    ({'site': '1'}, 'site'),
    ({'size': 15}, 'size'),
  ],
)
def test_render_rejects(change, match):
  with pytest.raises(ValueError, match=match):
    phantom_rendering.render(**{'seed': 0, 'subject': 0, 'site': 1, **change})


@pytest.mark.parametrize('subject, site, visit, digest, grey', GOLDEN)
def test_rendering_is_frozen(subject, site, visit, digest, grey):
  image, mask, _ = phantom_rendering.render(
    seed=0, subject=subject, site=site, visit=visit, size=128
  )
  assert hashlib.sha256(mask.tobytes()).hexdigest()[:16] == digest
  # Image bytes may differ by rounding between machines; their means do not.
  found = [
    image.mean(),
    image.std(),
    *(image[mask == k].mean() for k in (1, 2)),
  ]
  np.testing.assert_allclose(found, grey, atol=0.2)
