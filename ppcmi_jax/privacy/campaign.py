"""The evaluation `privacy`: every attack against every protection.

Goals are how much an attack may gain over the trivial level. What an attack has
to keep against a static transform, as a share of its gain without protection
(of channels: of all there are), to count as breaking it, comes from what was
measured when the attacks were designed, against one rotation and shift of
channels for all messages:

  attack                       then                               needed
  ---------------------------  ---------------------------------  ------
  known plaintext              exact                              0.99
  ciphertext, encoder known    24.4 dB of 25.2, mean image 17.6   0.89
  ciphertext, encoder unknown  59 % of channels from one message  0.59
                               and 92 % from ten                  0.92
  seed search                  exact                              0.95
  outline, same encoder        Dice 0.71 of 0.72, prior 0.53      0.95
  outline, own encoder         Dice 0.62 of 0.72, prior 0.53      0.47
  learned inverter             as without transform               0.90
  linking                      AUC 1.000                          0.95
  stitching                    22 dB of 25.2, mean image 17.6     0.58
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppcmi_jax import examples, exposure, metrics
from ppcmi_jax.privacy import cells, notebook, pictures, traces
from ppcmi_jax.privacy import setting as settings

NUM_EXAMPLES = 3
_NUMBERS = {
  1: '1 pair',
  5: '5 pairs',
  20: '20 pairs',
  200: 'up to 200 pairs',
  1000: 'up to 1000 pairs',
}


class Attack(NamedTuple):
  """An attack of the list.

  Attributes:
    label: as people read it.
    unit: of the figure.
    goal: for `sealed`, in words.
    tolerance, needed: of `cells.verdict`.
    run: (setting, protection) -> (cell, what to draw or None).
    two_sided, slack, whole: of `cells.verdict`.
  """

  label: str
  unit: str
  goal: str
  tolerance: float
  needed: float
  run: pictures.Attack
  two_sided: bool = False
  slack: float | None = None
  whole: float | None = None


def _decibels(label: str, needed: float, run: pictures.Attack) -> Attack:
  return Attack(label, 'PSNR dB', 'trivial + 0.1', 0.1, needed, run, slack=0.5)


ATTACKS: Mapping[str, Attack] = {
  'known_plaintext_1': _decibels(
    'known plaintext, 1 image', 0.99, pictures.known(1)
  ),
  'known_plaintext': _decibels(
    'known plaintext, up to 1000 images', 0.99, pictures.known(1000)
  ),
  'ciphertext_only': _decibels(
    'ciphertext only, encoder known', 0.89, pictures.ciphertext
  ),
  'channels_1': Attack(
    'ciphertext only, encoder unknown, 1 message',
    'channels %',
    'trivial',
    0.0,
    0.59,
    traces.channels(1),
    whole=100.0,
  ),
  'channels': Attack(
    'ciphertext only, encoder unknown, many',
    'channels %',
    'trivial',
    0.0,
    0.92,
    traces.channels(settings.MAX_KNOWN),
    whole=100.0,
  ),
  'seed_search': Attack(
    'seed search, 1 message', 'ties %', 'trivial + 1', 1.0, 0.95, traces.seeds
  ),
  'outline': Attack(
    'outline, same encoder',
    'Dice',
    'trivial + 0.02',
    0.02,
    0.95,
    traces.outlined(same_encoder=True),
  ),
  'outline_own': Attack(
    'outline, own encoder',
    'Dice',
    'trivial + 0.02',
    0.02,
    0.47,
    traces.outlined(same_encoder=False),
  ),
  **{
    f'inverter_{count}': _decibels(
      f'learned inverter, {_NUMBERS[count]}',
      0.9,
      pictures.learned(count),
    )
    for count in _NUMBERS
  },
  'linking': Attack(
    'linking', 'AUC', '0.50 +- 0.02', 0.02, 0.95, traces.linked, True
  ),
  'crossed': _decibels('another decoder, as it is', 0.58, pictures.crossed),
  'stitching_1': _decibels(
    'stitching to another decoder, 1 pair', 0.58, pictures.stitched(1)
  ),
  'stitching_20': _decibels(
    'stitching to another decoder, 20 pairs', 0.58, pictures.stitched(20)
  ),
}
SERVER = 'server'
NAMES = (*ATTACKS, SERVER)  # of what can be run by itself


def choose(names: Sequence[str]) -> dict[str, Any]:
  """Returns the arguments of `privacy` for attacks of these names.

  Args:
    names: of `NAMES`.
  """
  return {
    'attacks': {name: ATTACKS[name] for name in ATTACKS if name in names},
    'server_scales': None if SERVER in names else (),
  }


def privacy(
  config: Any,
  run: Any,
  *,
  folder: str | os.PathLike | None = None,
  attacks: Mapping[str, Attack] = ATTACKS,
  protections: Sequence[str] = exposure.PROTECTIONS,
  server_scales: Sequence[str] | None = None,
) -> dict[str, Any]:
  """Attacks one client of a trained run under each protection.

  A line is printed for each attack, which meets every protection before the
  next one starts, so that a stopped campaign has whole rows. With a folder,
  each figure is kept there in privacy.json as it comes, and not computed again
  for the same networks; what attackers drew of a few targets is in
  privacy_examples.npz: 'truth' float32 [N, H, W, C], 'mask', of the victim's
  training images the mean 'prior' and the best constant mask 'prior_mask', and
  '<attack>|<protection>', images or masks.

  Args:
    config: of the run.
    run: what `collaboration.restore` returned of it; with hospitals.
    folder: workdir/eval, or None.
    attacks: of those to run.
    protections: of `exposure.PROTECTIONS`.
    server_scales: what the server looks at, one by one; None: every scale.

  Returns:
    {'setting': who and how many, 'attacks': {attack: {'label', 'unit', 'goal',
    'cells': {protection: as `cells` says}, and what `cells.verdict` returns}},
    'server': {scale: cell}, the learned inverter on plain latents}, plain JSON
    values; of other attacks what the folder has from earlier calls, too.
  """
  setting = settings.build(config, run)
  notes = notebook.Notebook(folder, run)
  target = setting.groups['target']
  some = np.unique(
    np.linspace(0, len(target) - 1, NUM_EXAMPLES).round().astype(int)
  )
  rows = target[some]
  notes.draw('truth', setting.image[rows])
  notes.draw('mask', setting.mask[rows])
  notes.draw('prior', setting.prior)
  own = setting.mask[setting.groups['own']] > 0
  prior_mask = metrics.fit_shape_prior(own.astype(np.uint8), 2)
  notes.draw('prior_mask', prior_mask > 0)
  steps = [
    (name, protection, attack)
    for name, attack in attacks.items()
    for protection in protections
  ]
  scales = sorted(setting.latents) if server_scales is None else server_scales
  steps += [(f'server_{scale}', 'none', _server(scale)) for scale in scales]
  for number, (name, protection, attack) in enumerate(steps, 1):
    start, kept = time.monotonic(), notes.read(name, protection)
    if kept is None:
      kept, drawn = _run(attack, setting, protection)
      if drawn is not None:
        notes.draw(f'{name}|{protection}', drawn[some])
      notes.write(name, protection, kept)
    seconds = time.monotonic() - start
    print(
      f'privacy {number}/{len(steps)}: {attack.label}; {protection}: '
      f'{_describe(kept, attack.unit)}, {seconds:.1f} s',
      flush=True,
    )
  read = notes.read
  result = {}
  for name, attack in {**ATTACKS, **attacks}.items():
    found = {
      protection: cell
      for protection in exposure.PROTECTIONS
      if (cell := read(name, protection)) is not None
    }
    if not found:
      continue
    result[name] = {
      'label': attack.label,
      'unit': attack.unit,
      'goal': attack.goal,
      'cells': found,
      **cells.verdict(
        found,
        tolerance=attack.tolerance,
        needed=attack.needed,
        two_sided=attack.two_sided,
        slack=attack.slack,
        whole=attack.whole,
      ),
    }
  return {
    'setting': _describe_setting(setting),
    'attacks': result,
    'server': {
      scale: cell
      for scale in sorted(setting.latents)
      if (cell := read(f'server_{scale}', 'none')) is not None
    },
  }


def _server(scale):
  run = pictures.learned(settings.MAX_KNOWN, (scale,))
  return Attack(f'server with the key, {scale}', 'PSNR dB', '', 0, 0, run)


def _run(attack, setting, protection):
  try:
    return attack.run(setting, protection)
  except (FloatingPointError, ValueError, np.linalg.LinAlgError) as error:
    return cells.missing(str(error)), None  # the other attacks go on


def _describe(cell, unit):
  if cell['value'] is None:
    return f'not measurable ({cell["why"]})'
  return f'{cell["value"]:.3f} {unit} (trivial {cell["trivial"]:.3f})'


def _describe_setting(setting):
  truth, known = setting.groups['target'], setting.known()
  ceiling, _ = pictures.score(
    setting, setting.decode(examples.take(setting.latents, truth))
  )
  return {
    'victim': setting.victim,
    'accomplice': setting.accomplice,
    'num_known': len(known),
    'num_subjects_known': len(np.unique(setting.subject[known])),
    'num_images': {name: len(rows) for name, rows in setting.groups.items()},
    'num_subjects_target': len(np.unique(setting.subject[truth])),
    'autoencoder_psnr_db': ceiling['value'],
  }
