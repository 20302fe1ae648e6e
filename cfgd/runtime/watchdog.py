"""End a hanging process, with the stacks of all its threads."""

import faulthandler
import sys
import threading
import time

from cfgd.runtime import errors
from cfgd.runtime import peers


class Watchdog:
  """End the process if `beat` is not called for too long."""

  def __init__(self, seconds, field):
    """Start watching for `seconds` without a beat, unless that is 0.

    `field` is the config field of `seconds`, for the message.
    """
    self._seconds = seconds
    self._field = field
    self._stop = threading.Event()
    self._deadline = float("inf")
    if seconds:
      threading.Thread(target=self._watch, daemon=True).start()

  def beat(self, activity, patience=1):
    """Report progress: `activity` starts and may take patience * seconds."""
    self._activity = activity
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
      f"{self._activity} hangs: no progress for {self._field}="
      f"{self._seconds:g} s; the stacks of all threads are above; run the same "
      "command again to resume from the last checkpoint"
    )
    print(f"error: {line}", file=sys.stderr, flush=True)
    peers.end(line, errors.EXIT_AGAIN)
