"""docs/own_data.md, followed as it is written, with few and tiny images."""

import csv
import json
import os
import shlex
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from tests import processes
from tests import test_docs
from tests import tiny

PAGE = processes.ROOT / "docs" / "own_data.md"
CATEGORIES = (
  *("Activities", "Animals & Nature", "Component", "Flags", "Food & Drink"),
  *("Objects", "People & Body", "Smileys & Emotion", "Symbols"),
  "Travel & Places",
)


def unpack(package):
  """Write what the page's archive unpacks to, four images of each category."""
  images = package / "img" / "google" / "64"
  images.mkdir(parents=True)
  rng = np.random.default_rng(0)
  listed = []
  for number, category in enumerate(sorted(CATEGORIES * 4)):
    pixels = rng.integers(0, 256, (6, 6, 4)).astype(np.uint8)
    name = f"{number}.png"
    PIL.Image.fromarray(pixels).save(images / name)
    listed.append({"category": category, "image": name, "has_img_google": True})
  (package / "emoji.json").write_text(json.dumps(listed))


def commands():
  """Return the page's commands and the variables that it exports."""
  text = "".join(test_docs.blocks(PAGE, ""))
  lines = text.replace("\\\n", " ").splitlines()
  exported = [k.split()[1] for k in lines if k.startswith("export ")]
  run = [shlex.split(k) for k in lines if k.startswith("python ")]
  return run, dict(k.split("=", 1) for k in exported)


@pytest.mark.slow
def test_the_walk_leads_to_guided_and_scored_samples(tmp_path):
  unpack(tmp_path / "package")
  (prepare,) = test_docs.blocks(PAGE, "python")
  subprocess.run([sys.executable, "-c", prepare], cwd=tmp_path, check=True)
  assert len(list((tmp_path / "emoji" / "train").iterdir())) == 10
  assert len(list((tmp_path / "emoji" / "test").rglob("*.png"))) == 4

  run, exported = commands()
  assert [words[2].split(".")[1] for words in run] == [
    *("train", "figures", "sample", "sweep")
  ]
  smaller = tiny.flags(tiny.TINY | {"data.dir": str(tmp_path / "sets")})
  here = {"PYTHONPATH": str(processes.ROOT)}
  for words in run:
    done = subprocess.run(
      [sys.executable, *words[1:], *smaller],
      cwd=tmp_path,
      env=os.environ | exported | here,
      capture_output=True,
      text=True,
      timeout=600,
    )
    assert not done.returncode, done.stderr[-2000:]

  runs = tmp_path / "runs"
  assert (runs / "emoji" / "figures" / "all.png").exists()
  (samples,) = (runs / "emoji" / "samples").glob("*/samples_22.npz")
  assert set(np.load(samples)["arr_1"]) == {4}
  with (runs / "emoji_sweep" / "results.csv").open() as file:
    rows = [row for row in csv.DictReader(file) if row["w"]]
  assert [float(row["w"]) for row in rows] == [0.0, 0.3, 1.0, 2.0, 4.0]
  assert all(float(row["fd_images"]) > 0 for row in rows)
  assert "range" in (runs / "emoji_sweep" / "report.html").read_text()
