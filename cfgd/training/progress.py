"""Training steps in flight, and the metrics of those that completed.

JAX dispatches a step and returns at once, so the host must ask which steps the
devices have completed.
"""

import collections

import jax
import numpy as np

from cfgd.training import steps


class InFlight:
  """The steps that were dispatched and are not known to be complete."""

  def __init__(self, depth, *, done, record):
    """Start with none.

    Args:
      depth: steps that may be in flight beside the newest. Beyond it the host
        waits for the oldest, so that it stays ahead of the devices, but not
        far ahead.
      done: called with a step's number once the step is known to be complete.
      record: called with (number, metrics on the host) of each step in order,
        `depth` steps later or when drained: at the same step in all processes.
    """
    self._depth = depth
    self._done = done
    self._record = record
    self._pending = collections.deque()
    self._newest_done = -1

  def add(self, number, metrics):
    """Add a dispatched step and its metrics; may wait for an earlier one."""
    self._pending.append((number, metrics))
    while len(self._pending) > self._depth:
      self._wait()
    for number, metrics in self._pending:
      if not all(leaf.is_ready() for leaf in jax.tree.leaves(metrics)):
        break
      self._report_done(number)

  def drain(self):
    """Wait for all steps."""
    while self._pending:
      self._wait()

  def _wait(self):
    number, metrics = self._pending.popleft()
    metrics = jax.device_get(metrics)
    self._report_done(number)
    self._record(number, metrics)

  def _report_done(self, number):
    if number > self._newest_done:
      self._newest_done = number
      self._done(number)


class History:
  """The metrics since the last log.

  Attributes:
    skipped_in_a_row: number of consecutive skipped steps up to the newest.
  """

  def __init__(self, skipped_in_a_row=0):
    """Start a window; a resumed run continues the count of skipped steps."""
    self.skipped_in_a_row = skipped_in_a_row
    self._window = []

  def add(self, metrics):
    """Add a step's metrics; see `steps.make_train_step`."""
    self._window.append(metrics)
    finite = metrics["finite"]
    self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1

  def summarize(self):
    """Return the scalars to log, and start the next window.

    Means are over the steps that were taken; if all were skipped, there are no
    means.
    """
    window, self._window = self._window, []
    taken = [metrics for metrics in window if metrics["finite"]]
    scalars = {
      "skipped_steps": int(window[-1]["skipped"]),
      "skipped_in_window": len(window) - len(taken),
    }
    if not taken:
      return scalars
    measured = jax.tree.map(
      lambda *parts: np.sum(parts), *(metrics["measured"] for metrics in taken)
    )
    means = {
      name: float(np.mean([metrics[name] for metrics in taken]))
      for name in ("loss", "grad_norm")
    }
    return means | scalars | steps.weighted_means(measured)
