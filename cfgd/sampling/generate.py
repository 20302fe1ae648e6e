"""Sample from a trained run: fill the missing chunks, then assemble them."""

import time
from typing import Any
from typing import NamedTuple

from absl import logging
from etils import epath
import jax
import numpy as np

from cfgd import build
from cfgd import identity
from cfgd import validation
from cfgd.data import images as image_ops
from cfgd.runtime import checkpoint
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.runtime import preemption
from cfgd.sampling import guide as guide_lib
from cfgd.sampling import store

_GRID_COLUMNS = 10
_GRID_ROWS = 4


# Fields in which samples may differ from training: parameters are float32
# whatever the computation's type was.
_OF_SAMPLING_TOO = ("model.dtype",)
# Settings of how many images there are, and of where checkpoints are.
_PLACES = (
  *("sampling.num_samples", "sampling.checkpoint_step"),
  *("sampling.second_dir", "sampling.second_step"),
)


class Samples(NamedTuple):
  """A set of samples: what it is made from, and where it lives.

  Attributes:
    config: ConfigDict.
    workdir: of the model's run.
    step: of the model's checkpoint.
    guide: the guiding network, see `guide.find`; None without one.
    settings: what the images depend on, by field; without their number.
  """

  config: Any
  workdir: epath.Path
  step: int
  guide: guide_lib.Guide | None
  settings: dict[str, Any]

  @property
  def folder(self):
    """Where they live: its name has a digest of the settings."""
    sampler, guidance, steps, w = (
      self.settings[f"sampling.{name}"]
      for name in ("sampler", "guidance", "T", "w")
    )
    digest = identity.settings_digest(self.settings)
    name = f"{sampler}_{guidance}_T{steps}_w{w:g}_step{self.step}-{digest}"
    return epath.Path(self.workdir) / "samples" / name


def find(config, workdir):
  """Return the Samples that a config asks for; nothing is written.

  Raises:
    errors.UserError: no checkpoint, another run's workdir, or a guiding network
      that does not fit.
  """
  step = checkpoint.find_step(workdir, config.sampling.checkpoint_step)
  identity.claim_workdir(config, workdir, write=False, ignore=_OF_SAMPLING_TOO)
  guide = guide_lib.find(config, workdir)
  sampling = identity.of_sampling(config)
  # The guiding network is not described where it has no effect.
  guided = guide and "sampling.second_dir" in sampling
  settings = {
    "model": identity.model_digest(config, workdir),
    "model.dtype": config.model.dtype,
    "checkpoint_step": step,
    "second": guide.identity() if guided else None,
    **{k: v for k, v in sampling.items() if k not in _PLACES},
  }
  return Samples(config, workdir, step, guide, settings)


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
  validation.validate(config, num_devices=jax.device_count())
  validation.validate_generation(config)
  identity.warn_of_unused(config)
  samples, sampling = find(config, workdir), config.sampling
  folder = samples.folder
  identity.claim_settings(
    folder / "settings.json", samples.settings, write=distributed.is_lead()
  )
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
      _fill(samples, _checked_draw(samples), chunks)
  distributed.barrier("samples")
  if distributed.is_lead():
    _assemble(folder, result, sampling)
  distributed.barrier("samples assembled")
  return result


def _checked_draw(samples):
  """Return (index [n], label [n]) -> images [n, H, W, C] uint8, all finite."""
  config, guide = samples.config, samples.guide
  weights = config.sampling.weights
  shapes = build.param_shapes(config)
  params = (
    checkpoint.read_params(samples.workdir, samples.step, shapes, weights),
    guide and guide.params(weights),
  )
  params = distributed.replicate_locally(params)
  draw = build.sampler(config, guide and guide.config)
  draw.check_places(params)

  def checked(index, label):
    images, finite = draw(params, index, label)
    if not finite.all():
      raise errors.NonFiniteError(
        f"{(~finite).sum()} of {len(index)} samples are not finite (first: "
        f"image {index[~finite][0]}) at sampling.w={config.sampling.w}, "
        f"T={config.sampling.T}, checkpoint {samples.step} of {samples.workdir}"
      )
    return images

  return checked


def _fill(samples, draw, chunks):
  """Sample this process's share of the chunks; write each when it is done."""
  config, folder = samples.config, samples.folder
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
  log = _progress(total)
  with preemption.deferred():
    # All processes take equally many rounds, some maybe an empty last one.
    for number in range(-(-len(chunks) // jax.process_count())):
      for start, stop in mine[number : number + 1]:
        index = np.arange(start, stop)
        label = classes[index % len(classes)].astype(np.int32)
        images = _draw_chunk(draw, index, label, sampling.batch_size, log)
        store.write(folder, start, images, label)
      preemption.check(
        f"{len(mine[: number + 1])} of {len(mine)} chunks are written to "
        f"{folder}; the same command resumes"
      )


def _draw_chunk(draw, index, label, batch_size, log):
  """Return the images [n, H, W, C] uint8 of a chunk, drawn call by call."""
  per_call = batch_size * jax.local_device_count()
  parts = []
  for first in range(0, len(index), per_call):
    part = slice(first, first + per_call)
    parts.append(draw(index[part], label[part]))
    log(len(parts[-1]))
  return np.concatenate(parts)


def _progress(total):
  """Return a function that counts images and logs their rate and ETA."""
  begin, done = time.monotonic(), 0

  def log(more):
    nonlocal done
    done += more
    seconds = time.monotonic() - begin
    logging.log_every_n_seconds(
      logging.INFO,
      "%d of %d images, %.1f images/s, ETA %.0f s.",
      10,
      done,
      total,
      done / seconds,
      (total - done) * seconds / done,
    )

  return log


def _assemble(folder, result, sampling):
  """Write grid.png and, last, the .npz of all chunks."""
  images, labels = store.read(folder, sampling.num_samples, sampling.chunk_size)
  picture = image_ops.grid(images[: _GRID_COLUMNS * _GRID_ROWS], _GRID_COLUMNS)
  files.write_atomic(folder / "grid.png", image_ops.png(picture))
  with files.open_atomic(result) as file:
    np.savez(file, images, labels)
