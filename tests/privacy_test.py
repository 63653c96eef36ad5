"""Tests of privacy/: known answers on latents that need no training."""

import functools
import json
import types

import numpy as np
import pytest
import synthetic_latents as synthetic

from configs import smoke
from ppcmi_jax import examples as examples_lib
from ppcmi_jax import exposure
from ppcmi_jax.attacks import outline
from ppcmi_jax.privacy import (
  campaign,
  cells,
  notebook,
  pictures,
  traces,
  visits,
)
from ppcmi_jax.privacy import setting as settings

KNOWN, TARGETS = 24, 6


def decode(latents):
  """Draws the sum over channels of the finest scale, as an image."""
  image = latents['s3'].sum(axis=-1, keepdims=True) / 20
  return np.clip(image, 0, 1).astype(np.float32)


@functools.cache
def make_setting(others=10):
  """A setting in which a decoder draws exactly what the latents say."""
  pixels, subject = synthetic.images(KNOWN + TARGETS)
  latents = synthetic.encode(pixels)
  latents = {name: latents[name] for name in ('s3', 's4')}
  visited, patient = synthetic.images(10, visits=3, seed=5)
  visited_latents = {'s3': synthetic.encode(visited)['s3']}
  image = decode(latents)
  rows = np.arange(len(pixels))
  protect = functools.partial(exposure.observe, wire_dtype='float32', seed=0)
  return settings.Setting(
    victim='A',
    accomplice='B' if others else '',
    image=image,
    mask=np.uint8(image[..., 0] > image[..., 0].mean()),
    subject=subject.astype(str),
    latents=latents,
    own_latents=latents,
    groups={
      'own': rows[others:KNOWN],
      'others': rows[:others],
      'target': rows[KNOWN:],
      'copies': rows[:0],
    },
    source=rows,
    prior=image[:KNOWN].mean(axis=0),
    protect=lambda *args, **options: protect(*args, **options),
    seen=functools.cache(lambda name: protect(name, latents)),
    seed=0,
    decode=decode,
    own_decode=decode,
    public=lambda: {name: z[:others] for name, z in latents.items()},
    visits=lambda: (
      visits.Visits(visited[..., None], patient.astype(str), 'synthetic'),
      visited_latents,
    ),
    once=lambda key, make: make(),
  )


def run_of(**leaf):
  """A run that has no more than what the notebook looks at."""
  state = types.SimpleNamespace(image=leaf or {'w': np.zeros(1)})
  return types.SimpleNamespace(
    hospitals={'A': types.SimpleNamespace(state=state)}
  )


@pytest.fixture
def patched(monkeypatch):
  calls = []

  def build(config, run):
    calls.append(1)
    return make_setting()

  monkeypatch.setattr(settings, 'build', build)
  return calls


def test_few_known_images_are_spread_over_those_of_the_victim():
  setting = make_setting()._replace(
    groups={
      'own': np.arange(10, 20), 'others': np.arange(4), 'copies': np.arange(0)
    }
  )  # fmt: skip
  assert setting.known(1).tolist() == [15]
  assert setting.known(5).tolist() == [11, 13, 15, 17, 19]
  assert setting.known(12).tolist() == [*range(10, 20), 1, 3]
  assert len(setting.known()) == 14


def test_klt_falls_to_known_plaintext_and_sealed_does_not():
  reached = {
    name: pictures.known(4)(make_setting(), name)
    for name in exposure.PROTECTIONS
  }
  value = {name: cell['value'] for name, (cell, _) in reached.items()}
  trivial = reached['klt'][0]['trivial']
  assert value['none'] > 60 and value['klt'] > 60 and value['official'] > 60
  assert all(value[name] < trivial for name in (*exposure.FRESH, 'sealed'))
  assert reached['klt'][1].shape == (TARGETS, 16, 16, 1)
  found = cells.verdict(
    {name: cell for name, (cell, _) in reached.items()},
    tolerance=0.1,
    needed=0.5,
    slack=2.0,  # of six small images, under keys that differ each time
  )
  assert found['breaks'] == {'official': 'yes', 'klt': 'yes'} and found['proof']
  assert found['sealed'] == 'held'


def test_visits_are_linked_under_klt_and_not_when_sealed():
  klt, _ = traces.linked(make_setting(), 'klt')
  rotated, _ = traces.linked(make_setting(), 'official, fresh keys')
  sealed, _ = traces.linked(make_setting(), 'sealed')
  assert klt['value'] > 0.9 and klt['n'] == 30
  assert rotated['value'] > 0.9
  assert sealed['interval'][0] < 0.62 and abs(sealed['gain']) < 0.2


def test_positions_are_put_in_order_for_outlines():
  setting = make_setting()
  setting = setting._replace(public=lambda: setting.latents)
  target = setting.groups['target']
  placed = traces._in_order(setting, target)
  truth = examples_lib.take(setting.latents, target)
  one, other = (
    outline.features({'s4': z['s4']})[..., :1] for z in (placed, truth)
  )
  assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9


def test_a_copy_knows_its_image(monkeypatch):
  monkeypatch.setattr(settings, 'MAX_KNOWN', 20)
  names, sizes = ('A', 'B'), {'train': 6, 'valid': 2, 'test': 2}
  parts = {part: make_examples(size, 1) for part, size in sizes.items()}
  state = types.SimpleNamespace(image={})
  run = types.SimpleNamespace(
    data=types.SimpleNamespace(
      hospitals=dict.fromkeys(names, parts), channels=1, num_classes=2
    ),
    hospitals=dict.fromkeys(names, types.SimpleNamespace(state=state)),
    networks={'image encoder': (lambda _, image: {'s3': image},)},
    autoencoders=types.SimpleNamespace(image_model=None),
  )
  config = smoke.get_config()
  config.augment = {'gain': 0.01}
  setting = settings.build(config, run)
  copies = setting.groups['copies']
  source = setting.source[copies]
  assert len(copies) == 20 - 6 - 6
  assert set(source) == set(setting.groups['own'])
  own, copied = setting.image[setting.groups['own']], setting.image[copies]
  distance = np.abs(own - copied[:, None]).mean((2, 3, 4))
  nearest = setting.groups['own'][distance.argmin(axis=1)]
  np.testing.assert_array_equal(nearest, source)
  rest = np.delete(np.arange(len(setting.image)), copies)
  np.testing.assert_array_equal(setting.source[rest], rest)


def test_the_seed_of_a_message_stands_out():
  for name in (*exposure.STATIC, *exposure.FRESH):
    cell, _ = traces.seeds(make_setting(), name)
    assert cell['value'] > 30 and cell['trivial'] < 10
  sealed, _ = traces.seeds(make_setting(), 'sealed')
  assert sealed['value'] is None and 'no seed' in sealed['why']


def test_what_needs_another_client_is_not_measurable_without():
  setting = make_setting()._replace(accomplice='')
  groups = {**setting.groups, 'others': np.arange(0)}
  setting = setting._replace(groups=groups)
  for attack in (
    pictures.ciphertext,
    pictures.stitched(1),
    traces.outlined(same_encoder=True),
  ):
    cell, drawn = attack(setting, 'klt')
    assert cell['value'] is None and cell['why'] and drawn is None


def test_fewer_pairs_than_wanted_are_said():
  rows, note = pictures.pairs(make_setting(), 1000)
  assert len(rows) == KNOWN and note == '24 pairs, all there are'
  assert pictures.pairs(make_setting(), 3)[1] == ''


def make_examples(num_subjects, each):
  subject = np.repeat([f's{i:05d}' for i in range(num_subjects)], each)
  count = len(subject)
  rng = np.random.default_rng(0)
  return examples_lib.Examples(
    image=rng.integers(0, 256, (count, 16, 16, 1)).astype(np.uint8),
    mask=np.zeros((count, 16, 16), np.uint8),
    spacing_mm=np.ones((count, 2), np.float32),
    subject=subject,
    site=np.full(count, '1'),
    case=np.arange(count).astype(str),
    position=np.zeros(count, np.int32),
  )


def collect(num_subjects, each, **config):
  config = {'augment': {}, 'dataset': 'x', **config}
  parts = {'train': make_examples(num_subjects, each)}
  return visits.collect(types.SimpleNamespace(**config), parts, most=60, seed=0)


def test_visits_are_real_where_there_are_any():
  found = collect(10, 2)
  assert found.note == 'images of the data set' and len(found.image) == 20


@pytest.mark.parametrize('num_subjects, each', [(100, 2), (9, 40), (100, 1)])
def test_visits_are_thinned_by_subject(num_subjects, each):
  found = collect(num_subjects, each, augment={'gain': 0.3})
  names, count = np.unique(found.subject, return_counts=True)
  assert len(found.image) == len(found.subject) <= 60
  assert len(names) >= visits.LEAST_SUBJECTS and count.min() >= 2


def test_phantoms_are_visited_again():
  options = {'num_subjects': 8, 'size': 32}
  found = collect(
    8, 1, dataset='phantom', dataset_options=options, image_size=16
  )
  assert found.note == '7 visits of each phantom'
  assert found.image.shape == (56, 16, 16, 1) and found.image.max() <= 1
  same = found.image[found.subject == 's00003']
  other = found.image[found.subject == 's00004']
  assert np.abs(same[0] - same[1]).mean() < np.abs(same[0] - other[0]).mean()


def test_augmented_copies_stand_for_visits():
  found = collect(8, 1, augment={'gain': 0.3})
  assert 'augmented copies' in found.note and len(found.image) == 56


@pytest.mark.parametrize(
  'num_subjects, each, why', [(3, 9, '3 subjects'), (9, 1, 'one image')]
)
def test_too_few_subjects_or_images_are_not_linked(num_subjects, each, why):
  found = collect(num_subjects, each)
  assert why in found.note and not len(found.image)
  setting = make_setting()._replace(visits=lambda: (found, {}))
  cell, _ = traces.linked(setting, 'klt')
  assert cell['value'] is None and why in cell['why']


def test_a_campaign_judges_linking_on_both_sides(patched):
  """An AUC far below 0.5 links as well as one above."""
  values = {'none': 1.0, 'klt': 1.0, 'sealed': 0.3}
  linking = campaign.ATTACKS['linking']._replace(
    run=lambda _, name: (cells.of_value(values[name], 0.5, n=9), None)
  )
  result = campaign.privacy(
    None,
    run_of(),
    attacks={'linking': linking},
    protections=tuple(values),
    server_scales=(),
  )
  assert result['attacks']['linking']['sealed'] == 'broken'


def test_a_campaign_resumes_and_keeps_its_drawings(patched, tmp_path, capsys):
  some = {'known_plaintext_1': campaign.ATTACKS['known_plaintext_1']}
  options = {'attacks': some, 'protections': ('none', 'klt')}
  failing = some['known_plaintext_1']._replace(
    run=lambda *_: pytest.fail('computed again')
  )
  first = campaign.privacy(
    None, run_of(), folder=tmp_path, server_scales=(), **options
  )
  assert 'privacy 2/2: known plaintext, 1 image; klt' in capsys.readouterr().out
  assert first['attacks']['known_plaintext_1']['cells']['none']['value'] > 60
  assert json.loads(json.dumps(first, allow_nan=False)) == first
  options['attacks'] = {'known_plaintext_1': failing}
  again = campaign.privacy(
    None, run_of(), folder=tmp_path, server_scales=(), **options
  )
  assert again == first
  with np.load(tmp_path / notebook.EXAMPLES) as drawn:
    assert drawn['known_plaintext_1|klt'].shape == drawn['truth'].shape
  # Damaged: attacked anew.
  options['attacks'] = some
  drawings = (tmp_path / notebook.EXAMPLES).read_bytes()
  (tmp_path / notebook.EXAMPLES).write_bytes(drawings[: len(drawings) // 2])
  campaign.privacy(None, run_of(), folder=tmp_path, server_scales=(), **options)
  assert (tmp_path / notebook.EXAMPLES).read_bytes() == drawings
  # Other networks: nothing of it counts.
  options['attacks'] = some
  (tmp_path / notebook.RESULTS).write_text('{')
  other = campaign.privacy(
    None, run_of(w=np.ones(1)), folder=tmp_path, server_scales=(), **options
  )
  assert other['attacks'].keys() == first['attacks'].keys()


def test_attacks_one_by_one_make_one_table(patched, tmp_path, monkeypatch):
  monkeypatch.setattr(campaign, 'ATTACKS', {
    name: campaign.ATTACKS['linking']._replace(
      run=lambda *_, value=value: (cells.of_value(value, 0.5, n=9), None)
    )
    for name, value in (('first', 0.6), ('second', 0.7), ('third', 0.8))
  })  # fmt: skip

  def run(*names):
    chosen = campaign.choose(names)
    return campaign.privacy(None, run_of(), folder=tmp_path, **chosen)

  assert list(run('third')['attacks']) == ['third']
  both = run('first')
  assert list(both['attacks']) == ['first', 'third'] and not both['server']
  first = both['attacks']['first']['cells']
  assert list(first) == list(exposure.PROTECTIONS)
  assert first['klt']['value'] == 0.6
  assert campaign.choose(['server']) == {'attacks': {}, 'server_scales': None}


@pytest.mark.parametrize('error', [FloatingPointError, ValueError])
def test_an_attack_that_fails_ends_itself_only(patched, error):
  def diverge(setting, protection):
    raise error('the held-out loss is not finite')

  attack = campaign.ATTACKS['linking']._replace(run=diverge)
  found = campaign.privacy(
    None,
    run_of(),
    attacks={'linking': attack},
    protections=('klt',),
    server_scales=(),
  )
  cell = found['attacks']['linking']['cells']['klt']
  assert cell == {'value': None, 'why': 'the held-out loss is not finite'}
