"""What differs between the tasks of the one training loop.

Each task has a check of fresh parameters, and something to show now and then:
samples of a diffusion model, the accuracy of a classifier.
"""

from collections.abc import Callable
import functools
import json
from typing import NamedTuple

import jax
import numpy as np

from cfgd import build
from cfgd import diffusion
from cfgd import identity
from cfgd import methods
from cfgd.convert import guided_diffusion
from cfgd.data import images as image_ops
from cfgd.runtime import checkpoint
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.training import losses
from cfgd.training import steps
from cfgd.training import teacher

_GRID_COLUMNS = 10


class Task(NamedTuple):
  """A row of TASKS.

  Attributes:
    check: (config, source, params); raises where training cannot work.
    show: (config, state, workdir, writer); writes scalars and files.
    traced: config -> what the loss reads in `traced`.
    start: (config, params) -> the parameters to start from instead, given fresh
      ones.
    about: what it trains, for readers.
  """

  check: Callable
  show: Callable
  traced: Callable
  start: Callable
  about: str


def _check_conditioning(config, source, params):
  """Refuse a network with which guidance cannot work."""
  if not config.model.null_row:
    return
  batch = source.read(np.arange(1))
  fault = losses.conditioning_fault(build.loss(config), params, batch)
  if fault:
    raise errors.RunError(f"{fault}: classifier-free guidance cannot work")


def _show_samples(config, state, workdir, writer):
  """Write a grid of samples of the averaged weights, class by class."""
  params = distributed.replicate_locally(jax.device_get(state.ema_params))
  index = np.arange(config.sampling.batch_size * jax.local_device_count())
  label = (index % config.data.num_classes).astype(np.int32)
  images, _ = build.sampler(_preview(config))((params, None), index, label)
  picture = image_ops.grid(images, _GRID_COLUMNS)
  number = int(state.step)
  writer.write_images(number, {"samples": picture[None]})
  if distributed.is_lead():
    path = workdir / "grids" / f"step_{number:08d}.png"
    files.write_atomic(path, image_ops.png(picture))


# Of a model that is trained with labels only, or without any.
_UNGUIDED = {"w_schedule": "constant", "interval": (), "rescale": 0.0}


def _preview(config):
  """Return a config that samples from the model under training alone."""
  config = config.copy_and_resolve_references()
  sampling, p_uncond = config.sampling, config.diffusion.p_uncond
  if config.task == "guided_student":
    return config
  sampling.guidance = methods.without_guide(sampling.guidance, p_uncond)
  if p_uncond in (0, 1):
    sampling.update(_UNGUIDED | {"w": -float(p_uncond)})
  without_score = diffusion.SAMPLERS[sampling.sampler].without_score
  sampling.sampler = without_score or sampling.sampler
  return config


def _show_accuracy(config, state, workdir, writer):
  """Write the averaged weights' loss and accuracy on held-out images."""
  source = build.source(config, "heldout", training=True)
  count = min(len(source), config.train.heldout_images)
  params = distributed.replicate_locally(jax.device_get(state.ema_params))
  step = _eval_step(build.loss(config), config.seed)
  rows = config.train.batch_size // config.train.microbatches
  sums = [
    jax.device_get(step(params, batch, {}))
    for batch in _heldout_batches(source, count, rows)
  ]
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


def check_origin(config, workdir):
  """Refuse a train.init_from of another kind, before a run is begun with it."""
  origin = config.train.init_from
  if not origin or checkpoint.steps(workdir):
    return
  theirs = identity.recorded_config(origin)
  for field, one, other in (
    ("task", config.task, theirs.task),
    ("model.condition", config.model.condition, theirs.model.condition),
  ):
    if one != other:
      raise errors.UserError(
        f"{field}={one!r}: the weights in train.init_from={origin} were "
        f"trained with {other!r}"
      )


def _initial_weights(config, fresh):
  """Read train.init_from's averaged weights; add a null row if it lacks one."""
  origin = config.train.init_from
  if not origin:
    return fresh
  step = checkpoint.find_step(origin, -1)
  theirs = identity.recorded_config(origin)
  if theirs.model.null_row or not config.model.null_row:
    return checkpoint.read_params(origin, step, fresh, "ema")
  table = fresh["label_emb"]["embedding"]
  without = fresh | {"label_emb": {"embedding": table[:-1]}}
  params = checkpoint.read_params(origin, step, without, "ema")
  return guided_diffusion.add_null_row(params)


def _traced_of_students(config):
  return {
    "teacher": distributed.replicate(teacher.params(config)),
    "w_low": np.float32(config.distill.w_low),
    "w_high": np.float32(config.distill.w_high),
  }


TASKS = {
  "diffusion": Task(
    _check_conditioning,
    _show_samples,
    traced=lambda config: {"p_uncond": np.float32(config.diffusion.p_uncond)},
    start=_initial_weights,
    about="diffusion model",
  ),
  "classifier": Task(
    lambda *_: None,
    _show_accuracy,
    traced=lambda config: {},
    start=_initial_weights,
    about="classifier",
  ),
  "guided_student": Task(
    lambda *_: None,
    _show_samples,
    traced=_traced_of_students,
    start=teacher.student_params,
    about="guided student",
  ),
}
