"""Sample from a trained run: fill the missing chunks, then assemble them."""

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
    errors.Preempted: ended by a signal, after a chunk.
  """
  validation.validate_generation(config, num_devices=jax.device_count())
  model, guide = trained.find(config, workdir)
  folder = identity.claim_samples(model, guide, write=distributed.is_lead())
  sampling = config.sampling
  result = folder / f"samples_{sampling.num_samples}.npz"
  if result.exists():
    logging.info("Samples exist: %s", result)
    return result

  chunks = store.missing(folder, sampling.num_samples, sampling.chunk_size)
  # No process writes a chunk before all have listed the missing ones.
  distributed.barrier("chunks listed")
  if chunks:
    with distributed.naming_memory(
      f"sampling.batch_size={sampling.batch_size}"
    ):
      _fill(config, trained.sampler(model, guide), folder, chunks)
  distributed.barrier("samples")
  if distributed.is_lead():
    images = store.assemble(folder, result, sampling.chunk_size)
    picture = image_ops.grid(
      images[: _GRID_COLUMNS * _GRID_ROWS], _GRID_COLUMNS
    )
    files.write_atomic(folder / "grid.png", image_ops.png(picture))
  distributed.barrier("samples assembled")
  return result


def _fill(config, draw, folder, chunks):
  """Sample this process's share of the chunks; write each when it is done."""
  sampling = config.sampling
  mine = chunks[jax.process_index() :: jax.process_count()]
  total = sum(stop - start for start, stop in mine)
  logging.info(
    "Sampling %d images: %s, w=%g (s=%g), T=%d, %s.",
    total,
    sampling.guidance,
    sampling.w,
    1 + sampling.w,
    sampling.T,
    sampling.sampler,
  )
  classes = np.array(sampling.labels or range(config.data.num_classes))
  per_call = sampling.batch_size * jax.local_device_count()
  report = progress.Progress("Sampling", total)
  with preemption.deferred():
    # All processes take equally many rounds, some maybe an empty last one.
    for number in range(-(-len(chunks) // jax.process_count())):
      for start, stop in mine[number : number + 1]:
        index = np.arange(start, stop)
        label = classes[index % len(classes)].astype(np.int32)
        parts = []
        for first in range(0, len(index), per_call):
          part = slice(first, first + per_call)
          parts.append(draw(index[part], label[part]))
          report.add(len(parts[-1]))
        store.write(folder, start, np.concatenate(parts), label)
      preemption.check(
        f"{len(mine[: number + 1])} of {len(mine)} chunks are written to "
        f"{folder}; run the same command again to resume"
      )
