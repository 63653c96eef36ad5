"""Folders of official checkpoints become workdirs that evaluate, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import smoke
from ppcmi_jax import (
  collaboration,
  config_checks,
  conversion,
  keyring,
  official,
  wire,
)
from ppcmi_jax.models import autoencoder, mapping
from ppcmi_jax.official import archive

NAMES = ('1', '2', '3')
WIDTHS = (4, 4, 8, 8, 8)
SCALES = ('s3', 's4', 'b')


@pytest.fixture(autouse=True, scope='module')
def compile_fast():
  """What is compiled here runs once, and compiling it would take longer."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def random_variables(model, like, seed):
  """Returns variables that give outputs of ordinary size, drawn by NumPy."""
  shapes = jax.eval_shape(
    lambda key, x: model.init(key, x, train=False), jax.random.key(0), like
  )
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    if name == 'kernel':
      scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
      return np.float32(scale * rng.standard_normal(leaf.shape))
    if name in ('scale', 'var'):
      return np.float32(rng.uniform(0.5, 1.5, leaf.shape))
    return np.float32(0.2 * rng.standard_normal(leaf.shape))

  return jax.tree_util.tree_map_with_path(draw, shapes)


def random_secret(seed):
  rng = np.random.default_rng(seed)
  sizes = dict(zip(SCALES, WIDTHS[2:]))
  q = {
    s: np.linalg.qr(rng.standard_normal((n, n)))[0] for s, n in sizes.items()
  }
  b = {s: rng.standard_normal(n) for s, n in sizes.items()}
  return jax.tree.map(np.float32, (q, b))


def write_official_run(folder, *, protected=True, widths=WIDTHS):
  """Writes a run of three clients; returns its networks and transforms."""
  folder.mkdir()
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  model = autoencoder.Autoencoder(3, widths)
  run = {}
  for k, name in enumerate(NAMES, start=1):
    for j, modality in enumerate(('img', 'mask')):
      variables = random_variables(model, image, 10 * k + j)
      secret = random_secret(100 * k + j) if protected else None
      path = folder / f'client{k}_{modality}_ae.pt'
      official.save_autoencoder(path, variables, secret)
      run[name, modality] = variables, secret
  like = {
    s: jax.ShapeDtypeStruct((1, 1, 1, n), jnp.float32)
    for s, n in zip(SCALES, widths[2:])
  }
  run['umn'] = random_variables(mapping.MappingNetwork(0.02), like, 7)
  official.save_mapping(folder / 'umn.pt', run['umn'])
  return run


def make_config(data_dir):
  config = smoke.get_config('official')
  config.data_dir = str(data_dir)
  return config


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  return make_config(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def converted(config, tmp_path_factory):
  """Returns an official run, its folder, and the workdir made of it."""
  folder = tmp_path_factory.mktemp('official') / 'results'
  run = write_official_run(folder)
  workdir = folder.with_name('workdir')
  conversion.read_folder(config, workdir, folder)
  return run, folder, workdir


def official_pipeline(run, name, image):
  """Returns the official code's protected query and logits, step by step."""
  encoder = autoencoder.Autoencoder(3, WIDTHS)
  mapper = mapping.MappingNetwork(0.02, pooling='official')
  (image_net, t), (mask_net, t2) = run[name, 'img'], run[name, 'mask']
  z = encoder.apply(image_net, image, train=False, method='encode')
  protect = lambda t, z: {s: z[s] @ t[0][s].T + t[1][s] for s in z}
  recover = lambda t, w: {s: (w[s] - t[1][s]) @ t[0][s] for s in w}
  with jax.default_matmul_precision('highest'):
    query = protect(t, z)
    z = mapper.apply(run['umn'], recover(t, query), train=False)
    w = recover(t2, protect(t2, z))
    logits = encoder.apply(mask_net, w, train=False, method='decode')
  return query, np.asarray(logits)


def test_a_converted_run_predicts_what_the_official_code_does(
  config, converted
):
  run, _, workdir = converted
  restored = collaboration.restore(config, workdir)
  for name in NAMES:
    image = restored.data.hospitals[name]['train'].image
    assert image.shape[1:] == (32, 32, 3)
    query, logits = official_pipeline(run, name, np.float32(image) / 255)
    hospital = restored.hospitals[name]
    message, _ = hospital.client.protect(hospital.state, image)
    for scale, latents in wire.decode(message).latents.items():
      np.testing.assert_allclose(latents, query[scale], rtol=0, atol=1e-4)
    expected = np.argmax(logits, -1)
    assert len(np.unique(expected)) == 3  # else it would say little
    found = restored.predict[name](image)
    gap = np.diff(np.sort(logits, -1)[..., -2:])[..., 0]
    clear = gap > 1e-4 * np.max(np.abs(logits))
    assert np.mean(clear) > 0.99
    np.testing.assert_array_equal(found[clear], expected[clear])


def test_a_converted_run_is_whole_and_private(config, converted):
  _, _, workdir = converted
  assert not workdir.with_name('workdir.partial').exists()
  assert (workdir / 'secrets').stat().st_mode & 0o077 == 0
  for name in NAMES:
    keyring.load(workdir / 'secrets' / f'{name}.key')
    file = workdir / 'secrets' / f'{name}.official.npz'
    assert file.stat().st_mode & 0o077 == 0


def test_a_run_written_back_is_the_one_that_was_read(
  config, converted, tmp_path, capsys
):
  _, folder, workdir = converted
  conversion.write_folder(config, workdir, tmp_path / 'back')
  files = sorted(path.name for path in folder.iterdir())
  assert files == sorted(p.name for p in (tmp_path / 'back').iterdir())
  for name in files:
    old, new = (
      archive.read(folder / name),
      archive.read(tmp_path / 'back' / name),
    )
    assert list(old) == list(new)
    for key in old:
      np.testing.assert_array_equal(old[key], new[key])
  assert 'not the published sizes' in capsys.readouterr().out
  with pytest.raises(ValueError, match=r'client1_img_ae\.pt: is there already'):
    conversion.write_folder(config, workdir, tmp_path / 'back')


def test_a_run_without_transform_needs_protection_none(config, tmp_path):
  write_official_run(tmp_path / 'results', protected=False)
  with pytest.raises(ValueError, match=r'img_ae\.pt: .*protection=none'):
    conversion.read_folder(config, tmp_path / 'w', tmp_path / 'results')
  assert not (tmp_path / 'w').exists()
  plain = config.copy_and_resolve_references()
  plain.protection = 'none'
  conversion.read_folder(plain, tmp_path / 'w', tmp_path / 'results')
  assert not list((tmp_path / 'w' / 'secrets').glob('*.npz'))
  conversion.write_folder(plain, tmp_path / 'w', tmp_path / 'back')
  _, secret = official.load_autoencoder(tmp_path / 'back/client2_mask_ae.pt')
  assert secret is None


@pytest.mark.parametrize(
  'spoil, message',
  [
    (lambda f: (f / 'umn.pt').unlink(), r'expected 7 files .* no umn\.pt'),
    (
      lambda f: (f / 'client3_mask_ae.pt').unlink(),
      r'3 clients 1, 2, 3, found no client3_mask_ae\.pt',
    ),
    (
      lambda f: (f / 'client4_img_ae.pt').write_bytes(b''),
      r'expected 3 clients.*found client4_img_ae\.pt',
    ),
    (
      lambda f: (f / 'client2_img_ae.pt').write_bytes(
        (f / 'client2_img_ae.pt').read_bytes()[:-99]
      ),
      r'client2_img_ae\.pt',
    ),
    (
      lambda f: (f / 'umn.pt').write_bytes(
        (f / 'client1_img_ae.pt').read_bytes()
      ),
      r'umn\.pt: expected an official mapping network',
    ),
  ],
)
def test_a_wrong_folder_is_refused_and_leaves_nothing(
  config, tmp_path, spoil, message
):
  write_official_run(tmp_path / 'results')
  spoil(tmp_path / 'results')
  with pytest.raises(ValueError, match=message):
    conversion.read_folder(config, tmp_path / 'w', tmp_path / 'results')
  assert [path.name for path in tmp_path.iterdir()] == ['results']


def test_a_missing_folder_costs_nothing(config, tmp_path):
  config = config.copy_and_resolve_references()
  config.data_dir = str(tmp_path / 'data')
  with pytest.raises(ValueError, match=r'nope: expected a folder .*--read'):
    conversion.read_folder(config, tmp_path / 'w', tmp_path / 'nope')
  assert not any(tmp_path.iterdir())


def test_another_network_is_refused_by_array_and_shapes(config, tmp_path):
  write_official_run(tmp_path / 'results', widths=(4, 4, 8, 8, 9), protected=0)
  config = config.copy_and_resolve_references()
  config.protection = 'none'
  with pytest.raises(
    ValueError,
    match=r'client1_img_ae\.pt: is of another network .*: '
    r'batch_stats/encoder/stage5/norm/mean: expected \(8,\), found \(9,\)',
  ):
    conversion.read_folder(config, tmp_path / 'w', tmp_path / 'results')


def test_an_existing_workdir_is_left_alone(config, converted, tmp_path):
  _, folder, workdir = converted
  before = sorted(workdir.rglob('*'))
  with pytest.raises(ValueError, match='is there already'):
    conversion.read_folder(config, workdir, folder)
  assert sorted(workdir.rglob('*')) == before


@pytest.mark.parametrize(
  'field, value',
  [
    ('protection', 'klt'),
    ('upsampling', 'shuffle'),
    ('autoencoder_widths', (2, 3, 4, 5)),
    ('latent_widths', (2, 3, 4)),
    ('image_blocks', 1),
    ('image_full_size', True),
    ('segmentation_weight', 0.3),
    ('mapping_options', {'width': 0.02, 'pooling': 'pyramid'}),
  ],
)
def test_what_the_official_code_cannot_do_is_named(
  config, tmp_path, field, value
):
  config = config.copy_and_resolve_references()
  config[field] = value
  config_checks.check(config)
  for convert in (conversion.read_folder, conversion.write_folder):
    with pytest.raises(ValueError, match=rf'^{field}.*expected'):
      convert(config, tmp_path / 'w', tmp_path)
