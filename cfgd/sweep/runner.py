"""Run a sweep: train what is missing, then cell by cell, then report."""

import json
import time

from absl import logging
from etils import epath
import jax

from cfgd import config as config_lib
from cfgd import settings
from cfgd import validation
from cfgd.data import sources
from cfgd.metrics import evaluate
from cfgd.paper import printed
from cfgd.report import page
from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files
from cfgd.runtime import lease
from cfgd.runtime import preemption
from cfgd.sampling import generate
from cfgd.sweep import grid
from cfgd.sweep import planner
from cfgd.training import loop

# Before the fields of the classifier that a sweep trains.
_OF_CLASSIFIER = "classifier."
# Fields of metrics that change no number: where things are, and how images are
# spread over calls and files.
_NO_EFFECT = (
  *("feature_dir", "cache_dir", "inception"),
  *("batch_size", "inception_batch_size", "chunk_size"),
)
_POLL_SECONDS = 1.0
_SAY_SECONDS = 60.0
# Drawing the report takes about a second.
_REPORT_SECONDS = 60.0


def sweep(config, workdir, *, shard=(1, 1)):
  """Run all cells of `config.sweep.grids` that have no result yet.

  A cell is done when its metrics.json exists. The report is written after a
  cell where a minute has passed since the last, and at the end. A cell that
  fails is recorded, and the others go on. Several jobs may run on one workdir:
  each cell, and each training, is done by one of them.

  Args:
    config: ConfigDict of configs/base.py's fields.
    workdir: folder of the sweep: runs/, cells/, feature_net/ and the report.
    shard: (i, n), the i-th of n jobs that share the cells; i from 1.

  Returns:
    Path of report.html.

  Raises:
    errors.UserError: bad config, or a workdir or cells made with another.
    errors.RunError: some cells failed; names them.
    errors.Preempted: ended by a signal.
  """
  workdir = epath.Path(workdir)
  cells = grid.shard(plan(config, workdir), *shard)
  config_lib.claim_workdir(config, workdir, write=distributed.is_lead())
  for cell in cells:
    _claim(config, workdir, cell, write=False)
  if not config.metrics.feature_dir:
    config = config.copy_and_resolve_references()
    config.metrics.feature_dir = str(workdir / "feature_net")
  with _lease(config, epath.Path(config.metrics.feature_dir) / "feature_net"):
    evaluate.prepare(config, workdir)

  failed = _run_all(config, workdir, cells)
  path = write_report(config, workdir)
  if failed:
    raise errors.RunError(
      f"{len(failed)} of {len(cells)} cells failed ("
      + "; ".join(f"{cell}: {why}" for cell, why in failed.items())
      + f"); see error.txt in {workdir / 'cells'}; the same command tries them "
      "again"
    )
  return path


def _lease(config, path, wait=True):
  return lease.hold(path, seconds=config.train.lease_seconds, wait=wait)


def _run_all(config, workdir, cells):
  """Run the cells that nobody has done; those of other jobs come last.

  Returns:
    {id: what went wrong} of the cells that failed here.
  """
  failed, untrained = {}, {}
  pending = list(cells)
  said = reported = time.monotonic()
  while pending:
    busy = []
    for cell in pending:
      try:
        _attempt(config, workdir, cell, failed, untrained)
      except lease.Busy as error:
        busy.append(cell)
        why = error
      if distributed.agree(time.monotonic() - reported > _REPORT_SECONDS):
        write_report(config, workdir)
        reported = time.monotonic()
    if len(busy) == len(pending):
      preemption.check(f"cells are left in {workdir}; the same command goes on")
      if time.monotonic() - said > _SAY_SECONDS:
        logging.info("%d cells are with other jobs: %s.", len(busy), why)
        said = time.monotonic()
      time.sleep(_POLL_SECONDS)
    pending = busy
  return failed


def _attempt(config, workdir, cell, failed, untrained):
  """Run a cell unless it is done; record what goes wrong.

  Args:
    config: ConfigDict of the sweep.
    workdir: its folder.
    cell: Cell.
    failed: {cell's id: what went wrong}, filled in here.
    untrained: {run's folder: the error of its training}, filled in here: what
      failed once in this job is not tried for every cell.

  Raises:
    lease.Busy: another job does the cell or trains its model.
    Exception: of several processes, what may have failed in this one alone.
  """
  folder = folder_of(config, workdir, cell)
  if _is_done(folder):
    return
  with _lease(config, folder / "cell", wait=False):
    if _is_done(folder):
      return
    preemption.check(
      f"{cell.id} is next in {workdir}; the same command goes on"
    )
    logging.info("Cell %s", cell.id)
    try:
      _claim(config, workdir, cell, write=distributed.is_lead())
      _run(_at(config, workdir, cell), workdir, cell, folder, untrained)
    except (errors.Preempted, lease.Busy):
      raise
    except Exception as error:
      if _may_be_of_one_process(error):
        raise
      logging.exception("Cell %s failed.", cell.id)
      failed[cell.id] = f"{type(error).__name__}: {errors.first_line(error)}"
      if distributed.is_lead():
        note = f"{type(error).__name__}: {error}\n"
        files.write_atomic(folder / "error.txt", note)


def _may_be_of_one_process(error):
  """Say whether other processes may still be at the cell that failed here."""
  ours = isinstance(error, errors.UserError | errors.RunError)
  return jax.process_count() > 1 and not ours


def _is_done(folder):
  return distributed.agree((folder / "metrics.json").exists())


def plan(config, workdir):
  """Return the cells of a sweep, each of them checked."""
  validation.validate_grids(config)
  printed.table(config.sweep.paper)
  cells = _cells(config)
  devices = jax.device_count()
  for cell in cells:
    validation.validate(_at(config, workdir, cell), num_devices=devices)
  classifier = config_lib.classifier_config(config)
  if classifier:
    validation.validate(classifier, num_devices=devices)
  return cells


def _cells(config):
  sweep = config.sweep
  return grid.cells(sweep.grids, config.sampling, tuple(sweep.seeds))


def price(config, workdir, evaluations_per_second):
  """Return the cost of a whole sweep as lines of text, see `planner.table`."""
  cells = plan(config, workdir)
  costs = planner.costs(config, cells, lambda cell: _at(config, workdir, cell))
  return planner.table(costs, evaluations_per_second)


def _at(config, workdir, cell):
  """Return the config of a cell."""
  config = config_lib.cell_config(
    config,
    p_uncond=cell.p_uncond,
    seed=cell.seed,
    T=cell.T,
    w=cell.w,
    **dict(cell.fields),
  )
  if _has_own_classifier(config):
    config.sampling.second_dir = str(_classifier_dir(workdir, cell))
  return config


def _has_own_classifier(config):
  """Say whether a cell is guided by the classifier that the sweep trains."""
  return (
    config_lib.second_network(config) == "classifier"
    and not config.sampling.second_dir
    and bool(config.sweep.classifier)
  )


def _classifier_dir(workdir, cell):
  return epath.Path(workdir) / "runs" / f"classifier{cell.suffix}"


def settings_of(config, workdir, cell):
  """Return all that the numbers of a cell depend on, by field."""
  at = _at(config, workdir, cell)
  metrics = config_lib.flatten(config_lib.to_dict(at)["metrics"], "metrics.")
  idle = {f"metrics.{name}" for name in _NO_EFFECT}
  what = {
    **_model_settings(at),
    **settings.of_sampling(at),
    **{k: v for k, v in metrics.items() if k not in idle},
  }
  own = str(_classifier_dir(workdir, cell))
  if what.get("sampling.second_dir") == own:
    # By what it is, wherever the sweep is.
    del what["sampling.second_dir"]
    classifier = _model_settings(config_lib.classifier_config(at))
    what |= {_OF_CLASSIFIER + k: v for k, v in classifier.items()}
  return what


def _model_settings(config):
  """Return what a trained model depends on, by field."""
  fields = config_lib.flatten(config_lib.identity(config))
  return fields | {"train.steps": config.train.steps}


def _defaults():
  """Return the defaults of `settings_of`."""
  default = config_lib.defaults()
  return default | {_OF_CLASSIFIER + k: v for k, v in default.items()}


def folder_of(config, workdir, cell):
  """Return the folder of a cell's results.

  Its name ends in a hash of `settings_of`, so that a sweep with other settings
  in the same workdir makes new cells.
  """
  what = settings_of(config, workdir, cell)
  name = f"{cell.id}-{settings.digest(what, _defaults())}"
  return epath.Path(workdir) / "cells" / name


def _claim(config, workdir, cell, *, write):
  """Make sure that a cell's folder has the numbers of its settings."""
  path = folder_of(config, workdir, cell) / "settings.json"
  what = settings_of(config, workdir, cell)
  settings.claim(path, what, _defaults(), write=write)


def _train(config, run_dir, untrained):
  """Train a model, unless that failed before in this job."""
  if run_dir in untrained:
    raise untrained[run_dir]
  try:
    loop.train(config, run_dir, wait=False)
  except (errors.Preempted, lease.Busy):
    raise
  except Exception as error:
    untrained[run_dir] = error
    raise


def _run(config, workdir, cell, folder, untrained):
  """Train if need be, sample, measure; metrics.json is written last."""
  begin = time.monotonic()
  run_dir = workdir / "runs" / f"p{cell.p_uncond:g}{cell.suffix}"
  _train(config, run_dir, untrained)
  if config.sampling.second_dir == str(_classifier_dir(workdir, cell)):
    classifier = config_lib.classifier_config(config)
    _train(classifier, _classifier_dir(workdir, cell), untrained)
  trained = time.monotonic()
  samples = generate.generate(config, run_dir)
  with distributed.naming_memory(
    f"metrics.batch_size={config.metrics.batch_size}"
  ):
    measured = evaluate.evaluate(config, run_dir, samples)
  if not distributed.is_lead():
    return
  made_with = json.loads((samples.parent / "settings.json").read_text())
  result = {
    **_describe(cell),
    "guidance": config.sampling.guidance,
    "sampler": config.sampling.sampler,
    "v": config.sampling.v,
    "num_samples": measured["num_samples"],
    "seconds": round(time.monotonic() - trained, 1),
    "training_seconds": round(trained - begin, 1),
    "machine": _machine(),
    "metrics": measured["metrics"],
    "provenance": measured["provenance"] | made_with,
  }
  pictures = {
    "grid.png": samples.with_name("grid.png"),
    "neighbours.png": samples.with_name(f"{samples.stem}.neighbours.png"),
  }
  for name, picture in pictures.items():
    if picture.exists():
      files.write_atomic(folder / name, picture.read_bytes())
  files.write_atomic(
    folder / "metrics.json", json.dumps(result, indent=2) + "\n"
  )
  (folder / "error.txt").unlink(missing_ok=True)


def _machine():
  """Says on what this runs."""
  kind = jax.devices()[0].device_kind
  return f"{jax.device_count()} {kind} devices with JAX {jax.__version__}"


def _describe(cell):
  """Return a cell as results and the report have it."""
  axes = cell._asdict() | {"fields": dict(cell.fields)}
  return {
    "id": cell.id,
    "point": cell.point,
    **axes,
    "variant": cell.variant,
  }


def write_report(config, workdir):
  """Write results.csv, report.md and report.html from the finished cells.

  Returns:
    Path of report.html.
  """
  # One job at a time, so that none overwrites what another knows more of.
  with _lease(config, epath.Path(workdir) / "report"):
    if distributed.is_lead():
      _write_report(config, epath.Path(workdir))
  return epath.Path(workdir) / "report.html"


def _write_report(config, workdir):
  planned = _cells(config)
  finished = []
  for cell in planned:
    folder = folder_of(config, workdir, cell)
    if (folder / "metrics.json").exists():
      result = json.loads((folder / "metrics.json").read_text())
      pictures = {
        "grid_png": folder / "grid.png",
        "neighbours_png": folder / "neighbours.png",
      }
      finished.append(result | pictures)
  page.write(
    workdir,
    finished,
    [_describe(cell) for cell in planned],
    config_lib.to_dict(config),
    distance=config.sweep.distance,
    score=config.sweep.score,
    title=config.sweep.title,
    notes=config.sweep.notes,
    paper=config.sweep.paper,
    claims=config.sweep.claims.to_dict() if config.sweep.seeds else None,
    epochs=_epochs(config),
    real=evaluate.held_out(config, workdir),
  )


def _epochs(config):
  """Return how often training sees each image; None without the data set."""
  try:
    source = sources.load(config_lib.data_spec(config), "train")
  except errors.UserError as error:
    logging.info("The number of training images is not known: %s", error)
    return None
  return config.train.steps * config.train.batch_size / len(source)
