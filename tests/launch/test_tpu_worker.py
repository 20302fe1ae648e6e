"""One worker of a pod, and what it does when its run or its machine ends."""

import os
import signal
import time

import pytest

from tests.launch import conftest

RUN = ("start", "experiments.train", "--workdir=gs://b/a run")
WANTED = ["-m", RUN[1], "--join_seconds=1800", RUN[2]]
# A script that supervises as a service would.
SYSTEMD = """
case "$*" in
  *tee*) cat > "$FAKES/unit" ;;
  *restart*)
    program="$(sed -n 's/^ExecStart=//p' "$FAKES/unit" | cut -d' ' -f1)"
    setsid "$program" supervise >> "$HOME/cfgd-run/log" 2>&1 &
    ;;
esac
"""


@pytest.fixture
def worker(fakes):
  fakes.add("systemctl", "exit 1")  # a machine without systemd
  (fakes.folder / "cfgd-venv" / "bin").mkdir(parents=True)
  fakes.environment["CFGD_PAUSE"] = "0"
  return fakes


def install(worker, does):
  """Put an interpreter where `sync` puts it."""
  worker.add("python", does)
  target = worker.folder / "cfgd-venv" / "bin" / "python"
  target.symlink_to(worker.folder / "python")


def wait(worker):
  path = worker.folder / "cfgd-run" / "code"
  deadline = time.monotonic() + 30
  while not path.exists():
    assert time.monotonic() < deadline
    time.sleep(0.02)
  return path.read_text().strip()


def status(worker):
  return worker.run("tpu_worker.sh", "status")[1].split(": ", 1)[1]


def starts(worker):
  return [call[1:] for call in worker.calls() if call[0] == "python"]


def test_a_run_starts_and_ends(worker):
  install(worker, "env | grep ^JAX_ | sort; echo done")
  assert status(worker) == "not started\n"
  assert worker.run("tpu_worker.sh", *RUN) == (0, "", "")
  assert wait(worker) == "0"
  assert starts(worker) == [WANTED]
  log = (worker.folder / "cfgd-run" / "log").read_text().splitlines()
  # JAX finds the other workers of a pod by itself.
  assert log == [
    f"JAX_COMPILATION_CACHE_DIR={worker.folder}/.cache/cfgd/jax",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=1",
    "done",
  ]
  assert status(worker) == "ended with 0 | done\n"


@pytest.mark.parametrize("ends", [75, 134, 137])
def test_what_was_stopped_or_killed_is_started_again_a_failed_one_is_not(
  worker, ends
):
  install(
    worker,
    'n="$(grep -c "" "$FAKES/n" 2> /dev/null || true)"; echo >> "$FAKES/n"\n'
    f"((n < 2)) && exit {ends}; exit 1",
  )
  worker.run("tpu_worker.sh", *RUN)
  assert wait(worker) == "1"
  assert starts(worker) == [WANTED] * 3
  again = f"ended with exit code {ends}: starting it again"
  assert status(worker) == f"ended with 1 | {again}\n"


def test_a_run_that_is_killed_at_once_is_given_up(worker):
  install(worker, "kill -KILL $$")
  worker.run("tpu_worker.sh", *RUN)
  assert wait(worker) == "137"
  assert starts(worker) == [WANTED] * 5
  assert "5 times in a row" in status(worker)


def test_under_systemd_it_is_a_service(worker):
  worker.add("systemctl")
  worker.add("sudo", SYSTEMD)
  install(worker, "exit 0")
  assert worker.run("tpu_worker.sh", *RUN) == (0, "", "")
  assert wait(worker) == "0"
  unit = (worker.folder / "unit").read_text().splitlines()
  assert f"ExecStart={conftest.ROOT}/launch/tpu_worker.sh supervise" in unit
  assert f"Environment=HOME={worker.folder}" in unit
  assert "WantedBy=multi-user.target" in unit
  # It restarts runs by itself; systemd restarts it when it was killed.
  assert "Restart=on-abnormal" in unit
  assert ["sudo", "systemctl", "enable", "--quiet", "cfgd.service"] in (
    worker.calls()
  )


SLOW = (
  "trap 'echo saved; exit 75' TERM; echo up; while true; do sleep 0.05; done"
)


def await_up(worker):
  deadline = time.monotonic() + 30
  while status(worker) != "running | up\n":
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_after_a_restart_of_the_machine_it_resumes(worker):
  install(worker, SLOW)
  worker.run("tpu_worker.sh", *RUN)
  await_up(worker)
  # As the machine does when it goes down.
  pid = int((worker.folder / "cfgd-run" / "pid").read_text())
  os.kill(pid, signal.SIGTERM)
  deadline = time.monotonic() + 30
  while status(worker) != "died | saved\n":
    assert time.monotonic() < deadline
    time.sleep(0.05)
  worker.add("python", "exit 0")
  assert worker.run("tpu_worker.sh", "supervise")[0] == 0
  assert status(worker).startswith("ended with 0")
  assert starts(worker) == [WANTED] * 2
  # A run that had ended does not start again.
  assert worker.run("tpu_worker.sh", "supervise") == (0, "", "")
  assert starts(worker) == [WANTED] * 2


def test_stop_lets_it_save_and_does_not_start_it_again(worker):
  install(worker, SLOW)
  worker.run("tpu_worker.sh", *RUN)
  await_up(worker)
  code, _, err = worker.run("tpu_worker.sh", *RUN)
  assert (code, "a run is under way" in err) == (2, True)
  code, out, _ = worker.run("tpu_worker.sh", "stop")
  assert (code, out.endswith(": stopped\n")) == (0, True)
  assert wait(worker) == "75"
  assert status(worker) == "ended with 75 | saved\n"
  assert sum(call[0] == "python" for call in worker.calls()) == 1
  assert "nothing runs" in worker.run("tpu_worker.sh", "stop")[1]


def test_start_needs_an_installation(worker):
  code, _, err = worker.run("tpu_worker.sh", *RUN)
  assert (code, "run tpu_pod.sh sync" in err) == (2, True)
