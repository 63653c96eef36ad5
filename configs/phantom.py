"""Three hospitals with different probes, ultrasound phantoms, by subject.

python train.py --config=configs/phantom.py --workdir=runs/phantom
python eval.py --config=configs/phantom.py --workdir=runs/phantom
"""

import ml_collections


def get_config(method: str = 'ppcmi_sf') -> ml_collections.ConfigDict:
  """Returns the configuration of a method.

  Args:
    method: 'ppcmi_sf' with this project's networks and training; 'published',
      the same with the paper's (the mapping network at a quarter of its width,
      for CPUs); or 'unet', a privacy-agnostic baseline on pooled data.
  """
  config = ml_collections.ConfigDict()
  published = method == 'published'
  config.method = 'ppcmi_sf' if published else method
  config.seed = 0  # of initialisation, order and augmentation; not of secrets

  # Data
  config.dataset = 'phantom'
  config.dataset_options = ml_collections.ConfigDict(
    {'num_subjects': 300, 'size': 256}
  )
  config.data_dir = ''  # tensorflow-datasets' default
  config.image_size = 128
  config.split = 'subjects'
  config.test_fraction = 0.2
  config.valid_fraction = 0.1
  config.augment = {
    'rotation_deg': 10.0,
    'scale': 0.1,
    'translation': 0.05,
    'gamma': 0.2,
    'gain': 0.1,
    'probability': 0.5,  # contributions: all but each pair itself
  }

  # Optimisation
  config.schedule = 'cosine'
  config.weight_decay = 1e-4
  config.eval_every = 100
  config.patience = 8  # validations without a smaller loss

  if method == 'unet':
    config.unet_width = 16
    config.unet_batch_size = 8
    config.unet_learning_rate = 3e-3
    config.unet_steps = 1500
    return config

  # PPCMI-SF
  config.official_losses = False
  config.autoencoder_widths = (16, 32, 64, 128, 256)
  config.skips = True
  config.upsampling = 'shuffle'
  config.autoencoder_batch_size = 4
  config.autoencoder_learning_rate = 6e-3
  config.image_steps = 500
  config.mask_steps = 1000
  config.latent_noise = 0.1
  config.latent_mixing = 0.5
  config.protection = 'klt'
  config.wire_dtype = 'float16'
  config.copies = 8  # augmented contributions of each pair, beside itself
  config.mapping = 'fused_mapping'
  config.mapping_options = {'widths': (96, 160, 256)}
  config.standardise = True
  config.mapping_batch_size = 16
  config.mapping_learning_rate = 3e-3
  config.mapping_steps = 1500
  if published:
    config.upsampling = 'bilinear'
    config.latent_noise = 0.0
    config.latent_mixing = 0.0
    config.copies = 0
    config.mapping = 'mapping'
    config.mapping_options = {'width': 0.25}
    config.standardise = False
  return config
