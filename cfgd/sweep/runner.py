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
  config_lib.validate_grids(config.sweep.grids)
  cells = grid.cells(config.sweep.grids)
  for cell in cells:
    config_lib.validate(_at(config, cell), num_devices=jax.device_count())
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
      _run(_at(config, cell), workdir, cell, folder)
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


def _at(config, cell):
  return config_lib.cell_config(
    config, p_uncond=cell.p_uncond, T=cell.T, w=cell.w
  )


def folder_of(config, workdir, cell):
  """Return the folder of a cell's results.

  Its name ends in a hash of all that the numbers depend on, so that a sweep
  with other settings in the same workdir makes new cells.
  """
  at = config_lib.to_dict(_at(config, cell))
  what = {
    "identity": config_lib.identity(_at(config, cell)),
    "steps": at["train"]["steps"],
    "sampling": at["sampling"],
    "metrics": {k: v for k, v in at["metrics"].items() if k not in _PLACES},
  }
  name = f"{cell.id}-{config_lib.digest(what)}"
  return epath.Path(workdir) / "cells" / name


def _run(config, workdir, cell, folder):
  """Train if need be, sample, measure; metrics.json is written last."""
  run_dir = workdir / "runs" / f"p{cell.p_uncond:g}"
  loop.train(config, run_dir)
  begin = time.monotonic()
  samples = generate.generate(config, run_dir)
  measured = evaluate.evaluate(config, run_dir, samples)
  if not distributed.is_lead():
    return
  settings = json.loads((samples.parent / "settings.json").read_text())
  result = {
    "id": cell.id,
    **cell._asdict(),
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


def write_report(config, workdir):
  """Write results.csv, report.md and report.html from the finished cells.

  Returns:
    Path of report.html.
  """
  planned = grid.cells(config.sweep.grids)
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
    [{"id": cell.id, **cell._asdict()} for cell in planned],
    config_lib.to_dict(config),
    distance=config.sweep.distance,
    score=config.sweep.score,
    title=config.sweep.title,
    notes=config.sweep.notes,
  )
