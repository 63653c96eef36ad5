r"""The left atrium in MR (Medical Segmentation Decathlon, Task02_Heart).

    python train.py --config=configs/cardiac.py --workdir=runs/cardiac \
      --config.manual_dir=FOLDER
    python eval.py --config=configs/cardiac.py --workdir=runs/cardiac \
      --config.manual_dir=FOLDER

FOLDER holds imagesTr/ and labelsTr/ with la_003.nii.gz..., 20 volumes; or the
official code's PNG slices, train_slices/, train_labels/, test_slices/ and
test_labels/.

Published, at 256x256, empty slices dropped: mean Dice 0.88 (Privacy-SF 0.75;
arXiv 2603.05541). `:official` is for the PNG slices. Not measured here: the
data cannot be shipped.
"""

import ml_collections

from configs import abdomen


def get_config(method: str = 'ppcmi_sf') -> ml_collections.ConfigDict:
  """Returns the configuration of a method, see configs/abdomen.py."""
  config = abdomen.get_full_config(method)
  config.dataset = 'cardiac'
  config.dataset_options = {'on_error': 'stop', 'empty': 'keep'}
  if method == 'official':
    config.official_test = 'prefix'
    config.distance_unit = 'pixels'
    # 100 and 150 epochs of about 1100 slices.
    config.image_steps = config.mask_steps = 1900
    config.mapping_steps = 8300
  return config
