"""Attacks on protected latents, each a pure function of what its attacker sees.

  attack           the attacker holds
  ---------------  --------------------------------------------------------
  known_plaintext  messages of a few known images, and the encoder
  ciphertext_only  messages; the encoder, or not even that
  seed_search      one message, and code that draws secrets from integers
  linking          messages of many patients
  stitching        another client's messages of a few known images
  inverter         messages of known images; a network undoes them
  outline          own data and encoder; a network reads what no key hides
  membership       losses of shadow networks, or the answers of the server

None sees a secret. They are the proof of what the documentation claims: what
breaks the static transform has to stay at chance against `sealed`. Latents, and
what is observed, are dicts {'s3', 's4', 'b'} of float [N, h, w, C]; words of a
sealed message go in as numbers of the same shapes.
"""
