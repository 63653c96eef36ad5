"""The hardened protection of messages: mix, mask, seal.

  module    what
  --------  -------------------------------------------------------------
  mixing    a keyed orthogonal map of each example as a whole (incoherence)
  masking   quantise, then a ChaCha20 keystream added modulo 2^32; both are
            `keyed` transforms, and compose as these do
  sealing   one AES-256-GCM a message, over its header and its words
  envelope  the layout of those messages
  body      a message's arrays as one, between device and host
  chacha    ChaCha20 in JAX, for who composes the layers; a session's streams
            come from the host

What is claimed rests on `masking` and `sealing`: standard cryptography with a
fresh nonce a message. Whoever holds the key, as the server does, reads the
latents. `keyring.epochs` replaces and erases keys, and `keyring.ledger` refuses
replays.
"""
