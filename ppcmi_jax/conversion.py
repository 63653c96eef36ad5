"""Runs of the official PyTorch code as workdirs, and workdirs as such runs.

    python -m ppcmi_jax.conversion --config=CONFIG --workdir=NEW --read=FOLDER
    python eval.py --config=CONFIG --workdir=NEW

    python -m ppcmi_jax.conversion --config=CONFIG --workdir=RUN --write=FOLDER

FOLDER holds what the official training script leaves: client{k}_img_ae.pt and
client{k}_mask_ae.pt of each client, k from 1, and umn.pt. Client k is the k-th
of the data set's sites, in the order of the table that train.py prints. CONFIG
is a method of the same networks, as configs/phantom.py:official. Neither way
needs PyTorch.

**A folder whose autoencoders carry their transform is a bunch of keys**: it
belongs to whoever may hold all of them, as does the workdir's secrets/.
"""

import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags

from ppcmi_jax import (
  client as client_lib,
)
from ppcmi_jax import (
  collaboration,
  command,
  config_checks,
  enrolment,
  hospital_data,
  key_store,
  learners,
  official,
  server_training,
)
from ppcmi_jax import (
  workdir as workdir_lib,
)

# What the official code has, beside the sizes that its files tell.
FIDELITY = {
  'method': ('ppcmi_sf',),
  'protection': ('official', 'none'),
  'upsampling': ('bilinear',),
  'latent_widths': ((),),
  'image_blocks': (0,),
  'image_full_size': (False,),
  'segmentation_weight': (0.0,),
  'mapping': ('mapping',),
}
_FILES = {'image': 'client{}_img_ae.pt', 'mask': 'client{}_mask_ae.pt'}
_MAPPING = 'umn.pt'


def check(config: Any) -> None:
  """Raises ValueError unless the official code has a configuration's parts."""
  config_checks.check(config)
  todo = 'take a configuration as configs/phantom.py:official'
  for field, allowed in FIDELITY.items():
    if config[field] not in allowed:
      raise ValueError(
        f'{field}: expected {" or ".join(map(repr, allowed))}, which the '
        f'official code has, found {config[field]!r}; {todo}'
      )
  stages = len(config.autoencoder_widths)
  if stages != 5:
    raise ValueError(
      'autoencoder_widths: expected 5 stages, which the official code has, '
      f'found {stages}; {todo}'
    )
  pooling = config.mapping_options.get('pooling', 'pyramid')
  if pooling != 'official':
    raise ValueError(
      "mapping_options.pooling: expected 'official', found "
      f'{pooling!r}: the official code would pool in another way than the '
      f'network was trained with; {todo}'
    )


def read_folder(
  config: Any, path: str | os.PathLike, folder: str | os.PathLike
) -> None:
  """Makes a workdir of a folder of official checkpoints.

  The workdir appears whole or not at all, with trainings that have ended, the
  transforms of the files as secrets, and new keys of the clients.

  Args:
    config: of a method that the official code has, with its sizes.
    path: of the workdir; must not be there yet.
    folder: with the official files.

  Raises:
    ValueError: a file is missing, surplus, damaged or of another network than
      the configuration's; the workdir is there already.
  """
  check(config)
  path = pathlib.Path(path).absolute()
  if path.exists():
    raise ValueError(f'workdir {path}: is there already; choose another')
  folder = pathlib.Path(folder)
  if not folder.is_dir():  # before a whole data set is prepared
    raise ValueError(
      f'{folder}: expected a folder of official checkpoints, found none; name '
      'it with --read=FOLDER'
    )
  staged = path.with_name(path.name + '.partial')
  shutil.rmtree(staged, ignore_errors=True)
  try:
    _fill(config, workdir_lib.Workdir(staged, config.to_dict()), folder)
    staged.rename(path)
  finally:
    shutil.rmtree(staged, ignore_errors=True)
  print(f'written: {path}; now run eval.py with this --config and --workdir')


def _fill(config, workdir, folder):
  data = hospital_data.load(config, workdir)
  names = list(data.hospitals)
  files = _list_files(folder, names)
  autoencoders = learners.autoencoders(
    config, channels=data.channels, num_classes=data.num_classes
  )
  secrets, _ = key_store.open_keys(workdir, names, create=True)
  for name in names:
    transforms = {}
    for modality in client_lib.MODALITIES:
      file = files[modality, name]
      variables, transforms[modality] = official.load_autoencoder(file)
      _check_transform(config, file, transforms[modality])
      _adopt(
        getattr(autoencoders, modality),
        variables,
        data.sample(),
        workdir.checkpoints(f'{modality}_{name}'),
        file,
      )
      print(f'{file.name}: {modality} autoencoder of client {name}', flush=True)
    if config.protection != 'none':
      key_store.keep_transform_secrets(
        workdir, transforms, secrets[name], name, config.protection
      )
  _, trainer = learners.mapping(config)
  _adopt(
    trainer,
    official.load_mapping(files['mapping']),
    server_training.blank_pair(autoencoders.latents),
    workdir.checkpoints('mapping'),
    files['mapping'],
  )
  print(f'{files["mapping"].name}: mapping network of the server', flush=True)


def _list_files(folder: pathlib.Path, names: list[str]) -> Mapping[Any, Any]:
  files = {
    (modality, name): folder / pattern.format(k)
    for k, name in enumerate(names, start=1)
    for modality, pattern in _FILES.items()
  }
  files['mapping'] = folder / _MAPPING
  missing = [file.name for file in files.values() if not file.is_file()]
  if missing:
    raise ValueError(
      f'{folder}: expected {len(files)} files for the {len(names)} clients '
      f'{", ".join(names)}, found no {", ".join(missing)}'
    )
  surplus = sorted(
    {*folder.glob(_FILES['image'].format('*'))} - {*files.values()}
  )
  if surplus:
    raise ValueError(
      f'{folder}: expected {len(names)} clients, as the data set of the '
      f'configuration has, found {surplus[0].name} too'
    )
  return files


def _check_transform(config, file, transform):
  has = 'none' if transform is None else 'official'
  if has != config.protection:
    raise ValueError(
      f'{file}: expected an autoencoder with protection '
      f'{config.protection!r}, found {has!r}; set --config.protection={has}'
    )


def _adopt(trainer, variables, sample, directory, file):
  try:
    trainer.adopt(variables, sample, directory)
  except ValueError as error:
    raise ValueError(
      f'{file}: is of another network than the configuration describes: '
      f'{error}; set image_channels, autoencoder_widths, skips, '
      'mapping_options or the data set as they were'
    ) from None


def write_folder(
  config: Any, path: str | os.PathLike, folder: str | os.PathLike
) -> None:
  """Writes a trained workdir as the official training script leaves a run.

  Args:
    config: the configuration that the run was trained with.
    path: of the workdir.
    folder: for the files, made where it is missing; none of them is replaced.

  Raises:
    ValueError: the official code has no such network or transform, the run is
      not trained, or a file is there already.
  """
  check(config)
  run = collaboration.restore(config, path)
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  names = list(run.hospitals)
  present = sorted(folder.glob('client*_ae.pt')) + sorted(folder.glob(_MAPPING))
  if present:
    raise ValueError(f'{present[0]}: is there already; choose another folder')
  transforms = {}
  if config.protection != 'none':
    workdir = workdir_lib.Workdir(path, config.to_dict(), create=False)
    transforms = enrolment.transform_secrets(
      config, workdir, names, run.latents
    )
  for k, (name, hospital) in enumerate(run.hospitals.items(), start=1):
    for modality, pattern in _FILES.items():
      secret = None
      if config.protection != 'none':
        secret = jax.device_get(transforms[name][modality])
      file = folder / pattern.format(k)
      official.save_autoencoder(file, getattr(hospital.state, modality), secret)
      print(f'{file.name}: {modality} autoencoder of client {name}', flush=True)
  official.save_mapping(folder / _MAPPING, run.server_state)
  print(f'{_MAPPING}: mapping network of the server')
  print(f'written: {folder}, for {len(names)} clients')
  width = config.mapping_options.get('width', 1.0)
  widths = tuple(config.autoencoder_widths)
  if not np.isclose(width, 1.0) or widths != (16, 32, 64, 128, 256):
    print(
      'note: these are not the published sizes (autoencoder_widths '
      f'{widths}, mapping_options.width {width}); the official classes load '
      'them only when built with these'
    )


_READ = flags.DEFINE_string(
  'read', None, 'Folder of official checkpoints to make the workdir of.'
)
_WRITE = flags.DEFINE_string(
  'write', None, 'Folder to write the workdir to, as official checkpoints.'
)


def _convert(config: Any, path: str) -> None:
  if (_READ.value is None) == (_WRITE.value is None):
    raise ValueError(
      'expected either --read=FOLDER, to make the workdir, or --write=FOLDER'
    )
  if _READ.value is not None:
    read_folder(config, path, _READ.value)
  else:
    write_folder(config, path, _WRITE.value)


if __name__ == '__main__':
  flags.declare_key_flag('config')
  flags.declare_key_flag('workdir')
  command.run(_convert)
