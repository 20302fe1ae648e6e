"""What differs between the tasks of the one training loop.

Each task has a loss, a check of fresh parameters, and something to look at now
and then: samples of a diffusion model, the accuracy of a classifier.
"""

from collections.abc import Callable
import functools
import json
from typing import NamedTuple

import jax
import numpy as np

from cfgd import config as config_lib
from cfgd.data import images as image_ops
from cfgd.data import sources
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.sampling import configured
from cfgd.training import losses
from cfgd.training import steps

_GRID_COLUMNS = 10


class Task(NamedTuple):
  """Functions of a config and its network.

  Attributes:
    loss: (config, network) -> loss, see `losses`.
    check: (config, network, source, params); ends a run that cannot work.
    show: (config, network, state, workdir, writer); writes scalars and files.
  """

  loss: Callable
  check: Callable
  show: Callable


def _diffusion_loss(config, network):
  return losses.diffusion_loss(
    network,
    null_label=config.data.num_classes,
    **config_lib.parametrization(config),
  )


def _check_conditioning(config, network, source, params):
  """End a run early whose guidance could not work."""
  if not config.model.null_row:
    return
  batch = source.read(np.arange(1))
  loss = _diffusion_loss(config, network)
  fault = losses.conditioning_fault(loss, params, batch)
  if fault:
    raise errors.RunError(f"{fault}: classifier-free guidance cannot work")


def _show_samples(config, network, state, workdir, writer):
  """Write a grid of samples of the averaged weights, class by class."""
  del network
  params = distributed.replicate_locally(jax.device_get(state.ema_params))
  index = np.arange(config.sampling.batch_size * jax.local_device_count())
  label = (index % config.data.num_classes).astype(np.int32)
  draw = configured.make_draw(_preview(config), (params, None))
  images, _ = draw(index, label)
  picture = image_ops.grid(images, _GRID_COLUMNS)
  number = int(state.step)
  writer.write_images(number, {"samples": picture[None]})
  if distributed.is_lead():
    path = workdir / "grids" / f"step_{number:08d}.png"
    files.write_atomic(path, image_ops.png(picture))


# Of fields that need another network, or a second eps to contrast with.
_PLAIN = {
  "classifier_form": "eps",
  "classifier_w": 0.0,
  "second_dir": "",
  "second_step": -1,
}
_UNGUIDED = {
  "w": 0.0,
  "w_schedule": "constant",
  "interval": (),
  "rescale": 0.0,
}


def _preview(config):
  """Return a copy of the config that samples by the model under training alone.

  Classifier-free guidance where it learns with and without labels, else the one
  of the two that it learns.
  """
  config = config.copy_and_resolve_references()
  p_uncond = config.diffusion.p_uncond
  config.sampling.update(_PLAIN | {"guidance": "cfg"})
  if p_uncond == 0:
    config.sampling.update(_UNGUIDED | {"guidance": "none"})
  elif p_uncond == 1:
    config.sampling.update(_UNGUIDED | {"w": -1.0})
  return config


def _classifier_loss(config, network):
  return losses.classifier_loss(network, **config_lib.parametrization(config))


def _show_accuracy(config, network, state, workdir, writer):
  """Write the averaged weights' loss and accuracy on held-out images."""
  source = sources.load(config_lib.training_spec(config), "heldout")
  count = min(len(source), config.train.heldout_images)
  params = distributed.replicate_locally(jax.device_get(state.ema_params))
  step = _eval_step(_classifier_loss(config, network), config.seed)
  sums = []
  rows = config.train.batch_size // config.train.microbatches
  for batch in _heldout_batches(source, count, rows):
    sums.append(jax.device_get(step(params, batch, {})))
  totals = jax.tree.map(lambda *parts: np.sum(parts), *sums)
  means = steps.weighted_means(totals, prefix="heldout_")
  number = int(state.step)
  writer.write_scalars(number, means)
  if distributed.is_lead():
    about = {"step": number, "images": count, **means}
    files.write_atomic(
      workdir / "accuracy" / f"step_{number:08d}.json",
      json.dumps(about, indent=2) + "\n",
    )


@functools.cache
def _eval_step(loss, seed):
  """Cached, so that a training compiles it once."""
  return steps.make_eval_step(loss, seed=seed)


def _heldout_batches(source, count, batch_size):
  """Yield the first images, split over local devices, with rows and weights."""
  devices = jax.local_device_count()
  size = -(-batch_size // devices) * devices
  for start in range(0, count, size):
    rows = np.arange(start, min(start + size, count))
    batch = source.read(rows) | {"row": rows.astype(np.int32)}
    batch = {key: distributed.pad(value, size) for key, value in batch.items()}
    batch["weight"] = (np.arange(size) < len(rows)).astype(np.float32)
    yield distributed.split(batch, devices)


TASKS = {
  "diffusion": Task(_diffusion_loss, _check_conditioning, _show_samples),
  "classifier": Task(_classifier_loss, lambda *_: None, _show_accuracy),
}
