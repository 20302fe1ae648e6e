"""Train a network: build, restore, then step, log and save."""

from collections.abc import Callable
import contextlib
import functools
from typing import Any
from typing import NamedTuple

from absl import logging
from clu import parameter_overview
from clu import periodic_actions
from etils import epath
import jax
import numpy as np

from cfgd import build
from cfgd import identity
from cfgd import validation
from cfgd.data import prepare
from cfgd.runtime import checkpoint
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.runtime import lease
from cfgd.runtime import preemption
from cfgd.runtime import watchdog
from cfgd.training import events
from cfgd.training import progress as progress_lib
from cfgd.training import state as state_lib
from cfgd.training import tasks
from cfgd.training import teacher

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
  tasks.check_origin(config, workdir)
  config = teacher.resolved(config, workdir)
  # Compared before data is prepared, which may take hours, recorded after it.
  identity.claim_workdir(config, workdir, write=False)
  prepare.ensure(build.data_spec(config, training=True))
  source = build.source(config, "train", training=True)
  identity.claim_workdir(config, workdir, write=distributed.is_lead())
  if _is_trained(config, workdir):
    return
  seconds = config.train.lease_seconds
  with (
    lease.hold(
      epath.Path(workdir) / "train", seconds=seconds, wait=wait
    ) as check_lease,
    distributed.naming_memory(
      f"train.batch_size={config.train.batch_size}",
      f"set model.remat=True (now {config.model.remat})",
      f"raise train.microbatches={config.train.microbatches}",
    ),
  ):
    if not _is_trained(config, workdir):  # the other job may have done it
      _run(config, epath.Path(workdir), source, check_lease)


def _is_trained(config, workdir):
  """Return whether no step is missing; process 0 looks."""
  newest = distributed.by_lead(lambda: _newest(config, workdir))
  if newest is None:
    return False
  logging.info("Trained already: step %d of %s.", newest, workdir)
  return True


def _newest(config, workdir):
  """Return the newest good step if it is the last one to train, or None."""
  there = checkpoint.steps(workdir)
  if not there or there[-1] < config.train.steps:
    return None
  good = checkpoint.find_good(workdir)
  return good if good is not None and good >= config.train.steps else None


def _run(config, workdir, source, check_lease):
  """Take the steps that are missing, watched, and close what was opened."""
  train = config.train
  checkpoints = checkpoint.Checkpointer(
    workdir,
    keep=train.keep,
    keep_every=train.keep_every,
    keep_first=train.keep_first,
  )
  writer = events.writer(workdir)
  monitor = watchdog.Watchdog(train.watchdog_seconds, "train.watchdog_seconds")
  with (
    preemption.deferred(),
    contextlib.closing(checkpoints),
    contextlib.closing(writer),
    contextlib.closing(monitor),
  ):
    run = _Run(config, workdir, checkpoints, writer, monitor, check_lease)
    _take_steps(run, source)


class _Run(NamedTuple):
  """What the loop writes to, and who watches it."""

  config: Any
  workdir: epath.Path
  checkpoints: checkpoint.Checkpointer
  writer: Any
  monitor: watchdog.Watchdog
  check_lease: Callable[[], None]


def _take_steps(run, source):
  """Take the training steps: the loop itself."""
  config, train = run.config, run.config.train
  meta = {
    "config": identity.model_digest(config, run.workdir),
    "preprocessing": source.preprocessing,
  }
  state = _restore_or_start(run, source, meta)
  first_step = int(state.step)
  step, batches = build.train_step(config), build.batches(config, source, state)
  traced = tasks.TASKS[config.task].traced(config)
  progress = periodic_actions.ReportProgress(
    num_train_steps=train.steps, writer=run.writer, every_secs=_PROGRESS_SECONDS
  )
  _log_start(config, source, first_step, state.params)
  history = progress_lib.History(
    run.checkpoints.newest_meta().get(_IN_A_ROW, 0)
  )
  in_flight = progress_lib.InFlight(
    _IN_FLIGHT,
    done=lambda number: run.monitor.beat(f"step {number + 1}"),
    record=functools.partial(_record, run, history),
  )
  run.monitor.beat(f"step {first_step + 1}", _PATIENCE)  # compiles
  for number, batch in zip(
    range(first_step + 1, train.steps + 1), batches, strict=False
  ):
    state, metrics = step(state, batch, traced)
    if jax.default_backend() == "cpu":
      # JAX before 0.12 deadlocks on several virtual CPU devices when many
      # steps with collectives are in flight.
      jax.block_until_ready(metrics)
    stop = preemption.reached()
    in_flight.add(number, metrics)
    progress(number)
    run.checkpoints.check()
    _log_save_show(run, state, number, in_flight, history, meta, stop)


def _log_save_show(run, state, number, in_flight, history, meta, stop):
  """Do what is due after a step; end the run where it was asked to."""
  train = run.config.train
  last = number == train.steps
  log = last or number % train.log_every == 0
  save = last or stop or number % train.checkpoint_every == 0
  show = train.sample_every and number % train.sample_every == 0
  if not (log or save or show):
    return
  in_flight.drain()
  if log:
    run.writer.write_scalars(number, history.summarize())
  if save:
    run.monitor.beat(f"saving step {number}", _PATIENCE)
    run.check_lease()
    in_a_row = {_IN_A_ROW: history.skipped_in_a_row}
    run.checkpoints.save(state, meta | in_a_row)
    run.writer.flush()
  if stop and not last:
    run.checkpoints.close()
    preemption.end(
      f"step {number} of {train.steps} is saved in {run.workdir}; run the same "
      "command again to resume"
    )
  if show:
    run.monitor.beat(f"samples or accuracy at step {number}", _PATIENCE)
    tasks.TASKS[run.config.task].show(
      run.config, state, run.workdir, run.writer
    )
  run.monitor.beat(f"step {number + 1}")


def _record(run, history, number, metrics):
  """Add a step's metrics; end a run that does not recover."""
  history.add(metrics)
  skipped, limit = history.skipped_in_a_row, run.config.train.max_skipped
  if skipped <= limit:
    return
  run.writer.write_scalars(number, history.summarize())
  newest = run.checkpoints.newest_step()
  error = errors.NonFiniteError(
    f"{skipped} steps in a row, {number - skipped + 1} to {number}, had a loss "
    "or gradient that is not finite and were skipped, more than "
    f"train.max_skipped={limit}; last checkpoint: "
    f"{'none' if newest is None else f'step {newest}'}"
  )
  error.in_all = True  # metrics are the same in all processes
  raise error


def _restore_or_start(run, source, meta):
  """Return the state to continue from, on all devices."""
  config = run.config
  state = state_lib.create(
    build.initial_params(config), build.optimizer(config)
  )
  restored = run.checkpoints.restore_newest(state, meta)
  if restored is not None:
    return distributed.replicate(restored)
  task = tasks.TASKS[config.task]
  params = task.start(config, state.params)
  state = state.replace(params=params, ema_params=jax.tree.map(np.copy, params))
  if distributed.is_lead():
    overview = parameter_overview.get_parameter_overview(state.params)
    files.write_atomic(run.workdir / "parameters.txt", overview + "\n")
  task.check(config, source, state.params)
  return distributed.replicate(state)


def _log_start(config, source, first_step, params):
  devices = jax.device_count()
  logging.info(
    "Training a %s of %s parameters on %d images (%s), p_uncond=%g, from step "
    "%d to %d; %d processes, %d devices (%s), batch %d = %d per device.",
    tasks.TASKS[config.task].about,
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
