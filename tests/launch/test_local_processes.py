"""Processes of this machine: together, and ending together."""

import os
import shlex
import signal
import subprocess
import time

from tests.launch import conftest

WHO = 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS"'


def run(fakes, script, *flags, **more):
  command = ("--", "bash", "-c", script)
  return fakes.run("local_processes.sh", *flags, *command, **more)


def test_dry_run_names_each_process(fakes):
  code, out, err = run(
    fakes, "echo a b", "--processes=2", "--gpus-per-process=4", "--dry-run"
  )
  assert (code, err) == (0, "")
  first, second = out.splitlines()
  assert shlex.split(second) == [
    *("env", "JAX_COORDINATOR_ADDRESS=127.0.0.1:8476", "JAX_NUM_PROCESSES=2"),
    *("JAX_PROCESS_ID=1", "CUDA_VISIBLE_DEVICES=4,5,6,7"),
    *("bash", "-c", "echo a b", ">", "LOG_DIR/process_1.log", "2>&1", "&"),
  ]
  assert "CUDA_VISIBLE_DEVICES=0,1,2,3" in first


def test_every_process_knows_the_others(fakes, tmp_path):
  logs = tmp_path / "my logs"
  code, out, err = run(
    fakes, WHO, "--processes=3", f"--log-dir={logs}", "--port=8123"
  )
  assert code == 0, err
  at = "of 3 at 127.0.0.1:8123\n"
  assert [(logs / f"process_{i}.log").read_text() for i in range(3)] == [
    *(f"0 {at}", f"1 {at}", f"2 {at}"),
  ]
  assert out == f"0 {at}"


def test_the_death_of_one_ends_all_and_is_told(fakes, tmp_path):
  # Like a process whose peer is gone: it waits, and takes no notice of SIGTERM.
  waits = f"trap '' TERM; echo $$ > {tmp_path}/pid; sleep 60 & wait; wait"
  script = (
    f'if ((JAX_PROCESS_ID == 1)); then echo "why: {{}}"; exit 3; fi; {waits}'
  )
  begin = time.monotonic()
  code, _, err = run(fakes, script, "--processes=2", "--grace=1")
  assert time.monotonic() - begin < 30
  assert code == 3
  assert "error: process 1 of 2 ended with code 3" in err
  assert err.endswith("why: {}\n")
  pid = int((tmp_path / "pid").read_text())
  assert not os.path.exists(f"/proc/{pid}")


def test_a_killed_process_is_told_by_its_signal(fakes):
  script = "((JAX_PROCESS_ID)) && kill -KILL $$; sleep 60"
  code, _, err = run(fakes, script, "--processes=2", "--grace=1")
  assert code == 128 + signal.SIGKILL
  assert "process 1 of 2 ended with code 137" in err


def test_a_signal_reaches_all_and_all_may_save(fakes, tmp_path):
  save = f"touch {tmp_path}/saved-$JAX_PROCESS_ID; exit 75"
  script = f"trap '{save}' TERM; touch {tmp_path}/up-$JAX_PROCESS_ID; "
  script += "while true; do sleep 0.05; done"
  process = subprocess.Popen(
    [
      *(conftest.ROOT / "launch" / "local_processes.sh", "--processes=2"),
      *("--", "bash", "-c", script),
    ],
    env=fakes.environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  deadline = time.monotonic() + 30
  while len(list(tmp_path.glob("up-*"))) < 2:
    assert time.monotonic() < deadline
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=30)
  assert process.returncode == 75
  assert len(list(tmp_path.glob("saved-*"))) == 2
  assert "run the same command again to resume" in err
