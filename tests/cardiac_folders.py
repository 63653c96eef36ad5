"""Folders of the cardiac data set, of volumes or of pictures, for its tests."""

import manual_builds
import numpy as np
import pytest
from PIL import Image

from ppcmi_jax.datasets import cardiac

nibabel = pytest.importorskip('nibabel')

SHAPE = (9, 8, 6)  # X, Y, Z

build, prepare, refusal = manual_builds.functions(
  cardiac.Cardiac, cardiac.CardiacConfig
)


def anatomy(seed=0):
  """Returns grey values and labels [X, Y, Z] RAS+ without any symmetry."""
  rng = np.random.default_rng(seed)
  grey = rng.integers(0, 2000, SHAPE).astype(np.int16)
  labels = np.zeros(SHAPE, np.uint8)
  labels[2:5, 1:6, 2:4] = 1
  labels[2, 1, 2] = 0
  return grey, labels


def turned(voxels, codes='RAS', degrees=0):
  """Stores voxels [X, Y, Z] RAS+ with other axes; the body stays in place."""
  affine = np.diag([1.25, 1.5, 2.7, 1])
  affine[:3, 3] = -40, 12, 5
  angle = np.deg2rad(degrees)
  turn = np.eye(4)
  turn[1:3, 1:3] = [
    [np.cos(angle), -np.sin(angle)],
    [np.sin(angle), np.cos(angle)],
  ]
  image = nibabel.Nifti1Image(voxels, turn @ affine)
  return image.as_reoriented(
    nibabel.orientations.ornt_transform(
      nibabel.orientations.axcodes2ornt('RAS'),
      nibabel.orientations.axcodes2ornt(codes),
    )
  )


def write_volume(folder, name, grey, labels, *axes, label_axes=None):
  for place, voxels, how in (
    ('imagesTr', grey, axes),
    ('labelsTr', labels, label_axes or axes),
  ):
    (folder / place).mkdir(parents=True, exist_ok=True)
    if voxels is not None:
      nibabel.save(turned(voxels, *how), folder / place / f'{name}.nii.gz')


def write_picture(path, pixels, **how):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, **how)


def write_pictures(folder, names=('a', 'b'), *, high=255, suffix='png'):
  """Writes the four folders; returns {'train/a': (pixels, mask)}."""
  rng = np.random.default_rng(1)
  written = {}
  for part in ('train', 'test'):
    for name in names:
      pixels = rng.integers(0, 256, (5, 7)).astype(np.uint8)
      mask = np.zeros((5, 7), np.uint8)
      mask[1:3, 2:5] = high
      write_picture(folder / f'{part}_slices/{name}.{suffix}', pixels)
      write_picture(folder / f'{part}_labels/{name}.{suffix}', mask)
      written[f'{part}/{name}'] = pixels, mask
  return written
