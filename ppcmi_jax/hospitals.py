"""The hospitals of a run: their keys, and what they have learnt."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from ppcmi_jax import (
  channel as channel_lib,
)
from ppcmi_jax import (
  client as client_lib,
)
from ppcmi_jax import (
  enrolment,
  evaluators,
  hospital_data,
  learners,
)
from ppcmi_jax import (
  workdir as workdir_lib,
)


class Hospital(NamedTuple):
  """A trained client: what it does, and what it holds.

  Attributes:
    client: its functions.
    state: its autoencoders' variables.
    channel: its end, with its keys.
    reconstruct_image, reconstruct_mask: its autoencoders' predicts.
    segment_alone: image -> float32 class probabilities [B, H, W, K], what it
      has without any server; None where its image autoencoder was not trained
      to segment.
  """

  client: client_lib.Client
  state: client_lib.ClientState
  channel: channel_lib.Channel
  reconstruct_image: Callable[[Any], jax.Array]
  reconstruct_mask: Callable[[Any], jax.Array]
  segment_alone: Callable[[Any], jax.Array] | None


def restore_hospital(
  config: Any,
  workdir: workdir_lib.Workdir,
  data: hospital_data.Data,
  autoencoders: learners.Learners,
  name: str,
) -> Hospital:
  """Returns a client with its trained autoencoders and its keys.

  Raises:
    ValueError: an autoencoder is not trained, no checkpoint of it is whole, or
      a key is missing or unusable.
  """
  variables = {
    modality: getattr(autoencoders, modality).restore(
      data.sample(),
      workdir.checkpoints(f'{modality}_{name}'),
      warn=logging.warning,
    )
    for modality in client_lib.MODALITIES
  }
  channel = enrolment.client_channel(
    config, workdir, name, autoencoders.latents
  )
  return Hospital(
    client=make_client(name, channel, autoencoders),
    state=client_lib.ClientState(**variables),
    channel=channel,
    reconstruct_image=functools.partial(
      jax.jit(autoencoders.image_task.predict), variables['image']
    ),
    reconstruct_mask=functools.partial(
      jax.jit(autoencoders.mask_task.predict), variables['mask']
    ),
    segment_alone=autoencoders.segment_alone
    and functools.partial(
      jax.jit(autoencoders.segment_alone), variables['image']
    ),
  )


def make_client(
  name: str, channel: channel_lib.Channel, autoencoders: learners.Learners
) -> client_lib.Client:
  """Returns the functions of a client, at its end of a channel."""
  return client_lib.make_client(
    name=name,
    channel=channel,
    image_model=autoencoders.image_model,
    mask_model=autoencoders.mask_model,
    latents=autoencoders.latents,
  )


def weak_classes(
  data: hospital_data.Data, name: str, scores: Mapping[str, Any]
) -> dict[str, float]:
  """Returns the classes that a mask autoencoder does not know well enough.

  A class counts where the client's training masks hold more than 1000 pixels
  of it and its Dice is under 0.95; it is lost where that is under 0.5.

  Args:
    data: of the run.
    name: of the client.
    scores: `evaluators.mask_reconstruction` of its training split.

  Returns:
    {class name: Dice on the training masks}.
  """
  pixels = np.bincount(
    data.hospitals[name]['train'].mask.ravel(), minlength=data.num_classes
  )
  return {
    class_name: scores[class_name]['dice']
    for class_name, count in zip(data.class_names[1:], pixels[1:], strict=True)
    if count > 1000 and scores[class_name]['dice'] < 0.95
  }


def describe_weak_class(name: str, class_name: str, dice: float) -> str:
  """Returns a warning of a class that `weak_classes` returned."""
  return (
    f'client {name}: its mask autoencoder '
    f'{"lost" if dice < 0.5 else "knows too little of"} the class '
    f'{class_name!r} (Dice {dice:.2f} on its own training masks); nothing '
    'downstream can bring it back: train it longer (mask_steps)'
  )


def warn_of_weak_classes(
  data: hospital_data.Data, name: str, hospital: Hospital
) -> None:
  """Logs each class that a client's mask autoencoder cannot reproduce."""
  scores = evaluators.mask_reconstruction(
    hospital.reconstruct_mask,
    data.hospitals[name]['train'],
    class_names=data.class_names,
  )
  for class_name, dice in weak_classes(data, name, scores).items():
    logging.warning('%s', describe_weak_class(name, class_name, dice))
