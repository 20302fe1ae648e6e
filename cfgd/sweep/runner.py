"""Run a sweep: train what is missing, then cell by cell, then report."""

import json
import time

from absl import logging
from etils import epath
import jax

from cfgd import config as config_lib
from cfgd import distributed
from cfgd import errors
from cfgd import files
from cfgd.metrics import evaluate
from cfgd.sampling import generate
from cfgd.sweep import grid
from cfgd.sweep import paper
from cfgd.sweep import report
from cfgd.training import loop

# Fields of metrics that say where things are, not what.
_PLACES = ("feature_dir", "cache_dir", "inception")


def sweep(config, workdir):
  """Run all cells of `config.sweep.grids` that have no result yet.

  A cell is done when its metrics.json exists. The report is written after each
  cell. A cell that fails is recorded, and the others go on.

  Args:
    config: ConfigDict of configs/base.py's fields.
    workdir: folder of the sweep: runs/, cells/, feature_net/ and the report.

  Returns:
    Path of report.html.

  Raises:
    errors.UserError: bad config, or a workdir made with another.
    errors.RunError: some cells failed; names them.
  """
  workdir = epath.Path(workdir)
  cells = plan(config, workdir)
  config_lib.claim_workdir(config, workdir, write=distributed.is_lead())
  if not config.metrics.feature_dir:
    config = config.copy_and_resolve_references()
    config.metrics.feature_dir = str(workdir / "feature_net")
  evaluate.prepare(config, workdir)

  failed = {}
  for number, cell in enumerate(cells, start=1):
    folder = folder_of(config, workdir, cell)
    if (folder / "metrics.json").exists():
      continue
    logging.info("Cell %d of %d: %s", number, len(cells), cell.id)
    try:
      _run(_at(config, workdir, cell), workdir, cell, folder)
    except (RuntimeError, OSError) as error:
      logging.exception("Cell %s failed.", cell.id)
      failed[cell.id] = f"{type(error).__name__}: {error}"
      files.write_atomic(folder / "error.txt", failed[cell.id] + "\n")
    write_report(config, workdir)
  if failed:
    raise errors.RunError(
      f"{len(failed)} of {len(cells)} cells failed: {failed}; the same command "
      "tries them again"
    )
  return write_report(config, workdir)


def plan(config, workdir):
  """Return the cells of a sweep, each of them checked."""
  config_lib.validate_grids(config)
  paper.table(config.sweep.paper)
  cells = grid.cells(config.sweep.grids, config.sampling)
  devices = jax.device_count()
  for cell in cells:
    config_lib.validate(_at(config, workdir, cell), num_devices=devices)
  classifier = config_lib.classifier_config(config)
  if classifier:
    config_lib.validate(classifier, num_devices=devices)
  return cells


def _at(config, workdir, cell):
  """Return the config of a cell."""
  config = config_lib.cell_config(
    config, p_uncond=cell.p_uncond, T=cell.T, w=cell.w, **dict(cell.fields)
  )
  if _has_own_classifier(config):
    config.sampling.second_dir = str(_classifier_dir(workdir))
  return config


def _has_own_classifier(config):
  """Say whether a cell is guided by the classifier that the sweep trains."""
  return (
    config_lib.second_network(config) == "classifier"
    and not config.sampling.second_dir
    and bool(config.sweep.classifier)
  )


def _classifier_dir(workdir):
  return epath.Path(workdir) / "runs" / "classifier"


def folder_of(config, workdir, cell):
  """Return the folder of a cell's results.

  Its name ends in a hash of all that the numbers depend on, so that a sweep
  with other settings in the same workdir makes new cells.
  """
  cell_config = _at(config, workdir, cell)
  at = config_lib.to_dict(cell_config)
  what = {
    "identity": config_lib.identity(cell_config),
    "steps": at["train"]["steps"],
    "sampling": at["sampling"],
    "metrics": {k: v for k, v in at["metrics"].items() if k not in _PLACES},
  }
  own = config_lib.classifier_config(config)
  if own and cell_config.sampling.second_dir == str(_classifier_dir(workdir)):
    what["sampling"]["second_dir"] = config_lib.identity(own)
  name = f"{cell.id}-{config_lib.digest(what)}"
  return epath.Path(workdir) / "cells" / name


def _run(config, workdir, cell, folder):
  """Train if need be, sample, measure; metrics.json is written last."""
  run_dir = workdir / "runs" / f"p{cell.p_uncond:g}"
  loop.train(config, run_dir)
  if config.sampling.second_dir == str(_classifier_dir(workdir)):
    loop.train(config_lib.classifier_config(config), _classifier_dir(workdir))
  begin = time.monotonic()
  samples = generate.generate(config, run_dir)
  measured = evaluate.evaluate(config, run_dir, samples)
  if not distributed.is_lead():
    return
  settings = json.loads((samples.parent / "settings.json").read_text())
  result = {
    **_describe(cell),
    "guidance": config.sampling.guidance,
    "sampler": config.sampling.sampler,
    "v": config.sampling.v,
    "num_samples": measured["num_samples"],
    "seconds": round(time.monotonic() - begin, 1),
    "metrics": measured["metrics"],
    "provenance": measured["provenance"] | settings,
  }
  files.write_atomic(
    folder / "grid.png", (samples.parent / "grid.png").read_bytes()
  )
  files.write_atomic(
    folder / "metrics.json", json.dumps(result, indent=2) + "\n"
  )


def _describe(cell):
  """Return a cell as results and the report have it."""
  axes = cell._asdict() | {"fields": dict(cell.fields)}
  return {"id": cell.id, **axes, "variant": cell.variant}


def write_report(config, workdir):
  """Write results.csv, report.md and report.html from the finished cells.

  Returns:
    Path of report.html.
  """
  planned = grid.cells(config.sweep.grids, config.sampling)
  finished = []
  for cell in planned:
    folder = folder_of(config, workdir, cell)
    if (folder / "metrics.json").exists():
      result = json.loads((folder / "metrics.json").read_text())
      finished.append(result | {"grid_png": folder / "grid.png"})
  if not distributed.is_lead():
    return epath.Path(workdir) / "report.html"
  return report.write(
    epath.Path(workdir),
    finished,
    [_describe(cell) for cell in planned],
    config_lib.to_dict(config),
    distance=config.sweep.distance,
    score=config.sweep.score,
    title=config.sweep.title,
    notes=config.sweep.notes,
    paper=config.sweep.paper,
  )
