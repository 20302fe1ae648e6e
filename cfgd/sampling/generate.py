"""Fill what is missing of a set of samples, then put it together."""

import time

from absl import logging
from etils import epath
import jax
import numpy as np

from cfgd import config as config_lib
from cfgd import networks
from cfgd import settings as settings_lib
from cfgd import validation
from cfgd.data import images as image_ops
from cfgd.runtime import checkpoint
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.runtime import preemption
from cfgd.sampling import configured
from cfgd.sampling import second as second_lib
from cfgd.sampling import store

_GRID_COLUMNS = 10
_GRID_ROWS = 4


# Fields of a run that samples may differ in from its training: parameters are
# float32 whatever they were trained in.
_OF_SAMPLING_TOO = ("model.dtype",)
# Fields that say how many images, or where checkpoints are.
_NOT_SETTINGS = (
  *("sampling.num_samples", "sampling.checkpoint_step"),
  *("sampling.second_dir", "sampling.second_step"),
)


def settings(config, workdir, step, second):
  """Return what the samples depend on, by field; their number apart.

  Args:
    config: ConfigDict.
    workdir: folder of the model's run.
    step: of the model's checkpoint.
    second: of `second.find`.
  """
  sampling = settings_lib.of_sampling(config)
  # Not described where it has no effect.
  second = second if "sampling.second_dir" in sampling else None
  return {
    "model": config_lib.model_digest(config, workdir),
    **{field: config_lib.get(config, field) for field in _OF_SAMPLING_TOO},
    "checkpoint_step": step,
    "second": second_lib.describe(second),
    **{k: v for k, v in sampling.items() if k not in _NOT_SETTINGS},
  }


def folder_of(workdir, what):
  """Return where the samples of these `settings` live."""
  sampler, guidance, steps, w = (
    what[f"sampling.{name}"] for name in ("sampler", "guidance", "T", "w")
  )
  name = (
    f"{sampler}_{guidance}_T{steps}_w{w:g}_step{what['checkpoint_step']}"
    f"-{settings_lib.digest(what)}"
  )
  return epath.Path(workdir) / "samples" / name


def generate(config, workdir):
  """Make the samples that the config asks for; resumes by chunk.

  Args:
    config: ConfigDict of configs/base.py's fields.
    workdir: folder of a trained run.

  Returns:
    Path of the .npz: `arr_0` [N, H, W, C] uint8 and `arr_1` [N] labels, as
    guided-diffusion's evaluator reads them. A PNG grid lies beside it.

  Raises:
    errors.UserError: bad config, another run's workdir, no checkpoint, samples
      there that were made with other defaults.
    errors.NonFiniteError: a sample is not finite.
    errors.RunError: one image differs from place to place of a call.
    errors.Preempted: ended by a signal, after a chunk.
  """
  validation.validate(config, num_devices=jax.device_count())
  validation.validate_generation(config)
  step = checkpoint.find_step(workdir, config.sampling.checkpoint_step)
  config_lib.claim_workdir(config, workdir, write=False, but=_OF_SAMPLING_TOO)
  settings_lib.warn_of_unused(config)
  second = second_lib.find(config, workdir)
  what = settings(config, workdir, step, second)
  folder = folder_of(workdir, what)
  settings_lib.claim(
    folder / "settings.json", what, write=distributed.is_lead()
  )
  number = config.sampling.num_samples
  result = folder / f"samples_{number}.npz"
  if result.exists():
    logging.info("Samples are there: %s", result)
    return result

  chunks = store.missing(folder, number, config.sampling.chunk_size)
  # Before any process writes a chunk, all have seen which are missing.
  distributed.barrier("chunks listed")
  if chunks:
    with distributed.naming_memory(
      f"sampling.batch_size={config.sampling.batch_size}"
    ):
      draw = _make_draw(config, workdir, step, second)
      _fill(config, draw, folder, chunks)
  distributed.barrier("samples")
  if distributed.is_lead():
    _assemble(folder, result, config)
  distributed.barrier("samples assembled")
  return result


def _fill(config, draw, folder, chunks):
  """Sample this process's share of the chunks, write each as it is done."""
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
  say = _progress(total)
  with preemption.deferred():
    # All processes take as many rounds, some maybe an empty last one.
    for number in range(-(-len(chunks) // jax.process_count())):
      for start, stop in mine[number : number + 1]:
        index = np.arange(start, stop)
        label = classes[index % len(classes)].astype(np.int32)
        images = _draw_all(draw, index, label, config, say)
        store.write(folder, start, images, label)
      preemption.check(
        f"{len(mine[: number + 1])} of {len(mine)} chunks are written to "
        f"{folder}; the same command goes on"
      )


def _draw_all(draw, index, label, config, say):
  """Return the images [n, H, W, C] uint8 of a chunk, call by call."""
  per_call = config.sampling.batch_size * jax.local_device_count()
  parts = []
  for first in range(0, len(index), per_call):
    part = slice(first, first + per_call)
    parts.append(draw(index[part], label[part]))
    say(len(parts[-1]))
  return np.concatenate(parts)


def _progress(total):
  """Return a function that counts images and logs their rate and ETA."""
  begin, done = time.monotonic(), 0

  def say(more):
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

  return say


def _make_draw(config, workdir, step, second):
  """Return (index [n], label [n]) -> images [n, H, W, C] uint8."""
  sampling = config.sampling
  like = networks.param_shapes(config)
  params = (
    checkpoint.read_params(workdir, step, like, sampling.weights),
    second and second_lib.read_params(second, sampling.weights),
  )
  params = distributed.replicate_locally(params)
  sample = configured.make_draw(config, params, second and second[0])
  configured.check_places(config, second and second[0], sample)

  def draw(index, label):
    images, finite = sample(index, label)
    if not finite.all():
      raise errors.NonFiniteError(
        f"{(~finite).sum()} of {len(index)} samples are not finite (first: "
        f"image {index[~finite][0]}) at sampling.w={sampling.w}, "
        f"T={sampling.T}, checkpoint {step} of {workdir}"
      )
    return images

  return draw


def _assemble(folder, result, config):
  """Write grid.png and, last, the .npz of all chunks."""
  sampling = config.sampling
  images, labels = store.read(folder, sampling.num_samples, sampling.chunk_size)
  picture = image_ops.grid(images[: _GRID_COLUMNS * _GRID_ROWS], _GRID_COLUMNS)
  files.write_atomic(folder / "grid.png", image_ops.png(picture))
  with files.open_atomic(result) as file:
    np.savez(file, images, labels)
