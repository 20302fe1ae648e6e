"""Seeds as an axis: cells, their averages, their place in the report."""

import csv
import io

import numpy as np
import pytest

from cfgd import config as config_lib
from cfgd.report import page
from cfgd.report import plots
from cfgd.sweep import grid
from cfgd.sweep import seeds
from tests import conftest

GRID = {"main": {"p_uncond": (0.5, 0.1), "T": (8,), "w": (0, 1)}}


def make_cells(numbers=(0, 1, 2)):
  rng = np.random.default_rng(0)
  return [
    {
      **cell._asdict(),
      "fields": dict(cell.fields),
      "id": cell.id,
      "point": cell.point,
      "variant": cell.variant,
      **{"sampler": "ancestral", "v": 0.3, "num_samples": 10, "seconds": 2.0},
      "metrics": {"fd": rng.uniform(1, 2), "is": rng.uniform(5, 6)},
      **{"provenance": {}, "grid_png": None},
      **{"machine": "2 cpu devices", "training_seconds": 60.0},
    }
    for cell in grid.cells(GRID, {}, numbers)
  ]


def test_every_cell_is_there_with_every_seed():
  cells = grid.cells(GRID, {}, (3, 7))
  assert [cell.id for cell in cells[:5]] == [
    *("p0.1_T8_w0_seed3", "p0.1_T8_w1_seed3"),
    *("p0.5_T8_w0_seed3", "p0.5_T8_w1_seed3", "p0.1_T8_w0_seed7"),
  ]
  assert {cell.point for cell in cells} == {
    cell.id for cell in grid.cells(GRID, {})
  }


def test_a_seed_is_that_of_training_and_of_sampling():
  config = config_lib.cell_config(conftest.make_tiny(), p_uncond=0.2, seed=5)
  assert (config.seed, config.sampling.seed) == (5, 5)
  config = config_lib.cell_config(conftest.make_tiny(), p_uncond=0.2)
  assert (config.seed, config.sampling.seed) == (0, 0)


def test_averages_and_spreads():
  cells = make_cells()
  rows = {row["id"]: row for row in seeds.average(cells)}
  assert set(rows) == {cell["point"] for cell in cells}
  for name, row in rows.items():
    values = [c["metrics"]["fd"] for c in cells if c["point"] == name]
    assert row["seeds"] == len(values) == 3
    assert row["metrics"]["fd"] == pytest.approx(np.mean(values))
    assert row["spread"]["fd"] == pytest.approx(np.std(values, ddof=1))
    assert row["seconds"] == 6
  (alone,) = seeds.average(cells[:1])
  assert alone["metrics"] == cells[0]["metrics"]
  assert alone["spread"] == {}


def test_the_report_has_a_row_per_point_and_the_csv_one_per_cell(tmp_path):
  cells = make_cells()
  names = {"distance": "fd", "score": "is", "title": "t", "notes": ()}
  page.write(tmp_path, cells[:-1], cells, {}, **names)
  text = (tmp_path / "report.md").read_text()
  lines = [line for line in text.splitlines() if line.startswith("| 0")]
  assert len(lines) == 4
  assert all(line.count(" ± ") == 2 for line in lines)
  assert "11 of 12 cells" in text
  assert "seeds 0, 1, 2" in text
  assert "Training took 11 minutes" in text
  assert text.count("Bars: one standard deviation over the seeds") == 3
  table = io.StringIO((tmp_path / "results.csv").read_text())
  rows = list(csv.DictReader(table))
  assert [row["seed"] for row in rows].count("1") == 4
  assert len(rows) == 11


def test_the_spread_is_drawn():
  rows = [cell | {"best": False} for cell in seeds.average(make_cells())]
  rows = plots.select(rows, {"p_uncond": 0.1})
  line = plots.curve("a", rows, "fd", "is")
  expected = [
    [0, row["spread"]["is"], row["spread"]["fd"]]
    for row in sorted(rows, key=lambda row: row["w"])
  ]
  np.testing.assert_array_equal(line.spread, expected)
  (axes,) = plots.frontier_figure([line], "fd", "is", "").axes
  assert len(axes.collections) == 2  # bars across and along
  alone = line._replace(spread=np.zeros_like(line.spread))
  (axes,) = plots.frontier_figure([alone], "fd", "is", "").axes
  assert not axes.collections
