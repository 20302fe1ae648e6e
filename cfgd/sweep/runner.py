"""Run a sweep: train the models that are missing, then run cell by cell."""

import functools
import json
import time

from absl import logging
from etils import epath
import jax

from cfgd import identity
from cfgd.metrics import evaluate
from cfgd.runtime import checkpoint
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.runtime import lease
from cfgd.runtime import preemption
from cfgd.sampling import generate
from cfgd.sweep import grid
from cfgd.sweep import results
from cfgd.training import loop

_POLL_SECONDS = 1.0
_LOG_SECONDS = 60.0
# Writing the report takes about a second.
_REPORT_SECONDS = 60.0


def sweep(config, workdir, write_report, *, shard=(1, 1)):
  """Run all cells of `config.sweep.grids` that have no result yet.

  A cell is done when its metrics.json exists. If a cell fails, its error is
  recorded and the other cells still run. Several jobs may share a workdir: each
  cell, and each training, is done by one of them.

  Args:
    config: ConfigDict of configs/base.py's fields.
    workdir: folder of the sweep: runs/, cells/, feature_net/ and the report.
    write_report: (config, workdir, plan) -> None, called at most once a minute
      and at the end, to write report.html from the results so far.
    shard: (i, n) for the i-th of n jobs that divide the cells; i from 1.

  Returns:
    Path of report.html.

  Raises:
    errors.UserError: bad config, or a workdir or cells made with another.
    errors.RunError: some cells failed; names them.
    errors.Preempted: stopped by a signal.
  """
  workdir = epath.Path(workdir)
  plan = grid.plan(config, workdir)
  identity.claim_workdir(config, workdir, write=distributed.is_lead())
  share = grid.shard(plan, *shard)
  for planned in share:
    planned.claim(write=False)
  features = epath.Path(plan[0].config.metrics.feature_dir)
  job = _Job(config, workdir, plan, write_report)
  with job.lease(features / "feature_net"):
    evaluate.prepare(config, workdir)
  job.run(share)
  job.report()
  if job.failed:
    failed = "; ".join(f"{cell}: {why}" for cell, why in job.failed.items())
    raise errors.RunError(
      f"{len(job.failed)} of {len(share)} cells failed ({failed}); see "
      f"error.txt in {workdir / 'cells'}; run the same command to retry them"
    )
  return workdir / "report.html"


def train(config, workdir, *, shard=(1, 1)):
  """Train the models of a sweep that are missing, and run no cell.

  Several jobs, each on nodes of its own, may divide the models; a job may also
  be several processes that train together. If a training fails, the others of
  this job still run.

  Args:
    config: as of `sweep`.
    workdir: as of `sweep`, which finds the models there.
    shard: (i, n) for every n-th model from the i-th on; i from 1.

  Raises:
    errors.UserError: bad config, or a workdir made with another.
    errors.RunError: some trainings failed; names them.
    errors.Preempted: stopped by a signal.
  """
  index, count = shard
  plan = grid.plan(config, epath.Path(workdir))
  identity.claim_workdir(config, workdir, write=distributed.is_lead())
  failed = {}
  for training in grid.trainings(plan)[index - 1 :: count]:
    logging.info("Training %s", training.run_dir)
    try:
      # Perhaps another job's.
      if training.teacher is not None and not distributed.by_lead(
        functools.partial(_is_trained, training)
      ):
        loop.train(training.teacher.config, training.teacher.run_dir)
      loop.train(training.config, training.run_dir)
    except Exception as error:
      name = training.run_dir.name
      failed[name] = _tell(f"Training {name}", error)
  if failed:
    told = "; ".join(f"{name}: {why}" for name, why in failed.items())
    raise errors.RunError(
      f"{len(failed)} trainings failed ({told}); run the same command to retry "
      "them"
    )


def require_trained(config, workdir, *, shard=(1, 1)):
  """Raise errors.UserError if an unfinished cell of a job lacks its model."""
  plan = grid.shard(grid.plan(config, epath.Path(workdir)), *shard)
  models = {
    training.run_dir: training
    for one in plan
    if not _is_done(one)
    for training in _missing(one)
  }
  missing = distributed.by_lead(
    lambda: [
      folder.name for folder, one in models.items() if not _is_trained(one)
    ]
  )
  if missing:
    raise errors.UserError(
      f"--part=cells: not trained in {workdir}/runs: {', '.join(missing)}; run "
      "--part=trainings first, or leave --part out to do both"
    )


def _missing(planned):
  """Return the trainings of a cell; a trained student needs no teacher."""
  found = planned.trainings
  if planned.teacher is None:
    return found
  student = found[1]
  done = distributed.by_lead(lambda: _is_trained(student))
  return [student] if done else found


def _is_trained(training):
  steps = checkpoint.steps(training.run_dir)
  return bool(steps) and steps[-1] >= training.config.train.steps


def _tell(what, error):
  """Log that something failed, and return why; not a traceback of ours.

  Raises:
    Exception: of several processes, `error` if it may be of this one alone:
      the others may still be working.
  """
  if jax.process_count() > 1 and not getattr(error, "in_all", False):
    raise error
  why = f"{type(error).__name__}: {errors.first_line(error)}"
  ours = isinstance(error, errors.UserError | errors.RunError)
  logging.error("%s failed: %s", what, why, exc_info=not ours)
  return why


class _Job:
  """One of the jobs that work on a sweep.

  Attributes:
    failed: {cell's id: reason} of the cells that failed in this job.
  """

  def __init__(self, config, workdir, plan, write_report):
    self._config, self._workdir, self._plan = config, workdir, plan
    self._write_report = write_report
    self._untrained = {}  # run_dir -> the error of its training
    self.failed = {}

  def lease(self, path, wait=True):
    seconds = self._config.train.lease_seconds
    return lease.hold(path, seconds=seconds, wait=wait)

  def report(self):
    """Write the report, one job at a time: none overwrites a newer one."""
    with self.lease(self._workdir / "report"):
      distributed.by_lead(
        lambda: self._write_report(self._config, self._workdir, self._plan)
      )

  def run(self, share):
    """Run the cells that nobody has done; those of other jobs come last."""
    pending = list(share)
    logged = reported = time.monotonic()
    while pending:
      busy = []
      for planned in pending:
        try:
          self._attempt(planned)
        except lease.Busy as error:
          busy.append(planned)
          why = error
        if distributed.agree(time.monotonic() - reported > _REPORT_SECONDS):
          self.report()
          reported = time.monotonic()
      if len(busy) == len(pending):
        preemption.check(
          f"{self._workdir} has unfinished cells; run the same command to "
          "continue"
        )
        if time.monotonic() - logged > _LOG_SECONDS:
          logging.info(
            "Waiting for %d cells of other jobs: %s.", len(busy), why
          )
          logged = time.monotonic()
        time.sleep(_POLL_SECONDS)
      pending = busy

  def _attempt(self, planned):
    """Run a cell unless it is done; record its error if it fails.

    Raises:
      lease.Busy: another job runs the cell or trains its model.
      Exception: of several processes, what may have failed in this one alone.
    """
    if _is_done(planned):
      return
    cell = planned.cell.id
    with self.lease(planned.folder / "cell", wait=False):
      if _is_done(planned):
        return
      preemption.check(
        f"{cell} is the next cell in {self._workdir}; run the same command to "
        "continue"
      )
      logging.info("Cell %s", cell)
      try:
        planned.claim(write=distributed.is_lead())
        self._make(planned)
      except lease.Busy:
        raise
      except Exception as error:
        self.failed[cell] = _tell(f"Cell {cell}", error)
        if distributed.is_lead():
          note = f"{type(error).__name__}: {error}\n"
          files.write_atomic(planned.folder / "error.txt", note)

  def _make(self, planned):
    """Train what the cell needs, sample and score."""
    start = time.monotonic()
    for training in _missing(planned):
      self._train(training.config, training.run_dir)
    trained = time.monotonic()
    _sample_and_score(planned, trained, training_seconds=trained - start)

  def _train(self, config, run_dir):
    """Train a model, unless this job has seen its training fail."""
    if run_dir in self._untrained:
      raise self._untrained[run_dir]
    try:
      loop.train(config, run_dir, wait=False)
    except lease.Busy:
      raise
    except Exception as error:
      self._untrained[run_dir] = error
      raise


def _is_done(planned):
  return distributed.by_lead(lambda: results.path(planned).exists())


def _sample_and_score(planned, start, training_seconds):
  """Fill the cell's folder; metrics.json is written last."""
  config = planned.config
  samples = generate.generate(config, planned.run_dir)
  with distributed.naming_memory(
    f"metrics.batch_size={config.metrics.batch_size}"
  ):
    measured = evaluate.evaluate(config, planned.run_dir, samples)
  seconds = time.monotonic() - start
  distributed.by_lead(
    lambda: _write_result(planned, samples, measured, seconds, training_seconds)
  )


def _write_result(planned, samples, measured, seconds, training_seconds):
  """Write metrics.json, last, and the pictures beside it."""
  config = planned.config
  made_with = json.loads((samples.parent / "settings.json").read_text())
  result = results.Result(
    planned.cell,
    guidance=config.sampling.guidance,
    sampler=config.sampling.sampler,
    v=None if "v" in identity.unused(config) else config.sampling.v,
    num_samples=measured["num_samples"],
    seconds=round(seconds, 1),
    training_seconds=round(training_seconds, 1),
    machine=_machine(),
    metrics=measured["metrics"],
    provenance=measured["provenance"] | made_with,
  )
  pictures = {
    "grid.png": samples.with_name("grid.png"),
    "neighbours.png": samples.with_name(f"{samples.stem}.neighbours.png"),
  }
  for name, picture in pictures.items():
    if picture.exists():
      files.write_atomic(planned.folder / name, picture.read_bytes())
  files.write_atomic(results.path(planned), result.to_json())
  (planned.folder / "error.txt").unlink(missing_ok=True)


def _machine():
  kind = jax.devices()[0].device_kind
  return f"{jax.device_count()} {kind} devices with JAX {jax.__version__}"
