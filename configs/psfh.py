r"""Pubic symphysis and fetal head in ultrasound (FH-PS-AOP, or PSFHS).

    python train.py --config=configs/psfh.py --workdir=runs/psfh \
      --config.manual_dir=FOLDER
    python eval.py --config=configs/psfh.py --workdir=runs/psfh \
      --config.manual_dir=FOLDER

FOLDER holds image_mha/ and label_mha/ (Zenodo 7851339, or 10969427). The frames
are of videos without patient ids, so the split keeps near-duplicates together.

Published, at 256x256 with the random split of `:official`: mean Dice 0.9049
(paper), 0.89 (repository); U-Net 0.81, Ghost U-Net 0.84, Privacy-SF 0.876 (all
arXiv 2603.05541). The official code tests on a folder of its own; `:official`
draws a fifth. Not measured here: the data cannot be shipped.
"""

import ml_collections

from configs import abdomen


def get_config(method: str = 'ppcmi_sf') -> ml_collections.ConfigDict:
  """Returns the configuration of a method, see configs/abdomen.py."""
  config = abdomen.get_full_config(method)
  config.dataset = 'psfh'
  config.dataset_options = {'on_error': 'stop', 'duplicates': 'drop'}
  config.distance_unit = 'pixels'  # of the stored images
  if method == 'official':
    config.drop_empty = False
    # 100 epochs of 853 cases a client, 150 of 2560.
    config.image_steps = config.mask_steps = 5300
    config.mapping_steps = 24000
  else:
    config.split = 'content'
  return config
