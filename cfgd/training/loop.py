"""Train a diffusion model: build, restore, for step, log, save."""

import functools

from absl import logging
from clu import metric_writers
from clu import parameter_overview
from clu import periodic_actions
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from cfgd import checkpoint
from cfgd import config as config_lib
from cfgd import diffusion
from cfgd import distributed
from cfgd import errors
from cfgd import files
from cfgd.data import images as image_ops
from cfgd.data import pipeline
from cfgd.data import sources
from cfgd.models import unet
from cfgd.sampling import sampler as sampler_lib
from cfgd.training import state as state_lib
from cfgd.training import steps

_GRID_COLUMNS = 10
_PROGRESS_SECONDS = 15.0


def train(config, workdir):
  """Train to `config.train.steps`; the same call again resumes.

  Args:
    config: ConfigDict of configs/base.py's fields.
    workdir: folder of the run: config.json, checkpoints/, TensorBoard events.

  Raises:
    errors.UserError: bad config, or a workdir made with another one.
    errors.NonFiniteError: too many steps were not finite.
  """
  config_lib.validate(config, num_devices=jax.device_count())
  source = sources.load(
    config.data.source, "train", **config_lib.source_arguments(config)
  )
  config_lib.claim_workdir(config, workdir, write=distributed.is_lead())
  checkpoints = checkpoint.Checkpointer(
    workdir, keep=config.train.keep, keep_every=config.train.keep_every
  )
  newest = checkpoints.newest_step()
  if newest is not None and newest >= config.train.steps:
    logging.info("Trained already: step %d of %s.", newest, workdir)
  else:
    _run(config, epath.Path(workdir), source, checkpoints)
  checkpoints.close()


def _run(config, workdir, source, checkpoints):
  """Take the steps that are missing."""
  train_config = config.train
  network = unet.UNet(**config_lib.unet_arguments(config))
  optim = tuple(sorted(config.optim.items()))
  state = _initial_state(network, optim, config)
  state = checkpoints.restore_newest(state) or state
  state = distributed.replicate(state)
  first_step = int(state.step)
  step = _make_step(
    network,
    optim,
    seed=config.seed,
    null_label=config.data.num_classes,
    **config_lib.logsnr_range(config),
  )
  traced = {"p_uncond": np.float32(config.diffusion.p_uncond)}
  batches = pipeline.batches(
    source,
    seed=config.seed,
    batch_size=train_config.batch_size,
    flip=config.data.flip,
    first_step=first_step,
    num_threads=config.data.threads,
    prefetch=config.data.prefetch,
  )
  meta = {
    "config": config_lib.digest(config_lib.identity(config)),
    "preprocessing": source.preprocessing,
  }
  writer = metric_writers.create_default_writer(
    str(workdir), just_logging=not distributed.is_lead()
  )
  progress = periodic_actions.ReportProgress(
    num_train_steps=train_config.steps,
    writer=writer,
    every_secs=_PROGRESS_SECONDS,
  )
  _say_start(config, source, first_step, state.params)

  window = []
  for number, batch in zip(
    range(first_step + 1, train_config.steps + 1), batches, strict=False
  ):
    state, metrics = step(state, batch, traced)
    if jax.default_backend() == "cpu":
      # JAX before 0.12 deadlocks on several virtual CPU devices when many
      # steps with collectives are under way.
      jax.block_until_ready(metrics)
    window.append(metrics)
    last = number == train_config.steps
    progress(number)
    if last or number % train_config.log_every == 0:
      _log(writer, number, window, train_config.max_skipped, checkpoints)
      window = []
    if last or number % train_config.checkpoint_every == 0:
      checkpoints.save(state, meta)
    if _due(number, train_config.sample_every):
      _show_samples(config, network, state, workdir, writer)
  writer.close()


def _due(number, every):
  return every and number % every == 0


def _initial_state(network, optim, config):
  zeros = jnp.zeros((1,), jnp.int32)
  z = jnp.zeros((1, *config_lib.image_shape(config)))
  params = jax.jit(network.init)(jax.random.key(config.seed), z, zeros, zeros)
  return state_lib.create(params["params"], _optimizer(optim))


def _optimizer(optim):
  arguments = dict(optim)
  del arguments["ema_decay"], arguments["ema_warmup"]
  return state_lib.make_optimizer(**arguments)


@functools.cache
def _make_step(network, optim, *, seed, null_label, logsnr_min, logsnr_max):
  """Cached, so that the trainings of a sweep share one compilation."""
  loss = steps.diffusion_loss(
    network,
    null_label=null_label,
    logsnr_min=logsnr_min,
    logsnr_max=logsnr_max,
  )
  return steps.make_train_step(
    loss,
    _optimizer(optim),
    seed=seed,
    ema_decay=dict(optim)["ema_decay"],
    ema_warmup=dict(optim)["ema_warmup"],
  )


def _say_start(config, source, first_step, params):
  devices = jax.device_count()
  logging.info(
    "Training %s parameters on %d images (%s), p_uncond=%g, from step %d to "
    "%d; %d processes, %d devices (%s), batch %d = %d per device.",
    f"{parameter_overview.count_parameters(params):,}",
    len(source),
    source.preprocessing,
    config.diffusion.p_uncond,
    first_step,
    config.train.steps,
    jax.process_count(),
    devices,
    jax.devices()[0].device_kind,
    config.train.batch_size,
    config.train.batch_size // devices,
  )


def _log(writer, number, window, max_skipped, checkpoints):
  """Write the window's mean loss; stop a run that does not recover."""
  window = jax.device_get(window)
  skipped = int(window[-1]["skipped"])
  writer.write_scalars(
    number,
    {
      "loss": float(np.mean([metrics["loss"] for metrics in window])),
      "grad_norm": float(np.mean([metrics["grad_norm"] for metrics in window])),
      "skipped_steps": skipped,
    },
  )
  if skipped > max_skipped:
    raise errors.NonFiniteError(
      f"{skipped} steps up to step {number} had a loss or gradient that is not "
      f"finite and were skipped, more than train.max_skipped={max_skipped}; "
      f"last checkpoint: step {checkpoints.newest_step()}"
    )


def _show_samples(config, network, state, workdir, writer):
  """Write a grid of samples of the averaged weights, class by class."""
  sampling = config.sampling
  schedule = config_lib.logsnr_range(config)
  run = sampler_lib.make_sampler(
    network,
    sampler=sampling.sampler,
    clip=sampling.clip,
    shape=config_lib.image_shape(config),
    null_label=config.data.num_classes,
    two_passes=sampler_lib.prefers_two_passes(),
    **schedule,
  )
  devices = jax.local_device_count()
  index = np.arange(sampling.batch_size * devices)
  label = (index % config.data.num_classes).astype(np.int32)
  images, _ = run(
    distributed.replicate_locally(jax.device_get(state.ema_params)),
    *distributed.split((index.astype(np.uint32), label), devices),
    np.uint32(sampling.seed),
    np.float32(sampling.w),
    np.float32(sampling.v),
    diffusion.logsnr_grid(sampling.T, **schedule),
  )
  picture = image_ops.grid(distributed.merge(images), _GRID_COLUMNS)
  number = int(state.step)
  writer.write_images(number, {"samples": picture[None]})
  if distributed.is_lead():
    path = workdir / "grids" / f"step_{number:08d}.png"
    files.write_atomic(path, image_ops.png(picture))
