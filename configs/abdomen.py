"""Three hospitals, real CT and MR slices with seven organs (embedded data).

    python train.py && python eval.py

trains PPCMI-SF on 128x128 slices of three volumes of three patients and
evaluates it within subjects. The privacy-agnostic U-Net on the pooled data:

    python train.py --config=configs/abdomen.py:unet --workdir=runs/unet
    python eval.py --config=configs/abdomen.py:unet --workdir=runs/unet

What to expect from both is in docs/results.md.
"""

import ml_collections

# Privacy-agnostic baselines at about the U-Net's time a step on a CPU.
SMALL_BASELINES = {
  'unet': {'width': 16},
  'ghostnet': {'width': 10},
  'fatnet': {'width': 20, 'transformer_dim': 96, 'transformer_layers': 4},
}
# As published.
FULL_BASELINES = {
  'unet': {'width': 64},
  'ghostnet': {'width': 64},
  'fatnet': {'width': 64, 'transformer_dim': 192, 'transformer_layers': 12},
}
METHODS = ('ppcmi_sf', 'published', 'official', 'privacy_sf', *SMALL_BASELINES)


def get_config(method: str = 'ppcmi_sf') -> ml_collections.ConfigDict:
  """Returns the configuration of a method.

  Args:
    method: 'ppcmi_sf' with this project's networks and training; 'published',
      the same with the paper's (the mapping network at a quarter of its width,
      for CPUs); 'official', what the official code does, defects included, at
      full size (for a GPU; see `python -m ppcmi_jax.conversion` for its
      checkpoints); 'privacy_sf', a stand-in for Privacy-SF (Chen et al. 2024,
      no public code): 'published' without skips, transform and pooling, and
      with augmented contributions; or
      'unet', 'ghostnet', 'fatnet', privacy-agnostic baselines on pooled data.
  """
  if method not in METHODS:
    raise ValueError(
      f'method: expected one of {", ".join(METHODS)}, found {method!r}'
    )
  config = ml_collections.ConfigDict()
  published = method in ('published', 'official', 'privacy_sf')
  config.method = 'ppcmi_sf' if published else method
  # Of initialisation, order and augmentation; not of secrets.
  config.seed = 0

  # Data
  config.dataset = 'abdomen'
  config.dataset_options = {}
  config.data_dir = ''  # tensorflow-datasets' default
  config.manual_dir = ''  # of data sets that the user has
  config.image_size = 128
  config.image_channels = 1  # grey images are repeated for more
  config.window = ()  # (lowest, highest) value shown, of int16 images
  config.split = 'blocks'
  config.split_seed = 0  # of what is drawn: splits, and who has what
  config.split_path = ''  # of the file, with split='csv'
  config.test_fraction = 0.2
  config.valid_fraction = 0.1
  config.official_test = 'random'  # with split='official'
  config.drop_empty = False  # likewise
  config.partition = 'by_site'
  config.num_clients = 0  # as many as the data have
  config.dirichlet_alpha = 1.0
  config.clients = ()  # those who take part; all
  config.distance_unit = 'mm'  # 'pixels' where data have no spacing
  config.augment = {
    'rotation_deg': 20.0,
    'scale': 0.25,
    'translation': 0.15,
    'gamma': 0.3,
    'gain': 0.2,
    'probability': 0.9,  # contributions: all but each pair itself
  }

  # Optimisation
  config.schedule = 'cosine'
  config.weight_decay = 1e-4
  config.eval_every = 100
  config.patience = 8  # validations without a smaller loss
  config.compute_dtype = 'float32'  # or 'bfloat16', for accelerators
  config.microbatches = 1  # parts of a batch, to save an accelerator's memory
  config.side_by_side = 2  # clients' networks that train at once

  if method in SMALL_BASELINES:
    config.pooled = True  # False: each client alone
    # RUN/checkpoints/segmentation, or ..._CLIENT, to start from.
    config.pretrained = {'segmentation': ''}
    config.baseline_options = SMALL_BASELINES[method]
    config.baseline_batch_size = 8
    config.baseline_learning_rate = 3e-3
    config.baseline_steps = 2400  # as many images as three image encoders see
    config.eval_every = 300
    return config

  # PPCMI-SF
  config.official_training = False  # its losses and running variances
  config.autoencoder_widths = (16, 32, 64, 128)
  config.latent_widths = (16, 32, 64)  # of what is sent; () for the stages'
  config.skips = True
  config.upsampling = 'shuffle'
  config.autoencoder_batch_size = 4
  config.autoencoder_learning_rate = 6e-3
  # RUN/checkpoints/image_CLIENT, mask_CLIENT that every client starts from.
  config.pretrained = {'image': '', 'mask': ''}
  config.image_blocks = 1  # convolutions behind each stage of its encoder
  config.image_full_size = True  # its first and last stages halve nothing
  config.segmentation_weight = 3.0  # of masks in the image autoencoder's loss
  config.image_steps = 1600
  config.mask_steps = 1500
  config.protection = 'sealed'
  # 'int4' halves messages; 'float16' or wider where latents are not mixed.
  config.wire_dtype = 'int8'
  config.copies = 24  # augmented contributions of each pair, beside itself
  config.mapping = 'fused_mapping'
  config.mapping_options = {'widths': (48, 80, 128)}
  config.mapping_remat = False  # less of an accelerator's memory, more time
  config.mapping_batch_size = 8
  config.mapping_learning_rate = 3e-3
  config.mapping_steps = 1800
  # DP-SGD for the mapping network, where there is noise. It takes the mapping's
  # batch size (as the mean of images a step; more is better), learning rate
  # (constant) and steps (all), and makes its normalisation that of groups.
  config.dp = {
    'noise_multiplier': 0.0,  # deviation of the noise over clip_norm; 0 is off
    'clip_norm': 1.0,  # of an image's gradient, its copies averaged
    'delta': 1e-5,  # of (epsilon, delta); below one over the training images
  }
  if published:
    config.protection = 'klt'
    config.wire_dtype = 'float16'
    config.upsampling = 'bilinear'
    config.autoencoder_widths = (16, 32, 64, 128, 256)
    config.latent_widths = ()
    config.image_blocks = 0
    config.image_full_size = False
    config.segmentation_weight = 0.0
    config.copies = 0
    config.mapping = 'mapping'
    config.mapping_options = {'width': 0.25}
  if method == 'privacy_sf':
    config.skips = False
    config.protection = 'none'
    config.copies = 24
    config.mapping_options.pooling = 'none'
  if method == 'official':
    config.image_channels = 3
    config.augment = {}
    config.schedule = 'constant'
    config.weight_decay = 0.0
    config.patience = 20
    config.official_training = True
    config.protection = 'official'
    config.wire_dtype = 'float32'
    config.mapping_options = {'width': 1.0, 'pooling': 'official'}
    config.autoencoder_batch_size = config.mapping_batch_size = 16
    config.autoencoder_learning_rate = config.mapping_learning_rate = 1e-3
  return config


def get_full_config(method: str = 'ppcmi_sf') -> ml_collections.ConfigDict:
  """Returns the configuration for a data set of the paper.

  256x256, networks of the published sizes, three clients at random, steps for
  thousands of cases; 'official' draws splits and clients as the official code.
  """
  config = get_config(method)
  config.image_size = 256
  config.side_by_side = 1
  config.eval_every = 250
  config.patience = 20
  config.split = 'subjects'
  config.partition = 'iid'
  config.num_clients = 3
  if method in FULL_BASELINES:
    config.baseline_options = FULL_BASELINES[method]
    config.baseline_batch_size = 16
    config.baseline_learning_rate = 1e-3
    config.baseline_steps = 20000
  elif method == 'official':
    config.split = config.partition = 'official'
    config.valid_fraction = 0.2
    config.drop_empty = True
    config.seed = config.split_seed = 42
  else:
    config.autoencoder_batch_size = config.mapping_batch_size = 16
    config.image_steps = config.mask_steps = 4000
    config.mapping_steps = 20000
    config.copies = min(config.copies, 8)
    if 'width' in config.mapping_options:
      config.mapping_options.width = 1.0
  return config
