"""What the studies consist of: name -> the runs that differ in one thing."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ppcmi_jax import learners

GetConfig = Callable[..., Any]


class Variant(NamedTuple):
  """One run of a study: its name, and its whole configuration."""

  name: str
  config: Any


def comparison(get_config: GetConfig, base: Any) -> list[Variant]:
  """Returns this method, its stand-ins and the privacy-agnostic networks."""
  del base
  variants = [
    Variant(method, get_config(method))
    for method in ('ppcmi_sf', 'published', 'privacy_sf', *learners.BASELINES)
  ]
  local = get_config('unet')
  local.pooled = False
  return [*variants, Variant('unet, each alone', local)]


def ablation(get_config: GetConfig, base: Any) -> list[Variant]:
  """Returns the method, and the method less one of its parts."""
  del get_config
  _check_private(base, 'ablation')
  # A quarter of the places, twice as wide, is as much to compute.
  widths, wider = base.autoencoder_widths, dict(base.mapping_options)
  if 'widths' in wider:
    wider['widths'] = tuple(2 * width for width in wider['widths'])
  changes = {
    'all parts': {},
    # These share their autoencoders with it.
    'no protection': {'protection': 'none', 'wire_dtype': 'float16'},
    'int4 wire': {'wire_dtype': 'int4'},
    'float16 wire': {'wire_dtype': 'float16'},
    'float32 wire': {'wire_dtype': 'float32'},
    'no augmented contributions': {'copies': 0},
    'published mapping network': {
      'mapping': 'mapping',
      'mapping_options': {'width': 0.25},
    },
    'no pyramid pooling in that': {
      'mapping': 'mapping',
      'mapping_options': {'width': 0.25, 'pooling': 'none'},
    },
    # These one of a client's two.
    'no stage at full size': {'image_full_size': False},
    'one convolution a stage': {'image_blocks': 0},
    'image encoders that segment less': {'segmentation_weight': 0.3},
    'image encoders that need not segment': {'segmentation_weight': 0.0},
    # And these none.
    'latents half as fine': {
      'autoencoder_widths': (*widths, 2 * widths[-1]),
      'latent_widths': (),
      'mapping_options': wider,
    },
    'bilinear decoders': {'upsampling': 'bilinear'},
    'no skips': {'skips': False},
  }
  return [
    Variant(name, changed(base, **fields)) for name, fields in changes.items()
  ]


def clients(get_config: GetConfig, base: Any) -> list[Variant]:
  """Returns mapping networks of the first k clients, and of each alone."""
  del get_config
  names = list(base.clients)
  if len(names) < 2:
    raise ValueError(
      'clients: the study needs the names of two clients or more, found '
      f"{names}; give them as --config.clients=\"('1', '2', '3')\""
    )
  together = [
    Variant(f'first {k} together', changed(base, clients=tuple(names[:k])))
    for k in range(2, len(names) + 1)
  ]
  alone = [
    Variant(f'{name} alone', changed(base, clients=(name,))) for name in names
  ]
  return [*reversed(together), *alone]


def noise(get_config: GetConfig, base: Any) -> list[Variant]:
  """Returns mapping networks with and without differential privacy."""
  del get_config
  _check_private(base, 'noise')
  group = {**base.mapping_options, 'norm': 'group'}
  return [
    Variant('without privacy', changed(base)),
    # What DP-SGD cannot do without, by itself.
    Variant('groups normalised', changed(base, mapping_options=group)),
    *(
      Variant(
        f'noise {multiplier:g}',
        changed(base, dp={**base.dp, 'noise_multiplier': multiplier}),
      )
      for multiplier in (1.0, 4.0)
    ),
  ]


def seeds(get_config: GetConfig, base: Any) -> list[Variant]:
  """Returns one configuration with three seeds, on the same splits."""
  del get_config
  return [
    Variant(f'seed {seed}', changed(base, seed=seed))
    for seed in range(base.seed, base.seed + 3)
  ]


def _check_private(base, study):
  if base.method in learners.BASELINES:
    raise ValueError(
      f"method: expected 'ppcmi_sf', whose parts the study {study!r} varies, "
      f'found {base.method!r}; name --config without it behind a colon'
    )


STUDIES: Mapping[str, Callable[[GetConfig, Any], list[Variant]]] = {
  'comparison': comparison,
  'ablation': ablation,
  'clients': clients,
  'noise': noise,
  'seeds': seeds,
}


def changed(base: Any, **fields: Any) -> Any:
  """Returns a copy of a configuration with other values of some fields."""
  config = base.copy_and_resolve_references()
  with config.unlocked():
    for field, value in fields.items():
      config[field] = value
  return config
