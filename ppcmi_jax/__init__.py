"""Privacy-preserving collaborative medical image segmentation in JAX.

    from ppcmi_jax import client, keyed, keyring, models, server, wire

`keyed` holds the invertible transforms of latents, `keyring` their secrets,
`wire` the messages, `models` the networks; `client` and `server` put them
together. Data sets, training and evaluation are imported by name:
`ppcmi_jax.datasets`, `ppcmi_jax.collaboration`, `ppcmi_jax.report`.
"""

from ppcmi_jax import client, keyed, keyring, losses, models, server, wire

__all__ = ['client', 'keyed', 'keyring', 'losses', 'models', 'server', 'wire']
__version__ = '0.1.0'
