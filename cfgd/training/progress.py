"""Steps from dispatch to completion, and what they said.

JAX hands a step to the devices and returns at once, so what the host has
dispatched says nothing about what was done.
"""

import collections

import jax
import numpy as np

from cfgd.training import steps


class InFlight:
  """The steps that were handed to the devices and are not known to be done."""

  def __init__(self, depth, *, done, record):
    """Start with none.

    Args:
      depth: steps that may be in flight beside the newest. The host waits for
        the oldest where there are more, so that the devices always have a next
        step and the host does not run ahead of them.
      done: called with each step's number as soon as it is known to be done.
      record: called with (number, metrics on the host) of each step in order,
        `depth` steps later or when drained: at the same step in all processes,
        however fast they are.
    """
    self._depth = depth
    self._done = done
    self._record = record
    self._pending = collections.deque()
    self._newest_done = -1

  def add(self, number, metrics):
    """Add a step that was dispatched; may wait for an earlier one.

    Args:
      number: of the step.
      metrics: its results on the devices.
    """
    self._pending.append((number, metrics))
    while len(self._pending) > self._depth:
      self._wait()
    for number, metrics in self._pending:
      if not all(leaf.is_ready() for leaf in jax.tree.leaves(metrics)):
        break
      self._say_done(number)

  def drain(self):
    """Wait for all steps."""
    while self._pending:
      self._wait()

  def _wait(self):
    number, metrics = self._pending.popleft()
    metrics = jax.device_get(metrics)
    self._say_done(number)
    self._record(number, metrics)

  def _say_done(self, number):
    if number > self._newest_done:
      self._newest_done = number
      self._done(number)


class History:
  """What the steps since the last log said, and how many were skipped in a row.

  Attributes:
    skipped_in_a_row: steps up to the newest one that were all skipped.
  """

  def __init__(self, skipped_in_a_row=0):
    """Start a window; after a resume the count of skipped steps continues."""
    self.skipped_in_a_row = skipped_in_a_row
    self._window = []

  def add(self, metrics):
    """Add a step's metrics; see `steps.make_train_step`."""
    self._window.append(metrics)
    finite = metrics["finite"]
    self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1

  def summarize(self):
    """Return the scalars to log for the window, and start the next one.

    Means are over the steps that were taken. Where none was, there are none:
    the number of skipped steps says why.
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
