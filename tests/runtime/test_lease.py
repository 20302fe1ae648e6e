"""Of several jobs one holds a lease, and a dead one does not keep it."""

from concurrent import futures
import json
import os
import threading
import time

import pytest

from cfgd.runtime import errors
from cfgd.runtime import lease


def foreign(path, *, age=0.0, **about):
  """Write the lease of a job elsewhere."""
  file = path.parent / f"{path.name}.lease.7"
  me = lease._me() | {"host": "elsewhere", "space": "elsewhere"}
  file.write_text(json.dumps(me | about))
  then = time.time() - age
  os.utime(file, (then, then))
  return file


def assert_busy(path, words):
  with (
    pytest.raises(lease.Busy, match=words),
    lease.hold(path, seconds=60, wait=False),
  ):
    pass


def test_a_held_lease_is_busy_and_a_released_one_leaves_nothing(tmp_path):
  path = tmp_path / "new" / "work"
  with lease.hold(path, seconds=60, wait=False):
    assert_busy(path, f"process {os.getpid()} on")
  assert not list(path.parent.iterdir())
  with lease.hold(path, seconds=60, wait=False):
    pass


def test_one_of_many_gets_it(tmp_path):
  held, most = [], []
  lock = threading.Lock()

  def job(_):
    try:
      with lease.hold(tmp_path / "work", seconds=60, wait=False):
        with lock:
          held.append(1)
          most.append(len(held))
        time.sleep(0.01)
        with lock:
          held.pop()
    except lease.Busy:
      pass

  with futures.ThreadPoolExecutor(16) as pool:
    list(pool.map(job, range(300)))
  assert max(most) == 1


def test_the_lease_of_a_silent_job_is_taken_over(tmp_path):
  path = tmp_path / "work"
  foreign(path, age=50)
  assert_busy(path, "elsewhere")
  with lease.hold(path, seconds=40, wait=False):
    assert [file.name for file in tmp_path.iterdir()] == ["work.lease.8"]


def test_the_lease_of_a_killed_job_is_taken_over_at_once(tmp_path):
  path = tmp_path / "work"
  process = os.posix_spawn("/bin/true", ["true"], {})
  os.waitpid(process, 0)
  foreign(path, pid=process, space=lease._pid_space())
  with lease.hold(path, seconds=60, wait=False):
    pass


def test_a_holder_renews_it_and_learns_of_a_loss(tmp_path):
  path = tmp_path / "work"
  with lease.hold(path, seconds=0.3, wait=False) as check:
    time.sleep(0.6)
    (file,) = tmp_path.iterdir()
    assert time.time() - file.stat().st_mtime < 0.3
    check()
    file.unlink()
    deadline = time.monotonic() + 10
    with pytest.raises(errors.RunError, match="another job has taken over"):
      while time.monotonic() < deadline:
        check()


def test_a_pause_of_the_file_server_loses_nothing(tmp_path, monkeypatch):
  path = tmp_path / "work"
  with lease.hold(path, seconds=0.6, wait=False) as check:
    with monkeypatch.context() as patched:
      patched.setattr(lease._Lease, "_read", lambda *_: 1 / 0)
      time.sleep(0.3)
    time.sleep(0.6)
    (file,) = tmp_path.iterdir()
    assert time.time() - file.stat().st_mtime < 0.3
    check()


def test_a_holder_that_was_overtaken_leaves_the_other_alone(tmp_path):
  first = lease._Lease(tmp_path / "work", 60)
  assert first.take()
  (tmp_path / "work.lease.1").unlink()
  second = lease._Lease(tmp_path / "work", 60)
  assert second.take()  # by the same number
  first.release()
  assert second._is_mine()
  second.release()
  assert not list(tmp_path.iterdir())


def test_waiting_ends_when_the_other_job_does(tmp_path, monkeypatch):
  path = tmp_path / "work"
  file = foreign(path)
  monkeypatch.setattr(lease.time, "sleep", lambda seconds: file.unlink())
  with lease.hold(path, seconds=60, wait=True):
    assert not file.exists()
