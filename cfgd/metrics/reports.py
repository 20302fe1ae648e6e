"""Results of scoring as JSON files, reused by the next call."""

import json

from absl import logging

from cfgd.runtime import files


def read(path, about):
  """Return the report at a path, or None if there is none with `about` in it.

  Args:
    path: epath.Path.
    about: entries that the report must have, such as its provenance.
  """
  report = json.loads(path.read_text()) if path.exists() else {}
  if not report.items() >= about.items():
    return None
  logging.info("Metrics exist already: %s", path)
  return report


def write(path, report):
  """Write a report and return it."""
  files.write_atomic(path, json.dumps(report, indent=2) + "\n")
  return report


def line(report):
  """Return a report as one line for the log."""
  protocol = f"{report['protocol']}: " if "protocol" in report else ""
  metrics = ", ".join(f"{k} {v:.4g}" for k, v in report["metrics"].items())
  num_splits = report["provenance"]["num_splits"]
  return f"{protocol}{metrics} (IS splits: {num_splits})"
