"""Progress of long work on the host, logged every few seconds."""

import time

from absl import logging

_SECONDS = 10.0


class Progress:
  """Log how much of a task is done, its rate and the time left."""

  def __init__(self, task, total, unit="images", scale=1.0):
    """Start the clock; `add` counts to `total`, logged in units of `scale`."""
    self._task, self._unit, self._scale = task, unit, scale
    self._total, self._done = total, 0
    self._start = self._logged = time.monotonic()

  def add(self, count):
    """Count more as done."""
    self._done += count
    now = time.monotonic()
    if now - self._logged < _SECONDS:
      return
    self._logged = now
    rate = self._done / (now - self._start)
    logging.info(
      "%s: %.5g of %.5g %s, %.3g %s/s, %.0f s left.",
      self._task,
      *(self._done / self._scale, self._total / self._scale, self._unit),
      *(rate / self._scale, self._unit, (self._total - self._done) / rate),
    )
