"""Requests to end: answered where the work can be taken up again.

A process alone gets SIGTERM. Of several processes any one gets it, and JAX's
preemption service makes all of them agree on one moment.
"""

import contextlib
import itertools
import signal

import jax
from jax.experimental import multihost_utils

from cfgd.runtime import errors

_polls = itertools.count()
_state = {"deferring": 0, "requested": False}


def install():
  """Answer SIGTERM from now on; once, after the processes have joined."""
  if not jax.distributed.is_initialized():
    signal.signal(signal.SIGTERM, _on_signal)


def _on_signal(number, frame):
  del number, frame
  if not _state["deferring"]:
    raise errors.Preempted("ended by SIGTERM")
  _state["requested"] = True


@contextlib.contextmanager
def deferred():
  """Let the work inside ask by `reached` instead of being interrupted."""
  _state["deferring"] += 1
  try:
    yield
  finally:
    _state["deferring"] -= 1


def reached():
  """Say whether to save and end now; all processes ask equally often."""
  if not jax.distributed.is_initialized():
    return _state["requested"]
  return multihost_utils.reached_preemption_sync_point(next(_polls))


def check(message):
  """End here if that was asked for; see `end`."""
  if reached():
    end(message)


def end(message):
  """End, having been asked to.

  Args:
    message: what has been saved.

  Raises:
    errors.Preempted: always.
  """
  _state["requested"] = False
  raise errors.Preempted(f"ended by SIGTERM: {message}")
