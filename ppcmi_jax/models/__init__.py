"""The networks: linen modules of arrays, without knowledge of who runs them."""

from ppcmi_jax.models import (
  autoencoder,
  fatnet,
  fused,
  ghostnet,
  mapping,
  unet,
)

MODELS = {
  'autoencoder': autoencoder.Autoencoder,
  'mapping': mapping.MappingNetwork,
  'fused_mapping': fused.FusedMapping,
  'unet': unet.UNet,
  'ghostnet': ghostnet.GhostUNet,
  'fatnet': fatnet.FATNet,
}
