"""The printed numbers: against a second copy, and against the paper's text."""

import json
import pathlib

import pytest

from cfgd.paper import printed
from cfgd.runtime import errors

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
  assert rows == golden[name]
  beside = golden[f"{name.split('_')[0]}_baselines"]
  assert [
    {"model": model, "fid": fid, "is": score}
    for model, fid, score in printed.TABLES[name].baselines
  ] == beside


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
  cell = dict(zip(("p_uncond", "T", "w"), cell, strict=True))
  row = printed.find(printed.table(name).rows, cell)
  assert row.metrics == {"fid": fid, "is": score}


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
    {"variant": "classifier"},
  ],
)
def test_other_settings_have_no_printed_row(change):
  cell = {"p_uncond": 0.1, "T": 256, "w": 0.1, "v": 0.3}
  rows = printed.table(FIRST).rows
  assert printed.find(rows, cell | {"sampler": "ancestral"})
  assert printed.find(rows, cell | change) is None


def test_an_unknown_table_is_named():
  assert printed.table("") is None
  with pytest.raises(errors.UserError, match=r"sweep\.paper='table3'"):
    printed.table("table3")
