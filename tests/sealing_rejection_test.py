"""Tests of sealed messages: what is rejected, and that nothing says why."""

import itertools
import tracemalloc

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from sealed_messages import (
  DATA,
  HEADER_BYTES,
  KEY,
  OFFICIAL,
  ROUTE,
  draft_of,
  masked_of,
  message_of,
  words_of,
)
from wire_messages import MESSAGE

from ppcmi_jax import wire
from ppcmi_jax.sealed import body, envelope, sealing


def refuse(data, key=KEY, **changes):
  with pytest.raises(ValueError) as caught:
    sealing.open(data, key, **{**ROUTE, **changes})
  error = caught.value
  assert type(error) is sealing.MessageRejected
  # One text, nothing chained to it: nothing says why.
  assert str(error) == str(sealing.MessageRejected())
  assert error.__cause__ is None and error.__context__ is None


def test_every_bit_of_header_tag_and_body_counts():
  for place, bit in itertools.product(range(len(DATA)), range(8)):
    changed = bytearray(DATA)
    changed[place] ^= 1 << bit
    refuse(bytes(changed))


def test_sampled_bits_of_a_long_body_count():
  data = sealing.seal(draft_of(shapes=OFFICIAL), words_of('int8', OFFICIAL))
  rng = np.random.default_rng(0)
  for place in rng.integers(0, len(data), 100):
    changed = bytearray(data)
    changed[place] ^= 1 << int(rng.integers(8))
    refuse(bytes(changed))


def test_every_truncation_and_extension_is_rejected():
  for size in range(len(DATA)):
    refuse(DATA[:size])
    refuse(DATA[size + 1 :])
  refuse(DATA + b'\0')
  refuse(DATA + DATA)


@hypothesis.given(st.data())
def test_bytes_in_another_order_are_rejected(data):
  """Blocks of a cipher, whole latents, or any two spans of the same length."""
  size = data.draw(st.integers(1, len(DATA) // 2))
  first = data.draw(st.integers(0, len(DATA) - 2 * size))
  second = data.draw(st.integers(first + size, len(DATA) - size))
  swapped = bytearray(DATA)
  for place, other in ((first, second), (second, first)):
    swapped[place : place + size] = DATA[other : other + size]
  hypothesis.assume(bytes(swapped) != DATA)
  refuse(bytes(swapped))


@pytest.mark.parametrize(
  'changes',
  [
    {'client': 'clinic-2'},
    {'epoch': 2},
    {'epoch': 4},
    {'direction': 'reply'},
    {'direction': 'contribution'},
    {'modality': 'mask'},
    {'model_id': 'demo.2'},
    {'dtype': 'float32'},
    {'message_id': bytes(16)},
    {'key': bytes(32)},
    {'like': {'s3': np.zeros([1, 2, 2, 2])}},
    {'like': {'s3': np.zeros([1, 2, 2, 3]), 'b': np.zeros([1, 1, 1, 5])}},
  ],
)
def test_other_expectations_are_rejected(changes):
  refuse(DATA, **changes)


def test_any_batch_of_the_right_shapes_is_accepted():
  like = {'s3': jnp.zeros([1, 2, 2, 2]), 'b': jnp.zeros([9, 1, 1, 5])}
  assert sealing.open(DATA, KEY, **ROUTE, like=like).header.counter == 7


@pytest.mark.parametrize(
  'place, value',
  [
    (20, 4),  # epoch
    (17, 1),  # direction
    (18, 1),  # modality
    (24, 8),  # counter
    (32, 0),  # message id
    (144, ord('e')),  # model id
  ],
)
def test_a_rewritten_header_fails_where_it_is_expected(place, value):
  """Whoever moves a message to another place fails on the tag."""
  changed = bytearray(DATA)
  changed[place] = value
  header = envelope.read(bytes(changed))  # well formed
  route = {field: getattr(header, field) for field in ROUTE}
  refuse(bytes(changed), **route)


def test_parts_of_two_messages_do_not_mix():
  one, other = message_of(), message_of()
  for cut in (60, HEADER_BYTES, len(one) - 16):
    refuse(one[:cut] + other[cut:])


def test_bad_numbers_are_not_sent_and_not_believed(monkeypatch):
  for bad in (np.nan, np.inf):
    masked = masked_of()
    masked['b']['numbers'][1, 0] = bad
    with pytest.raises(ValueError, match=r"latent 'b'.*NaN"):
      sealing.seal(draft_of(), body.join(masked))
    with monkeypatch.context() as context:
      context.setattr(np, 'isfinite', np.ones_like)
      data = sealing.seal(draft_of(), body.join(masked))
    refuse(data)


def test_hostile_sizes_are_rejected_before_they_are_allocated():
  huge = {'x': (1, 2**15, 2**15)}
  with pytest.raises(ValueError, match='at most 1073741824 bytes'):
    draft_of(shapes=huge, dtype='float32')
  header = envelope.read(DATA)
  claims = [
    header._replace(shapes={'b': (2**20, 900), 's3': (2**20, 1)}),
    header._replace(shapes={'b': (2**31, 2**31), 's3': (2**31, 2**31)}),
  ]
  tracemalloc.start()
  for claim in claims:
    refuse(envelope.pack(claim) + DATA[HEADER_BYTES:])
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 2**20


@hypothesis.given(st.binary(max_size=400))
@hypothesis.settings(max_examples=200, deadline=None)
def test_any_bytes_are_rejected(data):
  refuse(data)
  refuse(DATA[:16] + data)
  refuse(DATA[:HEADER_BYTES] + data)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=200, deadline=None)
def test_a_header_that_reads_is_the_one_that_packs(data):
  changed = bytearray(DATA)
  for _ in range(data.draw(st.integers(1, 3))):
    place = data.draw(st.integers(16, HEADER_BYTES - 1))
    changed[place] = data.draw(st.integers(0, 255))
  try:
    header = envelope.read(bytes(changed))
  except sealing.MessageRejected:
    return
  assert envelope.pack(header) == bytes(changed[:HEADER_BYTES])


@pytest.mark.parametrize('data', [None, 'text', bytearray(DATA), 3])
def test_what_is_no_bytes_is_rejected(data):
  refuse(data)


def test_readers_tell_the_two_formats_apart():
  assert envelope.MAGIC != wire.MAGIC
  with pytest.raises(ValueError, match='magic'):
    wire.decode(DATA)
  refuse(wire.encode(MESSAGE))
