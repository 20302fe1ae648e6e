#!/usr/bin/env bash
#SBATCH --job-name=cfgd-train
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
# Train on a SLURM cluster; a job that is stopped resumes by itself.
#
#   launch/slurm_train.sh --config=configs/imagenet64.py --workdir=DIR \
#     [--nodes=2] [--gpus=8] [--time=24:00:00] [--partition=P] [--account=A]
#
# --config=FILE        config of the run
# --workdir=DIR        folder that all nodes see
# --config.X.Y=VALUE   field of the config, as often as needed
# --nodes=N            nodes (default 1)
# --gpus=N             GPUs of each node (default 8); 0: train on CPUs
# --tasks-per-node=N   processes (default: 1 on one node; else one per GPU)
# --python=FILE        interpreter (default: .venv/bin/python, else python3)
# --time --partition --account --qos --constraint --mem --cpus-per-task
# --mail-user --output passed to sbatch
# --sbatch=OPTION      any other option of sbatch, as often as needed
# --dry-run            print the submission and the commands of the job
#
# SLURM sends SIGTERM 120 s before the time limit, and at preemption: the run
# saves, and the job is requeued, which resumes it. A job is also requeued when
# one of its processes or nodes dies, not when it fails with exit code 1 or 2.
set -euo pipefail

if [[ -n "${SLURM_JOB_ID:-}" ]]; then
  root="$PWD" # The job's script is a copy elsewhere; it starts in the root.
else
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
fi
[[ -f "$root/launch/slurm.sh" ]] ||
  { echo "error: $root is not the root of the repository" >&2 && exit 2; }
# shellcheck source=launch/shell.sh
source "$root/launch/shell.sh"
# shellcheck source=launch/slurm.sh
source "$root/launch/slurm.sh"

parse_slurm "$@"
for other in "--shards=$shards" "--part=$part" "--trainings=$trainings"; do
  [[ "$other" == *= ]] || die "$other: belongs to launch/slurm_sweep.sh"
done
if ! in_job; then
  require_command sbatch
  require_config "$root" "$config"
  prepare_submission "$root" slurm_train.sh "$nodes"
  run "${submission[@]}"
  [[ -n "$DRY_RUN" ]] || exit 0
  echo '# and the job runs:'
fi
work experiments.train
