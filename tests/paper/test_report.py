"""The paper's side of a report: its numbers beside ours, and its claims."""

import csv
import io
import math
import re

import pytest
from scipy import stats

from cfgd.paper import printed
from cfgd.paper import report
from cfgd.report import page
from cfgd.runtime import errors
from cfgd.sweep import grid
from configs import sweep_embedded
from tests.report import test_page
from tests.sweep import made


@pytest.fixture
def seeds(tmp_path):
  """Return results with three seeds."""
  return test_page.make_seeds(test_page.make_cells(tmp_path))


def summary_of(results, **sweep):
  cells = [result.cell for result in results]
  return test_page.make_summary(results, cells, **sweep)


def run(folder, summary, table=None, epochs=None):
  page.write(report.add(summary, table, epochs), folder)
  return folder


def claims_tables(text):
  """Return the two tables of claims, {claim: {column: text}}."""
  text = text.replace("\\", "").split("## Claims in numbers")[1].split("## ")[0]
  tables = []
  for lines in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
    header, _, *rows = (k.strip("| ").split(" | ") for k in lines.splitlines())
    tables.append({k[0]: dict(zip(header, k, strict=True)) for k in rows})
  return tables


def test_claims_are_shown_with_their_p_values(tmp_path, seeds):
  summary = summary_of(seeds, seeds=(0, 1, 2))
  folder = run(tmp_path, summary, epochs=12.0)
  text = (folder / "report.md").read_text()
  primary, secondary = claims_tables(text)
  assert len(primary) == 3
  assert {"p", "p (Holm)", "verdict"} < set(next(iter(primary.values())))
  assert "p (Holm)" not in next(iter(secondary.values()))
  ours = {result.cell.seed: {} for result in seeds}
  for result in seeds:
    if result.cell[:2] == (0.1, 32):
      distance = result.metrics["fd_embedded"]
      ours[result.cell.seed][result.cell.w] = distance
  logs = [math.log(curve[4] / curve[0]) for curve in ours.values()]
  row = primary["The greatest w is worse in distance than w = 0"]
  p = stats.ttest_1samp(logs, 0).pvalue
  assert row["p"] == f"{p:.2g}"
  assert float(row["p (Holm)"]) in (float(f"{k * p:.2g}") for k in (1, 2, 3))
  assert row["verdict"] == "holds"
  assert secondary["No training images are copied"]["verdict"] == "holds"
  found = test_page.Page((folder / "report.html").read_text())
  for part in ("p (Holm)", "not corrected", "Holm's method", row["p"]):
    assert part in found.text
  marks = ("](figures/frontier", "## Claims", "](figures/claims", "## Curves")
  marks += ("## Claims in numbers", "## Cells")
  assert sorted(marks, key=text.index) == list(marks)


@pytest.mark.parametrize(
  ("epochs", "words"), [(0.64, "0.64 times"), (None, "unknown number")]
)
def test_copying_is_not_tested_where_training_was_short(
  tmp_path, seeds, epochs, words
):
  summary = summary_of(seeds, seeds=(0, 1, 2))
  text = (run(tmp_path, summary, epochs=epochs) / "report.md").read_text()
  assert not any(
    "No training images are copied" in table for table in claims_tables(text)
  )
  assert words in text
  assert "is 0.010." in text


def test_without_seeds_there_are_no_claims(tmp_path, seeds):
  folder = run(tmp_path, summary_of(seeds))
  assert "## Claims" not in (folder / "report.md").read_text()


@pytest.fixture
def beside(tmp_path):
  """A sweep of Table 1 with two finished cells, one planned, one variant."""
  rows = [
    ((0.1, 256, 0.0, {"fid": 1.9, "is": 50.0}), {}),
    ((0.1, 256, 0.1, {"fid": 1.5, "is": 70.0}), {}),
    ((0.1, 256, 1.0, {"fid": 9.0, "is": 150.0}), {"guidance": "classifier"}),
  ]
  found = [made.make_result(*row, fields=fields) for row, fields in rows]
  plan = [*(result.cell for result in found), grid.Cell(0.5, 256, 4.0)]
  names = {"distance": "fid", "score": "is"}
  summary = test_page.make_summary(found, plan, **names)
  return run(tmp_path, summary, printed.table("table1_imagenet64"))


def test_the_papers_numbers_stand_beside_ours(beside):
  text = (beside / "report.md").read_text()
  assert "| fid | is | paper's fid | paper's is | seconds |" in text
  lines = [k.split(" | ") for k in text.splitlines() if k.startswith("| 0")]
  values = {(k[0], k[2], k[3].split(" ")[0]): k[4:] for k in lines}
  assert values["| 0.1", "", "0"] == [
    *("1.900", "50.000", "1.80 (+0.10)", "53.71 (-3.71)", "21.3 |"),
  ]
  assert values["| 0.1", "", "0.1"][2:4] == ["1.55 (-0.05)", "66.11 (+3.89)"]
  assert values["| 0.1", "classifier", "1"][2:4] == ["", ""]
  assert values["| 0.5", "", "4"] == ["not run", "", "21.48", "225.10", " |"]
  assert "Table 1 \\(ImageNet" not in text
  assert "its Table 1 (ImageNet 64x64) at the same settings" in text
  found = test_page.Page((beside / "report.html").read_text())
  assert "1.80 (+0.10)" in found.text
  assert "Dashed, hollow: the paper's Table 1" in found.text


def test_the_papers_numbers_are_columns_of_the_csv(beside):
  text = (beside / "results.csv").read_text()
  rows = {row["id"]: row for row in csv.DictReader(io.StringIO(text))}
  assert rows["p0.1_T256_w0.1"]["paper_fid"] == "1.55"
  assert rows["p0.1_T256_w0.1"]["paper_is"] == "66.11"
  assert rows["p0.1_T256_w1_guidance-classifier"]["paper_fid"] == ""


def test_an_unknown_table_is_refused_before_the_sweep():
  config = sweep_embedded.get_config()
  config.sweep.paper = "table3"
  with pytest.raises(errors.UserError, match=r"sweep\.paper='table3'"):
    report.writer(config)
