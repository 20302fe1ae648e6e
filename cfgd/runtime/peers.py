"""Let processes that work together end together, each saying why.

JAX's heartbeat ends the others when a process dies, but where one fails it
leaves them waiting in a collective, and nobody learns the reason. So a process
that fails first writes its reason to JAX's key-value store, which process 0
serves; a thread of each process looks there and ends it with the same line and
exit code.
"""

import contextlib
import os
import sys
import threading
import time

import jax

from cfgd.runtime import distributed
from cfgd.runtime import errors

_KEY = "cfgd/ended"
_POLL_SECONDS = 0.5
# How long process 0 serves the store after a failure, and how long a process
# that lost a connection waits for the reason.
_LINGER_SECONDS = 4.0
# Collective libraries, as they name themselves in errors of lost connections.
_LOST = ("Gloo", "NCCL")

_done = threading.Event()


def watch():
  """End this process when another one fails; call once, after joining."""
  if jax.distributed.is_initialized():
    threading.Thread(target=_watch, args=(_store(),), daemon=True).start()


def _store():
  # JAX has no public name for it; Orbax uses this one, too.
  from jax._src import distributed as jax_distributed

  return jax_distributed.global_state.client


def _watch(store):
  while not _done.wait(_POLL_SECONDS):
    # Where the store is gone, so is process 0, and JAX ends this process.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      for _, entry in store.key_value_dir_get(_KEY):
        code, _, line = entry.partition(" ")
        print(f"error: {line}", file=sys.stderr, flush=True)
        _leave(int(code))


def done():
  """Wait until all others are done; if one fails, this one ends, too."""
  distributed.barrier("done")
  _done.set()


def has_lost_one(error):
  """Return whether an error is about a connection that another one closed."""
  return any(word in str(error) for word in _LOST)


def end(line, code):
  """Tell the others why this process ends, and exit; from any thread.

  The caller has printed `line`, unless it is about a lost connection. That is
  not the reason: wait for it; without one a process has died.
  """
  if not jax.distributed.is_initialized():
    _leave(code)
  if has_lost_one(line):
    time.sleep(_LINGER_SECONDS / 2)
    line, code = (
      "another process is gone without a word: run the same command again to "
      "resume from what is saved",
      errors.EXIT_AGAIN,
    )
    print(f"error: {line}", file=sys.stderr)
  _done.set()
  # Another reason may be there already, or process 0 be gone.
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    reason = f"process {jax.process_index()} ended: {line}"
    _store().key_value_set(f"{_KEY}/why", f"{code} {reason}")
    if distributed.is_lead():
      time.sleep(_LINGER_SECONDS)
  _leave(code)


def _leave(code):
  """Exit without JAX's handler, which waits for all processes."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
