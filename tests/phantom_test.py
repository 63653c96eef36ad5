"""Tests of phantom.py: the configurations, and what the builder serves."""

import numpy as np
import pytest
from absl import logging

from ppcmi_jax import datasets
from ppcmi_jax.datasets import phantom, phantom_rendering


@pytest.mark.parametrize(
  'change', [{'num_subjects': 0}, {'visits': 0}, {'size': 8}, {'seed': -1}]
)
def test_config_rejects(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    phantom.PhantomConfig(**change)


def test_config_names_differ():
  names = {
    phantom.PhantomConfig(**change).name
    for change in (
      {}, {'num_subjects': 3}, {'visits': 2}, {'size': 64}, {'seed': 1}
    )
  }  # fmt: skip
  assert len(names) == 5


def test_options_are_no_warning(tmp_path, monkeypatch, caplog):
  def prepare(builder):
    logging.warning('of something else')

  monkeypatch.setattr(phantom.Phantom, 'download_and_prepare', prepare)
  datasets.prepare('phantom', data_dir=tmp_path, options={'num_subjects': 3})
  logging.warning('Using custom data configuration: elsewhere')
  assert caplog.messages == [
    'of something else',
    'Using custom data configuration: elsewhere',
  ]


def test_builder_round_trip(tmp_path):
  def read(num_subjects):
    config = phantom.PhantomConfig(
      num_subjects=num_subjects, visits=2, size=32, seed=4
    )
    builder = phantom.Phantom(data_dir=tmp_path, config=config)
    builder.download_and_prepare()
    return builder.info, list(builder.as_data_source('all'))

  info, examples = read(4)
  assert tuple(info.metadata['classes']) == phantom_rendering.CLASSES
  assert len(examples) == 8
  for i, example in enumerate(examples):
    subject, visit = divmod(i, 2)
    image, mask, spacing_mm = phantom_rendering.render(
      seed=4,
      subject=subject,
      visit=visit,
      site=phantom.site_of(subject),
      size=32,
    )
    np.testing.assert_array_equal(example['image'], image)
    np.testing.assert_array_equal(example['mask'], mask)
    np.testing.assert_array_equal(example['spacing_mm'], spacing_mm)
    assert example['subject'].decode() == f's{subject:05d}'
    assert example['site'].decode() == str(subject % 3 + 1)
    assert example['position'] == visit
  assert len({example['case'] for example in examples}) == 8
  # Fewer subjects: those that remain are the same.
  for a, b in zip(read(2)[1], examples[:4], strict=True):
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
