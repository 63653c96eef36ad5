"""Three hospitals with different probes, ultrasound phantoms, by subject.

    python train.py --config=configs/phantom.py --workdir=runs/phantom
    python eval.py --config=configs/phantom.py --workdir=runs/phantom

trains on 210 subjects, validates on 30 and tests on 60, at 128x128. What to
expect is in docs/results.md.
"""

import ml_collections

from configs import abdomen


def get_config(method: str = 'ppcmi_sf') -> ml_collections.ConfigDict:
  """Returns the configuration of a method, see configs/abdomen.py."""
  config = abdomen.get_config(method)
  config.dataset = 'phantom'
  config.dataset_options = {'num_subjects': 300, 'size': 256, 'seed': 0}
  config.split = 'subjects'
  config.eval_every = 250
  config.patience = 20
  if 'baseline_steps' in config:
    config.baseline_steps = 1500
    return config
  if method == 'official':  # 100 and 150 epochs of 70 a client, and of 210
    config.image_size = 256
    config.eval_every = 14
    config.image_steps = config.mask_steps = 500
    config.mapping_steps = 2100
    return config
  config.image_steps = 3000
  config.mask_steps = 1000
  config.copies = min(config.copies, 16)
  config.mapping_steps = 3000
  return config
