"""Six hospitals, ultrasound phantoms and real CT and MR, one mapping network.

    python train.py --config=configs/mixed.py --workdir=runs/mixed
    python eval.py --config=configs/mixed.py --workdir=runs/mixed

The classes are the union of both data sets'; each hospital's own are scored.
Any data sets can be joined so, with '+'; those that you have lie in one folder,
a sub-folder each, that manual_dir names.
"""

import ml_collections

from configs import abdomen


def get_config(method: str = 'ppcmi_sf') -> ml_collections.ConfigDict:
  """Returns the configuration of a method, see configs/abdomen.py."""
  config = abdomen.get_config(method)
  config.dataset = 'phantom+abdomen'
  config.dataset_options = {'phantom': {'num_subjects': 150, 'size': 256}}
  config.split = 'subjects+blocks'
  config.eval_every = 150
  if 'copies' in config:
    config.copies = min(config.copies, 12)
  return config
