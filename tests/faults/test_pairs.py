"""Whatever befalls one of two processes, none of them stays."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cfgd.runtime import errors
from cfgd.training import loop
from tests import processes
from tests import tiny
from tests.faults import jobs

# Runs an entry point as its own module, after planting a fault in process 1.
FRONT = """
import os, runpy, sys
import numpy as np
from cfgd.metrics import image_sets
from cfgd.runtime import files
from cfgd.sampling import draw
from cfgd.training import loop

name, fault, *arguments = sys.argv[1:]
sys.argv = [name, *arguments]

def spoil(self, params, index, label, draw_them=draw.Draw.__call__):
  images, finite = draw_them(self, params, index, label)
  return images, finite & (self.numbers["w"] == 0)

def fail(*arguments, **more):
  raise {"full disk": OSError(28, "No space left on device")}.get(
    fault, KeyError("defect")
  )

if os.environ["JAX_PROCESS_ID"] == "1":
  if fault == "non-finite":
    draw.Draw.__call__ = spoil
  elif fault == "full disk":
    files.open_atomic = fail
  elif fault == "bug" and name == "train":
    loop._log_save_show = fail
  elif fault == "bug":
    draw.Draw.__call__ = fail
runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
"""
SWEEP = tiny.TINY | {
  "sweep.grids.main.p_uncond": (0.1,),
  "sweep.grids.main.w": (0.0, 0.5),
  "sweep.grids.fast.w": (0.0,),
}


def start_pair(name, workdir, fault="", overrides=SWEEP):
  """Start two processes of an entry point."""
  address = f"localhost:{jobs.free_port()}"
  together = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
  return [
    subprocess.Popen(
      [
        *(sys.executable, "-c", FRONT, name, fault, f"--workdir={workdir}"),
        "--config=configs/sweep_embedded.py",
        *(*tiny.flags(overrides), "--peer_seconds=10"),
      ],
      cwd=processes.ROOT,
      env=os.environ
      | jobs.devices(2)
      | together
      | {"JAX_PROCESS_ID": str(process)},
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    for process in range(2)
  ]


def end_of(pair):
  """Return (exit codes, last lines, seconds between the two ends)."""
  try:
    first = None
    while first is None:
      first = next((k for k in pair if k.poll() is not None), None)
      time.sleep(0.1)
    begin = time.monotonic()
    said = [process.communicate(timeout=60)[1] for process in pair]
    seconds = time.monotonic() - begin
  finally:
    for process in pair:
      process.kill()
  lines = [(text.strip().splitlines() or [""])[-1] for text in said]
  return [process.returncode for process in pair], lines, seconds


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("trained")
  loop.train(tiny.make_config(), workdir)
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "fault", "words"),
  [
    ("train", "bug", "KeyError: 'defect'"),
    ("sample", "non-finite", "samples are not finite"),
    ("sample", "full disk", "No space left on device"),
    ("sample", "bug", "KeyError: 'defect'"),
    ("evaluate", "bug", "KeyError: 'defect'"),
  ],
)
def test_a_failure_of_one_ends_both(name, fault, words, trained, tmp_path):
  workdir = tmp_path if name == "train" else trained
  overrides = SWEEP | {"sampling.seed": len(fault), "sampling.w": 0.7}
  codes, lines, seconds = end_of(start_pair(name, workdir, fault, overrides))
  assert codes == [1, 1], lines
  assert all(words in line for line in lines), lines
  assert seconds < 60


@pytest.mark.slow
def test_a_chunk_that_is_not_finite_costs_its_cell_alone(tmp_path):
  codes, lines, _ = end_of(start_pair("sweep", tmp_path, "non-finite"))
  assert codes == [1, 1], lines
  assert all("1 of 3 cells failed" in line for line in lines), lines
  done = {path.parent.name for path in tmp_path.glob("cells/*/metrics.json")}
  failed = {path.parent.name for path in tmp_path.glob("cells/*/error.txt")}
  assert (len(done), len(failed)) == (2, 1), (done, failed)
  # Without the fault the same command does the one that is left.
  codes, lines, _ = end_of(start_pair("sweep", tmp_path))
  assert codes == [0, 0], lines
  assert not list(tmp_path.glob("cells/*/error.txt"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("words", ["Training the feature network", "Cell "])
def test_the_other_ends_when_one_is_killed(victim, words, tmp_path):
  overrides = SWEEP | {"train.steps": 2000}
  pair = jobs.start_pair("sweep", tmp_path, overrides)
  while not any(words in line for line in list(pair[0].lines)):
    assert pair[0].process.poll() is None, pair[0].error
    time.sleep(0.1)
  assert pair[victim].kill(signal.SIGKILL, 1.0)
  begin = time.monotonic()
  code = pair[1 - victim].wait(60)
  # JAX aborts at once when process 0 is gone.
  assert code in (errors.EXIT_AGAIN, -signal.SIGABRT), pair[1 - victim].error
  assert time.monotonic() - begin < 60


@pytest.mark.slow
def test_sigterm_to_one_saves_in_both_and_the_same_command_resumes(tmp_path):
  overrides = SWEEP | {"train.steps": 200, "train.checkpoint_every": 50}
  pair = start_pair("sweep", tmp_path, overrides=overrides)
  log = tmp_path / "runs/p0.1/checkpoints"
  while not list(log.glob("*50")):
    assert all(process.poll() is None for process in pair)
    time.sleep(0.1)
  pair[1].send_signal(signal.SIGTERM)
  codes, lines, _ = end_of(pair)
  assert codes == [errors.EXIT_AGAIN] * 2, lines
  assert all(line.startswith("stopped: ended by SIGTERM") for line in lines)
  codes, lines, _ = end_of(start_pair("sweep", tmp_path, overrides=overrides))
  assert codes == [0, 0], lines
  cells = [
    json.loads(path.read_text())
    for path in tmp_path.glob("cells/*/metrics.json")
  ]
  assert len(cells) == 3
