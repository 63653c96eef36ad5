r"""The brachial plexus in ultrasound (Kaggle, ultrasound nerve segmentation).

    python train.py --config=configs/nerve.py --workdir=runs/nerve \
      --config.manual_dir=FOLDER
    python eval.py --config=configs/nerve.py --workdir=runs/nerve \
      --config.manual_dir=FOLDER

FOLDER holds SUBJECT_IMAGE.tif and SUBJECT_IMAGE_mask.tif, 47 subjects. Splits
are by subject; half of the masks are empty, and stay.

Published, at 256x256 with frames split at random, empty masks dropped and
images padded by 14 pixels where masks are not: mean Dice 0.68 (Privacy-SF 0.57;
arXiv 2603.05541). `:official` repeats the split and the dropping, not the
padding. Not measured here: the data cannot be shipped.
"""

import ml_collections

from configs import abdomen


def get_config(method: str = 'ppcmi_sf') -> ml_collections.ConfigDict:
  """Returns the configuration of a method, see configs/abdomen.py."""
  config = abdomen.get_full_config(method)
  config.dataset = 'nerve'
  config.dataset_options = {'on_error': 'stop', 'contradictions': 'keep'}
  config.distance_unit = 'pixels'  # of the stored images
  if method == 'official':
    config.test_fraction = 0.1
    # 100 epochs of about 560 cases a client, 150 of about 1670.
    config.image_steps = config.mask_steps = 3500
    config.mapping_steps = 15700
  return config
