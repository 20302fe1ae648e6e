"""Entry points as processes that can be watched, signalled and limited."""

import contextlib
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time

from tests import processes
from tests import tiny

_TIMEOUT = 600
_STEP = re.compile(r"\[(\d+)\] .*loss=")
PEER_SECONDS = 10
# Starting is most of the work: keep small compiled programs too.
_CACHE_ALL = {
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def devices(count):
  """Return the environment for some virtual devices."""
  flag = f"--xla_force_host_platform_device_count={count}"
  return {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}


class Job:
  """A running command whose standard error is read as it comes.

  Attributes:
    begin: time of the start.
    first_step: time of the first logged training step, or None.
    lines: of standard error.
    process: its Popen.
  """

  def __init__(self, name, workdir, overrides, *more, env=None, limit=None):
    """Start `python -m experiments.NAME`.

    Args:
      name: of the entry point.
      workdir: folder.
      overrides: {field: value}.
      *more: flags.
      env: variables beside this process's; by default for one device.
      limit: largest size of a file in bytes; None for any.
    """
    self.begin = time.monotonic()
    self.first_step = None
    self.lines = []
    self.process = subprocess.Popen(
      [
        *(sys.executable, "-m", f"experiments.{name}", f"--workdir={workdir}"),
        *(*tiny.flags(overrides), *more),
      ],
      cwd=processes.ROOT,
      env=os.environ | _CACHE_ALL | (env or devices(1)),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
      preexec_fn=limit and _limiting_files(limit),
    )
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()

  def _read(self):
    for line in self.process.stderr:
      self.lines.append(line)
      if self.first_step is None and _STEP.search(line):
        self.first_step = time.monotonic()

  def wait(self, timeout=_TIMEOUT):
    """Return the exit code."""
    try:
      code = self.process.wait(timeout)
    except subprocess.TimeoutExpired:
      self.process.kill()
      code = self.process.wait()
      self.lines.append(f"chaos: killed after {timeout} s\n")
    self._reader.join()
    return code

  def wait_for_step(self):
    """Return whether a step was logged before the end."""
    while self.first_step is None and self.process.poll() is None:
      time.sleep(0.01)
    return self.first_step is not None

  def kill(self, number, delay):
    """Send a signal after a delay; return whether the job was still running."""
    with contextlib.suppress(subprocess.TimeoutExpired):
      self.process.wait(delay)
    if self.process.poll() is not None:
      return False
    self.process.send_signal(number)
    return True

  @property
  def seconds_to_step(self):
    """Seconds from the start to the first step, or None."""
    return self.first_step and self.first_step - self.begin

  @property
  def error(self):
    """The last lines of standard error."""
    return "".join(self.lines[-5:]).strip()


def _limiting_files(limit):
  return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def free_port():
  """Return a port of this machine that nobody uses."""
  with socket.socket() as server:
    server.bind(("localhost", 0))
    return server.getsockname()[1]


def start_pair(name, workdir, overrides):
  """Start two processes of two virtual devices each."""
  address = f"localhost:{free_port()}"
  return [
    Job(
      *(name, workdir, overrides, f"--peer_seconds={PEER_SECONDS}"),
      env=devices(2)
      | {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(process),
      },
    )
    for process in range(2)
  ]
