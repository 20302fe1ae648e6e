"""Compiling for slices that this machine does not have."""

import json
import math
import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks import chips
from benchmarks import compile_for
from benchmarks import compile_table
from benchmarks import compiled
from cfgd.runtime import errors

ROOT = pathlib.Path(__file__).parents[2]
# `make test-slow` puts it there: installed where JAX finds it by itself, it
# would have JAX look for a TPU in every other test.
_LIBTPU = ROOT / ".venv" / "libtpu" / "libtpu" / "libtpu.so"


def run(*arguments, module="compile_for"):
  library = os.environ.get("TPU_LIBRARY_PATH", str(_LIBTPU))
  return subprocess.run(
    [sys.executable, "-m", f"benchmarks.{module}", *arguments],
    check=False,
    cwd=ROOT,
    env=os.environ | {"TPU_LIBRARY_PATH": library},
    capture_output=True,
    text=True,
  )


def argument_bytes(hlo, tiled):
  """Return the bytes of a program's arguments, filled up to TPU's tiles or not.

  A TPU keeps an array in tiles, such as 8x128, of its two minor dimensions: a
  small network's kernels take nearly twice their numbers.
  """
  layout = re.search(r"entry_computation_layout={\((.*?)\)->", hlo)[1]
  total = 0
  for dtype, dims, order, tile in re.findall(
    r"([a-z]+\d*)\[([\d,]*)\]{([\d,]*):?(?:T\(([\d,]+)\))?[^}]*}", layout
  ):
    dims, order, tile = (
      [int(n) for n in part.split(",") if n] for part in (dims, order, tile)
    )
    sides = [dims[axis] for axis in order]  # the minor one first
    if tiled:
      tile = tile[::-1]
      sides += [1] * (len(tile) - len(sides))
      for axis, side in enumerate(tile):
        sides[axis] = -(-sides[axis] // side) * side
    total += math.prod(sides) * int(re.search(r"\d+", dtype)[0]) // 8
  return total


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "sample"])
def test_the_embedded_programs_compile_for_a_slice(tmp_path, what):
  if not _LIBTPU.exists() and "TPU_LIBRARY_PATH" not in os.environ:
    pytest.skip("needs TPU's compiler, which `make test-slow` installs")
  result = run(
    *("--config=configs/embedded.py", "--config.model.dtype=bfloat16"),
    *("--topology=v5e:2x2", "--batch=256", f"--what={what}"),
    *(f"--json={tmp_path / 'report.json'}", f"--hlo={tmp_path / 'hlo.txt'}"),
  )
  assert result.returncode == 0, result.stderr[-2000:]
  assert "not measured" in result.stdout
  report = json.loads((tmp_path / "report.json").read_text())
  assert (report["chips"], report["batch_per_chip"]) == (4, 64)
  assert report["fits"]
  # Parameters, their average and two moments; or parameters alone.
  copies = {"train": 4, "sample": 1}[what]
  hlo = (tmp_path / "hlo.txt").read_text()
  assert copies * 4 * report["parameters"] < argument_bytes(hlo, tiled=False)
  assert report["state_bytes"] == argument_bytes(hlo, tiled=True)
  # Less work than the network's by what upsampling saves.
  assert 0.7 < report["flop"] / report["model_flop"] < 1.2
  assert 0 < report["share_of_peak"] < 1
  assert len(report["by_bytes"]) == len(report["by_flop"]) == 10
  largest = report["by_flop"][0]
  assert largest["module"].startswith(("input", "middle", "output"))


@pytest.mark.parametrize(
  ("name", "memory", "shape"),
  [("v5p:2x2x1", 95 * 2**30, "2x2x1"), ("h100:1x1x4", 84942979072, "1x1x4")],
)
def test_a_slices_name(name, memory, shape):
  chip, sides = chips.parse(name)
  assert (chip.memory, sides) == (memory, shape)
  assert chips.count(sides) == 4


@pytest.mark.parametrize("name", ["v5p", "v4:2x2x1", "v5p:2x", "h100:four", ""])
def test_other_names_are_refused(name):
  with pytest.raises(errors.UserError, match="must be CHIP:SIDES"):
    chips.parse(name)


def test_a_mistake_ends_in_one_line():
  result = run("--topology=v9:2x2", "--batch=8")
  assert result.returncode == 2
  assert (
    result.stderr.strip()
    .splitlines()[-1]
    .startswith("error: --topology=v9:2x2: must be CHIP:SIDES")
  )


def test_what_does_not_fit_is_a_result():
  error = RuntimeError(
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.50G of "
    "15.75G hbm. Exceeded hbm capacity by 5.75G."
  )
  chip = chips.CHIPS["v5e"]
  report = compile_for._too_large(error, chip)
  assert report["peak_bytes"] == 21.5 * 2**30
  assert not report["fits"]
  with pytest.raises(RuntimeError, match="something else"):
    compile_for._too_large(RuntimeError("something else"), chip)


def made(per_chip, gib, seconds=None, **changes):
  """Return a report that no compiler has made."""
  report = {
    "config": "imagenet64",
    "topology": "v5p:2x2x1",
    "what": "train",
    "batch_per_chip": per_chip,
    "remat": False,
    "microbatches": 1,
    "forward_flop": 211e9,
    "dtype": "bfloat16",
    "peak_bytes": gib * 2**30,
    "share_of_memory": gib / 95,
    "fits": gib <= 95,
    "compile_seconds": 100.0,
  }
  if seconds:
    report |= {
      "seconds": seconds,
      "seconds_by": "compiler",
      "share_of_peak": 0.5,
      "images_per_second_and_chip": per_chip / seconds,
    }
  return report | changes


def test_tables_say_what_fits_and_what_a_run_takes():
  found = [
    made(32, 20.0, 0.1),
    made(64, 35.0, 0.25),
    made(64, 9.0, 0.1, what="sample"),
    made(512, 250.0),
  ]
  text = "\n".join(compiled.tables(found))
  # 5 GiB and 15/32 for each image, by the line from 32 to 512.
  each = (250.0 - 20.0) / (512 - 32)
  fits = int(32 + (95 - 20) / each)
  assert f"| ADM-64 | v5p | {fits} | 2048 | 16 |" in text
  assert "does not fit" in text
  # 819.2 million images at 320 a second, the faster of two batches.
  hours = 400_000 * 2048 / 320 / 3600
  point = 50_000 * 256 / 640 / 3600
  assert f"| ADM-64 | v5p | {hours:,.0f} | {point:.2g} |" in text
  assert [row["what"] for row in compiled.rates(found)] == ["sample", "train"]


def test_the_cases_are_those_of_the_table():
  cases = list(compile_table.cases(["v5p", "h100"]))
  paths = [case.path("out") for case in cases]
  assert len(set(paths)) == len(paths)
  assert {case.config for case in cases} == {"imagenet64", "imagenet128"}
  assert {case.name for case in cases} == {"", "remat", "microbatches"}
