"""Rebuilds the embedded abdominal slices from the archive they came from.

  pip install 'ppcmi_jax[rebuild]'
  pip download --no-deps --no-binary :all: TotalSegmentator==2.5.0
  python -m ppcmi_jax.datasets.abdomen_source \\
    --archive=totalsegmentator-2.5.0.tar.gz --output=rebuilt

checks the archive's sha256, reads its test volumes in memory (nothing is
unpacked or executed), repeats the preparation and says for each volume whether
the result is identical to the embedded one. With numpy 2.4 and scipy 1.17 it
is, in every pixel. Only pixels and labels are kept: the DICOM headers hold a
scan date. Axes: X, Y, Z voxels towards the patient's right, front and head
(RAS+); N slices, H height, W width.

Recipe: closest canonical orientation; intensity window; rotation by 90 degrees
(front of the patient on top, the patient's right on the right); isotropic
corner-aligned zoom of the longest side to 256 pixels, linear for images and
nearest for masks; centre padding to 256x256; then 128x128 by the mean of 2x2
blocks for images and by every second pixel for masks. Slices without any
foreground are dropped (these volumes have none).

>>> merge_table({1: 'spleen', 2: 'kidney_left', 3: 'brain'})[:4].tolist()
[0, 2, 3, 0]
"""

import ast
import fnmatch
import gzip
import hashlib
import io
import pathlib
import sys
import tarfile
from collections.abc import Mapping, Sequence

import numpy as np
from absl import app, flags
from scipy import ndimage

from ppcmi_jax.datasets import abdomen

# nibabel and pydicom are imported where they are used: they belong to the
# extra `rebuild`, and the doctests import this module without it.

ARCHIVE_SHA256 = (
  'cf1549247bb94257705efeea446818634bf46fbd8f3138a612dba85f85f7920c'
)
CLASS_MAP_FILE = 'totalsegmentator/map_to_binary.py'
# Site -> (image file or folder of DICOM files, mask, entry of `class_map`).
SOURCES = {
  'A': ('example_ct.nii.gz', 'example_seg_fast_force_split.nii.gz', 'total'),
  'B': ('example_ct_dicom/', 'example_seg_dicom.nii.gz', 'total'),
  'C': ('example_mr_sm.nii.gz', 'example_seg_mr.nii.gz', 'total_mr'),
}
WINDOW_HU = (-160.0, 240.0)
MR_PERCENTILE = 99.5
# Our class -> patterns of the source's class names.
MERGED = {
  'liver': ('liver',),
  'spleen': ('spleen',),
  'kidneys': ('kidney_left', 'kidney_right'),
  'stomach and bowel': ('stomach', 'duodenum', 'small_bowel', 'colon'),
  'spine': ('vertebrae*', 'sacrum', 'intervertebral_discs'),
  'vessels': ('aorta', 'inferior_vena_cava', 'portal_vein*', 'iliac_*'),
  'muscles': ('autochthon_*', 'iliopsoas_*', 'gluteus_*'),
}


def read_archive(path: str | pathlib.Path) -> dict[str, bytes]:
  """Reads the members a rebuild needs, by their path below the top folder.

  Raises:
    ValueError: the archive is missing, is another file than the released
      TotalSegmentator 2.5.0, or lacks the class map.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(
      f'archive {path}: no such file; get it with pip download --no-deps '
      '--no-binary :all: TotalSegmentator==2.5.0'
    )
  content = path.read_bytes()
  digest = hashlib.sha256(content).hexdigest()
  if digest != ARCHIVE_SHA256:
    raise ValueError(
      f'archive {path}: expected sha256 {ARCHIVE_SHA256}, found {digest}; '
      'download TotalSegmentator 2.5.0 again'
    )
  folder = 'tests/reference_files/'
  images = tuple(folder + image for image, _, _ in SOURCES.values())
  exact = {folder + mask for _, mask, _ in SOURCES.values()} | {CLASS_MAP_FILE}
  files = {}
  with tarfile.open(fileobj=io.BytesIO(content), mode='r:gz') as archive:
    for member in archive:
      name = member.name.partition('/')[2]
      wanted = name in exact or name.startswith(images)
      if member.isfile() and wanted:
        files[name.removeprefix(folder)] = archive.extractfile(member).read()
  if CLASS_MAP_FILE not in files:
    raise ValueError(f'archive {path}: expected the file {CLASS_MAP_FILE}')
  return files


def class_names(source: str, task: str) -> dict[int, str]:
  """Reads label -> name of one task from the text of `map_to_binary.py`.

  The text is parsed, never executed.

  Raises:
    ValueError: the text assigns no literal dict `class_map` with that task.
  """
  for node in ast.parse(source).body:
    is_table = isinstance(node, ast.Assign)
    if is_table and ast.unparse(node.targets[0]) == 'class_map':
      tables = ast.literal_eval(node.value)
      if task in tables:
        return tables[task]
  raise ValueError(
    f"{CLASS_MAP_FILE}: expected class_map['{task}'], found none; use the "
    'archive of TotalSegmentator 2.5.0'
  )


def merge_table(names: Mapping[int, str]) -> np.ndarray:
  """Returns uint8 [256]: source label -> index into `abdomen.CLASSES`."""
  table = np.zeros(256, np.uint8)
  for label, name in names.items():
    for merged, patterns in MERGED.items():
      if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
        table[label] = abdomen.CLASSES.index(merged)
  return table


def canonical(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
  """Flips and permutes voxels to the closest canonical axes, [X, Y, Z] RAS+.

  Args:
    voxels: three axes, any order and direction.
    affine: [4, 4], voxel index to RAS+ millimetres, as in a NIfTI header.
  """
  from nibabel import orientations

  return orientations.apply_orientation(
    voxels, orientations.io_orientation(affine)
  )


def read_nifti(content: bytes) -> np.ndarray:
  """Reads a gzipped NIfTI volume as canonical float32 [X, Y, Z]."""
  import nibabel

  image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
  return canonical(image.get_fdata(dtype=np.float32), image.affine)


def read_dicom(contents: Sequence[bytes]) -> np.ndarray:
  """Reads the DICOM slices of one series as canonical HU, float32 [X, Y, Z].

  Slices are ordered by their position along the normal of the image plane.
  """
  import pydicom

  headers = [pydicom.dcmread(io.BytesIO(content)) for content in contents]
  across, down = np.reshape(headers[0].ImageOrientationPatient, (2, 3))
  normal = np.cross(across, down)
  headers.sort(key=lambda header: normal @ header.ImagePositionPatient)
  # DICOM [row, column] -> voxel axes (column, row, slice), and LPS -> RAS.
  voxels = np.stack(
    [
      header.pixel_array.T * np.float32(header.RescaleSlope)
      + np.float32(header.RescaleIntercept)
      for header in headers
    ],
    axis=-1,
  )
  affine = np.eye(4)
  affine[:3, :3] = np.diag([-1, -1, 1]) @ np.stack([across, down, normal], 1)
  return canonical(voxels.astype(np.float32), affine)


def window(image: np.ndarray, low: float, high: float) -> np.ndarray:
  """Maps [low, high] linearly to [0, 1] and clips; dtype in = dtype out."""
  low, high = image.dtype.type(low), image.dtype.type(high)
  return (np.clip(image, low, high) - low) / (high - low)


def pad_centre(slices: np.ndarray, size: int) -> np.ndarray:
  """Pads [H, W, N] with zeros to [size, size, N]; odd rests go last."""
  margins = [
    ((size - length) // 2, size - length - (size - length) // 2)
    for length in slices.shape[:2]
  ]
  return np.pad(slices, [*margins, (0, 0)])


def resize_images(volume: np.ndarray, size: int) -> np.ndarray:
  """Turns canonical [X, Y, Z] in [0, 1] into uint8 [N, size, size]."""
  fine = 2 * size
  zoom = fine / max(volume.shape[:2])
  # float32 here and above, and two roundings: that is how the embedded pixels
  # were made, and a few of them lie exactly between two grey values.
  slices = ndimage.zoom(
    np.rot90(volume), (zoom, zoom, 1), order=1, output=np.float32
  )
  slices = pad_centre(np.round(slices * np.float32(255)), fine)
  blocks = slices.reshape(size, 2, size, 2, -1).mean((1, 3))
  return np.moveaxis(np.round(blocks).astype(np.uint8), -1, 0)


def resize_masks(volume: np.ndarray, size: int) -> np.ndarray:
  """Turns canonical labels uint8 [X, Y, Z] into uint8 [N, size, size]."""
  fine = 2 * size
  zoom = fine / max(volume.shape[:2])
  slices = ndimage.zoom(np.rot90(volume), (zoom, zoom, 1), order=0)
  return np.moveaxis(pad_centre(slices, fine)[::2, ::2], -1, 0)


def rebuild(
  files: Mapping[str, bytes], site: str, *, size: int = abdomen.SIZE
) -> tuple[np.ndarray, np.ndarray]:
  """Makes image and mask, uint8 [N, size, size], of one site.

  `files` is what `read_archive` returned, `site` 'A', 'B' or 'C', `size` the
  height and width of the result in pixels.

  Raises:
    ValueError: a file is missing, or image and mask differ in shape.
  """
  image_file, mask_file, task = SOURCES[site]
  for name in (image_file, mask_file):
    if not any(file.startswith(name) for file in files):
      raise ValueError(
        f'site {site}: expected {name} in the archive, found none; use the '
        'archive of TotalSegmentator 2.5.0'
      )
  if image_file.endswith('/'):
    volume = read_dicom(
      [files[file] for file in sorted(files) if file.startswith(image_file)]
    )
  else:
    volume = read_nifti(files[image_file])
  labels = read_nifti(files[mask_file]).astype(np.uint8)
  if labels.shape != volume.shape:
    raise ValueError(
      f'site {site}: expected a mask of shape {volume.shape} like the image, '
      f'found {labels.shape} in {mask_file}'
    )
  names = class_names(files[CLASS_MAP_FILE].decode(), task)
  if task == 'total':
    volume = window(volume, *WINDOW_HU)
  else:
    volume = volume.astype(np.float64)
    volume = window(volume, 0.0, np.percentile(volume, MR_PERCENTILE))
  image = resize_images(volume, size)
  mask = resize_masks(merge_table(names)[labels], size)
  keep = mask.any((1, 2))
  return image[keep], mask[keep]


def compare(name: str, found: np.ndarray, expected: np.ndarray) -> str:
  """Says in one line how a rebuilt array differs from the embedded one."""
  if found.shape != expected.shape:
    return f'{name}: shape {found.shape}, embedded {expected.shape}'
  difference = np.abs(found.astype(np.int16) - expected)
  if not difference.any():
    return f'{name}: identical'
  count = np.count_nonzero(difference)
  return (
    f'{name}: {count} of {found.size} pixels differ, '
    f'by at most {difference.max()}'
  )


_ARCHIVE = flags.DEFINE_string(
  'archive',
  'totalsegmentator-2.5.0.tar.gz',
  'Source distribution of TotalSegmentator 2.5.0.',
)
_OUTPUT = flags.DEFINE_string(
  'output', '', 'Folder for the rebuilt .npz files; empty compares only.'
)


def main(argv: Sequence[str]) -> None:
  del argv
  try:
    files = read_archive(_ARCHIVE.value)
    for volume in abdomen.VOLUMES:
      image, mask = rebuild(files, volume.site)
      if _OUTPUT.value:
        folder = pathlib.Path(_OUTPUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / volume.file, image=image, mask=mask)
      embedded_image, embedded_mask = abdomen.load(volume)
      print(compare(f'{volume.file} image', image, embedded_image))
      print(compare(f'{volume.file} mask', mask, embedded_mask))
  except (ValueError, ImportError) as error:
    print(error, file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  app.run(main)
