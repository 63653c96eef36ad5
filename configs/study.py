r"""Small phantoms and networks, for studies of many trainings on two cores.

    python eval.py --config=configs/study.py --study=comparison \
      --workdir=runs/study

150 subjects at 64x64 and half of the autoencoders' widths: what differs here
need not differ at full size. What the studies show is in
docs/results.md.
"""

import ml_collections

from configs import phantom


def get_config(method: str = 'ppcmi_sf') -> ml_collections.ConfigDict:
  """Returns the phantom configuration, small; methods as there."""
  config = phantom.get_config(method)
  config.dataset_options = {'num_subjects': 150, 'size': 128, 'seed': 0}
  config.image_size = 64
  config.eval_every = 100
  config.clients = ('1', '2', '3')
  if 'baseline_steps' in config:
    config.baseline_steps = 1000
    return config
  stages = len(config.autoencoder_widths)
  config.autoencoder_widths = (8, 16, 32, 64, 128)[:stages]
  if config.latent_widths:
    config.latent_widths = (8, 16, 32)
  config.image_steps = 2000
  config.mask_steps = 800
  config.mapping_steps = 1600
  return config
