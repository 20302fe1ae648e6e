"""The cost of a sweep's point, as the benchmark measures it."""

import json
import pathlib
import subprocess
import sys

import pytest

from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_41_strengths_are_one_compilation(tmp_path):
  path = tmp_path / "report.json"
  command = [sys.executable, "-m", "benchmarks.sweep_point"]
  command += ["--config=configs/sweep_embedded.py", f"--json={path}"]
  command += ["--T=2", "--repeats=1", "--points=1", "--count_images=6"]
  result = subprocess.run(
    command + tiny.flags(tiny.TINY),
    check=False,
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr[-2000:]
  report = json.loads(path.read_text())
  assert (report["w_values"], report["sampler_compilations"]) == (41, 1)
  assert report["seconds"]["evaluations_alone"]["median"] > 0
