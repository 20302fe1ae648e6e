"""Requests to stop, answered at points from which the work can resume.

A single process receives SIGTERM. Among several processes any one may receive
it, and JAX's preemption service makes them agree on the moment to stop.
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
  """Handle SIGTERM from now on; call once, after the processes have joined."""
  _state["requested"] = False
  if not jax.distributed.is_initialized():
    signal.signal(signal.SIGTERM, _on_signal)


def _on_signal(number, frame):
  del number, frame
  # Stays set: what is raised here may be lost in a callback.
  _state["requested"] = True
  if not _state["deferring"]:
    raise errors.Preempted(
      "ended by SIGTERM; run the same command again to resume"
    )


@contextlib.contextmanager
def deferred():
  """Let the work inside poll `reached` instead of being interrupted."""
  _state["deferring"] += 1
  try:
    yield
  finally:
    _state["deferring"] -= 1


def reached():
  """Return whether to save and stop now; all processes must poll alike."""
  if not jax.distributed.is_initialized():
    return _state["requested"]
  return multihost_utils.reached_preemption_sync_point(next(_polls))


def check(message):
  """Stop here if that was requested; see `end`."""
  if reached():
    end(message)


def end(message):
  """Raise errors.Preempted; `message` says what has been saved."""
  _state["requested"] = False
  raise errors.Preempted(f"ended by SIGTERM: {message}")
