"""What the others hear when a process ends."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from cfgd.runtime import errors
from cfgd.runtime import peers
from tests.faults import jobs

ROOT = pathlib.Path(__file__).parents[2]
ROLES = """
import sys
import time
from cfgd.runtime import errors
from experiments import launcher
def main():
  if sys.argv[0] == "waits":
    time.sleep(60)
  raise errors.UserError("data.source=x: broken")
launcher.run(main)
"""


class Store:
  """A key-value store as JAX's, in this process."""

  def __init__(self):
    self.values = {}

  def key_value_set(self, key, value, allow_overwrite=False):
    if key in self.values and not allow_overwrite:
      raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
    self.values[key] = value

  def key_value_dir_get(self, folder):
    return [i for i in self.values.items() if i[0].startswith(folder)]


class Clock:
  """Time that passes when somebody sleeps."""

  now = 0.0

  def sleep(self, seconds):
    self.now += seconds

  def monotonic(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(peers, "time", clock)
  return clock


@pytest.fixture
def three(clock):
  """Three processes' watches that all look once, and their exit codes."""
  store, codes = Store(), {}
  watches = [
    peers.Watch(
      store, k, 3, 10, leave=lambda code, k=k: codes.update({k: code})
    )
    for k in range(3)
  ]
  for watch in watches:
    watch.look()
  return watches, codes


def test_all_end_with_the_line_and_the_code_of_the_first(three, capsys):
  watches, codes = three
  watches[1].tell("data.source=x: broken", 2)
  watches[1].tell("something that came of it", 1)
  for number in (2, 0):
    watches[number].look()
  assert codes == {0: 2, 2: 2}
  line = "error: process 1 ended: data.source=x: broken\n"
  assert capsys.readouterr().err == 2 * line


def test_who_is_silent_is_gone(three, clock, capsys):
  watches, codes = three
  for _ in range(10):
    clock.sleep(1)
    for number in (0, 1):
      watches[number].look()
  assert not codes
  clock.sleep(2)
  for number in (1, 0, 1):
    watches[number].look()
  assert codes == dict.fromkeys((0, 1), errors.EXIT_AGAIN)
  assert (
    "error: process 2 of 3 is gone without a word" in capsys.readouterr().err
  )


def test_who_is_done_may_be_silent_and_waits_for_the_others(three, clock):
  watches, codes = three
  clock.sleep = lambda seconds: watches[2].beat("done")
  watches[1].beat("done")
  watches[0].done()
  clock.now += 100
  watches[0].look()
  assert not codes


def test_process_0_stays_until_it_was_heard(three, clock):
  watches, codes = three
  watches[0].tell("full disk", 1)
  heard = []

  def sleep(seconds):
    clock.now += seconds
    number = 1 + len(heard)
    if number < 3:
      watches[number].look()
      heard.append(codes[number])

  clock.sleep = sleep
  watches[0].leave(1)
  assert heard == [1, 1]
  assert codes[0] == 1
  assert clock.now < 1


def test_two_processes_end_together():
  port = jobs.free_port()
  pair = [
    subprocess.Popen(
      [sys.executable, "-c", f"import sys; sys.argv = [{role!r}]" + ROLES],
      cwd=ROOT,
      env=os.environ
      | {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(process),
      },
      stderr=subprocess.PIPE,
      text=True,
    )
    for process, role in enumerate(("fails", "waits"))
  ]
  said = [job.communicate(timeout=60)[1].splitlines()[-1] for job in pair]
  assert [job.returncode for job in pair] == [2, 2]
  assert said == [
    "error: data.source=x: broken",
    "error: process 0 ended: data.source=x: broken",
  ]
