"""Submission and the job itself, with a SLURM that only remembers."""

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
DRY_SHARDS = f"""\
sbatch --chdir={ROOT} --nodes=1 --ntasks-per-node=1 --array=1-16 \
--gpus-per-node=8 {ROOT}/launch/slurm_sweep.sh --shards=16 --python=python \
--config=configs/sweep_imagenet64.py --workdir=/scratch/sweep
# and the job runs:
srun --kill-on-bad-exit=1 python -m experiments.sweep \
--config=configs/sweep_imagenet64.py --workdir=/scratch/sweep --shard=1/16
"""


@pytest.fixture
def cluster(fakes):
  for command in ("sbatch", "srun", "scontrol"):
    fakes.add(command)
  fakes.add("squeue", "echo RUNNING")
  return fakes


def test_dry_run_of_an_8_gpu_node(cluster):
  flags = (*TRAIN, "--time=24:00:00", "--partition=gpu", "--python=python")
  done = cluster.run("slurm_train.sh", *flags, "--dry-run")
  assert done == (0, DRY_NODE, "")
  assert not cluster.calls()


def test_dry_run_of_a_sweep_of_16_shards(cluster):
  flags = (*SWEEP, "--shards=16", "--python=python", "--dry-run")
  assert cluster.run("slurm_sweep.sh", *flags) == (0, DRY_SHARDS, "")
  assert not cluster.calls()


def test_a_form_of_a_config_is_passed_on(cluster):
  config, workdir = SWEEP
  flags = (f"{config}:fast", workdir, "--shards=16", "--python=python")
  code, out, _ = cluster.run("slurm_sweep.sh", *flags, "--dry-run")
  assert code == 0
  assert out == DRY_SHARDS.replace("imagenet64.py", "imagenet64.py:fast")


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
  flags = (*SWEEP, "--shards=16", "--python=python", "--config.seed=3")
  code, _, err = job(cluster, "slurm_sweep.sh", *flags, SLURM_ARRAY_TASK_ID="5")
  assert code == 0, err
  (call,) = cluster.calls()
  assert call == [
    *("srun", "--kill-on-bad-exit=1", "python", "-m", "experiments.sweep"),
    *(*SWEEP, "--shard=5/16", "--config.seed=3"),
  ]


def test_a_job_has_the_compilation_cache(cluster):
  cluster.add("srun", 'echo "$JAX_COMPILATION_CACHE_DIR"')
  code, out, _ = job(cluster, "slurm_train.sh", *TRAIN)
  assert (code, out) == (0, f"{cluster.folder}/.cache/cfgd/jax\n")
  mine = {"JAX_COMPILATION_CACHE_DIR": "/mine"}
  assert job(cluster, "slurm_train.sh", *TRAIN, **mine)[1] == "/mine\n"


@pytest.mark.parametrize(
  ("ends", "again"), [(75, True), (143, True), (0, False), (1, False)]
)
def test_a_preempted_job_goes_back_into_the_queue(cluster, ends, again):
  cluster.add("srun", f"exit {ends}")
  code, _, err = job(cluster, "slurm_train.sh", *TRAIN)
  assert code == ends
  requeues = [call for call in cluster.calls() if call[0] == "scontrol"]
  assert requeues == ([["scontrol", "requeue", "31"]] if again else [])
  assert ("back into the queue" in err) == again


def test_a_shard_puts_back_itself_and_not_the_array(cluster):
  cluster.add("srun", "exit 75")
  array = {"SLURM_ARRAY_JOB_ID": "31", "SLURM_ARRAY_TASK_ID": "16"}
  flags = (*SWEEP, "--shards=16")
  assert job(cluster, "slurm_sweep.sh", *flags, **array)[0] == 75
  asked, requeue = cluster.calls()[1:]
  assert asked[-1] == "--jobs=31_16"
  assert requeue == ["scontrol", "requeue", "31_16"]


@pytest.mark.parametrize("says", ["echo COMPLETING", "echo", "exit 1"])
def test_a_cancelled_job_stays_so(cluster, says):
  cluster.add("squeue", says)
  cluster.add("srun", "exit 143")
  assert job(cluster, "slurm_train.sh", *TRAIN)[0] == 143
  assert not [call for call in cluster.calls() if call[0] == "scontrol"]


def test_a_job_that_never_gets_on_ends(cluster):
  cluster.add("srun", "exit 75")
  restarts = {"SLURM_RESTART_COUNT": "1000"}
  code, _, err = job(cluster, "slurm_train.sh", *TRAIN, **restarts)
  assert (code, "restarted 1000 times" in err) == (2, True)


def test_a_job_outside_of_the_repository_is_an_error(cluster, tmp_path):
  more = {"SLURM_JOB_ID": "31", "cwd": tmp_path}
  code, _, err = cluster.run("slurm_train.sh", *TRAIN, **more)
  assert (code, "not the root of the repository" in err) == (2, True)
