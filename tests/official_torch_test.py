"""Tests of official/ against PyTorch itself, where it is installed.

The modules below have the key names of the official ones and compute what
the official code does; strict loading is of them.
"""

import json
import pathlib

import jax
import numpy as np
import official_test
import optax
import pytest

from ppcmi_jax import official, tasks
from ppcmi_jax.models import autoencoder, mapping
from ppcmi_jax.official import archive, state_dicts

torch = pytest.importorskip('torch', reason='PyTorch is not installed')
nn = torch.nn

TINY = (2, 3, 4, 5, 6)
nchw = lambda x: torch.from_numpy(np.array(np.moveaxis(x, -1, 1)))
nhwc = lambda x: np.moveaxis(x.detach().numpy(), 1, -1)


def up():
  return nn.Upsample(scale_factor=2, mode='bilinear', align_corners=False)


def stage(inputs, outputs, stride=1):
  conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
  return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Wrap(nn.Module):
  def __init__(self, channels):
    super().__init__()
    self.register_buffer('Q', torch.eye(channels))
    self.register_buffer('b', torch.zeros(channels))


class Encoder(nn.Module):
  def __init__(self, channels, widths, protected):
    super().__init__()
    for i, name in enumerate(('e1', 'e2', 'e3', 'e4', 'b')):
      self.add_module(name, stage((channels, *widths)[i], widths[i], 2))
    if protected:
      self.T_b, self.T_s3, self.T_s4 = (Wrap(widths[i]) for i in (4, 2, 3))

  def forward(self, x):
    s3 = self.e3(self.e2(self.e1(x)))
    s4 = self.e4(s3)
    return {'s3': s3, 's4': s4, 'b': self.b(s4)}


class Decoder(nn.Module):
  def __init__(self, channels, widths, skips):
    super().__init__()
    w1, w2, w3, w4, w5 = widths
    self.skips = skips
    self.up1 = nn.Sequential(up(), stage(w5, w4))
    self.up2 = nn.Sequential(up(), stage(w4 * (1 + skips), w3))
    self.up3 = nn.Sequential(up(), stage(w3 * (1 + skips), w2))
    self.up4 = nn.Sequential(up(), stage(w2, w1))
    self.out_conv = nn.Conv2d(w1, channels, 3, padding=1)

  def forward(self, z):
    join = lambda x, skip: torch.cat([x, skip], 1) if self.skips else x
    x = join(self.up1(z['b']), z['s4'])
    x = join(self.up2(x), z['s3'])
    return torch.sigmoid(self.out_conv(up()(self.up4(self.up3(x)))))


class Autoencoder(nn.Module):
  def __init__(self, channels, widths=TINY, skips=True, protected=True):
    super().__init__()
    self.encoderT = Encoder(channels, widths, protected)
    self.decoder = Decoder(channels, widths, skips)

  def forward(self, x):
    return self.decoder(self.encoderT(x))


class Pyramid(nn.Module):
  def __init__(self, channels):
    super().__init__()
    part = lambda i, o: nn.Sequential(
      nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()
    )
    branch = max(channels // 8, 1)
    self.branches = nn.ModuleList(part(channels, branch) for _ in range(4))
    self.final = part(channels + 4 * branch, channels)

  def forward(self, x):
    mean = x.mean((2, 3), keepdim=True)
    pooled = [
      branch(mean.expand(-1, -1, size, size))[:, :, :1, :1].expand(
        -1, -1, *x.shape[2:]
      )
      for size, branch in zip((1, 3, 5, 7), self.branches, strict=True)
    ]
    return self.final(torch.cat([x, *pooled], 1))


class Block(nn.Module):
  def __init__(self, channels, scaled):
    super().__init__()
    conv = lambda i, o: nn.Sequential(
      nn.Conv2d(i, o, 3, padding=1), nn.LeakyReLU(0.1), nn.BatchNorm2d(o)
    )
    a, b, c, d, e = (scaled(n) for n in (64, 128, 256, 512, 1024))
    self.c1, self.c2, self.c3 = conv(channels, b), conv(b, c), conv(c, d)
    self.ppm1 = Pyramid(d)
    self.c4, self.c5 = conv(d, d), conv(d, e)
    self.d1, self.d2, self.d3 = conv(e, c), conv(c, b), conv(b, a)
    self.u1, self.u2 = conv(a + b, b), conv(b + c, c)
    self.u3 = conv(c + e, d)
    self.ppm2 = Pyramid(d)
    self.out = nn.Conv2d(d, channels, 1)

  def forward(self, x):
    pool, join = nn.MaxPool2d(2), lambda x, skip: torch.cat([up()(x), skip], 1)
    x = self.c5(self.c4(self.ppm1(self.c3(self.c2(self.c1(x))))))
    d1 = self.d1(pool(x))
    d2 = self.d2(pool(d1))
    u2 = self.u2(join(self.u1(join(self.d3(pool(d2)), d2)), d1))
    return torch.relu(self.out(self.ppm2(self.u3(join(u2, x)))))


class Mapping(nn.Module):
  def __init__(self, width, b, s3, s4):
    super().__init__()
    scaled = lambda features: max(8, round(features * width))
    self.mb, self.ms3, self.ms4 = (Block(c, scaled) for c in (b, s3, s4))

  def forward(self, z):
    return {s: getattr(self, f'm{s}')(z[s]) for s in state_dicts.SCALES}


def fill(module, seed):
  """Gives a module the weights of the recipe; returns its state_dict."""
  shapes = {k: tuple(v.shape) for k, v in module.state_dict().items()}
  state = official_test.recipe(shapes, seed)
  tensors = {k: torch.from_numpy(np.array(v)) for k, v in state.items()}
  module.load_state_dict(tensors, strict=True)
  return module.eval()


def close(found, expected, rtol=1e-5):
  official_test.assert_close(found, expected, rtol)


def test_key_names_here_are_those_of_the_official_code():
  golden = json.loads((official_test.GOLDEN / official_test.SHAPES).read_text())
  widths = (16, 32, 64, 128, 256)
  for name, module in {
    'autoencoder_3ch': Autoencoder(3, widths),
    'autoencoder_1ch': Autoencoder(1, widths),
    'mapping': Mapping(1.0, 256, 64, 128),
  }.items():
    found = [[k, list(v.shape)] for k, v in module.state_dict().items()]
    assert found == golden[name]


def test_modules_here_compute_what_the_official_ones_do():
  path = official_test.large('client1_img_ae.pt')
  golden = np.load(official_test.large('out_ae_in3.npz'))
  module = Autoencoder(3, (16, 32, 64, 128, 256)).eval()
  module.load_state_dict(torch.load(path, weights_only=True), strict=True)
  with torch.no_grad():
    close(module(torch.from_numpy(golden['x'])), golden['ae_out'])


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('skips', [True, False])
@pytest.mark.parametrize('protected', [True, False])
def test_autoencoders_go_there_and_back(tmp_path, channels, skips, protected):
  theirs = fill(Autoencoder(channels, TINY, skips, protected), 1)
  torch.save(theirs.state_dict(), tmp_path / 'theirs.pt')
  variables, secret = official.load_autoencoder(tmp_path / 'theirs.pt')
  options = official.autoencoder_options(variables)
  assert (options['channels'], options['widths']) == (channels, TINY)
  assert options['skips'] == skips and (secret is not None) == protected

  x = np.float32(np.random.default_rng(0).uniform(size=(2, 64, 32, channels)))
  model = autoencoder.Autoencoder(**options)
  logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)
  close(jax.nn.sigmoid(logits), nhwc(theirs(nchw(x))))

  official.save_autoencoder(tmp_path / 'ours.pt', variables, secret)
  state = torch.load(tmp_path / 'ours.pt', weights_only=True)
  again = Autoencoder(channels, TINY, skips, protected).eval()
  again.load_state_dict(state, strict=True)
  assert list(state) == list(theirs.state_dict())
  for key, tensor in theirs.state_dict().items():
    assert state[key].dtype == tensor.dtype
    assert key.endswith('num_batches_tracked') or torch.equal(
      state[key], tensor
    )
  assert torch.equal(again(nchw(x)), theirs(nchw(x)))


def test_mappings_go_there_and_back(tmp_path):
  theirs = fill(Mapping(0.03, 6, 4, 5), 2)
  torch.save(theirs.state_dict(), tmp_path / 'theirs.pt')
  variables = official.load_mapping(tmp_path / 'theirs.pt')
  rng, shapes = np.random.default_rng(0), {'b': (8, 6), 's3': (32, 4)}
  z = {
    scale: np.float32(rng.uniform(size=(2, side, side, c)))
    for scale, (side, c) in {**shapes, 's4': (16, 5)}.items()
  }
  model = mapping.MappingNetwork(**official.mapping_options(variables))
  w = jax.jit(lambda v, z: model.apply(v, z, train=False))(variables, z)
  expected = theirs({scale: nchw(x) for scale, x in z.items()})
  for scale in z:
    close(w[scale], nhwc(expected[scale]))

  official.save_mapping(tmp_path / 'ours.pt', variables)
  state = torch.load(tmp_path / 'ours.pt', weights_only=True)
  again = Mapping(0.03, 6, 4, 5).eval()
  again.load_state_dict(state, strict=True)
  assert list(state) == list(theirs.state_dict())
  again = again({scale: nchw(x) for scale, x in z.items()})
  assert all(torch.equal(again[scale], expected[scale]) for scale in z)


def dice_loss(p, y):
  overlap, total = (p * y).sum((1, 2, 3)), (p + y).sum((1, 2, 3))
  return (1 - (2 * overlap + 1e-6) / (total + 1e-6)).mean()


def autoencoder_step(widths=(16, 32, 64, 128, 256)):
  """One step in PyTorch: {name: array}, as the golden file has it."""
  module = fill(Autoencoder(3, widths), 101).train()
  x = nchw(official_test.step_images())
  optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
  p = module(x)
  loss = 0.5 * nn.functional.binary_cross_entropy(p, x) + 0.5 * dice_loss(p, x)
  loss.backward()
  optimizer.step()
  result = {'loss': loss.detach().numpy()}
  for key, parameter in module.named_parameters():
    norm = torch.linalg.vector_norm(parameter.grad.double())
    result[f'gradnorm/{key}'] = np.float32(norm)
    if parameter.ndim < 2:
      result[f'grad/{key}'] = parameter.grad.numpy()
  for key, tensor in module.state_dict().items():
    if tensor.ndim < 2 and '.T_' not in key:
      result[f'after/{key}'] = tensor.numpy()
  return result


def test_the_golden_step_is_that_of_pytorch():
  golden = np.load(official_test.GOLDEN / official_test.STEP)
  found = autoencoder_step()
  assert set(golden) == set(found)
  for name in found:
    close(found[name], golden[name], 1e-4)


def test_pytorch_maps_what_we_write(tmp_path):
  arrays = {'a': np.arange(6.0).reshape(2, 3), 'b': np.int64(7)}
  archive.write(tmp_path / 'x.pt', arrays)
  for mmap in (False, True):
    state = torch.load(tmp_path / 'x.pt', weights_only=True, mmap=mmap)
    assert torch.equal(state['a'], torch.arange(6.0).double().reshape(2, 3))
    assert state['b'].shape == () and state['b'] == 7
    assert state['a'].data_ptr() % archive.ALIGNMENT == 0 or not mmap


def test_views_and_shared_memory_are_read(tmp_path):
  base = torch.arange(24.0).reshape(4, 6)
  tensors = {
    'base': base,
    'transposed': base.T,
    'strided': base[1::2, 2:5],
    'row': base[3],
    'scalar': base[2, 2],
    'empty': base[4:],
    'half': base.half(),
    'last': base.to(memory_format=torch.contiguous_format),
  }
  torch.save(tensors, tmp_path / 'x.pt')
  found = archive.read(tmp_path / 'x.pt')
  assert list(found) == list(tensors)
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(found[name], tensor.numpy())
    assert found[name].dtype == tensor.numpy().dtype


@pytest.mark.parametrize(
  'make, expected',
  [
    (lambda: Autoencoder(1), 'names official_torch_test.Autoencoder'),
    (lambda: {'epoch': 3, 'state_dict': {}}, "found a int at 'epoch'"),
    (lambda: [torch.zeros(2)], 'EMPTY_LIST'),
    (lambda: torch.zeros(2), 'found a Tensor'),
    (lambda: {'x': torch.zeros(2).bfloat16()}, 'names torch.BFloat16Storage'),
    (lambda: {0: torch.zeros(2)}, 'keys that are no strings'),
  ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, make, expected):
  torch.save(make(), tmp_path / 'x.pt')
  with pytest.raises(ValueError, match=r'x\.pt: expected') as error:
    archive.read(tmp_path / 'x.pt')
  assert expected in str(error.value) and '\n' not in str(error.value)


def test_the_old_format_is_refused(tmp_path):
  state, path = {'x': torch.zeros(2)}, tmp_path / 'x.pt'
  torch.save(state, path, _use_new_zipfile_serialization=False)
  with pytest.raises(ValueError, match=r'PyTorch before 1\.6'):
    archive.read(path)


def test_training_agrees_for_some_steps():
  """Small errors grow, but three steps of both stay together."""
  theirs = fill(Autoencoder(2, TINY), 3).train()
  variables, _ = state_dicts.autoencoder_from_state(
    {k: v.numpy().copy() for k, v in theirs.state_dict().items()}
  )
  x = np.float32(np.random.default_rng(0).uniform(size=(2, 64, 64, 2)))
  optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-3)
  model = autoencoder.Autoencoder(**official.autoencoder_options(variables))
  task = tasks.image_reconstruction(model, official=True)
  loss, tx = official.unbiased_variance(task.loss), optax.adam(1e-3)
  batch = {'image': x, 'mask': np.zeros(x.shape[:3], np.uint8)}

  @jax.jit
  def step(variables, opt_state):
    run = lambda params: loss(
      {**variables, 'params': params}, batch, jax.random.key(0), True
    )
    grad, (metrics, variables) = jax.grad(run, has_aux=True)(
      variables['params']
    )
    updates, opt_state = tx.update(grad, opt_state)
    params = optax.apply_updates(variables['params'], updates)
    return {**variables, 'params': params}, opt_state, metrics['loss']

  opt_state = tx.init(variables['params'])
  for _ in range(3):
    optimizer.zero_grad()
    p, y = theirs(nchw(x)), nchw(x)
    value = nn.functional.binary_cross_entropy(p, y) + dice_loss(p, y)
    (value / 2).backward()
    optimizer.step()
    variables, opt_state, found = step(variables, opt_state)
    close(found, value.item() / 2)
  found = state_dicts.state_from_autoencoder(variables)
  for key, tensor in theirs.state_dict().items():
    if 'running' in key:
      close(found[key], tensor.numpy(), 1e-4)


if __name__ == '__main__':  # writes the golden files that PyTorch makes
  folder = pathlib.Path(__file__).parent / 'golden'
  np.savez_compressed(folder / official_test.STEP, **autoencoder_step())
  tiny = fill(Autoencoder(1, TINY), 106)
  torch.save(tiny.state_dict(), folder / official_test.TINY_FILE)
