"""Tests of secrets, reading their key files and the keys derived from them."""

import hashlib
import hmac
import os
import re

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from ppcmi_jax import keyring

SECRET = bytes(range(32))


def hkdf(secret, salt, info, length):
  """RFC 5869 by hand, from hmac alone."""
  pseudorandom_key = hmac.digest(salt or bytes(32), secret, hashlib.sha256)
  block, output = b'', b''
  for counter in range(1, 256):
    block = hmac.digest(
      pseudorandom_key, block + info + bytes([counter]), hashlib.sha256
    )
    output += block
  return output[:length]


def info_of(*strings):
  texts = [string.encode() for string in strings]
  return b''.join(len(text).to_bytes(4, 'big') + text for text in texts)


def assert_one_safe_line(error, secret):
  """Checks an error's text, and all that is chained to it, for leaks."""
  while error is not None:
    text = f'{error} {error.args!r}'
    assert '\n' not in str(error)
    for start in range(len(secret) - 3):
      piece = secret[start : start + 4]
      assert piece.hex() not in text.lower() and repr(piece)[2:-1] not in text
    error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
  'secret, salt, info, length, output',
  [
    (  # RFC 5869, A.1
      '0b' * 22,
      bytes(range(13)).hex(),
      'f0f1f2f3f4f5f6f7f8f9',
      42,
      '3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf'
      '34007208d5b887185865',
    ),
    (  # A.2
      bytes(range(0x50)).hex(),
      bytes(range(0x60, 0xB0)).hex(),
      bytes(range(0xB0, 0x100)).hex(),
      82,
      'b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c'
      '59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71'
      'cc30c58179ec3e87c14c01d5c1f3434f1d87',
    ),
    (  # A.3
      '0b' * 22,
      '',
      '',
      42,
      '8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d'
      '9d201395faa4b61a96c8',
    ),
  ],
)
def test_the_oracle_passes_rfc_5869(secret, salt, info, length, output):
  arguments = (bytes.fromhex(text) for text in (secret, salt, info))
  assert hkdf(*arguments, length).hex() == output


@hypothesis.given(
  st.binary(min_size=32, max_size=32),
  st.lists(st.text(max_size=20), min_size=1, max_size=5),
  st.binary(max_size=80),
  st.integers(1, keyring.MAX_DERIVED_BYTES),
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_derive_is_hkdf_of_length_prefixed_labels(secret, labels, salt, length):
  try:
    info = info_of('ppcmi_jax derive v1', *labels)
  except UnicodeEncodeError:
    hypothesis.reject()
  found = keyring.derive(secret, *labels, length=length, salt=salt)
  assert found == hkdf(secret, salt, info, length)


LABELS = st.lists(st.text(st.sampled_from('ab\0\1é'), max_size=4), min_size=1)


@hypothesis.given(LABELS, LABELS)
@hypothesis.settings(max_examples=200, deadline=None)
def test_labels_are_injective(one, other):
  same = keyring.derive(SECRET, *one) == keyring.derive(SECRET, *other)
  assert same == (one == other)


@hypothesis.given(
  st.text('ab', max_size=6), st.integers(0, 6), st.integers(0, 6)
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_cutting_labels_elsewhere_gives_another_key(text, one, other):
  keys = [keyring.derive(SECRET, text[:i], text[i:]) for i in (one, other)]
  hypothesis.assume(min(one, len(text)) != min(other, len(text)))
  assert keys[0] != keys[1]


def test_purposes_and_secrets_share_no_bytes():
  label = 'ppcmi_jax key_id v1'
  outputs = [
    keyring.key_id(SECRET),
    keyring.derive(SECRET, label, length=8).hex(),
    keyring.derive(SECRET, '', length=8).hex(),
    keyring.derive(SECRET, '', length=8, salt=bytes(31) + b'1').hex(),
    keyring.derive(SECRET, '', '', length=8).hex(),
    keyring.derive(SECRET[::-1], '', length=8).hex(),
    bytes(
      np.asarray(jax.random.key_data(keyring.prng_key(SECRET, ''))).astype(
        '>u4'
      )
    ).hex(),
  ]
  assert len(set(outputs)) == len(outputs)


def test_key_id_is_16_hex_digits_of_its_own_label():
  expected = hkdf(SECRET, b'', info_of('ppcmi_jax key_id v1'), 8).hex()
  assert keyring.key_id(SECRET) == expected
  assert re.fullmatch('[0-9a-f]{16}', expected)


def test_prng_key_is_64_derived_bits():
  key = keyring.prng_key(SECRET, 'image', 's3')
  bits = hkdf(SECRET, b'', info_of('ppcmi_jax prng_key v1', 'image', 's3'), 8)
  words = [int.from_bytes(bits[:4], 'big'), int.from_bytes(bits[4:], 'big')]
  assert np.asarray(jax.random.key_data(key)).tolist() == words
  assert key.shape == () and str(jax.random.key_impl(key)) == 'threefry2x32'


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: keyring.derive(SECRET), 'labels: expected at least one'),
    (lambda: keyring.prng_key(SECRET), 'labels: expected at least one'),
    (lambda: keyring.derive(SECRET, 1), 'expected strings, found int'),
    (lambda: keyring.derive(SECRET, b'a'), 'expected strings, found bytes'),
    (lambda: keyring.derive(SECRET, '\ud800'), 'found a lone surrogate'),
    (lambda: keyring.derive(SECRET, 'a', length=0), 'found 0'),
    (lambda: keyring.derive(SECRET, 'a', length=8161), '1 to 8160 .*8161'),
    (lambda: keyring.derive(SECRET, 'a', length=True), 'found True'),
    (lambda: keyring.derive(SECRET, 'a', salt='s'), 'found bytes and str'),
    (lambda: keyring.derive(SECRET[:31], 'a'), 'expected 32 bytes, found 31'),
    (lambda: keyring.derive(SECRET + SECRET, 'a'), 'found 64'),
    (lambda: keyring.key_id(SECRET.hex()), 'expected bytes, found str'),
    (lambda: keyring.prng_key(42, 'a'), 'expected bytes, found int'),
  ],
)
def test_errors_of_derivation(call, message):
  with pytest.raises(ValueError, match=message) as caught:
    call()
  assert_one_safe_line(caught.value, SECRET)


@pytest.mark.parametrize('mode', [0o640, 0o604, 0o620, 0o601, 0o644, 0o777])
def test_load_refuses_files_open_to_others(tmp_path, mode):
  secret = keyring.create(tmp_path / 'k')
  os.chmod(tmp_path / 'k', mode)
  message = f"k': expected mode 0600, found {mode:04o}; run chmod 600"
  with pytest.raises(ValueError, match=message) as caught:
    keyring.load(tmp_path / 'k')
  assert_one_safe_line(caught.value, secret)
  os.chmod(tmp_path / 'k', 0o400)
  assert keyring.load(tmp_path / 'k') == secret


@pytest.mark.parametrize('mode', [0o750, 0o705, 0o720, 0o701, 0o777])
def test_load_refuses_a_folder_open_to_others(tmp_path, mode):
  secret = keyring.create(tmp_path / 'here' / 'k')
  os.chmod(tmp_path / 'here', mode)
  message = f"here': expected mode 0700, found {mode:04o}; run chmod 700"
  with pytest.raises(ValueError, match=message) as caught:
    keyring.load(tmp_path / 'here' / 'k')
  assert_one_safe_line(caught.value, secret)
  os.chmod(tmp_path / 'here', 0o500)
  assert keyring.load(tmp_path / 'here' / 'k') == secret


def test_load_refuses_what_is_no_readable_file(tmp_path, monkeypatch):
  message = "k': expected a key file, found No such .*as docs/keys.md says"
  with pytest.raises(ValueError, match=message):
    keyring.load(tmp_path / 'k')
  with pytest.raises(ValueError, match='found something that is no regular'):
    keyring.load(tmp_path)
  os.mkfifo(tmp_path / 'pipe', 0o600)
  with pytest.raises(ValueError, match='found something that is no regular'):
    keyring.load(tmp_path / 'pipe')
  with pytest.raises(ValueError, match='Not a directory'):
    keyring.create(tmp_path / 'k')
    keyring.load(tmp_path / 'k' / 'k')
  with pytest.raises(ValueError, match='embedded null') as caught:
    keyring.load('a\n\0')
  assert '\n' not in str(caught.value)

  def refuse(*_):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(keyring.os, 'open', refuse)
  with pytest.raises(ValueError, match='a key file, found Permission'):
    keyring.load(tmp_path / 'k')


def test_load_refuses_another_key(tmp_path):
  secret, other = keyring.create(tmp_path / 'k'), keyring.create(tmp_path / 'o')
  expected, found = keyring.key_id(other), keyring.key_id(secret)
  message = f"k': expected key id {expected}, found {found}; wrong key"
  with pytest.raises(ValueError, match=message) as caught:
    keyring.load(tmp_path / 'k', key_id=expected)
  assert_one_safe_line(caught.value, secret)


@pytest.mark.parametrize('encode', [bytes, bytes.hex])
def test_load_does_not_quote_a_secret_passed_as_key_id(tmp_path, encode):
  secret = keyring.create(tmp_path / 'k')
  with pytest.raises(ValueError, match='key_id: expected 16') as caught:
    keyring.load(tmp_path / 'k', key_id=encode(secret))
  assert_one_safe_line(caught.value, secret)


def load_text(tmp_path, text):
  path = tmp_path / 'edited'
  path.write_bytes(text)
  path.chmod(0o600)
  return keyring.load(path)


def test_load_detects_every_truncation_and_every_changed_byte(tmp_path):
  secret = keyring.create(tmp_path / 'k')
  line = (tmp_path / 'k').read_bytes()
  assert load_text(tmp_path, line) == secret
  edited = [line[:end] for end in range(len(line))]
  edited += [line + b'\n', line + line, b' ' + line, b'\xef\xbb\xbf' + line]
  edited += [line.upper(), line.replace(b'\n', b'\r\n'), line[:-1] + b' ']
  for position, byte in enumerate(line):
    replacements = {byte ^ 1, byte ^ 0x80, ord('0'), ord('f')} - {byte}
    edited += [
      line[:position] + bytes([new]) + line[position + 1 :]
      for new in replacements
    ]
  for text in edited:
    with pytest.raises(ValueError, match='damaged or edited') as caught:
      load_text(tmp_path, text)
    assert_one_safe_line(caught.value, secret)


@hypothesis.given(st.binary(max_size=200))
@hypothesis.settings(
  max_examples=50,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_load_raises_nothing_but_value_errors(tmp_path, text):
  with pytest.raises(ValueError, match='expected one line of 99 bytes'):
    load_text(tmp_path, text)


def test_drawn_secrets_have_a_key_of_their_own_for_every_scale():
  latents = {
    modality: {
      's3': jax.ShapeDtypeStruct((1, 2, 2, 8), np.float32),
      's4': jax.ShapeDtypeStruct((1, 2, 2, 8), np.float32),
    }
    for modality in ('image', 'mask')
  }

  def draw(keys, like):
    return {
      scale: np.asarray(jax.random.normal(keys[scale], like[scale].shape))
      for scale in like
    }

  def secrets(secret, client):
    made = keyring.draw_secrets(draw, secret, client, latents)
    return [made[m][s] for m in sorted(made) for s in sorted(made[m])]

  every = [
    *secrets(bytes(32), 'north'),
    *secrets(bytes(32), 'south'),
    *secrets(bytes(31) + b'\1', 'north'),
  ]
  for i, one in enumerate(every):
    for other in every[:i]:
      assert not np.allclose(one, other)
  for again, one in zip(secrets(bytes(32), 'north'), every, strict=False):
    np.testing.assert_array_equal(again, one)
