"""What all launch scripts have in common."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.launch import conftest

LAUNCH = conftest.ROOT / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))
COMMANDS = [name for name in SCRIPTS if (LAUNCH / name).stat().st_mode & 0o100]


def test_scripts_are_what_they_were_meant_to_be():
  sourced = {"environment.sh", "shell.sh", "slurm.sh"}
  assert set(SCRIPTS) - set(COMMANDS) == sourced
  for name in COMMANDS:
    assert "\nset -euo pipefail\n" in (LAUNCH / name).read_text(), name


# What macOS lacks: its Bash is 3.2, its tail and seq are BSD's.
NOT_ON_MACOS = re.compile(
  r"\b(mapfile|readarray|wait -n|declare -A|local -A|seq )|--pid|"
  r"\$\{\w+(,,|\^\^|@[A-Z])|(?<![+\w])\"\$\{(passed|left|words)\[@\]\}\""
)


@pytest.mark.parametrize(
  "name", ["environment.sh", "shell.sh", "local_processes.sh", "tpu_pod.sh"]
)
def test_scripts_of_a_laptop_run_on_macos(name):
  lines = (LAUNCH / name).read_text().splitlines()
  code = [line for line in lines if not line.lstrip().startswith("#")]
  assert not [line for line in code if NOT_ON_MACOS.search(line)]


def test_shellcheck_finds_nothing():
  # Beside the interpreter where it came with the tests.
  beside = pathlib.Path(sys.executable).parent
  program = shutil.which("shellcheck", path=f"{beside}:{os.environ['PATH']}")
  done = subprocess.run(
    [
      *(program, "-x", "-P", conftest.ROOT),
      *(LAUNCH / name for name in SCRIPTS),
      conftest.ROOT / "tests" / "faults" / "slurm.sh",
      conftest.ROOT / "benchmarks" / "on_device.sh",
    ],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option(fakes, name):
  code, out, err = fakes.run(name, "--help")
  assert (code, err) == (0, "")
  assert "launch/" + name in out
  text = (LAUNCH / name).read_text()
  if "slurm" in name:
    text += (LAUNCH / "slurm.sh").read_text()
  options = set(re.findall(r"^ +(--[a-z-]+)=?\*?\)", text, flags=re.MULTILINE))
  sweeps = {"--shards", "--part", "--trainings", "--train-nodes"}
  other = sweeps if name == "slurm_train.sh" else set()
  other |= {"--nodes"} if "sweep" in name else set()
  assert not {k for k in options if k not in out} - other
  assert fakes.run(name, "-h")[1] == out


@pytest.mark.parametrize(
  ("words", "name", "arguments"),
  [
    ("--frobnicate: unknown option", "tpu_pod.sh", ["train", "--frobnicate"]),
    ("explode: create, sync", "tpu_pod.sh", ["explode"]),
    ("--name is missing", "tpu_pod.sh", ["status", "--zone=z"]),
    ("--zone is missing", "tpu_pod.sh", ["status", "--name=n"]),
    (
      "--name=N x: lower-case",
      "tpu_pod.sh",
      ["stop", "--name=N x", "--zone=z"],
    ),
    (
      "--workdir=runs: must be",
      "tpu_pod.sh",
      [
        *("train", "--name=n", "--zone=z", "--workdir=runs"),
        "--config=configs/imagenet64.py",
      ],
    ),
    (
      "configs/none.py: no such file",
      "tpu_pod.sh",
      [
        *("train", "--name=n", "--zone=z", "--workdir=gs://b/r"),
        "--config=configs/none.py",
      ],
    ),
    (
      "--type=v99-8: unknown",
      "tpu_pod.sh",
      [
        *("create", "--name=n", "--zone=z", "--type=v99-8"),
      ],
    ),
    ("--config is missing", "slurm_train.sh", ["--workdir=w"]),
    (
      "--part=all: belongs to launch/slurm_sweep.sh",
      "slurm_train.sh",
      [*("--config=c", "--workdir=w", "--part=all")],
    ),
    (
      "--part=some: must be all, trainings or cells",
      "slurm_sweep.sh",
      [*("--config=c", "--workdir=w", "--part=some")],
    ),
    (
      "--nodes=2: see --train-nodes",
      "slurm_sweep.sh",
      [*("--config=c", "--workdir=w", "--nodes=2")],
    ),
    ("--workdir is missing", "slurm_sweep.sh", ["--config=c"]),
    (
      "--gpus=many: must be a whole",
      "slurm_train.sh",
      [
        *("--config=c", "--workdir=w", "--gpus=many"),
      ],
    ),
    (
      "--shards=0: must be at least 1",
      "slurm_sweep.sh",
      [
        *("--config=c", "--workdir=w", "--shards=0"),
      ],
    ),
    (
      "configs/none.py: no such file",
      "slurm_train.sh",
      [
        *("--config=configs/none.py", "--workdir=w"),
      ],
    ),
    ("--frobnicate: unknown option", "slurm_train.sh", ["--frobnicate"]),
    ("no command", "local_processes.sh", ["--processes=2"]),
    ("--processes=0: must be", "local_processes.sh", ["--processes=0", "--"]),
    ("--frobnicate: unknown option", "local_processes.sh", ["--frobnicate"]),
    ("explode: start, status or stop", "tpu_worker.sh", ["explode"]),
  ],
)
def test_mistakes_end_in_one_line_and_call_nothing(
  fakes, words, name, arguments
):
  for command in ("gcloud", "sbatch", "srun", "curl"):
    fakes.add(command)
  code, out, err = fakes.run(name, *arguments)
  assert (code, out) == (2, "")
  (line,) = err.splitlines()
  assert line.startswith("error: ")
  assert words in line
  assert not fakes.calls()


def test_a_missing_tool_is_named(fakes):
  for tool in ("bash", "dirname"):
    (fakes.folder / tool).symlink_to(shutil.which(tool))
  more = ("--name=n", "--zone=z")
  path = {"PATH": str(fakes.folder)}
  code, _, err = fakes.run("tpu_pod.sh", "status", *more, **path)
  assert (code, err.count("\n")) == (2, 1)
  assert "gcloud: no such command" in err


@pytest.mark.parametrize("name", ["tpu_pod.sh", "slurm_train.sh"])
def test_dry_runs_call_nothing_and_can_be_pasted(fakes, name):
  for command in ("gcloud", "sbatch", "srun"):
    fakes.add(command)
  workdir = "gs://bucket/it's a run"
  action = ("train", "--name=n", "--zone=z") if "tpu" in name else ()
  more = ("--config=configs/imagenet64.py", f"--workdir={workdir}", "--dry-run")
  code, out, err = fakes.run(name, *action, *more)
  assert (code, err) == (0, "")
  assert not fakes.calls()
  for line in out.splitlines():
    words = shlex.split(line, comments=True)
    if words and "--command" in words[-1]:
      words = shlex.split(words[-1])
    if words:
      assert f"--workdir={workdir}" in words
  subprocess.run(["bash", "-c", out], env=fakes.environment, check=True)
  assert fakes.calls()


def test_the_jobset_holds_together():
  text = (LAUNCH / "gke_jobset.yaml").read_text()
  jobset = yaml.safe_load(text)
  assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  name = jobset["metadata"]["name"]
  (replicated,) = jobset["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  env = {k["name"]: k for k in container["env"]}
  assert job["completionMode"] == "Indexed"
  assert job["parallelism"] == job["completions"]
  assert env["JAX_NUM_PROCESSES"]["value"] == str(job["completions"])
  host = f"{name}-{replicated['name']}-0-0.{name}"
  port = container["ports"][0]["containerPort"]
  assert env["JAX_COORDINATOR_ADDRESS"]["value"] == f"{host}:{port}"
  # Kubernetes takes a podFailurePolicy with restartPolicy Never alone.
  assert pod["restartPolicy"] == "Never"
  rules = job["podFailurePolicy"]["rules"]
  assert {rule["action"] for rule in rules} == {"FailJob"}
  # The first one that fits decides: a drained node may also be a SIGKILL.
  assert rules[0]["onPodConditions"][0]["type"] == "DisruptionTarget"
  codes = [rule["onExitCodes"] for rule in rules[1:]]
  assert {k["containerName"] for k in codes} == {container["name"]}
  assert codes[0]["values"] == [75]
  assert {134, 137, 143} <= set(codes[1]["values"])
  assert min(codes[1]["values"]) > 128
  assert 130 not in codes[1]["values"]
  preempted, killed, failed = jobset["spec"]["failurePolicy"]["rules"]
  assert preempted["action"] == "RestartJobSetAndIgnoreMaxRestarts"
  # As Kubernetes words it.
  for message, fits in (
    ("Pod a/b has condition DisruptionTarget matching FailJob rule", True),
    ("Container train for pod a/b failed with exit code 75 matching", True),
    ("Container train for pod a/b failed with exit code 137 matching", False),
  ):
    patterns = preempted["onJobFailureMessagePatterns"]
    assert any(re.search(k, message) for k in patterns) == fits, message
  assert killed["action"] == "RestartJobSet"
  assert killed["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert failed["action"] == "FailJobSet"
  assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
  mounted = {mount["name"] for mount in container["volumeMounts"]}
  assert mounted == {volume["name"] for volume in pod["volumes"]}
  (script,) = container["args"]
  subprocess.run(["bash", "-n", "-c", script], check=True)
