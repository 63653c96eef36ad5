r"""Pulmonary embolism in CT angiograms (FUMPE).

    python train.py --config=configs/fumpe.py --workdir=runs/fumpe \
      --config.manual_dir=FOLDER
    python eval.py --config=configs/fumpe.py --workdir=runs/fumpe \
      --config.manual_dir=FOLDER

FOLDER holds CT_scans/PAT001/*.dcm and GroundTruth/PAT001.mat (figshare
4107803), 35 patients. The order of slices is verified for each, see
`datasets.fumpe`.

Published, at 256x256, HU of +-1000, slices without embolus dropped: mean Dice
0.74 (Privacy-SF 0.66; arXiv 2603.05541). Not measured here: the data cannot be
shipped.
"""

import ml_collections

from configs import abdomen


def get_config(method: str = 'ppcmi_sf') -> ml_collections.ConfigDict:
  """Returns the configuration of a method, see configs/abdomen.py."""
  config = abdomen.get_full_config(method)
  config.dataset = 'fumpe'
  config.dataset_options = {'on_error': 'stop', 'order': 'verify'}
  config.window = (-250, 450)
  if method == 'official':
    config.window = (-1000, 1000)
    config.official_test = 'subjects'
    config.test_fraction = 0.1
    # 100 and 150 epochs, if a quarter of the slices shows an embolus.
    config.image_steps = config.mask_steps = 3300
    config.mapping_steps = 14800
  elif 'copies' in config:
    config.copies = min(config.copies, 4)
  return config
