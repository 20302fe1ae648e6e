"""What a machine without PyTorch says, and that it needs none for an .npz."""

import subprocess
import sys

import numpy as np
import pytest

from cfgd.convert import inception
from cfgd.runtime import errors
from tests import processes

RUN = """
import runpy, sys
sys.modules["torch"] = None  # as if it were not installed
runpy.run_module("experiments.evaluate", run_name="__main__", alter_sys=True)
"""
COMMAND = "python -m experiments.import_checkpoint --model=inception --source="


def test_a_worker_without_weights_says_how_to_make_them(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), np.uint8)
  for name in ("a", "b"):
    np.savez(tmp_path / f"{name}.npz", images)
  done = subprocess.run(
    [
      *(sys.executable, "-c", RUN),
      f"--samples={tmp_path / 'a.npz'}",
      f"--reference={tmp_path / 'b.npz'}",
      f"--config.metrics.cache_dir={tmp_path / 'cache'}",
      "--config.metrics.min_images=20",
    ],
    cwd=processes.ROOT,
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert done.returncode == 2, done.stderr
  (line,) = (k for k in done.stderr.splitlines() if k.startswith("error"))
  assert line.startswith("error: Inception's weights: PyTorch is not installed")
  assert COMMAND in line
  assert "--config.metrics.inception=DIR/inception-" in line
  assert not (tmp_path / "cache").exists()  # nothing was fetched


def test_a_file_of_pytorch_needs_it(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  path = tmp_path / "weights.pth"
  path.write_bytes(b"PK\x03\x04")
  with pytest.raises(errors.UserError, match=r"weights\.pth: PyTorch is not"):
    inception.load(path, tmp_path)
  with pytest.raises(errors.UserError, match=r"none\.npz: no such file; get"):
    inception.load(tmp_path / "none.npz", tmp_path)
