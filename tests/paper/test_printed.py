"""The printed numbers: against a second copy, and against the paper's text."""

import json
import pathlib

import pytest

from cfgd.paper import printed
from cfgd.runtime import errors
from cfgd.sweep import grid
from tests.sweep import made

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "paper_tables.json"
FIRST, SECOND = "table1_imagenet64", "table2_imagenet128"


def as_printed(row):
  plain = row._asdict()
  plain |= plain.pop("metrics")
  return {k: v for k, v in plain.items() if v is not None}


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_tables_equal_the_second_copy(name):
  golden = json.loads(GOLDEN.read_text())
  rows = [as_printed(row) for row in printed.TABLES[name].rows]
  assert len(rows) == 42
  for row in golden[name]:
    del row["train_steps"]
  assert rows == golden[name]


@pytest.mark.parametrize(
  ("name", "cell", "fid", "score"),
  [
    # Captions of Figures 6 and 7.
    (FIRST, (0.1, 256, 0.0), 1.80, 53.71),
    (FIRST, (0.1, 256, 1.0), 12.6, 170.1),
    (FIRST, (0.1, 256, 3.0), 24.83, 250.4),
    (SECOND, (0.1, 256, 0.0), 7.27, 82.45),
    (SECOND, (0.1, 256, 1.0), 7.86, 297.98),
    (SECOND, (0.2, 256, 4.0), 21.53, 421.03),
  ],
)
def test_rows_are_those_of_the_figures_captions(name, cell, fid, score):
  found = printed.table(name).find(grid.Cell(*cell))
  assert found == {"fid": fid, "is": score}


def test_the_best_rows_are_those_of_the_text():
  best = {
    name: min(table.rows, key=lambda row: row.metrics["fid"])
    for name, table in printed.TABLES.items()
  }
  assert (best[FIRST].p_uncond, best[FIRST].w) == (0.1, 0.1)
  assert best[FIRST].metrics["fid"] == 1.55
  assert best[SECOND].w == 0.3
  assert best[SECOND].metrics["fid"] == 2.43


@pytest.mark.parametrize(
  "change",
  [
    {"w": 0.15},
    {"T": 128},
    {"p_uncond": 0.3},
    {"v": 0.2},
    {"sampler": "ddim"},
    {"fields": {"guidance": "classifier"}},
  ],
)
def test_other_settings_have_no_printed_row(change):
  at = {"p_uncond": 0.1, "T": 256, "w": 0.1, "metrics": {}}
  table = printed.table(FIRST)
  for options, has_a_row in ((at, True), (at | change, False)):
    result = made.make_result(**options)
    assert bool(table.find(result.cell, result)) == has_a_row


def test_curves_are_those_of_the_papers_figures():
  first, second = printed.TABLES.values()
  lines = first.curves("p_uncond", {"T": 256}, "fid", "is")
  assert [k.label for k in lines] == [
    f"p_uncond = {p}" for p in (0.1, 0.2, 0.5)
  ]
  assert all(k.source == "paper" and len(k.points) == 14 for k in lines)
  assert lines[2].points[-1].tolist() == [4.0, 225.1, 21.48]
  lines = second.curves("T", {"p_uncond": 0.1}, "fid", "is")
  assert [k.label for k in lines] == ["T = 128", "T = 256", "T = 1024"]
  for table, axis, fixed, distance in (
    (second, "p_uncond", {"T": 256}, "fid"),
    (first, "p_uncond", {"T": 128}, "fid"),
    (first, "T", {"p_uncond": 0.1}, "fd_embedded"),
  ):
    assert not table.curves(axis, fixed, distance, "is")


def test_an_unknown_table_is_named():
  assert printed.table("") is None
  with pytest.raises(errors.UserError, match=r"sweep\.paper='table3'"):
    printed.table("table3")
