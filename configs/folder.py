r"""Your own images and masks, in a folder.

    python train.py --config=configs/folder.py --workdir=runs/mine \
      --config.manual_dir=FOLDER
    python eval.py --config=configs/folder.py --workdir=runs/mine \
      --config.manual_dir=FOLDER

FOLDER holds images/ and masks/ with files of the same names, or NAME.png beside
NAME_mask.png, or a CSV with the columns image, mask, subject and site that
dataset_options.csv names; PNG, TIFF, NIfTI, MHA, NPZ. See `datasets.folder` for
its options, such as --config.dataset_options.classes="('background','tumour')".

Name sites in the CSV and each is a client (with partition='by_site'); otherwise
images are dealt to num_clients at random. What is of one subject is kept
together, and so are near-duplicate images (split='content'), which is all that
keeps patients apart where subjects are not named: name them wherever you can.
"""

import ml_collections

from configs import abdomen


def get_config(method: str = 'ppcmi_sf') -> ml_collections.ConfigDict:
  """Returns the configuration of a method, see configs/abdomen.py."""
  config = abdomen.get_config(method)
  config.dataset = 'folder'
  config.dataset_options = {
    'classes': ('background', 'foreground'),
    'csv': '',
    'dtype': 'uint8',
    'labels': (),
    'on_error': 'stop',
    'window': (),
  }
  config.split = 'content'
  config.partition = 'iid'
  config.num_clients = 3
  config.eval_every = 250
  config.patience = 20
  return config
