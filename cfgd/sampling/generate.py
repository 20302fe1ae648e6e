"""Sample from a trained run: draw what is missing, then assemble all."""

import functools

from absl import logging
import jax
import numpy as np

from cfgd import identity
from cfgd import validation
from cfgd.data import images as image_ops
from cfgd.runtime import distributed
from cfgd.runtime import files
from cfgd.runtime import preemption
from cfgd.runtime import progress
from cfgd.runtime import shared
from cfgd.sampling import store
from cfgd.sampling import trained

_GRID_COLUMNS = 10
_GRID_ROWS = 4


def generate(config, workdir):
  """Make the samples that the config asks for; the same call resumes.

  Args:
    config: ConfigDict of configs/base.py's fields.
    workdir: folder of a trained run.

  Returns:
    Path of the .npz: `arr_0` [N, H, W, C] uint8 and `arr_1` [N] labels, as
    guided-diffusion's evaluator reads them. A PNG grid lies beside it.

  Raises:
    errors.UserError: bad config, another run's workdir, no checkpoint, or
      existing samples that were made with other defaults.
    errors.NonFiniteError: a sample is not finite.
    errors.RunError: one image differs from place to place of a call.
    errors.Preempted: ended by a signal; what was drawn is written.
  """
  validation.validate_generation(config)
  model, guide = trained.find(config, workdir)
  folder = identity.claim_samples(model, guide, write=distributed.is_lead())
  sampling = config.sampling
  result = folder / f"samples_{sampling.num_samples}.npz"
  # One process looks and all follow.
  missing = distributed.by_lead(
    lambda: not result.exists() and store.missing(folder, sampling.num_samples)
  )
  if missing is False:
    logging.info("Samples exist: %s", result)
    return result
  if missing:
    shared.check(folder)
    with distributed.naming_memory(
      f"sampling.batch_size={sampling.batch_size}"
    ):
      _fill(config, trained.sampler(model, guide), folder, missing)
  distributed.by_lead(lambda: _finish(folder, result, sampling.num_samples))
  return result


def _finish(folder, result, num_samples):
  """Write all samples as one file, and a picture of some."""
  images = store.assemble(folder, result, num_samples)
  picture = image_ops.grid(images[: _GRID_COLUMNS * _GRID_ROWS], _GRID_COLUMNS)
  files.write_atomic(folder / "grid.png", image_ops.png(picture))


def divide(missing, processes):
  """Return the indices of images that each process draws: equal shares.

  Args:
    missing: (start, stop) of each range of images.
    processes: their number.
  """
  index = np.concatenate([np.arange(*span) for span in missing])
  return np.array_split(index, processes)


def _fill(config, draw, folder, missing):
  """Draw this process's share of the missing images, and write them.

  Args:
    config: ConfigDict.
    draw: of `trained.sampler`.
    folder: of the store.
    missing: (start, stop) of each range of images.
  """
  sampling = config.sampling
  shares = divide(missing, jax.process_count())
  mine = shares[jax.process_index()]
  per_call = sampling.batch_size * jax.local_device_count()
  logging.info(
    "Sampling %d images: %s, w=%g (s=%g), T=%d, %s.",
    len(mine),
    sampling.guidance,
    sampling.w,
    1 + sampling.w,
    sampling.T,
    sampling.sampler,
  )
  classes = np.array(sampling.labels or range(config.data.num_classes))
  report = progress.Progress("Sampling", len(mine))
  writer = store.Writer(folder, sampling.chunk_size)

  def work(index):
    if len(index):
      label = classes[index % len(classes)].astype(np.int32)
      writer.add(index, draw(index, label), label)
      report.add(len(index))

  with preemption.deferred():
    # All processes take equally many rounds, some maybe an empty last one.
    for number in range(-(-max(map(len, shares)) // per_call)):
      index = mine[number * per_call : (number + 1) * per_call]
      distributed.in_all(functools.partial(work, index))
      if preemption.reached():
        distributed.in_all(writer.flush)
        done = min((number + 1) * per_call, len(mine))
        preemption.end(
          f"{done} of {len(mine)} images are written to {folder}; run the same "
          "command again to resume"
        )
    distributed.in_all(writer.flush)
