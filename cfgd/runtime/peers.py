"""Let processes that work together end together, each saying why.

When one of several processes ends, JAX leaves the others waiting in their next
collective and aborts them after a long silence. Here each process writes a
heartbeat, and its reason before it exits, to JAX's key-value store, which
process 0 serves; a thread polls the store and ends its process with the same
reason. If process 0 itself dies silently the store is lost, and JAX aborts the
others at once.
"""

import atexit
import contextlib
import os
import sys
import threading
import time

import jax

from cfgd.runtime import errors

_ALIVE, _ENDED = "cfgd/alive/", "cfgd/ended/"
_DONE, _GONE = "done", "gone"
_BEAT_SECONDS = 1.0
# For so long process 0 keeps serving the store while the others read it.
_LINGER_SECONDS = 5.0
# Silence that is enough when a connection is lost as well.
_LOST_SECONDS = 4.0
# Collective libraries, as they name themselves in errors of lost connections.
_LOST = ("Gloo", "NCCL")

_state = {"watch": None}


def watch(seconds):
  """Watch the other processes; call once, after they have joined.

  A process that is silent for `seconds` counts as gone.
  """
  if not jax.distributed.is_initialized():
    return
  # JAX has no public name for its store; Orbax uses this one, too.
  from jax._src import distributed

  state = distributed.global_state
  watch = Watch(state.client, state.process_id, state.num_processes, seconds)
  _state["watch"] = watch
  watch.start()


def done():
  """Wait until all others are done; exits if one of them fails."""
  if _state["watch"]:
    _state["watch"].done()


def fail(line, code):
  """Tell the others why this process ends, and exit without waiting for JAX.

  The caller prints `line` itself. If it is about a lost connection, first wait
  for the process that caused that: its reason ends this process instead.
  """
  watch = _state["watch"]
  if not watch:
    return
  if any(word in line for word in _LOST):
    watch.wait_for_cause()
  watch.tell(line, code)
  # JAX's own exit handler waits for processes that no longer exist.
  atexit.register(watch.leave, code)


def end(line, code):
  """Tell the others and exit now, from any thread."""
  if _state["watch"]:
    _state["watch"].tell(line, code)
    _state["watch"].leave(code)
  os._exit(code)


class Watch:
  """One process's view of the others."""

  def __init__(self, client, process, count, seconds, leave=os._exit):
    """Set up without starting.

    Args:
      client: client of JAX's key-value store.
      process: index of this process.
      count: number of processes.
      seconds: silence after which a process counts as gone.
      leave: function that exits with a code.
    """
    self._client = client
    self._process = process
    self._seconds = max(seconds, _LOST_SECONDS)
    self._leave = leave
    self._last_word = None  # replaces the beat count at the end
    self._beats = 0
    self._beating = threading.Lock()
    # By process: its last entry, and when we first saw it.
    self._heard = {str(k): ("", time.monotonic()) for k in range(count)}
    self._stop = threading.Event()

  def start(self):
    """Start the thread that beats and looks."""
    atexit.register(self._stop.set)
    threading.Thread(target=self._run, daemon=True).start()

  def _run(self):
    while not self._stop.is_set():
      # Without process 0 there is no store, and JAX ends this process.
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self.look()
      self._stop.wait(_BEAT_SECONDS)

  def look(self):
    """Write a heartbeat; exit if another process has left a reason."""
    self.beat()
    if self._process == 0:
      self._report_silent()
    for _, entry in self._client.key_value_dir_get(_ENDED):
      if self._stop.is_set():
        return  # the reason is our own
      code, _, line = entry.partition(" ")
      print(f"error: {line}", file=sys.stderr, flush=True)
      self.leave(int(code))

  def beat(self, last_word=None):
    """Write a heartbeat, or from now on a last word in its place."""
    with self._beating:
      self._last_word = last_word or self._last_word
      self._beats += 1
      self._client.key_value_set(
        f"{_ALIVE}{self._process}",
        self._last_word or str(self._beats),
        allow_overwrite=True,
      )

  def _entries(self):
    """Return {process: last entry}, with "gone" for the silent ones."""
    now = time.monotonic()
    for key, entry in self._client.key_value_dir_get(_ALIVE):
      process = key.removeprefix(_ALIVE)
      if entry != self._heard[process][0]:
        self._heard[process] = (entry, now)
    return {
      process: _GONE
      if entry != _DONE and now - since > self._seconds
      else entry
      for process, (entry, since) in self._heard.items()
    }

  def _report_silent(self):
    gone = [
      process for process, entry in self._entries().items() if entry == _GONE
    ]
    if gone:
      self._write_end(
        f"process {', '.join(gone)} of {len(self._heard)} is gone without a "
        "word: run the same command again to resume from what is saved",
        errors.EXIT_AGAIN,
      )

  def _others_are(self, word):
    entries = self._entries()
    del entries[str(self._process)]
    return all(entry == word for entry in entries.values())

  def done(self):
    """Wait until all others are done, then stop watching."""
    self.beat(_DONE)
    while not self._others_are(_DONE):
      time.sleep(_BEAT_SECONDS / 10)
    self._stop.set()

  def wait_for_cause(self):
    """Give another process's reason time to end this one."""
    self._seconds = _LOST_SECONDS
    time.sleep(self._seconds + 3 * _BEAT_SECONDS)

  def tell(self, line, code):
    """Write the reason that the others end with; the first one counts."""
    self._stop.set()
    self._write_end(f"process {self._process} ended: {line}", code)

  def _write_end(self, line, code):
    # Another reason may be there already, or process 0 be gone.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.key_value_set(f"{_ENDED}why", f"{code} {line}")

  def leave(self, code):
    """Exit; process 0 first waits until the others have read the reason."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self.beat(_GONE)
      deadline = time.monotonic() + (0 if self._process else _LINGER_SECONDS)
      while time.monotonic() < deadline and not self._others_are(_GONE):
        time.sleep(_BEAT_SECONDS / 10)
    sys.stdout.flush()
    sys.stderr.flush()
    self._leave(code)
