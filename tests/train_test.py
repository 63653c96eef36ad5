"""train.py and eval.py as a user runs them: end to end, killed, misused."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import scripts

from configs import smoke
from ppcmi_jax import (
  collaboration,
  evaluation,
  keyring,
  report,
  server_training,
)
from ppcmi_jax import workdir as workdir_lib
from ppcmi_jax.keyring import epochs
from ppcmi_jax.privacy import campaign
from ppcmi_jax.privacy import setting as settings
from ppcmi_jax.sealed import envelope, sealing

CLIENTS = ('1', '2', '3')


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


@pytest.fixture(scope='module')
def script(data_dir):
  """Returns a function that starts a script on the smoke configuration."""

  def start(name, workdir, *flags, **options):
    return scripts.smoke(name, workdir, data_dir, *flags, **options)

  return start


@pytest.fixture(scope='module')
def trained(script, tmp_path_factory):
  """Returns a workdir that was trained and evaluated, and what was printed."""
  workdir = tmp_path_factory.mktemp('run') / 'smoke'
  code, train_out, err = scripts.finish(script('train.py', workdir))
  assert code == 0, err
  code, eval_out, err = scripts.finish(script('eval.py', workdir))
  assert code == 0, err
  return workdir, train_out, eval_out


def config_of(data_dir):
  config = smoke.get_config()
  config.data_dir = str(data_dir)
  return config


def digests(workdir):
  """Returns {task: digest of the final checkpoint's arrays}."""
  found = {}
  for task in (workdir / 'checkpoints').iterdir():
    last = max(int(p.name) for p in task.iterdir() if p.name.isdigit())
    text = (task / str(last) / 'meta' / 'metadata').read_text()
    found[task.name] = (last, json.loads(text)['sha256'])
  return found


def test_one_run_gives_tables_json_and_pictures(trained):
  workdir, train_out, eval_out = trained
  for split in ('train', 'valid', 'test'):
    assert split in train_out
  for word in ('Dice', 'HD95 mm', 'PSNR', 'protect ms', 'prior', 'ceiling'):
    assert word in eval_out
  results = json.loads((workdir / 'eval' / 'results.json').read_text())
  assert set(results['segmentation']) == set(CLIENTS)
  for name in CLIENTS:
    scores = results['segmentation'][name]['scores']
    assert 0 <= scores['fetal head']['dice'] <= 1
    for other in ('alone', 'fused'):
      of_mean = results['segmentation'][name][other]['mean']
      assert 0 <= of_mean['dice'] <= 1
    assert results['query'][name]['own_latency']['own']['p50_ms'] > 0
    assert results['query'][name]['latency']['total']['p50_ms'] > 0
    # A message opened by its own client is what the client sees, but for the
    # rounding, which each message has of its own.
    matrix = results['cross_client']['dice']
    for key in ('own', 'leaked'):
      assert abs(matrix[key][name][name] - scores['mean']['dice']) < 0.01
    # And nobody else opens it without that client's key.
    others = [other for other in CLIENTS if other != name]
    assert [matrix['own'][name][other] for other in others] == [None, None]
    assert None not in [matrix['leaked'][name][other] for other in others]
  wire = results['wire']
  sizes = [wire[dtype]['query_bytes'] for dtype in wire]
  assert list(wire) == ['float32', 'bfloat16', 'float16', 'int8', 'int4']
  assert sizes[0] > sizes[1] == sizes[2] > sizes[3] > sizes[4]
  report = workdir / 'report'
  pictures = {path.stem for path in report.glob('*.png')}
  assert pictures >= {*CLIENTS, 'latents', 'training', 'boxplots_dice'}
  for path in report.glob('*.png'):
    assert path.read_bytes().startswith(b'\x89PNG')
  html = (report / 'index.html').read_text()
  assert html.count('<img') == len(pictures)
  assert 'does not protect from the server' in html
  for suffix in ('csv', 'tex'):
    names = {path.stem for path in (report / 'tables').glob(f'*.{suffix}')}
    assert names == {
      'segmentation', 'segmentation_spread', 'official_scores',
      'autoencoders', 'cross_client', 'query', 'wire', 'networks',
    }  # fmt: skip
  assert (workdir / 'split.csv').read_text().startswith('case,subject,site')
  assert (workdir / 'metrics.jsonl').read_text().count('\n') == 3 * 7


def test_payloads_are_scored_when_asked(trained, script, tmp_path):
  """And what was evaluated before stays."""
  workdir = tmp_path / 'smoke'
  shutil.copytree(trained[0], workdir)
  code, out, err = scripts.finish(
    script('eval.py', workdir, '--eval_names=payload')
  )
  assert code == 0, err
  assert 'How far a message shrinks before Dice falls.' in out
  assert 'Segmentation of the test split' in out
  assert (workdir / 'report' / 'tables' / 'payload.csv').exists()
  before, results = (
    json.loads((folder / 'eval' / 'results.json').read_text())
    for folder in (trained[0], workdir)
  )
  assert results['segmentation'] == before['segmentation']
  found, wire = results['payload'], results['wire']
  dice = lambda row: pytest.approx(row['dice'], abs=0.02)
  assert found['whole']['bytes'] == wire['float16']['query_bytes']
  for direction in ('query', 'reply'):
    rows = found[direction]
    # What really crosses in int8 and int4 is as long, and scores as much.
    for bits in (8, 4):
      sent = wire[f'int{bits}'][f'{direction}_bytes']
      assert rows[f'mixed, {bits} bits']['longest'] == sent
    assert dice(rows['mixed, 8 bits']) == found['whole']['dice']
    sizes = [rows[f'mixed, {b} bits']['bytes'] for b in (8, 6, 5, 4, 3, 2)]
    assert sizes == sorted(sizes, reverse=True)


def keys_of(workdir):
  """Returns every key of a run, and checks that both sides hold the same."""
  keys = []
  for name in CLIENTS:
    sides = [
      epochs.load(workdir / 'secrets' / side / f'{name}.epoch')
      for side in ('clients', 'server')
    ]
    assert sides[0] == sides[1]
    keys.append(sides[0].key)
  return [*keys, keyring.load(workdir / 'secrets' / 'server' / 'storage.key')]


def test_secrets_stay_in_their_folder(trained):
  workdir, train_out, eval_out = trained
  assert (workdir / 'secrets').stat().st_mode & 0o777 == 0o700
  secrets = keys_of(workdir)
  assert len(set(secrets)) == 4
  for path in workdir.glob('messages/*/*.msg'):
    header = envelope.read(path.read_bytes())
    key = secrets[CLIENTS.index(header.client)]
    secrets.append(sealing.message_key(key, header))
  assert len(set(secrets)) == len(secrets) > 12
  assert not list(workdir.rglob('*.export'))
  others = [
    path
    for path in workdir.rglob('*')
    if path.is_file() and 'secrets' not in path.parts
  ]
  assert len(others) > 50
  contents = [path.read_bytes() for path in others]
  contents += [train_out.encode(), eval_out.encode()]
  for content in contents:
    for secret in secrets:
      assert secret not in content and secret.hex().encode() not in content


def test_checkpoints_hold_no_key(trained):
  """Checkpoints are compressed, so their arrays are searched, not the files."""
  workdir, _, _ = trained
  secrets, count = keys_of(workdir), 0
  for task in (workdir / 'checkpoints').iterdir():
    with ocp.CheckpointManager(task, item_names=('state', 'meta')) as manager:
      saved = manager.restore(
        manager.latest_step(),
        args=ocp.args.Composite(state=ocp.args.StandardRestore()),
      ).state
    for leaf in jax.tree.leaves(saved):
      count += 1
      data = np.asarray(leaf).tobytes()
      assert not any(secret[:16] in data for secret in secrets)
  assert count > 100


def train_server_alone(reference, workdir):
  """Trains the mapping network where no image, encoder or decoder is left."""
  shutil.copytree(reference / 'messages', workdir / 'messages')
  shutil.copytree(
    reference / 'secrets' / 'server', workdir / 'secrets' / 'server'
  )
  (workdir / 'secrets').chmod(0o700)
  config = smoke.get_config()
  shapes = {'s3': (8, 4), 's4': (4, 4), 'b': (2, 4)}
  latents = {
    modality: {
      scale: jax.ShapeDtypeStruct((1, side, side, channels), np.float32)
      for scale, (side, channels) in shapes.items()
    }
    for modality in ('image', 'mask')
  }
  server_training.train(
    config,
    workdir_lib.Workdir(workdir, config.to_dict()),
    names=CLIENTS,
    latents=latents,
    title='server',
  )
  return digests(workdir)['mapping']


def test_server_trains_from_message_files_alone(trained, tmp_path):
  """Not even the clients' keys are there, and the network comes out equal."""
  reference, _, _ = trained
  found = train_server_alone(reference, tmp_path / 'server')
  assert found == digests(reference)['mapping']


def test_new_autoencoders_mean_new_contributions(
  trained, data_dir, tmp_path, caplog
):
  workdir = tmp_path / 'changed'
  shutil.copytree(trained[0], workdir)
  note = workdir / 'messages' / '2' / 'autoencoders.sha256'
  note.write_text('of other autoencoders')
  old = (workdir / 'messages' / '2' / 'valid-000-000000.image.msg').read_bytes()
  with caplog.at_level('WARNING', logger='absl'):
    collaboration.train(config_of(data_dir), workdir)
  assert 'client 2: its autoencoders have changed' in caplog.text
  new = (workdir / 'messages' / '2' / 'valid-000-000000.image.msg').read_bytes()
  assert new != old
  # The server has forgotten what it kept of the old ones.
  kept = workdir / 'secrets' / 'server' / 'kept' / '2'
  messages = workdir / 'messages' / '2'
  assert len([*kept.iterdir()]) == len([*messages.glob('*.msg')])
  steps = lambda folder: digests(folder)['mapping'][0]
  assert steps(workdir) == steps(trained[0])


def test_two_trainings_in_one_workdir_are_refused(script, tmp_path):
  first = script('train.py', tmp_path / 'w')
  wait_for(lambda: (tmp_path / 'w' / '.lock').exists(), first)
  time.sleep(0.2)
  line = scripts.refused(script('train.py', tmp_path / 'w'))
  assert 'another process trains in it' in line
  first.kill()
  scripts.finish(first)


def test_training_again_does_nothing_new(trained, data_dir):
  workdir, _, _ = trained
  before = digests(workdir)
  collaboration.train(config_of(data_dir), workdir)
  assert digests(workdir) == before


def wait_for(condition, process, seconds=300):
  """Waits until condition() holds; False if the process ended before."""
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    if condition():
      return True
    if process.poll() is not None:
      return False
    time.sleep(0.0005)
  raise TimeoutError


def test_kill_and_resume_is_bit_exact(trained, script, tmp_path):
  """Kills with SIGKILL, again and again; compares the final weights."""
  reference, _, _ = trained
  workdir = tmp_path / 'killed'
  shutil.copytree(reference / 'secrets', workdir / 'secrets')
  for moment in (
    'checkpoints/image_2/*.orbax-checkpoint-tmp',  # amid a write
    'messages/2/train-000-*',
    'checkpoints/mapping/*.orbax-checkpoint-tmp',
  ):
    process = script('train.py', workdir)
    wait_for(lambda glob=moment: any(workdir.glob(glob)), process)
    process.send_signal(signal.SIGKILL)
    assert scripts.finish(process)[0] == -signal.SIGKILL
  code, _, err = scripts.finish(script('train.py', workdir))
  assert code == 0, err
  found, expected = digests(workdir), digests(reference)
  # Messages are rounded under keys of their own, so every run has its own.
  mapping = found.pop('mapping'), expected.pop('mapping')
  assert found == expected
  assert mapping[0][0] == mapping[1][0]
  assert mapping[0] == train_server_alone(workdir, tmp_path / 'server')


def test_damaged_checkpoint_falls_back_and_says_so(trained, data_dir, tmp_path):
  reference, _, _ = trained
  workdir = tmp_path / 'damaged'
  shutil.copytree(reference, workdir)
  step = workdir / 'checkpoints' / 'mapping' / '12'
  data = max(step.rglob('*'), key=lambda p: p.is_file() and p.stat().st_size)
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 0xFF
  data.write_bytes(content)
  with pytest.raises(
    ValueError, match=r'step 8 of 12; run train\.py to continue'
  ):
    collaboration.restore(config_of(data_dir), workdir)
  collaboration.train(config_of(data_dir), workdir)
  assert digests(workdir) == digests(reference)


def test_unknown_data_set_names_those_there_are(data_dir, tmp_path):
  config = config_of(data_dir)
  config.dataset = 'brats'
  with pytest.raises(ValueError, match='abdomen'):
    collaboration.train(config, tmp_path / 'w')


def test_damaged_prepared_data_are_named(trained, data_dir, tmp_path):
  shutil.copytree(data_dir, tmp_path / 'data')
  for path in (tmp_path / 'data').rglob('*array_record*'):
    path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(ValueError, match=r'cannot be read.*delete its folder'):
    collaboration.train(config_of(tmp_path / 'data'), tmp_path / 'w')


def test_workdir_of_another_config_is_one_line(trained, script):
  workdir, _, _ = trained
  line = scripts.refused(
    script('train.py', workdir, '--config.mapping_steps=13')
  )
  assert 'mapping_steps was 12, now 13' in line


def copy_without_checkpoints(reference, workdir):
  shutil.copytree(
    reference, workdir, ignore=shutil.ignore_patterns('report', 'eval')
  )
  return workdir


@pytest.mark.parametrize('side', ['clients', 'server'])
def test_missing_key_is_refused(side, trained, data_dir, tmp_path):
  workdir = copy_without_checkpoints(trained[0], tmp_path / 'w')
  key = workdir / 'secrets' / side / '2.epoch'
  key.unlink()
  for call in (collaboration.train, collaboration.restore):
    with pytest.raises(ValueError, match=rf'{side}/2\.epoch.*enrol'):
      call(config_of(data_dir), workdir)
  assert not key.exists()


def test_a_lost_key_is_not_replaced_where_the_list_of_clients_is_lost_too(
  trained, data_dir, tmp_path
):
  """Or client and server would hold different keys, and never know why."""
  workdir = copy_without_checkpoints(trained[0], tmp_path / 'w')
  (workdir / 'clients.json').unlink()
  (workdir / 'secrets' / 'clients' / '2.epoch').unlink()
  with pytest.raises(
    ValueError, match=r'clients/2\.epoch.*found none; erase the copy'
  ):
    collaboration.train(config_of(data_dir), workdir)
  epochs.enrol(workdir / 'secrets' / 'clients', '2')
  with pytest.raises(ValueError, match=r'2\.export.*the key that the server'):
    collaboration.train(config_of(data_dir), workdir)
  assert (workdir / 'secrets' / 'clients' / '2.export').exists()


def test_wrong_key_is_refused(trained, data_dir, tmp_path):
  workdir = copy_without_checkpoints(trained[0], tmp_path / 'w')
  key = workdir / 'secrets' / 'clients' / '2.epoch'
  shutil.copy(key.with_name('1.epoch'), key)
  for call in (collaboration.train, collaboration.restore):
    with pytest.raises(ValueError, match=r"2\.epoch.*'2'.*'1'") as error:
      call(config_of(data_dir), workdir)
    assert epochs.load(key).key.hex() not in str(error.value)


def test_an_unknown_evaluation_is_one_line(trained, script):
  line = scripts.refused(script('eval.py', trained[0], '--eval_names=speed'))
  assert 'expected some of segmentation, ' in line and "'speed'" in line


@pytest.mark.parametrize(
  'name, expected',
  [
    ('privacy.linked', r"behind privacy\., found 'linked'"),
    ('privacy.', r"behind privacy\., found ''"),
    ('query.speed', r"expected nothing behind query\., found 'speed'"),
  ],
)
def test_an_unknown_part_of_an_evaluation_is_refused(name, expected, data_dir):
  config = config_of(data_dir)
  with pytest.raises(ValueError, match=expected):
    evaluation.choose(config, [name])


def test_attacks_are_shown_in_the_report(
  trained, data_dir, tmp_path, monkeypatch
):
  workdir = tmp_path / 'w'
  shutil.copytree(trained[0], workdir)

  def privacy(config, run, folder, parts):
    setting = settings.build(config, run)
    others = setting.groups['others']
    public = setting.public()['b']
    np.testing.assert_allclose(
      public[: len(others)], setting.latents['b'][others], atol=1e-5
    )
    # Then copies, as messages have them: here more than a campaign takes.
    assert len(setting.groups['copies']) > 0 and len(public) == 1000
    some = {'known_plaintext_1': campaign.ATTACKS['known_plaintext_1']}
    options = {'protections': ('klt', 'sealed'), 'server_scales': ()}
    return campaign.privacy(config, run, folder=folder, attacks=some, **options)

  monkeypatch.setattr(evaluation, 'ON_DEMAND', {'privacy': privacy})
  results = report.evaluate(config_of(data_dir), workdir, ['privacy'])
  assert 'segmentation' in results  # of before
  cells = results['privacy']['attacks']['known_plaintext_1']['cells']
  assert set(cells) == {'klt', 'sealed'}
  picture = (workdir / 'report' / 'attacks.png').read_bytes()
  assert picture.startswith(b'\x89PNG')
  html = (workdir / 'report' / 'index.html').read_text()
  assert 'What attackers reach' in html and '>Attacks<' in html
