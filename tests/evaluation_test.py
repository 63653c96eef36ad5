"""Tests of evaluation.py that need no trained run; train_test.py has one."""

import types

import numpy as np
import pytest

from configs import smoke
from ppcmi_jax import evaluation, report


@pytest.mark.parametrize('method, name', [('', 'speed'), ('unet', 'wire')])
def test_evaluations_are_known_before_the_run_is_read(tmp_path, method, name):
  config = smoke.get_config(method or 'ppcmi_sf')
  with pytest.raises(ValueError, match=f"eval_names: .*found '{name}'"):
    report.evaluate(config, tmp_path / 'none', [name])


def test_masks_go_through_the_autoencoders_in_batches():
  """A test split of hundreds of cases does not fit a device at once."""
  sizes = []

  def rebuild(mask):
    sizes.append(len(mask))
    return mask ^ (np.arange(32) < 16)  # half of the pixels are wrong

  test = types.SimpleNamespace(
    image=np.zeros((19, 32, 32, 1), np.uint8),
    mask=np.zeros((19, 32, 32), np.uint8),
  )
  run = types.SimpleNamespace(
    data=types.SimpleNamespace(num_classes=2, hospitals={'1': {'test': test}}),
    hospitals={
      '1': types.SimpleNamespace(
        reconstruct_mask=rebuild, reconstruct_image=lambda image: image
      )
    },
  )
  found = evaluation.autoencoders(None, run)['1']
  assert sizes == [16, 16]
  assert found['mask_psnr_db'] == pytest.approx(-10 * np.log10(0.5))
  assert found['image']['n'] == 19
