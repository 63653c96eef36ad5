"""Evaluates a trained run: name -> function of (config, run) -> JSON-able dict.

`EVALUATIONS` lists what eval.py can compute; `evaluate` runs some of them and
keeps what earlier calls computed in workdir/eval/results.json.
"""

import json
import math
import pathlib
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ppcmi_jax import (
  collaboration,
  cross_client,
  evaluators,
  learners,
  payload,
  profiling,
  workdir,
)
from ppcmi_jax import examples as examples_lib
from ppcmi_jax.privacy import campaign, members

Run = collaboration.Collaboration
RESULTS = 'results.json'


def segmentation(config: Any, run: Run) -> dict[str, Any]:
  """Scores the masks of every client's test split, the prior, the ceiling.

  Returns:
    {client: {'scores', 'shape_prior'}}, and for a private method 'ceiling' and
    'ceiling_train', the mask autoencoder on test and training masks; where the
    hospital's own image autoencoder was trained to segment, 'alone', what it
    says without the server, and 'fused', both together; each as
    `evaluators.segmentation` returns.
  """
  result = {}
  options = {
    'class_names': run.data.class_names,
    'distance_unit': config.distance_unit,
  }
  for name, parts in run.data.hospitals.items():
    train, test = parts['train'], parts['test']
    result[name] = {
      'scores': evaluators.segmentation(run.predict[name], test, **options),
      'shape_prior': evaluators.shape_prior(train.mask, test, **options),
    }
    if name in run.hospitals:
      rebuild = run.hospitals[name].reconstruct_mask
      for key, predict in _with_own(run, name).items():
        result[name][key] = evaluators.segmentation(predict, test, **options)
      for key, examples in (('ceiling', test), ('ceiling_train', train)):
        result[name][key] = evaluators.mask_reconstruction(
          rebuild, examples, **options
        )
  return result


def _with_own(run, name):
  """Returns what takes in what the hospital itself says of an image."""
  if name not in run.predict_fused:
    return {}
  probabilities = run.hospitals[name].segment_alone

  def alone(image):
    return np.argmax(probabilities(image), axis=-1).astype(np.uint8)

  return {'alone': alone, 'fused': run.predict_fused[name]}


def official_scores(config: Any, run: Run) -> dict[str, Any]:
  """Scores the masks as the official code does, to compare with its figures.

  Returns:
    {client: as `evaluators.segmentation` with preset='official'}.
  """
  del config
  return {
    name: evaluators.segmentation(
      run.predict[name],
      parts['test'],
      class_names=run.data.class_names,
      preset='official',
    )
    for name, parts in run.data.hospitals.items()
  }


def autoencoders(config: Any, run: Run) -> dict[str, Any]:
  """Scores images and masks that went through the autoencoders and back.

  Returns:
    {client: {'image': PSNR, SSIM and n, 'mask_psnr_db': of the squared error
    of all one-hot masks together, None where nothing is wrong}}.
  """
  del config
  num_classes, result = run.data.num_classes, {}
  for name, hospital in run.hospitals.items():
    test = run.data.hospitals[name]['test']
    rebuilt = examples_lib.map_batches(
      hospital.reconstruct_mask, test.mask, evaluators.BATCH_SIZE
    )
    # Of one-hot masks, a wrong pixel is wrong in two of the K channels.
    error = np.mean(rebuilt != test.mask) * 2 / num_classes
    result[name] = {
      'image': evaluators.reconstruction(hospital.reconstruct_image, test),
      'mask_psnr_db': -10 * math.log10(error) if error else math.inf,
    }
  return result


def query(config: Any, run: Run) -> dict[str, Any]:
  """Times a query of batch 1, stage by stage, and weighs its messages.

  Returns:
    {client: {'latency', 'query_bytes', 'reply_bytes', 'image_bytes'}}; a
    baseline has no messages. Where the hospital can segment by itself,
    'own_latency' of that, which need not wait for the server.
  """
  result = {}
  for name, parts in run.data.hospitals.items():
    image = parts['test'].image[:1]
    result[name] = {'image_bytes': int(image.nbytes)}
    if name not in run.hospitals:
      stages = [('predict', run.predict[name])]
      result[name]['latency'] = profiling.profile(stages, np.array(image))
      continue
    client, state = run.hospitals[name].client, run.hospitals[name].state
    message, _ = client.protect(state, image)
    reply = run.server.respond(run.server_state, message)

    def protect(image, client=client, state=state):
      return client.protect(state, image)

    def respond(sent):
      message, ticket = sent
      return run.server.respond(run.server_state, message), ticket

    def reveal(reply, client=client, state=state):
      return client.reveal(state, *reply)

    if name in run.predict_fused:
      stages = [('own', run.hospitals[name].segment_alone)]
      result[name]['own_latency'] = profiling.profile(stages, np.array(image))
    result[name] |= {
      'latency': profiling.profile(
        [('protect', protect), ('respond', respond), ('reveal', reveal)],
        np.array(image),
      ),
      'query_bytes': len(message),
      'reply_bytes': len(reply),
    }
  return result


def wire(config: Any, run: Run) -> dict[str, Any]:
  """Scores the run with every dtype that its messages can have.

  Only queries and replies differ: the mapping network was trained once, on
  contributions of the configuration's dtype.

  Returns:
    {dtype: {'query_bytes', 'reply_bytes', 'dice': {client: mean Dice}}}.
  """
  result = {}
  for dtype in learners.WIRE_DTYPES[config.protection]:
    ask = run.connect(dtype).ask
    first = next(iter(run.hospitals))
    image = run.data.hospitals[first]['test'].image[:1]
    _, query, reply = ask(first, image)
    result[dtype] = {
      'query_bytes': len(query),
      'reply_bytes': len(reply),
      'dice': {
        name: evaluators.segmentation(
          lambda image, name=name, ask=ask: ask(name, image)[0],
          run.data.hospitals[name]['test'],
          class_names=run.data.class_names,
        )['mean']['dice']
        for name in run.hospitals
      },
    }
  return result


def networks(config: Any, run: Run) -> dict[str, Any]:
  """Counts parameters and what XLA says a call of batch 1 costs.

  Returns:
    {network: {'parameters', 'flops', 'bytes', 'compile_s'}}.
  """
  del config
  result = {}
  for name, (function, variables, inputs) in run.networks.items():
    leaves = jax.tree.leaves(variables['params'])
    result[name] = {
      'parameters': sum(leaf.size for leaf in leaves),
      **profiling.cost(function, variables, *inputs),
    }
  return result


def cross(config: Any, run: Run) -> dict[str, Any]:
  """Opens each client's messages with every client's decoder.

  Returns:
    What `cross_client.cross_client` does, as a dict.
  """
  return cross_client.cross_client(run)._asdict()


EVALUATIONS: Mapping[str, Callable[[Any, Run], dict[str, Any]]] = {
  'segmentation': segmentation,
  'official_scores': official_scores,
  'autoencoders': autoencoders,
  'query': query,
  'wire': wire,
  'networks': networks,
  'cross_client': cross,
}


def privacy(
  config: Any, run: Run, folder: pathlib.Path, parts: Sequence[str]
) -> dict[str, Any]:
  """Runs the attacks of these names, all if none; see `campaign.privacy`."""
  chosen = campaign.choose(parts) if parts else {}
  return campaign.privacy(config, run, folder=folder, **chosen)


# Take long, and run when named.
ON_DEMAND: Mapping[str, Callable[..., dict[str, Any]]] = {
  'privacy': privacy,
  'membership': lambda config, run, *_: members.membership(config, run),
  'payload': lambda config, run, *_: payload.payload(config, run),
}
# What `NAME.PART` may name, to be run by itself.
PARTS = {'privacy': campaign.NAMES}
PRIVATE_ONLY = ('autoencoders', 'wire', 'cross_client', *ON_DEMAND)


def choose(config: Any, names: Sequence[str] | None) -> list[str]:
  """Returns the evaluations to run of a method, as `evaluate` takes them.

  Raises:
    ValueError: an unknown evaluation, an unknown part of one, or one that the
      method has not.
  """
  private = config.method not in learners.BASELINES
  known = [
    name
    for name in (*EVALUATIONS, *ON_DEMAND)
    if private or name not in PRIVATE_ONLY
  ]
  if names is None:
    return [name for name in known if name not in ON_DEMAND]
  for name in names:
    whole, dot, part = name.partition('.')
    if whole not in known:
      raise ValueError(
        f'eval_names: expected some of {", ".join(known)}, found {name!r}'
      )
    if dot and part not in PARTS.get(whole, ()):
      parts = ', '.join(PARTS.get(whole, ())) or 'nothing'
      raise ValueError(
        f'eval_names: expected {parts} behind {whole}., found {part!r}'
      )
  return list(names)


def evaluate(
  config: Any,
  path: str | pathlib.Path,
  run: Run,
  names: Sequence[str] | None = None,
) -> dict[str, Any]:
  """Runs evaluations and merges them into those that the workdir holds.

  Args:
    config: the configuration that the run was trained with.
    path: of the workdir.
    run: what `collaboration.restore` returned of it.
    names: keys of `EVALUATIONS` and `ON_DEMAND`, these also as 'NAME.PART' for
      one of `PARTS`; of the former those that the method has, if None.

  Returns:
    {evaluation: its result} and 'method', 'environment' ({evaluation: what it
    ran on}), as eval/results.json holds it; what is undefined is None.

  Raises:
    ValueError: as `choose`.
  """
  names = choose(config, names)
  folder = workdir.Workdir(path, config.to_dict(), create=False)
  with folder.evaluation_lock():
    return _evaluate(config, folder.path / 'eval' / RESULTS, run, names)


def _evaluate(config, file, run, names):
  results = {'method': config.method, 'environment': {}}
  if file.exists():
    results |= workdir.read_object(file, 'delete it and run eval.py again')
  parts: dict[str, list[str]] = {}
  for name in names:
    whole, _, part = name.partition('.')
    parts.setdefault(whole, []).extend([part] if part else [])
  for name in parts:
    if name in ON_DEMAND:
      chosen = () if name in names else parts[name]
      found = ON_DEMAND[name](config, run, file.parent, chosen)
    else:
      found = EVALUATIONS[name](config, run)
    results[name] = _jsonable(found)
    results['environment'][name] = environment()
    workdir.write_text(
      file, json.dumps(results, indent=1, allow_nan=False) + '\n'
    )
  return results


def environment() -> dict[str, Any]:
  """Returns what the figures depend on: device, versions."""
  return {
    'device': jax.devices()[0].device_kind,
    'num_devices': jax.device_count(),
    'jax': jax.__version__,
    'python': platform.python_version(),
    'machine': platform.machine(),
  }


def _jsonable(value: Any) -> Any:
  """Returns plain JSON values; NaN becomes None."""
  if isinstance(value, Mapping):
    return {str(k): _jsonable(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_jsonable(v) for v in value]
  if isinstance(value, (np.integer, np.floating)):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
