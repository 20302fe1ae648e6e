"""One worker of a pod: who it is, and what it does when its run ends."""

import time

import pytest

METADATA = """
case "$*" in
  *worker-network-endpoints) echo "{}" ;;
  *agent-worker-number) echo 1 ;;
  *) exit 22 ;;
esac
"""
RUN = ("start", "experiments.train", "--workdir=gs://b/a run")


@pytest.fixture
def worker(fakes):
  fakes.add("curl", METADATA.format("u0:8470:10.0.0.5,u1:8470:10.0.0.6"))
  (fakes.folder / "cfgd-venv" / "bin").mkdir(parents=True)
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


def test_a_run_starts_knowing_the_pod(worker):
  install(worker, "env | grep ^JAX_ | sort; echo done")
  assert status(worker) == "not started\n"
  assert worker.run("tpu_worker.sh", *RUN) == (0, "", "")
  assert wait(worker) == "0"
  (call,) = (call for call in worker.calls() if call[0] == "python")
  assert call[1:] == ["-m", *RUN[1:]]
  log = (worker.folder / "cfgd-run" / "log").read_text().splitlines()
  assert log == [
    f"JAX_COMPILATION_CACHE_DIR={worker.folder}/.cache/cfgd/jax",
    "JAX_COORDINATOR_ADDRESS=10.0.0.5:8476",
    "JAX_NUM_PROCESSES=2",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=1",
    "JAX_PROCESS_ID=1",
    "done",
  ]
  assert status(worker) == "ended with 0 | done\n"


def test_a_slice_of_one_worker_needs_no_coordinator(worker):
  worker.add("curl", METADATA.format("u0:8470:10.0.0.5"))
  install(worker, 'echo "[${JAX_COORDINATOR_ADDRESS:-}]"')
  worker.run("tpu_worker.sh", *RUN)
  assert wait(worker) == "0"
  assert (worker.folder / "cfgd-run" / "log").read_text() == "[]\n"


def test_a_preempted_run_is_started_again_a_failed_one_is_not(worker):
  install(
    worker,
    'n="$(grep -c "" "$FAKES/n" 2> /dev/null || true)"; echo >> "$FAKES/n"\n'
    "((n < 2)) && exit 75; exit 1",
  )
  worker.run("tpu_worker.sh", *RUN)
  assert wait(worker) == "1"
  assert sum(call[0] == "python" for call in worker.calls()) == 3
  assert status(worker) == "ended with 1\n"


def test_stop_lets_it_save_and_does_not_start_it_again(worker):
  install(
    worker,
    "trap 'echo saved; exit 75' TERM; echo up; while true; do sleep 0.05; done",
  )
  worker.run("tpu_worker.sh", *RUN)
  deadline = time.monotonic() + 30
  while status(worker) != "running | up\n":
    assert time.monotonic() < deadline
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


def test_away_from_a_tpu_it_says_so(worker):
  worker.add("curl", "exit 6")
  install(worker, "exit 0")
  worker.run("tpu_worker.sh", *RUN)
  assert wait(worker) == "2"
  assert "is this a TPU VM?" in status(worker)
  assert not [call for call in worker.calls() if call[0] == "python"]
