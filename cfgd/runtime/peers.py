"""Processes that work together end together, and each says why.

When one of them ends, JAX lets the others wait in their next sum over all
devices, and aborts them with its own lines after a long silence. Here each
process writes into JAX's key-value store, which process 0 serves, that it is
alive, and on its way out, why; a thread reads that and ends the process with
the same line. Where process 0 dies without a word the store is gone with it,
and JAX aborts the others at once.
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
# Given to the others to hear of an end, before process 0 takes the store away.
_HEAR_SECONDS = 5.0
# Silence that suffices where a connection is lost too.
_LOST_SECONDS = 4.0
# What the libraries that sum over processes say in their errors.
_LOST = ("Gloo", "NCCL")

_state = {"watch": None}


def watch(seconds):
  """Watch the other processes from now on; once, after they have joined.

  Args:
    seconds: of silence after which a process counts as gone.
  """
  if not jax.distributed.is_initialized():
    return
  # JAX has no public name for its store; Orbax takes it from here too.
  from jax._src import distributed

  state = distributed.global_state
  _state["watch"] = Watch(
    state.client, state.process_id, state.num_processes, seconds
  )
  _state["watch"].start()


def done():
  """Wait for the others to be done too; ends here where one of them fails."""
  if _state["watch"]:
    _state["watch"].done()


def fail(line, code):
  """Tell the others why this process ends; it then ends without them.

  Where the reason is a lost connection, the process that is the cause may say
  more: its line ends this one, if there is one soon.

  Args:
    line: what this process says, or is about to say, itself.
    code: exit code, for all.
  """
  if _state["watch"]:
    if any(word in line for word in _LOST):
      _state["watch"].wait_for_cause()
    _state["watch"].tell(line, code)
    # JAX's own way out waits for processes that are not there any more.
    atexit.register(_state["watch"].leave, code)


def end(line, code):
  """Tell the others and end now, from any thread."""
  if _state["watch"]:
    _state["watch"].tell(line, code)
    _state["watch"].leave(code)
  os._exit(code)


class Watch:
  """What one process tells the others and hears of them."""

  def __init__(self, client, process, count, seconds, leave=os._exit):
    """Watch nothing yet.

    Args:
      client: of JAX's key-value store.
      process: index of this one.
      count: of processes.
      seconds: of silence after which a process counts as gone.
      leave: ends the process with a code.
    """
    self._client = client
    self._process = process
    self._seconds = max(seconds, _LOST_SECONDS)
    self._leave = leave
    self._word = None  # instead of a count of beats, at the end
    self._beats = 0
    self._beating = threading.Lock()
    # By process: what it wrote last, and when that was seen first.
    self._heard = {str(k): ("", time.monotonic()) for k in range(count)}
    self._stop = threading.Event()

  def start(self):
    """Begin to beat and to look."""
    atexit.register(self._stop.set)
    threading.Thread(target=self._run, daemon=True).start()

  def _run(self):
    while not self._stop.is_set():
      # Without process 0 there is no store, and JAX ends this process.
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self.look()
      self._stop.wait(_BEAT_SECONDS)

  def look(self):
    """Say that this process is alive; end it where another one has ended."""
    self.beat()
    if self._process == 0:
      self._speak_for_the_silent()
    for _, said in self._client.key_value_dir_get(_ENDED):
      if self._stop.is_set():
        return  # it is this process's own, which ends in its own way
      code, _, line = said.partition(" ")
      print(f"error: {line}", file=sys.stderr, flush=True)
      self.leave(int(code))

  def beat(self, word=None):
    """Write that this process is alive, or from now on a last word."""
    with self._beating:
      self._word = word or self._word
      self._beats += 1
      self._client.key_value_set(
        f"{_ALIVE}{self._process}",
        self._word or str(self._beats),
        allow_overwrite=True,
      )

  def _words(self):
    """Return {process: what it wrote last}, with "gone" for the silent."""
    now = time.monotonic()
    for key, word in self._client.key_value_dir_get(_ALIVE):
      process = key.removeprefix(_ALIVE)
      if word != self._heard[process][0]:
        self._heard[process] = (word, now)
    return {
      process: _GONE if word != _DONE and now - since > self._seconds else word
      for process, (word, since) in self._heard.items()
    }

  def _speak_for_the_silent(self):
    gone = [process for process, word in self._words().items() if word == _GONE]
    if gone:
      self._write_end(
        f"process {', '.join(gone)} of {len(self._heard)} is gone without a "
        "word: the same command goes on from what is saved",
        errors.EXIT_AGAIN,
      )

  def _all_others(self, word):
    words = self._words()
    del words[str(self._process)]
    return all(other == word for other in words.values())

  def done(self):
    """Wait for all others to be done, then stop watching."""
    self.beat(_DONE)
    while not self._all_others(_DONE):
      time.sleep(_BEAT_SECONDS / 10)
    self._stop.set()

  def wait_for_cause(self):
    """Give another process's line time to end this one."""
    self._seconds = _LOST_SECONDS
    time.sleep(self._seconds + 3 * _BEAT_SECONDS)

  def tell(self, line, code):
    """Leave a line that the others end with; the first one counts."""
    self._stop.set()
    self._write_end(f"process {self._process} ended: {line}", code)

  def _write_end(self, line, code):
    # Somebody else may have been first, or process 0 be gone.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.key_value_set(f"{_ENDED}why", f"{code} {line}")

  def leave(self, code):
    """End the process; process 0 waits until the others have heard why."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self.beat(_GONE)
      deadline = time.monotonic() + (0 if self._process else _HEAR_SECONDS)
      while time.monotonic() < deadline and not self._all_others(_GONE):
        time.sleep(_BEAT_SECONDS / 10)
    sys.stdout.flush()
    sys.stderr.flush()
    self._leave(code)
