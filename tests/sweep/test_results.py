"""Results: their files, and their averages over seeds."""

import json

import numpy as np
import pytest

from cfgd.sweep import grid
from cfgd.sweep import results
from tests import conftest
from tests.sweep import made

GRID = {"main": {"p_uncond": (0.5, 0.1), "T": (8,), "w": (0, 1)}}


def make_results(seeds=(0, 1, 2)):
  rng = np.random.default_rng(0)
  return [
    made.make_result(
      *cell[:3],
      {"fd": rng.uniform(1, 2), "is": rng.uniform(5, 6)},
      seed=cell.seed,
      seconds=2.0,
      machine="2 cpu devices",
      training_seconds=60.0,
    )
    for cell in grid.cells(GRID, {}, seeds)
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
  config = grid.cell_config(conftest.make_tiny(), p_uncond=0.2, seed=5)
  assert (config.seed, config.sampling.seed) == (5, 5)
  config = grid.cell_config(conftest.make_tiny(), p_uncond=0.2)
  assert (config.seed, config.sampling.seed) == (0, 0)


def test_a_file_has_the_result_and_readable_names():
  fields = {"guidance": "auto", "interval": (-2.0, 3.0)}
  result = made.make_result(0.1, 8, 0.3, {"fd": 1.5}, fields=fields, seed=2)
  text = result.to_json()
  assert results.Result.from_json(text) == result
  plain = json.loads(text)
  assert plain["id"] == "p0.1_T8_w0.3_guidance-auto_interval--2,3_seed2"
  assert plain["point"] + "_seed2" == plain["id"]
  assert plain["variant"] == "auto, interval -2,3"


def test_files_with_fewer_and_with_other_keys_are_read():
  """As earlier versions wrote them, or as later ones may."""
  text = made.make_result(0.1, 8, 0.3, {"fd": 1.5}).to_json()
  plain = json.loads(text) | {"colour": "blue"}
  for name in ("fields", "seed", "machine", "training_seconds", "guidance"):
    del plain[name]
  result = results.Result.from_json(json.dumps(plain))
  assert result.cell == grid.Cell(0.1, 8, 0.3)
  assert result.metrics == {"fd": 1.5}
  assert result.machine is None


def test_cells_keep_their_folders_when_fields_are_renamed(tmp_path):
  config = conftest.make_tiny()
  config.sweep.grids = {
    "auto": {
      **{"p_uncond": (0.1,), "T": (3,), "w": (0.5,), "guidance": ("auto",)},
      **{"guide_step": (1,), "interval": ((-2.0, 3.0),)},
    }
  }
  (planned,) = grid.plan(config, tmp_path)
  name = "p0.1_T3_w0.5_guidance-auto_interval--2,3_second_step-1"
  assert planned.folder.name.startswith(f"{name}-")
  fields = {"guidance": "auto", "interval": (-2.0, 3.0), "second_step": 1}
  old = made.make_result(0.1, 3, 0.5, {"fd": 1.5}, fields=fields)
  planned.folder.mkdir(parents=True)
  results.path(planned).write_text(old.to_json())
  (result,) = results.read([planned])
  assert result.cell == planned.cell
  assert result.cell.variant == "auto, interval -2,3, guide_step 1"


def test_averages_and_spreads():
  found = make_results()
  rows = {row.cell.id: row for row in results.average(found)}
  assert set(rows) == {result.cell.point for result in found}
  for name, row in rows.items():
    values = [r.metrics["fd"] for r in found if r.cell.point == name]
    assert len(values) == 3
    assert row.metrics["fd"] == pytest.approx(np.mean(values))
    assert row.spread["fd"] == pytest.approx(np.std(values, ddof=1))
    assert row.seconds == 6
  (alone,) = results.average(found[:1])
  assert alone.metrics == found[0].metrics
  assert alone.spread == {}
