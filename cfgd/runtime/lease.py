"""Leases: jobs that share a folder do not do the same work twice.

A lease is a file whose holder keeps renewing its time. Taking one means
creating the next of NAME.lease.1, .2, ..., which exactly one of several jobs
can do, on one machine or on a shared file system. The next number takes over a
lease that was not renewed for too long, or whose process no longer runs on this
machine, so a killed job leaves nothing to clean up by hand.

Buckets cannot create a file exclusively. There leases do nothing, and running
one job at a time is up to the user.
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
_LOG_SECONDS = 60.0
_RENEWALS = 6  # within the time after which a lease is lost


class Busy(errors.RunError):
  """Another job holds the lease."""


@contextlib.contextmanager
def hold(path, *, seconds, wait):
  """Hold a lease during the work inside; process 0 holds it for all.

  Args:
    path: path of the lease, without ".lease".
    seconds: time without renewal after which another job may take it over.
    wait: wait until the lease is free, instead of raising Busy.

  Yields:
    A function that raises errors.RunError if another job has taken it over.
  """
  if "://" in str(path):
    yield lambda: None
    return
  lease = _Lease(epath.Path(path), seconds)
  logged = float("-inf")
  while not distributed.agree(distributed.is_lead() and lease.take()):
    if not wait:
      raise Busy(f"{path}: held by {lease.holder()}")
    if time.monotonic() - logged > _LOG_SECONDS:
      logging.info("Waiting for %s, held by %s.", path, lease.holder())
      logged = time.monotonic()
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
    """Try to take the lease; return whether it is ours now."""
    self._folder.mkdir(parents=True, exist_ok=True)
    files = self._files()
    if files and self._is_alive(files[-1]):
      return False
    number = _number(files[-1]) + 1 if files else 1
    mine = self._folder / f"{self._name}.{number}"
    try:
      with mine.open("x") as file:
        json.dump(_me(), file)
    except FileExistsError:
      return False
    # The list above may be stale: the holder may have released the lease and
    # another job have started over, at 1 or at the same number.
    files = self._files()
    others = [path for path in files if path != mine]
    if files[-1:] != [mine] or any(map(self._is_alive, others)):
      mine.unlink(missing_ok=True)
      return False
    for path in others:
      path.unlink(missing_ok=True)
    self._held = mine
    threading.Thread(target=self._renew, daemon=True).start()
    return True

  def check(self):
    """Raise errors.RunError if another job has taken the lease over."""
    if self._lost:
      raise errors.RunError(
        f"{self._folder / self._name}: another job has taken over, because "
        f"this one did not renew it for {self._seconds:g} s"
      )

  def release(self):
    """Stop renewing and delete the lease if we hold it."""
    self._stop.set()
    if self._held:
      self._held.unlink(missing_ok=True)

  def holder(self):
    """Return who holds the lease, in words."""
    files = self._files()
    about = files and _read(files[-1])
    if not about:
      return "another job"
    return f"process {about['pid']} on {about['host']}"

  def _files(self):
    return sorted(self._folder.glob(f"{self._name}.*"), key=_number)

  def _renew(self):
    while not self._stop.wait(self._seconds / _RENEWALS):
      try:
        os.utime(self._held)
      except FileNotFoundError:
        self._lost = not self._stop.is_set()
        return
      except OSError as error:  # perhaps a pause of the file server
        logging.warning("%s: %s", self._held, error)

  def _is_alive(self, path):
    about = _read(path)
    if about and about["space"] == _pid_space() and not _runs(about["pid"]):
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
  return {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "space": _pid_space(),
  }


def _pid_space():
  """Return the scope in which process ids are unique: boot and container."""
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
