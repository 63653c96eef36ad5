"""Tests of phantom_criteria.py: by hand, on a small sample, as a command."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ppcmi_jax.datasets import phantom, phantom_criteria, phantom_rendering


@pytest.fixture(scope='module')
def sample():
  """Draws 90 training and 30 test subjects at 128 x 128."""
  cases = [
    phantom_rendering.render(
      seed=0, subject=i, site=phantom.site_of(i), size=128
    )
    for i in range(120)
  ]
  images, masks, spacing_mm = (np.stack(values) for values in zip(*cases))
  return images[..., 0], masks, spacing_mm


def test_every_mask_shows_both_structures(sample):
  _, masks, _ = sample
  for label, least in ((1, 0.004), (2, 0.05)):
    assert (masks == label).mean((1, 2)).min() > least
  assert masks.max() == len(phantom_rendering.CLASSES) - 1


def test_frozen_criteria_on_a_small_sample(sample):
  images, masks, spacing_mm = sample
  train, test = masks[:90], masks[90:]
  bounds = ((0.30, 0.57, 0.12), (0.53, 0.75, 0.50))
  priors = phantom_criteria.prior_dice(train, test, spacing_mm[90:])
  for label, (low, high, most) in enumerate(bounds, start=1):
    assert low < priors[label - 1] < high, phantom_rendering.CLASSES[label]
    threshold = phantom_criteria.threshold_dice(images[90:], test, label)
    assert threshold < most, phantom_rendering.CLASSES[label]


def test_prior_dice_by_hand():
  train = np.zeros((2, 4, 4), np.uint8)
  train[:, 0] = 1
  train[:, 3] = 2
  test = train.copy()
  test[0, 0, :2] = 0  # half of the symphysis is gone: Dice 2 * 2 / (2 + 4)
  dices = phantom_criteria.prior_dice(train, test, np.ones((2, 2)))
  assert dices == pytest.approx([(2 / 3 + 1) / 2, 1.0])


def test_threshold_dice_by_hand():
  image = np.array([[[0, 10], [20, 30]]], np.uint8)
  mask = np.array([[[0, 0], [1, 1]]], np.uint8)
  assert phantom_criteria.threshold_dice(image, mask, 1) == 1.0
  assert phantom_criteria.threshold_dice(image, 1 - mask, 1) == 1.0
  middle = np.array([[[0, 1], [1, 0]]], np.uint8)
  assert phantom_criteria.threshold_dice(image, middle, 1) == pytest.approx(0.8)


def test_command_prints_each_class_and_draws_without_a_warning(tmp_path):
  command = [sys.executable, '-W', 'error::RuntimeWarning', '-m']
  command += [phantom_criteria.__name__, '--num_train=3', '--num_test=2']
  sheet = tmp_path / 'sheet.png'
  run = subprocess.run(
    [*command, f'--out={sheet}'], capture_output=True, text=True, check=False
  )
  assert run.returncode == 0, run.stderr
  assert 'Warning' not in run.stderr
  lines = run.stdout.splitlines()
  assert lines[0] == '3 training and 2 test subjects'
  for line, name in zip(lines[1:], phantom_rendering.CLASSES[1:], strict=True):
    numbers = [float(x) for x in re.findall(r'0\.\d+', line)]
    assert line.startswith(name) and len(numbers) == 3
  with Image.open(sheet) as picture:
    assert picture.size == (4 * 256, 6 * 256)
