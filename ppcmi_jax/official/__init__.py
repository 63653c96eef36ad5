"""The official PyTorch code's checkpoints, and its batch statistics.

Its training script leaves three kinds of files, each a state_dict:

  file                  holds
  --------------------  -----------------------------------------------------
  client{k}_img_ae.pt   client k's image autoencoder and its keyed transform
  client{k}_mask_ae.pt  the same of its masks
  umn.pt                the mapping network of the server

Here a network is a tree of variables, and the transform's Q and b are a secret
of `TRANSFORM` outside it, None where the file was trained without. Widths and
channels follow from the shapes in the file. Reading executes no code and needs
no PyTorch (`archive`, `pickles`); what is written loads with PyTorch's
`load_state_dict(torch.load(path), strict=True)`.

**A file with a transform is a key.** Whoever has it undoes the protection of
every message of that client. So it is written with mode 0600 and belongs
neither on a server nor among the weights that are shared.

  >>> import pathlib, tempfile
  >>> import jax, jax.numpy as jnp
  >>> from ppcmi_jax import official
  >>> from ppcmi_jax.models import autoencoder
  >>> model = autoencoder.Autoencoder(channels=1, widths=(2, 2, 3, 4, 5))
  >>> init = lambda: model.init(
  ...   jax.random.key(0), jnp.zeros((1, 32, 32, 1)), train=False
  ... )
  >>> blank = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)
  >>> variables = jax.tree.map(blank, jax.eval_shape(init))
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder) / 'client1_img_ae.pt'
  ...   official.save_autoencoder(path, variables)
  ...   variables, secret = official.load_autoencoder(path)
  >>> official.autoencoder_options(variables)['widths'], secret
  ((2, 2, 3, 4, 5), None)
"""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from ppcmi_jax.official import archive, state_dicts

TRANSFORM = state_dicts.TRANSFORM
autoencoder_options = state_dicts.autoencoder_options
mapping_options = state_dicts.mapping_options


def load_autoencoder(
  path: str | os.PathLike[str],
) -> tuple[state_dicts.Variables, Any]:
  """Reads an official autoencoder's file.

  Args:
    path: client{k}_img_ae.pt or client{k}_mask_ae.pt.

  Returns:
    (variables, secret): of `autoencoder.Autoencoder` with the arguments that
    `autoencoder_options` gives, and of `TRANSFORM`, or None. Float32 arrays.

  Raises:
    ValueError: the file is no whole state_dict of an official autoencoder, or
      holds numbers that cannot be right; names the file, the key and shapes.
  """
  name = os.fspath(path)
  return state_dicts.autoencoder_from_state(archive.read(path), name)


def load_mapping(path: str | os.PathLike[str]) -> state_dicts.Variables:
  """Reads the official mapping network's file, umn.pt.

  Returns:
    The variables of `mapping.MappingNetwork` with the arguments that
    `mapping_options` gives. Float32 arrays.

  Raises:
    ValueError: as of `load_autoencoder`.
  """
  return state_dicts.mapping_from_state(archive.read(path), os.fspath(path))


def save_autoencoder(
  path: str | os.PathLike[str],
  variables: state_dicts.Variables,
  secret: Any = None,
) -> None:
  """Writes an autoencoder as the official code does.

  Args:
    path: the file; one that is there is replaced.
    variables: of an Autoencoder with upsampling='bilinear'.
    secret: of `TRANSFORM`; then only the file's owner may read it. None for a
      file as the official code writes it with --use-klt 0.

  Raises:
    ValueError: the official code has no place for these variables or this
      secret, they hold NaN, or the file cannot be written.
  """
  state = state_dicts.state_from_autoencoder(variables, secret)
  archive.write(path, state, private=secret is not None)


def save_mapping(
  path: str | os.PathLike[str], variables: state_dicts.Variables
) -> None:
  """Writes a mapping network as the official code does.

  The official code will pool as pooling='official' does, whatever the network
  was trained with, and end in a ReLU.

  Raises:
    ValueError: as of `save_autoencoder`.
  """
  archive.write(path, state_dicts.state_from_mapping(variables))


def unbiased_variance(function: Callable) -> Callable:
  """Makes a function that applies models keep PyTorch's running variances.

  flax moves a BatchNorm's running variance towards the batch's variance,
  PyTorch towards n / (n - 1) times that, n values a channel on all devices:

      task = task._replace(loss=official.unbiased_variance(task.loss))

  Args:
    function: applies flax modules; may be traced, also under pmap.

  Raises:
    ValueError: when the function trains on n = 1, which PyTorch refuses, too.
  """

  def correct(call, args, kwargs, context):
    norm = context.module
    if not isinstance(norm, nn.BatchNorm) or context.method_name != '__call__':
      return call(*args, **kwargs)
    before = norm.get_variable('batch_stats', 'var')
    outputs = call(*args, **kwargs)
    after = norm.get_variable('batch_stats', 'var')
    if before is None or after is before:  # initialising, or not training
      return outputs
    n = math.prod(outputs.shape[:-1])
    if norm.axis_name is not None:
      n *= jax.lax.psum(1, norm.axis_name)
    if n == 1:
      raise ValueError(
        f'{"/".join(norm.path)}: expected more than one value a channel to '
        'train on, found 1; use a larger batch'
      )
    kept = norm.momentum * before
    unbiased = kept + (after - kept) * (n / (n - 1))
    norm.put_variable('batch_stats', 'var', unbiased)
    return outputs

  @functools.wraps(function)
  def corrected(*args, **kwargs):
    with nn.intercept_methods(correct):
      return function(*args, **kwargs)

  return corrected
