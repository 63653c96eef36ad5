"""The tables of what attacks reach, from what `privacy` and `membership` give.

>>> cell = {'value': 0.5, 'trivial': 0.5, 'gain': 0.0, 'interval': None, 'n': 9}
>>> attack = {'label': 'linking', 'unit': 'AUC', 'goal': '0.50 +- 0.02',
...           'cells': {'klt': {**cell, 'value': 1.0}, 'sealed': cell},
...           'breaks': {'klt': 'yes'}, 'kept': {'klt': 1.0},
...           'sealed': 'held', 'proof': True}
>>> table = attacks({'attacks': {'linking': attack}})
>>> dict(zip(table.headers, table.rows[0]))['verdict']
'held'
"""

import math
from collections.abc import Mapping
from typing import Any

from ppcmi_jax import tables

LOSSES = {'mask': 'decoded mask', 'all': 'all scales'}


def build(results: Mapping[str, Any]) -> list[tables.Table]:
  """Returns the tables of whatever was evaluated.

  Args:
    results: of a run; 'privacy' and 'membership' may be in it.
  """
  built = []
  if 'privacy' in results:
    found = results['privacy']
    built += [attacks(found), spread(found), server(found)]
  if 'membership' in results:
    built.append(membership(results['membership']))
  return built


def attacks(result: Mapping[str, Any]) -> tables.Table:
  """Returns a row an attack: what it reaches against each protection."""
  found = result['attacks']
  protections = list(
    dict.fromkeys(name for one in found.values() for name in one['cells'])
  )
  rows, notes = [], []
  for attack in found.values():
    cells = attack['cells']
    measured = [cell for cell in cells.values() if cell['value'] is not None]
    state = attack['sealed']
    if state == 'held' and not attack['proof']:
      state = 'no proof'
    rows.append(
      [
        attack['label'],
        attack['unit'],
        *(
          tables.number(cells.get(name, {}).get('value'))
          for name in protections
        ),
        tables.number(measured[-1]['trivial'] if measured else None),
        attack['goal'],
        _breaks(attack),
        state or '-',
      ]
    )
    missing = {cell['why'] for cell in cells.values() if 'why' in cell}
    notes += [f'{attack["label"]}: {why}.' for why in sorted(missing)]
  return tables.Table(
    'privacy',
    f'What attackers reach{_of_whom(result)}, by protection.',
    [
      'attack',
      'unit',
      *protections,
      'trivial',
      'goal',
      'breaks',
      'verdict',
    ],
    rows,
    'PSNR: of the images that the attacker draws, mean over targets; '
    'trivial: without any message (the mean image, the best constant mask, '
    'a toss). breaks: which static transforms, by more than the'
    '\ngoal allows a protection, and as far as when the attack was designed; '
    'in part: less far (share of the gain without protection, or of all '
    'channels). official does not permute positions, klt does. sealed, '
    'other images: what'
    '\nthe attack makes of messages that have nothing to do with its targets; '
    'sealed may not be above it either. verdict, of sealed: held or broken, '
    'in doubt where above the goal, but not by its interval; no'
    '\nproof where the attack breaks no static transform, so that it is the '
    'attack that is weak.'
    + ''.join(f'\nNot measurable: {note}' for note in notes),
  )


def spread(result: Mapping[str, Any]) -> tables.Table:
  """Returns a row a figure, with its intervals and what else is to be known."""
  rows = []
  for attack in result['attacks'].values():
    for protection, cell in attack['cells'].items():
      if cell['value'] is None:
        continue
      rows.append(
        [
          attack['label'],
          protection,
          attack['unit'],
          _interval(cell['value'], cell['interval']),
          cell['trivial'],
          _interval(cell['gain'], cell.get('gain_interval')),
          cell['n'],
          cell.get('note') or '-',
        ]
      )
  return tables.Table(
    'privacy_spread',
    'Intervals of what attackers reach.',
    ['attack', 'protection', 'unit', 'figure', 'trivial', 'gain', 'n', 'note'],
    rows,
    '95 % bootstrap intervals over subjects; gain: over the trivial level, on '
    'the same images. n: images, channels or pairs. They say nothing of '
    'another attacker, or another training of this one.',
  )


def server(result: Mapping[str, Any]) -> tables.Table:
  """Returns what the server can make of latents, which it sees in clear."""
  rows = [
    [
      scale,
      _interval(cell['value'], cell['interval']),
      cell['trivial'],
      cell['n'],
      cell.get('note') or '-',
    ]
    for scale, cell in result.get('server', {}).items()
    if cell['value'] is not None
  ]
  ceiling = result.get('setting', {}).get('autoencoder_psnr_db')
  note = f" The client's own decoder: {ceiling:.3f} dB." if ceiling else ''
  return tables.Table(
    'privacy_server',
    'What the server, who has the keys, can draw of an image: learned inverter '
    'on the plain latents of one scale.',
    ['scale', 'PSNR dB', 'mean image', 'n', 'note'],
    rows,
    f'The same under every protection: it does not protect from the server.'
    f'{note}',
  )


def membership(result: Mapping[str, Any]) -> tables.Table:
  """Returns a row an experiment, loss and attack on the training set."""
  rows = []
  for experiment, losses in result.get('experiments', {}).items():
    for loss, by_attack in losses.items():
      for attack, scores in by_attack.items():
        rows.append(
          [
            experiment,
            LOSSES.get(loss, loss),
            attack.replace('_', ' '),
            _interval(scores['auc'], scores['auc_interval']),
            *(
              _interval(scores[name], scores[f'{name}_interval'])
              for name in ('tpr_at_0.01', 'tpr_at_0.001')
            ),
            tables.number(scores.get('epsilon')),
            tables.number(scores.get('epsilon_provable')),
            scores['num_members'],
            scores['num_non_members'],
          ]
        )
  lines = [*result.get('notes', []), result.get('why', '')]
  return tables.Table(
    'membership',
    'Whether a case was in the training set of a mapping network, told from '
    'its loss.',
    ['network', 'loss', 'attack', 'AUC', 'TPR at 1 % FPR', 'TPR at 0.1 % FPR',
     'epsilon from', 'provable', 'members', 'others'],
    rows,
    'Chance: AUC 0.5, TPR as the FPR. overfit must score high and shuffled '
    '0.5, or the rest says nothing. No transform of latents bears on it. '
    'epsilon from: 95 % lower\nbound for a subject, audited at delta 1e-9, of '
    "these networks' training, without DP-SGD; needs the extra privacy. "
    'provable: what perfect scores would\ngive of so few subjects.'
    + ''.join(f'\n{line}' for line in lines if line),
  )  # fmt: skip


def _of_whom(result):
  setting = result.get('setting')
  if not setting:
    return ''
  images = setting['num_images']
  return (
    f' of client {setting["victim"]}: {images["target"]} images of '
    f'{setting["num_subjects_target"]} subjects, at most '
    f'{setting["num_known"]} known ones ({images["own"]} of its own, '
    f'{images["others"]} of others, the rest augmented copies)'
  )


def _breaks(attack):
  parts = []
  for name, state in attack['breaks'].items():
    if state == 'in part' and attack['kept'][name] is not None:
      parts.append(f'{name} in part ({100 * attack["kept"][name]:.0f} %)')
    elif state != 'no':
      parts.append(name if state == 'yes' else f'{name} in part')
  return ', '.join(parts) or 'none'


def _interval(value, interval):
  low, high = (math.nan, math.nan) if interval is None else interval
  return tables.Interval(*map(tables.number, (value, low, high)))
