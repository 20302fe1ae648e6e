"""Leases: jobs that share a folder do not do the same work twice.

A lease is a file whose holder keeps writing it anew. Taking one means creating
the next of NAME.lease.1, .2, ..., which exactly one of several jobs can do, on
a shared disk and in a bucket (by a generation precondition). The next number
takes over a lease that was not renewed for too long, or whose process no longer
runs on this machine, so a killed job leaves nothing to clean up by hand.
"""

import contextlib
import datetime
import json
import os
import pathlib
import socket
import threading
import time
import uuid

from absl import logging
import fsspec

from cfgd.runtime import distributed
from cfgd.runtime import errors
from cfgd.runtime import files

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
  lease = _Lease(path, seconds)
  logged = float("-inf")
  while not distributed.by_lead(lease.take):
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
    self._url = os.fspath(path)
    self._store, path = fsspec.url_to_fs(self._url)
    self._folder, _, name = path.rpartition("/")
    self._prefix = f"{name}.lease."
    self._seconds = seconds
    self._me = _me()
    self._data = json.dumps(self._me).encode()
    self._held = None
    self._lost = False
    self._stop = threading.Event()
    self._renewing = threading.Thread(target=self._renew, daemon=True)

  def take(self):
    """Try to take the lease; return whether it is ours now."""
    self._store.makedirs(self._folder, exist_ok=True)
    numbers = self._numbers()
    if numbers and self._is_alive(numbers[-1]):
      return False
    mine = numbers[-1] + 1 if numbers else 1
    try:
      self._create(mine)
    except FileExistsError:
      return False
    # The list above may be stale: the holder may have released the lease and
    # another job have started over, at 1 or at the same number.
    numbers = self._numbers()
    others = [number for number in numbers if number != mine]
    if numbers[-1:] != [mine] or any(map(self._is_alive, others)):
      self._remove(mine)
      return False
    for number in others:
      self._remove(number)
    self._held = mine
    self._renewing.start()
    return True

  def check(self):
    """Raise errors.RunError if another job has taken the lease over."""
    if self._lost:
      raise errors.RunError(
        f"{self._folder}/{self._prefix}*: another job has taken over, because "
        f"this one did not renew it for {self._seconds:g} s"
      )

  def release(self):
    """Stop renewing and delete the lease if we hold it."""
    if self._held is None:
      return
    self._stop.set()
    self._renewing.join()  # or it may write the lease once more
    if self._is_mine():
      self._remove(self._held)

  def holder(self):
    """Return who holds the lease, in words."""
    numbers = self._numbers()
    about = numbers and self._read(numbers[-1])
    if not about:
      return "another job"
    return f"process {about['pid']} on {about['host']}"

  def _renew(self):
    while not self._stop.wait(self._seconds / _RENEWALS):
      try:
        if not self._is_mine():
          self._lost = not self._stop.is_set()
          return
        self._store.pipe_file(self._path(self._held), self._data)
      except Exception as error:  # perhaps a pause of the server
        logging.warning("%s: %s", self._path(self._held), error)

  def _is_mine(self):
    """Return whether no other job has taken over, even by our number."""
    return (self._read(self._held) or {}).get("id") == self._me["id"]

  def _is_alive(self, number):
    about = self._read(number)
    here = about and about["space"] == self._me["space"]
    if here and not _runs(about["pid"]):
      return False
    try:
      return self._now() - self._written(self._path(number)) < self._seconds
    except FileNotFoundError:
      return False

  def _now(self):
    """Return the file system's time: clocks of machines differ."""
    probe = f"{self._folder}/.tmp-{uuid.uuid4().hex[:8]}-time"
    self._store.pipe_file(probe, b"")
    try:
      return self._written(probe)
    finally:
      self._store.rm_file(probe)

  # Files by number.

  def _path(self, number):
    return f"{self._folder}/{self._prefix}{number}"

  def _numbers(self):
    """Return the numbers that exist, increasing."""
    try:
      names = [os.path.basename(k) for k in self._store.ls(self._folder, False)]
    except FileNotFoundError:
      return []
    return sorted(
      int(name.removeprefix(self._prefix))
      for name in names
      if name.startswith(self._prefix)
    )

  def _create(self, number):
    """Write a file; raise FileExistsError, in one job of several, if it is."""
    if files.in_bucket(self._url):
      self._store.pipe_file(self._path(number), self._data, mode="create")
    else:  # there fsspec looks first and writes later
      with open(self._path(number), "xb") as file:
        file.write(self._data)

  def _read(self, number):
    """Return what a file says: None without one, {} while it is written."""
    try:
      return json.loads(self._store.cat_file(self._path(number)))
    except FileNotFoundError:
      return None
    except ValueError:
      return {}

  def _remove(self, number):
    with contextlib.suppress(FileNotFoundError):
      self._store.rm_file(self._path(number))

  def _written(self, path):
    """Return the time of a file's last writing."""
    info = self._store.info(path)
    time_ = info.get("mtime") or info["LastModified"]  # s3fs has the latter
    if isinstance(time_, datetime.datetime):
      return time_.timestamp()
    return time_


def _me():
  return {
    "id": uuid.uuid4().hex,
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


def _runs(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True
