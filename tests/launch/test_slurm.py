"""Submission and the job itself, with a SLURM that only remembers."""

import subprocess
import time

import pytest

from tests.launch import conftest

ROOT = str(conftest.ROOT)
TRAIN = ("--config=configs/imagenet64.py", "--workdir=/scratch/a run")
SWEEP = ("--config=configs/sweep_imagenet64.py", "--workdir=/scratch/sweep")

DRY_NODE = f"""\
sbatch --chdir={ROOT} --nodes=1 --ntasks-per-node=1 --gpus-per-node=8 \
--time=24:00:00 --partition=gpu {ROOT}/launch/slurm_train.sh --python=python \
--config=configs/imagenet64.py '--workdir=/scratch/a run'
# and the job runs:
srun --kill-on-bad-exit=1 python -m experiments.train \
--config=configs/imagenet64.py '--workdir=/scratch/a run'
"""
DRY_SWEEP = f"""\
# MODELS is the number of lines of:
env JAX_PLATFORMS=cpu python -m experiments.sweep --list_trainings \
--config=configs/sweep_imagenet64.py --workdir=/scratch/sweep
sbatch --chdir={ROOT} --nodes=4 --ntasks-per-node=8 --parsable \
--job-name=cfgd-trainings --array=1-MODELS --gpus-per-node=8 \
{ROOT}/launch/slurm_sweep.sh --part=trainings --shards=MODELS --python=python \
--config=configs/sweep_imagenet64.py --workdir=/scratch/sweep
# and each of the MODELS jobs runs, as the first does:
srun --kill-on-bad-exit=1 python -m experiments.sweep \
--config=configs/sweep_imagenet64.py --workdir=/scratch/sweep \
--part=trainings --shard=1/MODELS
sbatch --chdir={ROOT} --nodes=1 --ntasks-per-node=1 --parsable \
--job-name=cfgd-cells --array=1-16 --dependency=afterok:TRAININGS \
--kill-on-invalid-dep=yes --gpus-per-node=8 \
{ROOT}/launch/slurm_sweep.sh --part=cells --shards=16 --python=python \
--config=configs/sweep_imagenet64.py --workdir=/scratch/sweep
# and each of the 16 jobs runs, as the first does:
srun --kill-on-bad-exit=1 python -m experiments.sweep \
--config=configs/sweep_imagenet64.py --workdir=/scratch/sweep \
--part=cells --shard=1/16
"""
# squeue's state and comment of the job; scontrol changes the comment.
QUEUE = """
case "$*" in
  *format=%T*) cat "$FAKES/state" 2> /dev/null || echo RUNNING ;;
  *format=%k*) cat "$FAKES/comment" 2> /dev/null || echo "(null)" ;;
esac
"""
COMMENT = """
[[ "$*" != *Comment=* ]] || echo "${@: -1}" | cut -d= -f2 > "$FAKES/comment"
"""


@pytest.fixture
def cluster(fakes):
  for command in ("sbatch", "srun", "scancel"):
    fakes.add(command)
  fakes.add("scontrol", COMMENT)
  fakes.add("squeue", QUEUE)
  # Three models, as --list_trainings prints them.
  fakes.add("python", "printf 'runs/%s\\n' p0.1 p0.2 classifier")
  return fakes


def test_dry_run_of_an_8_gpu_node(cluster):
  flags = (*TRAIN, "--time=24:00:00", "--partition=gpu", "--python=python")
  done = cluster.run("slurm_train.sh", *flags, "--dry-run")
  assert done == (0, DRY_NODE, "")
  assert not cluster.calls()


def test_dry_run_of_a_sweep(cluster):
  flags = (*SWEEP, "--shards=16", "--train-nodes=4", "--python=python")
  done = cluster.run("slurm_sweep.sh", *flags, "--dry-run")
  assert done == (0, DRY_SWEEP, "")
  assert not cluster.calls()


def test_a_form_of_a_config_is_passed_on(cluster):
  config, workdir = SWEEP
  flags = (f"{config}:fast", workdir, "--shards=16", "--train-nodes=4")
  flags += ("--python=python", "--dry-run")
  code, out, _ = cluster.run("slurm_sweep.sh", *flags)
  assert code == 0
  assert out == DRY_SWEEP.replace("imagenet64.py", "imagenet64.py:fast")


def test_cells_wait_for_the_trainings(cluster):
  cluster.add("sbatch", "echo '71;here'")
  flags = (*SWEEP, "--shards=4", "--python=python", "--time=60")
  code, out, err = cluster.run("slurm_sweep.sh", *flags, "--config.seed=3")
  assert (code, err) == (0, "")
  assert (
    out == "job 71: trainings, an array of 3\njob 71: cells, an array of 4\n"
  )
  counted, trainings, cells = cluster.calls()
  assert counted == [
    *("python", "-m", "experiments.sweep", "--list_trainings", *SWEEP),
    "--config.seed=3",
  ]
  assert "--array=1-3" in trainings
  assert not [word for word in trainings if "--dependency" in word]
  assert {"--array=1-4", "--dependency=afterok:71", "--time=60"} <= set(cells)
  assert cells[-5:] == [
    *("--shards=4", "--python=python", *SWEEP, "--config.seed=3"),
  ]


@pytest.mark.parametrize(
  ("part", "array"), [("trainings", "--array=1-2"), ("cells", "--array=1-4")]
)
def test_one_part_of_a_sweep_alone(cluster, part, array):
  flags = (*SWEEP, "--shards=4", "--trainings=2", f"--part={part}")
  assert cluster.run("slurm_sweep.sh", *flags)[0] == 0
  (call,) = cluster.calls()
  assert {array, f"--part={part}"} <= set(call)
  assert not [word for word in call if "--dependency" in word]


def test_a_sweep_whose_models_cannot_be_counted_submits_nothing(cluster):
  cluster.add("python", "echo 'error: no such field' >&2; exit 2")
  code, _, err = cluster.run("slurm_sweep.sh", *SWEEP, "--python=python")
  assert (code, err) == (2, "error: no such field\n")
  assert [call[0] for call in cluster.calls()] == ["python"]


@pytest.mark.parametrize(
  ("flags", "wanted"),
  [
    (["--nodes=2"], ["--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8"]),
    (["--gpus=0"], ["--nodes=1", "--ntasks-per-node=1"]),
    (
      ["--gpus=0", "--tasks-per-node=2", "--sbatch=--exclusive"],
      ["--nodes=1", "--ntasks-per-node=2", "--exclusive"],
    ),
  ],
)
def test_options_reach_sbatch(cluster, flags, wanted):
  more = ("--config.train.steps=7",)
  code, _, err = cluster.run("slurm_train.sh", *TRAIN, *flags, *more, cwd="/")
  assert code == 0, err
  (call,) = cluster.calls()
  script = call.index(f"{ROOT}/launch/slurm_train.sh")
  assert call[:script] == ["sbatch", f"--chdir={ROOT}", *wanted]
  assert call[script + 1 :] == [*TRAIN, *more]


def test_a_refused_submission_has_sbatchs_code(cluster):
  cluster.add("sbatch", "echo 'invalid partition' >&2; exit 4")
  code, _, err = cluster.run("slurm_train.sh", *TRAIN)
  assert (code, err) == (4, "invalid partition\n")


def job(cluster, name, *flags, **environment):
  return cluster.run(name, *flags, SLURM_JOB_ID="31", **environment)


def test_a_job_runs_its_shard(cluster):
  flags = (*SWEEP, "--part=cells", "--shards=16", "--python=python")
  array = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_CPUS_PER_TASK": "12"}
  code, _, err = job(cluster, "slurm_sweep.sh", *flags, **array)
  assert code == 0, err
  (call,) = cluster.calls()
  assert call == [
    *("srun", "--kill-on-bad-exit=1", "--cpus-per-task=12", "python", "-m"),
    *("experiments.sweep", *SWEEP, "--part=cells", "--shard=5/16"),
  ]


def test_a_job_has_the_compilation_cache(cluster):
  cluster.add("srun", 'echo "$JAX_COMPILATION_CACHE_DIR"')
  code, out, _ = job(cluster, "slurm_train.sh", *TRAIN)
  assert (code, out) == (0, f"{cluster.folder}/.cache/cfgd/jax\n")
  mine = {"JAX_COMPILATION_CACHE_DIR": "/mine"}
  assert job(cluster, "slurm_train.sh", *TRAIN, **mine)[1] == "/mine\n"


def requeues(cluster):
  return [k[-1] for k in cluster.calls() if k[:2] == ["scontrol", "requeue"]]


@pytest.mark.parametrize(
  ("ends", "again"),
  [
    *((75, True), (134, True), (137, True), (143, True)),
    *((0, False), (1, False), (2, False), (130, False)),
  ],
)
def test_what_was_stopped_or_killed_goes_back_into_the_queue(
  cluster, ends, again
):
  cluster.add("srun", f"exit {ends}")
  code, _, err = job(cluster, "slurm_train.sh", *TRAIN)
  assert code == ends
  assert requeues(cluster) == (["31"] if again else [])
  assert ("back into the queue" in err) == again
  assert ("not started again" in err) == (not again and ends != 0)
  assert err.count("\n") == (ends != 0)


# srun's own code is the highest: of the tasks that it killed.
@pytest.mark.parametrize(
  ("first", "code"),
  [("Exited with exit code 1", 1), ("Killed", 137), ("Aborted", 137)],
)
def test_the_task_that_ends_first_decides(cluster, first, code):
  cluster.add(
    "srun",
    "echo 'I0000 task 0: Exited with exit code 2' >&2\n"
    f"echo 'srun: error: n2: task 1: {first}' >&2\n"
    "echo 'srun: error: n[1,3-4]: tasks 0,2-3: Exited with exit code 75' >&2\n"
    "exit 137",
  )
  ends, _, err = job(cluster, "slurm_train.sh", *TRAIN)
  assert ends == code
  assert bool(requeues(cluster)) == (code == 137)
  assert "n[1,3-4]: tasks 0,2-3" in err  # what srun says is shown


def test_a_job_that_is_killed_at_once_is_given_up(cluster):
  cluster.add("srun", "exit 137")
  for _ in range(4):
    assert job(cluster, "slurm_train.sh", *TRAIN)[0] == 137
  assert len(requeues(cluster)) == 4
  code, _, err = job(cluster, "slurm_train.sh", *TRAIN)
  assert (code, len(requeues(cluster))) == (137, 4)
  assert "killed (exit code 137) 5 times in a row" in err
  # A stop in between ends the row.
  cluster.add("srun", "exit 75")
  job(cluster, "slurm_train.sh", *TRAIN)
  cluster.add("srun", "exit 137")
  job(cluster, "slurm_train.sh", *TRAIN)
  assert len(requeues(cluster)) == 6


def test_sigterm_to_the_script_reaches_the_tasks_and_not_srun(cluster):
  folder = cluster.folder
  cluster.add("scancel", 'touch "$FAKES/told"')
  cluster.add(
    "srun",
    "trap 'exit 137' TERM; touch \"$FAKES/up\"\n"
    'while [[ ! -f "$FAKES/told" ]]; do sleep 0.05; done; exit 75',
  )
  process = subprocess.Popen(
    [f"{ROOT}/launch/slurm_train.sh", *TRAIN],
    env=cluster.environment | {"SLURM_JOB_ID": "31"},
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  deadline = time.monotonic() + 30
  while not (folder / "up").exists():
    assert time.monotonic() < deadline
    time.sleep(0.05)
  process.terminate()
  _, err = process.communicate(timeout=30)
  assert (process.returncode, requeues(cluster)) == (75, ["31"]), err
  assert ["scancel", "--signal=TERM", "31"] in cluster.calls()


def test_a_shard_puts_back_itself_and_not_the_array(cluster):
  cluster.add("srun", "exit 75")
  array = {"SLURM_ARRAY_JOB_ID": "31", "SLURM_ARRAY_TASK_ID": "16"}
  flags = (*SWEEP, "--part=cells", "--shards=16")
  assert job(cluster, "slurm_sweep.sh", *flags, **array)[0] == 75
  asked = [call[-1] for call in cluster.calls() if call[0] == "squeue"]
  assert set(asked) == {"--jobs=31_16"}
  assert requeues(cluster) == ["31_16"]


@pytest.mark.parametrize("says", ["echo COMPLETING", "echo", "exit 1"])
def test_a_cancelled_job_stays_so(cluster, says):
  cluster.add("squeue", says)
  cluster.add("srun", "exit 143")
  assert job(cluster, "slurm_train.sh", *TRAIN)[0] == 143
  assert not requeues(cluster)


def test_a_job_that_never_gets_on_ends(cluster):
  cluster.add("srun", "exit 75")
  restarts = {"SLURM_RESTART_COUNT": "1000"}
  code, _, err = job(cluster, "slurm_train.sh", *TRAIN, **restarts)
  assert (code, "restarted 1000 times" in err) == (75, True)
  assert not requeues(cluster)


def test_a_job_outside_of_the_repository_is_an_error(cluster, tmp_path):
  more = {"SLURM_JOB_ID": "31", "cwd": tmp_path}
  code, _, err = cluster.run("slurm_train.sh", *TRAIN, **more)
  assert (code, "not the root of the repository" in err) == (2, True)
