"""Pairs of our networks and layers and those of PyTorch.

Networks are the official ones, which PyTorch has too, at the widths of the
method `published`. PyTorch runs eagerly, in its own layout; each side has the
threads and the precision of matmuls that it takes by itself.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn
from torch.nn import functional

from benchmarks import (
  comparison,
  networks,
  timing,
  torch_fatnet,
  torch_layers,
  torch_networks,
)
from benchmarks import sizes as sizes_lib
from ppcmi_jax import learners, models, tasks, train_step
from ppcmi_jax.official import state_dicts

Pair = comparison.Pair


def describe() -> dict[str, Any]:
  """Returns PyTorch's version, threads and device."""
  return {
    'torch': torch.__version__,
    'torch_threads': torch.get_num_threads(),
    'torch_device': str(torch_networks.device()),
  }


class Network(NamedTuple):
  """A network, its weights, and what is beside it in PyTorch."""

  ours: nn.Module
  variables: Any
  theirs: torch.nn.Module

  @property
  def parameters(self) -> int:
    return sum(x.size for x in jax.tree.leaves(self.variables['params']))


def _network(name, ours, variables, theirs, load) -> Network:
  """Returns both with the same weights; `load` copies them."""
  load(theirs, variables)
  network = Network(ours, variables, theirs.to(torch_networks.device()))
  theirs = sum(p.numel() for p in theirs.parameters())
  comparison.same_count(name, network.parameters, theirs)
  return network


def _official(
  size: sizes_lib.Size,
) -> tuple[Network, Network, dict[str, jax.ShapeDtypeStruct]]:
  """Returns autoencoder and mapping network, and what latents look like."""
  config = size.config('published')
  x, widths = size.images(1), tuple(config.autoencoder_widths)
  channels = x.shape[-1]
  image = models.MODELS['autoencoder'](
    channels=channels, widths=widths, axis_name='batch'
  )
  latents = jax.eval_shape(
    lambda key: image.init_with_output(key, x, train=False, method='encode')[0],
    jax.random.key(0),
  )
  width = config.mapping_options.width
  mapping = models.MODELS['mapping'](
    width=width, pooling='official', axis_name='batch'
  )
  first = _network(
    'autoencoder',
    image,
    networks.variables_of(tasks.image_reconstruction(image), {'image': x}),
    torch_networks.Autoencoder(channels, widths),
    lambda module, variables: torch_networks.load(
      module, state_dicts.state_from_autoencoder(variables)
    ),
  )
  second = _network(
    'mapping',
    mapping,
    networks.variables_of(tasks.mapping(mapping), {'image': latents}),
    torch_networks.MappingNetwork(
      width, {scale: z.shape[-1] for scale, z in latents.items()}
    ),
    lambda module, variables: torch_networks.load(
      module, state_dicts.state_from_mapping(variables)
    ),
  )
  return first, second, latents


def inference(size: sizes_lib.Size) -> Iterator[Pair]:
  """Yields the networks of a query, and the whole of them, at batch 1."""
  ae, mapping, _ = _official(size)
  encode, decode = (
    functools.partial(ae.ours.apply, train=False, method=method)
    for method in ('encode', 'decode')
  )
  translate = functools.partial(mapping.ours.apply, train=False)
  encoder, decoder = ae.theirs.eval().encoderT, ae.theirs.decoder
  translator = mapping.theirs.eval()
  image = jnp.asarray(size.images(1) / 255, jnp.float32)
  latents = jax.jit(encode)(ae.variables, image)

  def whole(variables, x):
    ae, mapping = variables
    return decode(ae, translate(mapping, encode(ae, x)))

  yield _pair('image encoder', encode, ae.variables, image, encoder)
  yield _pair('mapping', translate, mapping.variables, latents, translator)
  yield _pair('mask decoder', decode, ae.variables, latents, decoder)
  yield _pair(
    'all three',
    whole,
    (ae.variables, mapping.variables),
    image,
    torch.nn.Sequential(encoder, translator, decoder),
  )


def defaults(size: sizes_lib.Size) -> Iterator[Pair]:
  """Yields our default networks beside the official ones, at batch 1.

  They are not the same functions: this is the time of a query, networks alone.
  Parameters are ours.
  """
  ae, mapping, _ = _official(size)
  modules = ae.theirs.eval().encoderT, mapping.theirs.eval(), ae.theirs.decoder
  theirs = torch.inference_mode()(torch.nn.Sequential(*modules))
  parts, task = size.learners(), networks.mapping_task(size)
  pair = size.pairs(1)
  variables = (
    networks.variables_of(parts.image_task, pair),
    networks.variables_of(task, networks.mapping_batch(size, 1)),
    networks.variables_of(parts.mask_task, pair),
  )

  def whole(variables, x):
    image, mapping, mask = variables
    apply = functools.partial(nn.Module.apply, train=False)
    z = apply(parts.image_model, image, x, method='encode')
    z = task.predict(mapping, z)
    return apply(parts.mask_model, mask, z, method='decode')

  image = jnp.asarray(pair['image'] / 255, jnp.float32)
  tensors = torch_networks.tensors(image)
  yield Pair(
    'all three, ours by default',
    1,
    timing.wait(jax.jit(whole), variables, image),
    torch_networks.wait(lambda: theirs(tensors)),
    _used(variables),
    float('nan'),
  )


def _used(variables) -> int:
  """Returns the parameters of encoder, mapping network and decoder."""
  image, mapping, mask = (part['params'] for part in variables)
  used = image['encoder'], mapping, mask['decoder']
  return sum(x.size for x in jax.tree.leaves(used))


def _pair(name, function, variables, x, module) -> Pair:
  """Returns the pair of our function of (variables, x) and a module of x."""
  ours = timing.wait(jax.jit(function), variables, x)
  infer, tensors = torch.inference_mode()(module), torch_networks.tensors(x)
  theirs = torch_networks.wait(lambda: infer(tensors))
  found = comparison.error(name, ours(), torch_networks.arrays(theirs()))
  batch = len(jax.tree.leaves(x)[0])
  count = sum(p.numel() for p in module.parameters())
  return Pair(name, batch, ours, theirs, count, found)


def steps(size: sizes_lib.Size) -> Iterator[Pair]:
  """Yields training steps, without augmentation."""
  for name in size.steps or STEPS:
    yield STEPS[name](size)


def _autoencoder_step(size):
  ae, _, _ = _official(size)
  config = size.config('published')
  count = size.step_batch or config.autoencoder_batch_size
  batch = size.pairs(count)
  x = _unit_tensor(batch['image'])
  return _step(
    'autoencoder',
    ae,
    tasks.image_reconstruction(ae.ours, official=True),
    batch,
    lambda: _reconstruction(ae.theirs(x), x),
  )


def _mapping_step(size):
  _, mapping, latents = _official(size)
  config = size.config('published')
  count = size.step_batch or config.mapping_batch_size
  z = networks.latents_of(latents, count)
  given = torch_networks.tensors(z)
  ours = jax.jit(functools.partial(mapping.ours.apply, train=False))
  with torch.no_grad():
    theirs = torch_networks.arrays(mapping.theirs.eval()(given))
  return _step(
    'mapping',
    mapping,
    tasks.mapping(mapping.ours),
    {'image': z, 'mask': z},
    lambda: _latent_error(mapping.theirs(given), given),
    # Dropout draws elsewhere what it draws, so losses can't be compared.
    error=comparison.error('mapping', ours(mapping.variables, z), theirs),
  )


def _default_mapping_step(size):
  """Ours by default beside the official one: not the same function."""
  _, official, latents = _official(size)
  config = size.config('published')
  count = size.step_batch or config.mapping_batch_size
  given = torch_networks.tensors(networks.latents_of(latents, count))
  task, batch = networks.mapping_task(size), networks.mapping_batch(size, count)
  ours = Network(None, networks.variables_of(task, batch), official.theirs)
  return _step(
    'mapping, ours by default',
    ours,
    task,
    batch,
    lambda: _latent_error(official.theirs(given), given),
    error=float('nan'),
  )


# Method -> the copy, of channels, classes and the method's options.
_BASELINES = {
  'unet': torch_networks.UNet,
  'ghostnet': functools.partial(torch_networks.UNet, ghost=True),
  'fatnet': torch_fatnet.FATNet,
}


def _baseline_step(size, method):
  config = size.config(method)
  config.augment = {}
  task, _ = learners.baseline(config, num_classes=size.num_classes)
  count = size.step_batch or config.baseline_batch_size
  batch = size.pairs(count)
  x = _unit_tensor(batch['image'])
  y = torch.from_numpy(batch['mask']).to(torch_networks.device(), torch.int64)
  theirs = _BASELINES[method](
    x.shape[1], size.num_classes, **config.baseline_options
  )
  variables = networks.variables_of(task, batch)
  network = _network(method, None, variables, theirs, torch_networks.copy)
  return _step(
    method, network, task, batch, lambda: _segmentation(theirs(x), y)
  )


def _step(name, network, task, batch, loss, error=None) -> Pair:
  """Returns the pair of a training step with Adam.

  Args:
    name: of it.
    network: both, with the same weights.
    task: ours.
    batch: ours.
    loss: theirs, without arguments.
    error: of results, where losses of the first step can't be compared.
  """
  adam = train_step.optimizer(learning_rate=1e-3, steps=1, schedule='constant')
  ((_, run),) = networks.step(name, task, adam, batch, network.variables).stages
  network.theirs.train()
  optimizer = torch.optim.Adam(network.theirs.parameters(), lr=1e-3)

  def step():
    optimizer.zero_grad()
    value = loss()
    value.backward()
    optimizer.step()
    return value

  ours, theirs = timing.wait(run, None), torch_networks.wait(step)
  if error is None:
    found = theirs().detach().cpu().numpy()
    error = comparison.error(f'{name}: loss', ours()['loss'], found)
  count = len(jax.tree.leaves(batch)[0])
  return Pair(name, count, ours, theirs, network.parameters, error)


def _unit_tensor(images: np.ndarray) -> torch.Tensor:
  return torch_networks.tensors(np.float32(images) / 255)


def _reconstruction(logits, x):
  """As `losses.official_reconstruction`."""
  p = torch.sigmoid(logits)
  overlap, total = (p * x).sum((1, 2, 3)), (p + x).sum((1, 2, 3))
  dice = (1 - (2 * overlap + 1e-6) / (total + 1e-6)).mean()
  bce = functional.binary_cross_entropy_with_logits(logits, x)
  return (bce + dice) / 2


def _latent_error(found, wanted):
  """As `losses.latent_mse`."""
  return sum(functional.mse_loss(found[s], wanted[s]) for s in wanted)


def _segmentation(logits, y):
  """As `losses.segmentation`."""
  p = torch.softmax(logits, 1)
  one_hot = functional.one_hot(y, logits.shape[1]).movedim(-1, 1).to(p.dtype)
  overlap, total = (p * one_hot).sum((0, 2, 3)), (p + one_hot).sum((0, 2, 3))
  present = one_hot.sum((0, 2, 3)) > 0
  dice = (present * 2 * overlap / (total + 1e-6)).sum() / present.sum()
  return functional.cross_entropy(logits, y) + 1 - dice


STEPS = {
  'autoencoder': _autoencoder_step,
  'mapping': _mapping_step,
  'default_mapping': _default_mapping_step,
  **{
    method: functools.partial(_baseline_step, method=method)
    for method in _BASELINES
  },
}
SECTIONS = {
  'networks': inference,
  'defaults': defaults,
  'steps': steps,
  'layers': torch_layers.layers,
}
