"""Seconds, not results: tiny phantoms and networks, for tests.

python train.py --config=configs/smoke.py --workdir=/tmp/smoke
python eval.py --config=configs/smoke.py --workdir=/tmp/smoke
"""

import ml_collections

from configs import phantom


def get_config(method: str = 'ppcmi_sf') -> ml_collections.ConfigDict:
  """Returns the phantom configuration, made as small as it runs."""
  config = phantom.get_config(method)
  config.dataset_options = {'num_subjects': 15, 'size': 32, 'seed': 0}
  config.image_size = 32
  config.eval_every = 4
  if 'baseline_steps' in config:
    config.baseline_options = {'width': 4}
    if method == 'fatnet':
      config.baseline_options.blocks = (1, 1, 1, 1)
      config.baseline_options.transformer_dim = 6
      config.baseline_options.transformer_layers = 1
    config.baseline_steps = 12
    config.baseline_batch_size = 4
    return config
  stages = len(config.autoencoder_widths)
  config.autoencoder_widths = (4, 4, 8, 8, 8)[:stages]
  if config.latent_widths:
    config.latent_widths = (4, 4, 4)
  if config.wire_dtype == 'int8':
    config.wire_dtype = 'float16'  # networks that know nothing mind roundings
  config.image_steps = 12
  config.mask_steps = 12
  config.copies = min(config.copies, 1)
  if 'width' in config.mapping_options:
    config.mapping_options.width = 0.02
  else:
    config.mapping_options = {'widths': (8, 8, 8)}
  config.mapping_steps = 12
  config.mapping_batch_size = config.autoencoder_batch_size = 4
  return config
