"""Leases: several jobs share a folder, and no two do the same work.

A lease is a file whose time its holder renews. Taking one is creating the next
file of its name, NAME.lease.1, .2, ..., which of several jobs exactly one can
do, on one machine or on a shared file system. A lease that was not renewed for
some time, or whose process is gone from this machine, is taken over by the next
number. A killed job so leaves nothing that has to be cleaned up by hand.

Buckets cannot create a file exclusively: there, one job at a time is up to the
user.
"""

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
import uuid

from absl import logging
from etils import epath

from cfgd.runtime import distributed
from cfgd.runtime import errors

_POLL_SECONDS = 1.0
_SAY_SECONDS = 60.0
_RENEWALS = 6  # in the time after which a lease is lost


class Busy(errors.RunError):
  """Another job holds the lease."""


@contextlib.contextmanager
def hold(path, *, seconds, wait):
  """Hold a lease while the work inside is done.

  Of several processes the first one holds it, for all of them.

  Args:
    path: of the lease, without ".lease".
    seconds: of silence after which another job takes it over.
    wait: until it is free, saying so.

  Yields:
    A function that raises errors.RunError where the lease was lost: this job
    had been silent for too long.

  Raises:
    Busy: it is not free; names the holder.
  """
  if "://" in str(path):
    yield lambda: None
    return
  lease = _Lease(epath.Path(path), seconds)
  said = float("-inf")
  while not distributed.agree(distributed.is_lead() and lease.take()):
    if not wait:
      raise Busy(f"{path}: {lease.holder()} is at it")
    if time.monotonic() - said > _SAY_SECONDS:
      logging.info("Waiting for %s, which %s holds.", path, lease.holder())
      said = time.monotonic()
    time.sleep(_POLL_SECONDS)
  try:
    yield lease.check
  finally:
    lease.release()


class _Lease:
  """One attempt at a lease."""

  def __init__(self, path, seconds):
    self._folder = pathlib.Path(path.parent)
    self._name = f"{path.name}.lease"
    self._seconds = seconds
    self._held = None
    self._lost = False
    self._stop = threading.Event()

  def take(self):
    """Return whether the lease is ours now."""
    self._folder.mkdir(parents=True, exist_ok=True)
    numbers = self._numbers()
    if numbers and self._is_alive(self._path(numbers[-1])):
      return False
    mine = self._path(numbers[-1] + 1 if numbers else 1)
    try:
      with mine.open("x") as file:
        json.dump(_me(), file)
    except FileExistsError:
      return False
    # The list above may be out of date: the holder can have given up meanwhile
    # and another job have begun anew, at 1 or at the same number.
    others = [self._path(number) for number in self._numbers()]
    newest = others[-1:] == [mine]
    others = [path for path in others if path != mine]
    if not newest or any(map(self._is_alive, others)):
      mine.unlink(missing_ok=True)
      return False
    for path in others:
      path.unlink(missing_ok=True)
    self._held = mine
    threading.Thread(target=self._renew, daemon=True).start()
    return True

  def check(self):
    """Raise where another job has taken the lease over."""
    if self._lost:
      raise errors.RunError(
        f"{self._folder / self._name}: another job has taken over, because "
        f"this one was silent for {self._seconds:g} s"
      )

  def release(self):
    """Give up what is held."""
    self._stop.set()
    if self._held:
      self._held.unlink(missing_ok=True)

  def holder(self):
    """Return who holds the lease, in words."""
    numbers = self._numbers()
    about = numbers and _read(self._path(numbers[-1]))
    if not about:
      return "another job"
    return f"process {about['pid']} on {about['host']}"

  def _path(self, number):
    return self._folder / f"{self._name}.{number}"

  def _numbers(self):
    found = self._folder.glob(f"{self._name}.*")
    return sorted(_number(path) for path in found)

  def _renew(self):
    while not self._stop.wait(self._seconds / _RENEWALS):
      try:
        os.utime(self._held)
      except FileNotFoundError:
        self._lost = not self._stop.is_set()
        return
      except OSError as error:  # may pass, as a file server's rest does
        logging.warning("%s: %s", self._held, error)

  def _is_alive(self, path):
    about = _read(path)
    if about and about["space"] == _space() and not _runs(about["pid"]):
      return False
    try:
      return self._now() - path.stat().st_mtime < self._seconds
    except FileNotFoundError:
      return False

  def _now(self):
    """Return the file system's time: clocks of machines differ."""
    probe = self._folder / f".tmp-{uuid.uuid4().hex[:8]}-time"
    probe.touch()
    try:
      return probe.stat().st_mtime
    finally:
      probe.unlink()


def _number(path):
  return int(path.name.rpartition(".")[2])


def _me():
  return {"host": socket.gethostname(), "pid": os.getpid(), "space": _space()}


def _space():
  """Return what process numbers are unique in: a boot and its container."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return socket.gethostname()


def _read(path):
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return None


def _runs(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True
