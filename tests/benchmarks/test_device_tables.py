"""The table of accelerators from the benchmarks' reports."""

import json

import pytest

from benchmarks import device_tables
from cfgd.runtime import errors

_SHARED = {
  "device": "NVIDIA H100",
  "config": "imagenet64",
  "dtype": "bfloat16",
  "jax": "0.11.2",
}


def spread(value):
  return {"median": value, "min": value / 2, "max": 2 * value}


def measured(program="train_step", batch=64, **changes):
  return {
    **_SHARED,
    "program": program,
    "batch_size": batch,
    "images_per_second": spread(500.0),
    "flop_per_second_and_device": 3e14,
    "fraction_of_matmul_peak": 0.4,
    "peak_gib": 61.26,
    **changes,
  }


def beside(what="train_step", batch=64, **changes):
  return {
    **_SHARED,
    "program": "peer",
    "what": what,
    "batch_size": batch,
    "T": 2 if what == "sample" else None,
    "torch": "2.11.0",
    "torch_compiled": True,
    "seconds": {"ours": spread(0.5), "theirs": spread(1.0)},
    "ratio": spread(2.0),
    **changes,
  }


def lines_of(*reports):
  return device_tables.table(list(reports)).splitlines()


def test_a_row_has_all_columns():
  head, _, row, *_ = lines_of(measured(), beside())
  assert row == (
    "| NVIDIA H100 | ADM-64, bfloat16 | training | 64 | 500 | 300 | 40% | 61.3 "
    "| 2.00 (1.00 to 4.00), compiled |"
  )
  assert head.count("|") == row.count("|")


def test_without_a_measurement_at_the_batch_the_ratio_has_its_own_row():
  _, _, first, second, *_ = lines_of(measured(batch=128), beside(batch=32))
  assert "| training | 32 | 64 |  |  |  | 2.00 (" in first
  assert first.count("|") == second.count("|")
  assert second.endswith("|  |")


def test_rows_are_sorted_by_model_program_and_batch():
  lines = lines_of(
    measured(config="imagenet128", batch=8),
    measured("sample", T=4),
    measured(batch=256),
    measured(batch=64),
  )
  rows = [line.split(" | ")[1:4] for line in lines[2:6]]
  assert rows == [
    ["ADM-64, bfloat16", "training", "64"],
    ["ADM-64, bfloat16", "training", "256"],
    ["ADM-64, bfloat16", "guided sampling, T=4", "64"],
    ["ADM-128, bfloat16", "training", "8"],
  ]


def test_checks_and_versions_follow():
  parity = {"program": "parity", "cudnn": True, "rows": [1, 2], "broken": []}
  layouts = {
    **_SHARED,
    "program": "layouts",
    "T": 12,
    "rows": [
      {"batch_size": 8, "largest": 0, "share": 0.0},
      {"batch_size": 64, "largest": 1, "share": 0.0012},
    ],
  }
  lines = lines_of(parity, layouts, beside(), {"program": "sweep"})
  assert lines[-3].startswith(
    "Parity, with cuDNN's attention: 2 comparisons, 0"
  )
  assert "batches of 8, 64: at most 1 of 255 apart, at most 0.12%" in lines[-2]
  assert lines[-1] == "Versions: jax 0.11.2, torch 2.11.0."


@pytest.mark.parametrize(
  ("text", "words"),
  [
    (None, "no JSON files"),
    ("{", "Expecting property name"),
    ("[]", "not a report"),
    ('{"a": 1}', "not a report"),
    ('{"program": "train_step"}', "not a report of a benchmark, KeyError"),
    ('{"program": "layouts", "rows": []}', "not a report"),
  ],
)
def test_bad_folders_end_in_a_line(tmp_path, text, words):
  if text is not None:
    (tmp_path / "step.json").write_text(text)
  with pytest.raises(errors.UserError, match=words):
    device_tables.read(tmp_path)


def test_reads_the_reports_of_a_folder(tmp_path):
  (tmp_path / "b.json").write_text(json.dumps(measured()))
  (tmp_path / "a.json").write_text(json.dumps(beside()))
  (tmp_path / "c.failed").write_text("")
  programs = [report["program"] for report in device_tables.read(tmp_path)]
  assert programs == ["peer", "train_step"]
