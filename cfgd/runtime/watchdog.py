"""End a process that hangs, with the stacks of all its threads."""

import faulthandler
import sys
import threading
import time

from cfgd.runtime import errors
from cfgd.runtime import peers


class Watchdog:
  """Ends the process when `beat` was not called for too long."""

  def __init__(self, seconds, field):
    """Start watching.

    Args:
      seconds: that may pass between two beats; 0 watches nothing.
      field: that says so, for the message.
    """
    self._seconds = seconds
    self._field = field
    self._stop = threading.Event()
    self._deadline = float("inf")
    if seconds:
      threading.Thread(target=self._watch, daemon=True).start()

  def beat(self, what, patience=1):
    """Say that all is well.

    Args:
      what: comes next, for the message.
      patience: times `seconds` that it may take.
    """
    self._what = what
    self._deadline = time.monotonic() + patience * self._seconds

  def close(self):
    """Stop watching."""
    self._stop.set()

  def _watch(self):
    while not self._stop.wait(min(1.0, self._seconds / 10)):
      if time.monotonic() > self._deadline:
        self._end()

  def _end(self):
    faulthandler.dump_traceback(all_threads=True)
    line = (
      f"{self._what} hangs: nothing for {self._field}={self._seconds:g} s; the "
      "stacks of all threads are above; the same command goes on from the last "
      "checkpoint"
    )
    print(f"error: {line}", file=sys.stderr, flush=True)
    peers.end(line, errors.EXIT_AGAIN)
