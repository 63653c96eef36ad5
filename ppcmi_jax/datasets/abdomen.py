"""Real abdominal CT and MR slices with organ masks, embedded in the package.

Three volumes of three patients, from the test data inside the TotalSegmentator
2.5.0 source distribution (Apache-2.0; Wasserthal et al., Radiology: Artificial
Intelligence 2023): real scans, labels by TotalSegmentator (an nnU-Net), not by
an expert. Each volume plays one hospital:

| site | modality       | slices | apart | shows                       |
|------|----------------|--------|-------|-----------------------------|
| A    | CT             | 112    | 3 mm  | abdomen and pelvis          |
| B    | CT, from DICOM | 20     | 2 mm  | upper abdomen, no kidneys   |
| C    | MR             | 20     | 3 mm  | upper abdomen               |

One subject a hospital: held-out slices of the same volume measure only how
well a model fits *within* a subject, never how it does on a new one.

Intensities are 8 bit: HU -160..240 for CT, 0..99.5 percentile for MR. Slices
are axial, lowest first, front of the patient on top and the patient's right on
the right (mirrored against the radiological convention). `abdomen_source`
rebuilds the files, pixel for pixel, from the archive.

  builder = abdomen.Abdomen(data_dir=folder)
  builder.download_and_prepare()
  source = builder.as_data_source('all')        # no TensorFlow needed

>>> [(volume.site, volume.num_slices) for volume in VOLUMES]
[('A', 112), ('B', 20), ('C', 20)]
>>> VOLUMES[1].spacing_mm
(3.90625, 3.90625)
"""

import hashlib
import io
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

SIZE = 128
CLASSES = (
  'background',
  'liver',
  'spleen',
  'kidneys',
  'stomach and bowel',
  'spine',
  'vessels',
  'muscles',
)
DATA_DIR = pathlib.Path(__file__).parent / 'abdomen_data'


class Volume(NamedTuple):
  """One embedded volume and the geometry of its source.

  `source_shape` is (x, y, z) in voxels and `source_spacing_mm` (x, y, z) in
  millimetres, both of the scan before it was resized.
  """

  site: str
  modality: str
  file: str
  sha256: str
  num_slices: int
  source_shape: tuple[int, int, int]
  source_spacing_mm: tuple[float, float, float]

  @property
  def spacing_mm(self) -> tuple[float, float]:
    """Returns the (row, column) spacing of the 128x128 slices in mm.

    The resize is isotropic: the longest side of the slice becomes 128 pixels.
    This is field of view / 128. The resize aligned the corners of the grid, so
    the distance between two neighbouring samples is within 0.6 % of it.
    """
    scale = max(self.source_shape[:2]) / SIZE
    x, y, _ = self.source_spacing_mm
    return y * scale, x * scale


VOLUMES = (
  Volume(
    site='A',
    modality='CT',
    file='A_ct_3mm_128.npz',
    sha256='eb57b4aba1a911c755602a549f546b7f2efdf0aa0bcd31e1136671e841642f94',
    num_slices=112,
    source_shape=(122, 101, 112),
    source_spacing_mm=(3.0, 3.0, 3.0),
  ),
  Volume(
    site='B',
    modality='CT',
    file='B_ct_dicom_128.npz',
    sha256='b4dd4e34623d75835eba6391c4b11990074bcb96475c7639d2cd000823b60acb',
    num_slices=20,
    source_shape=(512, 512, 20),
    source_spacing_mm=(0.9765625, 0.9765625, 2.0),
  ),
  Volume(
    site='C',
    modality='MR',
    file='C_mr_128.npz',
    sha256='ba1eab7cc22a624daa924d75205508f77d81141a1b776acd2c8687dd9b996577',
    num_slices=20,
    source_shape=(117, 91, 20),
    source_spacing_mm=(3.0, 3.0, 3.0),
  ),
)


def load(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
  """Reads one embedded volume after checking its digest.

  Returns:
    image uint8 [N, 128, 128] (0..255) and mask uint8 [N, 128, 128] (indices
    into `CLASSES`), N = `volume.num_slices`, lowest slice first.

  Raises:
    ValueError: the file is missing, or is not the one that was released.
  """
  path = DATA_DIR / volume.file
  if not path.is_file():
    raise ValueError(
      f'{path}: embedded data file is missing; reinstall ppcmi_jax'
    )
  content = path.read_bytes()
  digest = hashlib.sha256(content).hexdigest()
  if digest != volume.sha256:
    raise ValueError(
      f'{path}: embedded data file is damaged: expected sha256 '
      f'{volume.sha256}, found {digest} ({len(content)} bytes); '
      'reinstall ppcmi_jax'
    )
  with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
    return arrays['image'], arrays['mask']


class Abdomen(tfds.core.GeneratorBasedBuilder):
  """Builds 152 slices, to be read as 'all'; see the module docstring.

  'all' is a reserved name of tensorflow-datasets for the union of the splits;
  it can be read but not sliced. The only split is stored as 'train', the
  library's name for data that come unsplit ('train[:10]' works).

  Example: image uint8 [128, 128, 1], mask uint8 [128, 128] (indices into
  `CLASSES`), spacing_mm float32 [2] (row, column; mm), subject, site ('A',
  'B', 'C') and case ('A-017') text, which reads back as bytes, position int32
  (slice index inside the volume, lowest first).
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: dict[str, str] = {'1.0.0': 'First release.'}  # noqa: RUF012

  def __init__(self, *, file_format: Any = 'array_record', **kwargs: Any):
    # The default of tensorflow-datasets needs TensorFlow to be read.
    super().__init__(file_format=file_format, **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='Abdominal CT and MR slices of three patients with seven '
      'organ classes. Real scans, labels by TotalSegmentator, not by an '
      'expert.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Tensor(shape=(SIZE, SIZE, 1), dtype=np.uint8),
          'mask': tfds.features.Tensor(shape=(SIZE, SIZE), dtype=np.uint8),
          'spacing_mm': tfds.features.Tensor(shape=(2,), dtype=np.float32),
          'subject': tfds.features.Text(),
          'site': tfds.features.Text(),
          'case': tfds.features.Text(),
          'position': tfds.features.Scalar(dtype=np.int32),
        }
      ),
      license='Apache-2.0',
      homepage='https://github.com/wasserth/TotalSegmentator',
      metadata=tfds.core.MetadataDict({'classes': list(CLASSES)}),
      disable_shuffling=True,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    del dl_manager  # The data are part of the package.
    volumes = [(volume, *load(volume)) for volume in VOLUMES]
    return {'train': self._generate_examples(volumes)}

  def _generate_examples(
    self, volumes: list[tuple[Volume, np.ndarray, np.ndarray]]
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    key = 0
    for volume, images, masks in volumes:
      for position, (image, mask) in enumerate(zip(images, masks)):
        example = {
          'image': image[..., None],
          'mask': mask,
          'spacing_mm': np.asarray(volume.spacing_mm, np.float32),
          'subject': f'subject-{volume.site}',
          'site': volume.site,
          'case': f'{volume.site}-{position:03d}',
          'position': position,
        }
        yield key, example
        key += 1
