"""A process that hangs ends, and says where."""

import pathlib
import subprocess
import sys

from cfgd.runtime import errors

ROOT = pathlib.Path(__file__).parents[2]
HANGING = """
import time
from cfgd.runtime import watchdog
dog = watchdog.Watchdog(0.3, "train.watchdog_seconds")
def lively():
  for number in range(3):
    dog.beat(f"step {number}")
    time.sleep(0.2)
  dog.beat("saving", patience=10)
  time.sleep(0.6)
lively()
print("alive")
def stuck():
  dog.beat("step 7")
  time.sleep(60)
{end}
stuck()
"""


def run(end):
  return subprocess.run(
    [sys.executable, "-c", HANGING.replace("{end}", end)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=30,
  )


def test_a_step_that_hangs_ends_the_process_with_its_stacks():
  done = run("")
  assert done.stdout == "alive\n"
  assert done.returncode == errors.EXIT_AGAIN
  assert "in stuck" in done.stderr
  assert done.stderr.splitlines()[-1].startswith(
    "error: step 7 hangs: no progress for train.watchdog_seconds=0.3 s"
  )


def test_a_closed_watchdog_watches_nothing():
  done = run("dog.close()\nstuck = lambda: time.sleep(0.8)")
  assert (done.returncode, done.stderr) == (0, "")
