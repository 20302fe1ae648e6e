"""Train a network: build, restore, for step, log, save."""

import contextlib
import functools

from absl import logging
from clu import metric_writers
from clu import parameter_overview
from clu import periodic_actions
from etils import epath
import jax
import numpy as np

from cfgd import config as config_lib
from cfgd import networks
from cfgd import validation
from cfgd.convert import guided_diffusion
from cfgd.data import pipeline
from cfgd.data import prepare
from cfgd.data import sources
from cfgd.runtime import checkpoint
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.runtime import lease
from cfgd.runtime import preemption
from cfgd.runtime import watchdog
from cfgd.training import progress as progress_lib
from cfgd.training import state as state_lib
from cfgd.training import steps
from cfgd.training import tasks

_PROGRESS_SECONDS = 15.0
# Times train.watchdog_seconds that compiling, saving, and samples may take.
_PATIENCE = 10
# In a checkpoint's meta: steps up to it that were all skipped.
_IN_A_ROW = "skipped_in_a_row"
# Steps whose results the host does not wait for: enough to keep devices busy
# while it reads a batch or writes a log.
_IN_FLIGHT = 4


def train(config, workdir, *, wait=True):
  """Train to `config.train.steps`; the same call again resumes.

  Args:
    config: ConfigDict of configs/base.py's fields.
    workdir: folder of the run: config.json, checkpoints/, TensorBoard events.
    wait: for another job that trains here to end.

  Raises:
    errors.UserError: bad config, or a workdir made with another one.
    errors.NonFiniteError: too many steps in a row were not finite.
    errors.Preempted: ended by a signal, at a step that is saved.
    errors.RunError: a checkpoint could not be written, or memory ran out.
    lease.Busy: another job trains here, and `wait` is False.
  """
  validation.validate(config, num_devices=jax.device_count())
  spec = config_lib.training_spec(config)
  prepare.ensure(spec)
  source = sources.load(spec, "train")
  config_lib.claim_workdir(config, workdir, write=distributed.is_lead())
  if _is_trained(config, workdir):
    return
  train = config.train
  with (
    lease.hold(
      epath.Path(workdir) / "train", seconds=train.lease_seconds, wait=wait
    ) as check_lease,
    distributed.naming_memory(
      f"train.batch_size={train.batch_size}",
      f"set model.remat=True (now {config.model.remat})",
      f"raise train.microbatches={train.microbatches}",
    ),
  ):
    if not _is_trained(config, workdir):  # the other job may have done it
      _run(config, epath.Path(workdir), source, check_lease)


def _is_trained(config, workdir):
  """Say whether no step is missing; the processes agree."""
  newest = -1
  if distributed.is_lead():
    there = checkpoint.steps(workdir)
    if there and there[-1] >= config.train.steps:
      good = checkpoint.find_good(workdir)
      newest = -1 if good is None else good
  newest = distributed.agree(newest)
  if newest < config.train.steps:
    return False
  logging.info("Trained already: step %d of %s.", newest, workdir)
  return True


def _run(config, workdir, source, check_lease):
  """Take the steps that are missing, watched over, and leave nothing open."""
  train = config.train
  checkpoints = checkpoint.Checkpointer(
    workdir,
    keep=train.keep,
    keep_every=train.keep_every,
    keep_first=train.keep_first,
  )
  writer = metric_writers.create_default_writer(
    str(workdir), just_logging=not distributed.is_lead()
  )
  dog = watchdog.Watchdog(train.watchdog_seconds, "train.watchdog_seconds")
  with (
    preemption.deferred(),
    contextlib.closing(checkpoints),
    contextlib.closing(writer),
    contextlib.closing(dog),
  ):
    _take_steps(config, workdir, source, checkpoints, writer, dog, check_lease)


def _take_steps(config, workdir, source, checkpoints, writer, dog, check_lease):
  """The training loop itself."""
  network, task = networks.build(config), tasks.TASKS[config.task]
  meta = {
    "config": config_lib.model_digest(config, workdir),
    "preprocessing": source.preprocessing,
  }
  state = _restore_or_start(config, network, workdir, source, checkpoints, meta)
  first_step = int(state.step)
  step, batches = _make_step(config, network), _batches(config, source, state)
  traced = {"p_uncond": np.float32(config.diffusion.p_uncond)}
  progress = periodic_actions.ReportProgress(
    num_train_steps=config.train.steps,
    writer=writer,
    every_secs=_PROGRESS_SECONDS,
  )
  _say_start(config, source, first_step, state.params)

  history = progress_lib.History(checkpoints.newest_meta().get(_IN_A_ROW, 0))

  def record(number, metrics):
    history.add(metrics)
    if history.skipped_in_a_row > config.train.max_skipped:
      writer.write_scalars(number, history.summarize())
      _end_lost(history, number, config.train.max_skipped, checkpoints)

  in_flight = progress_lib.InFlight(
    _IN_FLIGHT,
    done=lambda number: dog.beat(f"step {number + 1}"),
    record=record,
  )
  dog.beat(f"step {first_step + 1}", _PATIENCE)  # compiles
  for number, batch in zip(
    range(first_step + 1, config.train.steps + 1), batches, strict=False
  ):
    state, metrics = step(state, batch, traced)
    if jax.default_backend() == "cpu":
      # JAX before 0.12 deadlocks on several virtual CPU devices when many
      # steps with collectives are under way.
      jax.block_until_ready(metrics)
    stop = preemption.reached()
    in_flight.add(number, metrics)
    progress(number)
    checkpoints.check()
    last = number == config.train.steps
    log = last or number % config.train.log_every == 0
    save = last or stop or number % config.train.checkpoint_every == 0
    show = _due(number, config.train.sample_every)
    if not (log or save or show):
      continue
    in_flight.drain()
    if log:
      writer.write_scalars(number, history.summarize())
    if save:
      dog.beat(f"saving step {number}", _PATIENCE)
      check_lease()
      in_a_row = {_IN_A_ROW: history.skipped_in_a_row}
      checkpoints.save(state, meta | in_a_row)
    if stop and not last:
      _end_early(checkpoints, number, config, workdir)
    if show:
      dog.beat(f"what is shown of step {number}", _PATIENCE)
      task.show(config, network, state, workdir, writer)
    dog.beat(f"step {number + 1}")


def _end_lost(history, number, max_skipped, checkpoints):
  """End a run that does not recover; its last step is `number`."""
  skipped = history.skipped_in_a_row
  newest = checkpoints.newest_step()
  raise errors.NonFiniteError(
    f"{skipped} steps in a row, {number - skipped + 1} to {number}, had a loss "
    "or gradient that is not finite and were skipped, more than "
    f"train.max_skipped={max_skipped}; last checkpoint: "
    f"{'none' if newest is None else f'step {newest}'}"
  )


def _end_early(checkpoints, number, config, workdir):
  checkpoints.close()
  preemption.end(
    f"step {number} of {config.train.steps} is saved in {workdir}; the same "
    "command goes on"
  )


def _due(number, every):
  return every and number % every == 0


def _restore_or_start(config, network, workdir, source, checkpoints, meta):
  """Return the state to go on from, on all devices."""
  state = state_lib.create(
    networks.initial_params(config),
    state_lib.make_optimizer(**config_lib.adam_arguments(config)),
  )
  restored = checkpoints.restore_newest(state, meta)
  if restored is not None:
    return distributed.replicate(restored)
  if config.train.init_from:
    params = _weights_of(config, state.params)
    state = state.replace(
      params=params, ema_params=jax.tree.map(np.copy, params)
    )
  if distributed.is_lead():
    overview = parameter_overview.get_parameter_overview(state.params)
    files.write_atomic(workdir / "parameters.txt", overview + "\n")
  tasks.TASKS[config.task].check(config, network, source, state.params)
  return distributed.replicate(state)


def _weights_of(config, like):
  """Read train.init_from's averaged weights, with a null row if it lacks one.

  Args:
    config: ConfigDict.
    like: parameters of the network under training.
  """
  origin = config.train.init_from
  step = checkpoint.find_step(origin, -1)
  theirs = config_lib.from_dict(config_lib.read_recorded(origin))
  if theirs.model.null_row or not config.model.null_row:
    return checkpoint.read_params(origin, step, like, "ema")
  table = like["label_emb"]["embedding"]
  without = like | {"label_emb": {"embedding": table[:-1]}}
  params = checkpoint.read_params(origin, step, without, "ema")
  return guided_diffusion.add_null_row(params)


def _make_step(config, network):
  return _cached_step(
    tasks.TASKS[config.task].loss(config, network),
    tuple(config_lib.adam_arguments(config).items()),
    seed=config.seed,
    ema_decay=config.optim.ema_decay,
    ema_warmup=config.optim.ema_warmup,
    microbatches=config.train.microbatches,
  )


@functools.cache
def _cached_step(loss, adam, **options):
  """Cached, so that the trainings of a sweep share one compilation."""
  optimizer = state_lib.make_optimizer(**dict(adam))
  return steps.make_train_step(loss, optimizer, **options)


def _batches(config, source, state):
  return pipeline.batches(
    source,
    seed=config.seed,
    batch_size=config.train.batch_size,
    flip=config.data.flip,
    first_step=int(state.step),
    num_threads=config.data.threads,
    prefetch=config.data.prefetch,
  )


def _say_start(config, source, first_step, params):
  devices = jax.device_count()
  logging.info(
    "Training a %s of %s parameters on %d images (%s), p_uncond=%g, from step "
    "%d to %d; %d processes, %d devices (%s), batch %d = %d per device.",
    {"diffusion": "diffusion model"}.get(config.task, config.task),
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
