"""Every number of the published results, made again from their csv."""

import csv
import pathlib

import pytest

from cfgd.paper import report
from cfgd.report import page
from cfgd.report import plots
from cfgd.report import summary as summary_lib
from cfgd.sweep import grid
from cfgd.sweep import results
from configs import sweep_embedded
from configs import sweep_fashion_mnist

DOCS = pathlib.Path(__file__).parents[2] / "docs"
CONFIGS = {
  "results": sweep_embedded.get_config("claims"),
  "results_cpu": sweep_fashion_mnist.get_config("cpu"),
  "results_gpu": sweep_fashion_mnist.get_config("gpu"),
}
PUBLISHED = [name for name in CONFIGS if (DOCS / f"{name}.csv").exists()]
# Columns that are no metrics.
_ABOUT = {"id", "seed", "p_uncond", "T", "variant", "w", "s"}
_ABOUT |= {"sampler", "v", "num_samples", "seconds"}


def fields_of(variant):
  """Return the fields that a cell's variant names, as in `grid.Cell`."""
  found = []
  for text in filter(None, variant.split(", ")):
    name, _, value = text.rpartition(" ")
    try:
      found.append((name, float(value)))
    except ValueError:
      found.append((name or "guidance", value))
  return tuple(found)


def metrics_of(row):
  return {k: float(v) for k, v in row.items() if v and k not in _ABOUT}


def read(path):
  """Return the results of a csv and the metrics of real images."""
  found = []
  with path.open() as file:
    *rows, real = csv.DictReader(file)
  assert real["id"] == plots.REAL
  for row in rows:
    fields = fields_of(row["variant"])
    axes = float(row["p_uncond"]), int(row["T"]), float(row["w"])
    cell = grid.Cell(*axes, fields, int(row["seed"]))
    assert cell.id == row["id"]
    result = results.Result(
      cell,
      guidance=dict(fields).get("guidance", "cfg"),
      sampler=row["sampler"],
      v=float(row["v"]) if row["v"] else None,
      num_samples=int(row["num_samples"]),
      seconds=float(row["seconds"]),
      metrics=metrics_of(row),
      provenance={},
    )
    found.append(result)
  count = int(real["num_samples"])
  return found, {"metrics": metrics_of(real), "num_samples": count, "about": {}}


def lines_of(section):
  return [line for line in section.markdown().splitlines() if line]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_page_follows_from_the_csv(name):
  config = CONFIGS[name]
  found, real = read(DOCS / f"{name}.csv")
  assert {r.cell.seed for r in found} == set(config.sweep.seeds)
  # As stored, floats of the grids may differ in type from those of the csv.
  planned = grid.cells(
    config.sweep.grids, config.sampling, tuple(config.sweep.seeds)
  )
  assert {r.cell for r in found} == set(planned)
  epochs = config.train.steps * config.train.batch_size / _images(config)
  summary = summary_lib.Summary(config, planned, found, real)
  summary = report.add(summary, None, epochs)
  published = set((DOCS / f"{name}.md").read_text().splitlines())
  expected = [f"**{summary.tally}**"]
  for section in [*summary.lead, *summary.sections]:
    expected += [k for k in lines_of(section) if not k.startswith("![")]
  expected += lines_of(page._cells(summary))
  expected += [f"**{text}**" for text in page._headline(summary)]
  assert len(expected) > 50
  for line in expected:
    assert line in published, line


def _images(config):
  return {"embedded": 4_000}.get(config.data.source, 60_000)


def test_there_are_results():
  assert "results" in PUBLISHED
