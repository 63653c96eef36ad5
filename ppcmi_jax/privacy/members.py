"""The evaluation `membership`: was a case in the mapping network's training?

Sixteen small mapping networks are trained on random halves of the subjects, on
latents of the clients' contributions, each the target in turn (the threat and
the attacks: `attacks.membership`). Three experiments:

  mapping   networks trained as long as this evaluation allows, see `STEPS`
  overfit   positive control: without dropout, on few subjects, much longer
  shuffled  negative control: the losses of `mapping`, memberships drawn anew

The networks are of the run's kind, but smaller, trained less, and never by
DP-SGD: what they give away is a lower bound where the run has none of that.
Losses are those of latents, of each scale and of all, in standard deviations of
a channel, and the cross-entropy of the decoded mask.

Axes: M networks, N cases.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ppcmi_jax import examples as examples_lib
from ppcmi_jax import images, learners, models, tasks
from ppcmi_jax.attacks import membership as attacks
from ppcmi_jax.privacy import visits

NUM_MODELS = 16
STEPS = 300
OVERFIT_SUBJECTS, OVERFIT_STEPS = 24, 600
BATCH_SIZE = 16
# Of each network: what makes it small.
SMALL = {
  'mapping': {'width': 0.1},
  'fused_mapping': {'widths': (32, 48, 64)},
}
SHOWN = ('threshold', 'lira_online', 'rmia')


def membership(
  config: Any,
  run: Any,
  *,
  num_models: int = NUM_MODELS,
  steps: int = STEPS,
  overfit_steps: int = OVERFIT_STEPS,
) -> dict[str, Any]:
  """Trains networks and attacks their training sets.

  Args:
    config: of the run.
    run: what `collaboration.restore` returned of it; with hospitals.
    num_models: M.
    steps: of each network.
    overfit_steps: of each network of the positive control.

  Returns:
    {'experiments': {experiment: {loss: {attack: as `attacks.evaluate`}}},
    'num_models', 'num_cases', 'num_subjects', 'notes'}; or 'why' where there
    are too few subjects. Plain JSON values.
  """
  pairs, mask, subject = _contributions(config, run)
  names = np.unique(subject)
  found = {
    'num_models': num_models,
    'num_cases': len(subject),
    'num_subjects': len(names),
  }
  if len(names) < visits.LEAST_SUBJECTS:
    why = (
      f'not measurable: {len(names)} subjects, fewer than '
      f'{visits.LEAST_SUBJECTS}'
    )
    return {**found, 'experiments': {}, 'notes': [], 'why': why}
  few = np.isin(subject, names[:: -(-len(names) // OVERFIT_SUBJECTS)])
  decoders = _decoders(config, run)
  result = {}
  for experiment, rows, count, options in (
    ('mapping', np.ones(len(few), bool), steps, {}),
    ('overfit', few, overfit_steps, {'dropout': 0.0}),
  ):
    rows = np.flatnonzero(rows)
    part = examples_lib.take(pairs, rows)
    member = attacks.halves(subject[rows], num_models=num_models, seed=0)
    losses = _losses(
      config, decoders, part, mask[rows], member, count, options, experiment
    )
    result[experiment] = _attack(losses, member, subject[rows])
    if experiment == 'mapping':
      other = attacks.halves(subject, num_models=num_models, seed=1)
      result['shuffled'] = _attack(losses, other, subject)
  order = ('mapping', 'overfit', 'shuffled')
  notes = {
    line
    for by_attack in result['mapping'].values()
    for scores in by_attack.values()
    for line in scores['notes']
  }
  size = (
    f'{num_models} networks of {SMALL[config.mapping]} and {steps} steps of '
    f'{BATCH_SIZE}, smaller than that of the run: a lower bound.'
  )
  return {
    **found,
    'experiments': {name: result[name] for name in order},
    'notes': [size, *sorted(notes)],
  }


def _contributions(config, run):
  """Returns (pairs of latents, masks, subjects) of all clients."""
  parts, masks, subjects = [], [], []
  models_of = learners.autoencoders(
    config, channels=run.data.channels, num_classes=run.data.num_classes
  )

  @jax.jit
  def encode(state, image, mask):
    apply = lambda model, variables, x: model.apply(
      variables, x, train=False, method='encode'
    )
    one_hot = jax.nn.one_hot(mask, run.data.num_classes)
    return {
      'image': apply(
        models_of.image_model, state['image'], images.unit_image(image)
      ),
      'mask': apply(models_of.mask_model, state['mask'], one_hot),
    }

  for number, (name, hospital) in enumerate(run.hospitals.items()):
    state = {'image': hospital.state.image, 'mask': hospital.state.mask}
    for split in ('train', 'valid'):
      examples = run.data.hospitals[name][split]
      count = len(examples.case)
      if not count:
        continue
      pair = jax.device_get(encode(state, examples.image, examples.mask))
      parts.append({**pair, 'client': np.full(count, number, np.int32)})
      masks.append(examples.mask)
      # Two clients' subjects are two, whatever their names.
      subjects.append([f'{name}/{one}' for one in examples.subject])
  pairs = jax.tree.map(lambda *a: np.concatenate(a), *parts)
  return pairs, np.concatenate(masks), np.concatenate(subjects)


def _decoders(config, run):
  """Returns (latents [B], mask [B], client) -> cross-entropies [B]."""
  model = learners.autoencoders(
    config, channels=run.data.channels, num_classes=run.data.num_classes
  ).mask_model
  variables = [hospital.state.mask for hospital in run.hospitals.values()]

  @jax.jit
  def score(variables, latents, mask):
    logits = model.apply(variables, latents, train=False, method='decode')
    loss = optax.softmax_cross_entropy_with_integer_labels(
      logits, mask.astype(jnp.int32)
    )
    return loss.mean((1, 2))

  return lambda latents, mask, client: score(variables[client], latents, mask)


def _losses(config, decode, pairs, mask, member, steps, options, title):
  """Trains the networks; returns {loss: float64 [M, N]}."""
  clients = int(pairs['client'].max()) + 1
  statistics = {
    modality: tasks.Statistics.of(pairs[modality], pairs['client'], clients)
    for modality in ('image', 'mask')
  }
  small = {**config.mapping_options, **SMALL[config.mapping], **options}
  task = tasks.mapping(
    models.MODELS[config.mapping](relu=False, **small),
    image_statistics=statistics['image'],
    mask_statistics=statistics['mask'],
  )
  tx = optax.adam(config.mapping_learning_rate)

  @jax.jit
  def step(variables, state, batch, key):
    def loss(params):
      value, (_, new) = task.loss(
        {**variables, 'params': params}, batch, key, True
      )
      return value, new

    grads, new = jax.grad(loss, has_aux=True)(variables['params'])
    updates, state = tx.update(grads, state)
    params = optax.apply_updates(variables['params'], updates)
    return {**new, 'params': params}, state

  predict = jax.jit(task.predict)
  init = jax.jit(task.init)

  def measure(variables):
    latents = predict(variables, pairs['image'], pairs['client'])
    client = pairs['client']
    standard = statistics['mask'].standardise
    guess, truth = standard(latents, client), standard(pairs['mask'], client)
    found = {
      name: np.mean(np.square(guess[name] - truth[name]), axis=(1, 2, 3))
      for name in sorted(truth)
    }
    found['all'] = np.sum(list(found.values()), axis=0)
    found['mask'] = np.zeros(len(client))
    for number in np.unique(client):
      rows = client == number
      part = {k: z[rows] for k, z in latents.items()}
      found['mask'][rows] = decode(part, mask[rows], number)
    return found

  measured = []
  for number, members in enumerate(member):
    rng = np.random.default_rng(number)
    rows, order = np.flatnonzero(members), np.zeros(0, int)
    key = jax.random.key(number)
    variables = init(key, examples_lib.take(pairs, rows[:1]))
    state = tx.init(variables['params'])
    size = min(BATCH_SIZE, int(member.sum(axis=1).min()))
    for i in range(steps):
      if len(order) < size:
        order = rng.permutation(rows)
      batch, order = examples_lib.take(pairs, order[:size]), order[size:]
      variables, state = step(
        variables, state, batch, jax.random.fold_in(key, i)
      )
    measured.append(measure(variables))
    print(
      f'membership, {title}: network {number + 1}/{len(member)}', flush=True
    )
  return {
    name: np.stack([np.float64(one[name]) for one in measured])
    for name in measured[0]
  }


def _attack(losses, member, subject):
  result = {}
  for name, values in losses.items():
    result[name] = {}
    for attack in SHOWN:
      scores = attacks.evaluate(
        attacks.ATTACKS[attack](values, member), member, subject=subject,
        num_draws=300,
      )  # fmt: skip
      result[name][attack] = {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in scores.items()
      }
  return result
