"""What the others hear when a process ends."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.faults import jobs

ROOT = pathlib.Path(__file__).parents[2]
# Each process does as its role says and then waits for the other one.
ROLES = """
import os
import sys
import time
from cfgd.runtime import distributed, errors, watchdog
from experiments import launcher
role = sys.argv[0]
def main():
  distributed.barrier("both run")
  if role == "mistake":
    raise errors.UserError("data.source=x: broken")
  if role == "bug":
    raise KeyError("defect")
  if role == "full disk":
    raise OSError(28, "No space left on device")
  if role == "hangs":
    watchdog.Watchdog(0.2, "train.watchdog_seconds").beat("step 7")
    time.sleep(60)
  if role == "killed":
    os.kill(os.getpid(), 9)
  distributed.barrier("the other one")
launcher.run(main)
"""
GONE = "another process is gone without a word"


def run_pair(*roles):
  """Return [(exit code, last line)] of processes, and the seconds they took."""
  port = jobs.free_port()
  pair = [
    subprocess.Popen(
      [
        *(sys.executable, "-c"),
        f"import sys; sys.argv = [{role!r}, '--peer_seconds=10']" + ROLES,
      ],
      cwd=ROOT,
      env=os.environ
      | {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(len(roles)),
        "JAX_PROCESS_ID": str(process),
      },
      stderr=subprocess.PIPE,
      text=True,
    )
    for process, role in enumerate(roles)
  ]
  begin = time.monotonic()
  try:
    said = [process.communicate(timeout=90)[1] for process in pair]
  finally:
    for process in pair:
      process.kill()
  codes = [process.returncode for process in pair]
  lines = [(text.strip().splitlines() or [""])[-1] for text in said]
  return list(zip(codes, lines, strict=True)), time.monotonic() - begin


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
  ("role", "code", "line"),
  [
    ("mistake", 2, "data.source=x: broken"),
    ("bug", 1, "KeyError: 'defect'"),
    ("full disk", 1, "[Errno 28] No space left on device"),
    ("hangs", 75, "step 7 hangs: no progress for"),
  ],
)
def test_all_end_with_the_line_and_the_code_of_the_first(
  role, code, line, first
):
  roles = ["waits", role] if first else [role, "waits"]
  ends, seconds = run_pair(*roles)
  assert [end[0] for end in ends] == [code, code], ends
  assert ends[1 - first][1].startswith(f"error: process {first} ended: {line}")
  assert seconds < 60


@pytest.mark.parametrize("first", [0, 1])
def test_the_others_end_when_one_is_killed(first):
  roles = ["waits", "killed"] if first else ["killed", "waits"]
  ends, seconds = run_pair(*roles)
  code, line = ends[1 - first]
  # JAX aborts as soon as it cannot reach process 0.
  assert code in (75, -signal.SIGABRT)
  assert code != 75 or line.startswith(f"error: {GONE}")
  assert ends[first][0] == -signal.SIGKILL
  assert seconds < 60
