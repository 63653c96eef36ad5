"""The evaluation `membership`: was a case in the mapping network's training?

Sixteen small mapping networks are trained on random halves of the subjects,
each the target in turn (the threat and the attacks: `attacks.membership`). They
are trained as the run's is: on latents of the clients' contributions, augmented
copies included, as many times over, by its step, loss and optimiser. Only they
are smaller, see half of the cases, and know no DP-SGD. Three experiments:

  mapping   as above
  overfit   positive control: no copies, no dropout, few subjects, long
  shuffled  negative control: the losses of `mapping`, memberships drawn anew,
            twenty times, as one draw of so few subjects strays by chance

Losses are of the cases themselves, not of copies: the squared errors of
latents, of each scale and of all, and the cross-entropy of the decoded mask.

Axes: M networks, N cases, R rows, that is cases and copies of them.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ppcmi_jax import examples as examples_lib
from ppcmi_jax import (
  images,
  input_pipeline,
  models,
  tasks,
  train_step,
)
from ppcmi_jax.attacks import membership as attacks
from ppcmi_jax.privacy import visits

NUM_MODELS = 16
MOST_STEPS = 600
_BATCH = 64
OVERFIT_SUBJECTS, OVERFIT_STEPS = 24, 300
SHUFFLES = 20
# Of each network: what makes it small.
SMALL = {
  'mapping': {'width': 0.1},
  'fused_mapping': {'widths': (16, 24, 32)},
}


class Contributions(NamedTuple):
  """What the clients contribute, rows of all of them.

  Attributes:
    pairs: {'image', 'mask': {scale: float16 [R, h, w, C]}}.
    client: int [R], whose row it is.
    mask: uint8 [N, H, W].
    case: int [R], whose copy a row is; row n < N is case n itself.
    subject: strings [N].
  """

  pairs: Mapping[str, Any]
  client: np.ndarray
  mask: np.ndarray
  case: np.ndarray
  subject: np.ndarray


def membership(
  config: Any,
  run: Any,
  *,
  num_models: int = NUM_MODELS,
  steps: int | None = None,
  overfit_steps: int = OVERFIT_STEPS,
) -> dict[str, Any]:
  """Trains networks and attacks their training sets.

  Args:
    config: of the run.
    run: what `collaboration.restore` returned of it; with hospitals.
    num_models: M.
    steps: of each network; None: as often over its rows as the run's, but at
      most 600.
    overfit_steps: of each network of the positive control.

  Returns:
    {'experiments': {experiment: {loss: {attack: as `attacks.evaluate`,
    and 'epsilon', of `attacks.epsilon_bound`, 'epsilon_provable', the same of
    perfect scores; None without its package}}},
    'roc_fprs', 'num_models', 'num_cases', 'num_subjects', 'steps', 'notes'}; or
    'why' where there are too few subjects. Plain JSON values.
  """
  sent = _contributions(config, run)
  subject = sent.subject
  names, count = np.unique(subject), len(subject)
  if steps is None:
    # Half of the rows, and so half of the steps.
    steps = min(MOST_STEPS, -(-config.mapping_steps // 2))
  found = {
    'num_models': num_models,
    'num_cases': count,
    'num_subjects': len(names),
    'steps': steps,
  }
  if len(names) < visits.LEAST_SUBJECTS:
    why = (
      f'not measurable: {len(names)} subjects, fewer than '
      f'{visits.LEAST_SUBJECTS}'
    )
    return {**found, 'experiments': {}, 'notes': [], 'why': why}
  few = np.isin(subject, names[:: -(-len(names) // OVERFIT_SUBJECTS)])
  few = np.flatnonzero(few)
  alone = Contributions(
    examples_lib.take(sent.pairs, few),
    sent.client[few],
    sent.mask[few],
    np.arange(len(few)),
    subject[few],
  )
  decode, result = _decoder(run), {}
  for experiment, data, length, options in (
    ('mapping', sent, steps, {}),
    ('overfit', alone, overfit_steps, {'dropout': 0.0}),
  ):
    member = attacks.halves(data.subject, num_models=num_models, seed=0)
    losses = _losses(config, decode, data, member, length, options, experiment)
    result[experiment] = _attack(losses, [member], data.subject)
    if experiment == 'mapping':
      others = [
        attacks.halves(subject, num_models=num_models, seed=1 + i)
        for i in range(SHUFFLES)
      ]
      result['shuffled'] = _attack(losses, others, subject)
  notes = {
    line
    for by_attack in result['mapping'].values()
    for scores in by_attack.values()
    for line in scores['notes']
  }
  how = (
    f'{num_models} networks with {SMALL[config.mapping]}, {steps} steps of '
    f'{config.mapping_batch_size} on half of {len(sent.case)} pairs of {count} '
    f'cases; the run: {config.mapping_steps} steps on all.'
  )
  order = ('mapping', 'overfit', 'shuffled')
  return {
    **found,
    'experiments': {name: result[name] for name in order},
    'roc_fprs': attacks.ROC_FPRS,
    'notes': [how, *sorted(notes)],
  }


def _contributions(config, run):
  parts = []
  models_of = run.autoencoders

  @jax.jit
  def encode(image_variables, mask_variables, pair):
    image, mask = pair
    apply = lambda model, variables, x: model.apply(
      variables, x, train=False, method='encode'
    )
    one_hot = jax.nn.one_hot(mask, run.data.num_classes)
    latents = {
      'image': apply(models_of.image_model, image_variables, image),
      'mask': apply(models_of.mask_model, mask_variables, one_hot),
    }
    # As the server holds them.
    return jax.tree.map(lambda z: z.astype(jnp.float16), latents)

  for turn in range(1 + (config.copies if config.augment else 0)):
    first = 0
    for number, (name, hospital) in enumerate(run.hospitals.items()):
      examples = run.data.hospitals[name]['train']
      count = len(examples.case)
      pair = np.asarray(images.unit_image(examples.image)), examples.mask
      if turn:
        pair = visits.augmented(config, *pair, seed=len(parts))
      state = hospital.state
      latents = examples_lib.map_batches(
        functools.partial(encode, state.image, state.mask), pair, _BATCH
      )
      # Two clients' subjects are two, whatever their names.
      subject = np.array([f'{name}/{one}' for one in examples.subject])
      of_cases = slice(0 if turn else None)
      parts.append(
        Contributions(
          latents,
          np.full(count, number, np.int32),
          pair[1][of_cases],
          first + np.arange(count),
          subject[of_cases],
        )
      )
      first += count
  return jax.tree.map(lambda *a: np.concatenate(a), *parts)


def _decoder(run):
  """Returns (client, (latents [B], mask [B])) -> cross-entropies [B]."""
  model = run.autoencoders.mask_model
  variables = [hospital.state.mask for hospital in run.hospitals.values()]

  @jax.jit
  def score(variables, part):
    latents, mask = part
    logits = model.apply(variables, latents, train=False, method='decode')
    loss = optax.softmax_cross_entropy_with_integer_labels(
      logits, mask.astype(jnp.int32)
    )
    return loss.mean((1, 2))

  return lambda client, part: score(variables[client], part)


def _losses(config, decode, data, member, steps, options, title):
  """Trains the networks; returns {loss: float64 [M, N]}."""
  pairs, count = data.pairs, len(data.subject)
  small = {**config.mapping_options, **SMALL[config.mapping], **options}
  task = tasks.mapping(models.MODELS[config.mapping](**small))
  tx = train_step.optimizer(
    learning_rate=config.mapping_learning_rate,
    steps=steps,
    schedule=config.schedule,
    weight_decay=config.weight_decay,
  )

  step = train_step.make_train_step(task, tx)
  init = jax.jit(functools.partial(train_step.init_state, task, tx))
  predict = jax.jit(task.predict)

  cases = examples_lib.take(pairs, np.arange(count))
  client = data.client[:count]

  def measure(variables):
    latents = examples_lib.map_batches(
      functools.partial(predict, variables), cases['image'], _BATCH
    )
    found = {
      name: np.mean(np.square(latents[name] - wanted), axis=(1, 2, 3))
      for name, wanted in sorted(cases['mask'].items())
    }
    found['all'] = np.sum(list(found.values()), axis=0)
    found['mask'] = np.zeros(count)
    for number in np.unique(client):
      rows = np.flatnonzero(client == number)
      part = examples_lib.take(latents, rows), data.mask[rows]
      found['mask'][rows] = examples_lib.map_batches(
        functools.partial(decode, number), part, _BATCH
      )
    return found

  measured = []
  for number, members in enumerate(member):
    key = jax.random.key(number)
    rows = np.flatnonzero(members[data.case])
    order = rows[input_pipeline.balanced_order(data.client[rows])]
    state = init(key, examples_lib.take(pairs, rows[:1]))
    state = train_step.replicate(state)
    for i in range(steps):
      batch = input_pipeline.batch_at(
        pairs,
        i,
        order=order,
        batch_size=config.mapping_batch_size,
        seed=number,
      )
      state, _ = step(state, batch, key)
    measured.append(measure(state.variables))
    print(
      f'membership, {title}: network {number + 1}/{len(member)}', flush=True
    )
  return {
    name: np.stack([np.float64(one[name]) for one in measured])
    for name in measured[0]
  }


def _attack(losses, members, subject):
  """Returns {loss: {attack: its figures}}, pooled over some memberships."""
  result, member = {}, np.concatenate(members)
  for name, values in losses.items():
    result[name] = {}
    for attack, function in attacks.ATTACKS.items():
      scores = np.concatenate([function(values, one) for one in members])
      found = attacks.evaluate(scores, member, subject=subject, num_draws=300)
      result[name][attack] = {
        **{
          key: value.tolist() if isinstance(value, np.ndarray) else value
          for key, value in found.items()
        },
        'epsilon': _epsilon(scores, member, subject),
        # Of so few subjects even who is always right proves no more.
        'epsilon_provable': _epsilon(member, member, subject),
      }
  return result


def _epsilon(scores, member, subject):
  try:
    return attacks.epsilon_bound(scores, member, subject=subject)
  except ModuleNotFoundError:
    return None
