"""The scripts on other methods than the default, small."""

import numpy as np
import pytest
import scripts

from ppcmi_jax import keyring, learners


@pytest.fixture(scope='module')
def script(tmp_path_factory):
  """Returns a function that starts a script on the smoke configuration."""
  data_dir = tmp_path_factory.mktemp('data')
  return lambda name, workdir, *flags, **options: scripts.smoke(
    name, workdir, data_dir, *flags, **options
  )


@pytest.mark.parametrize('method', learners.BASELINES)
def test_baseline_trains_and_evaluates(method, script, tmp_path):
  config = f'configs/smoke.py:{method}'
  code, _, err = scripts.finish(
    script('train.py', tmp_path / 'w', config=config)
  )
  assert code == 0, err
  code, out, err = scripts.finish(
    script('eval.py', tmp_path / 'w', config=config)
  )
  assert code == 0, err
  assert 'prior' in out and 'ceiling' not in out


def test_the_published_transform_stays_in_its_folder_too(script, tmp_path):
  """Neither a key, nor what is drawn from it, is anywhere else."""
  workdir, config = tmp_path / 'w', 'configs/smoke.py:published'
  code, out, err = scripts.finish(script('train.py', workdir, config=config))
  assert code == 0, err
  assert 'obfuscation, no confidentiality' in out + err
  needles = []
  for path in (workdir / 'secrets').iterdir():
    if path.suffix == '.key':
      needles.append(keyring.load(path))
    elif path.suffix == '.npz':
      with np.load(path) as drawn:
        needles += [a.tobytes()[:64] for a in drawn.values() if a.nbytes >= 32]
  assert len(needles) > 9
  files = [
    path
    for path in workdir.rglob('*')
    if path.is_file() and 'secrets' not in path.parts
  ]
  assert len(files) > 20
  for content in (*(path.read_bytes() for path in files), (out + err).encode()):
    for needle in needles:
      assert needle not in content and needle.hex().encode() not in content
