#!/usr/bin/env bash
#SBATCH --job-name=cfgd-sweep
#SBATCH --output=slurm-%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
# Run a sweep as a SLURM array job, its cells divided among the shards.
#
#   launch/slurm_sweep.sh --config=configs/sweep_imagenet64.py --workdir=DIR \
#     --shards=16 [--gpus=8] [--time=24:00:00] [--partition=P] [--account=A]
#
# --config=FILE        config of the sweep
# --workdir=DIR        folder that all nodes see, one for all shards
# --shards=N           jobs of the array (default 1), each on its own node
# --config.X.Y=VALUE   field of the config, as often as needed
# --gpus=N             GPUs of each shard (default 8); 0: run on CPUs
# --python=FILE        interpreter (default: .venv/bin/python, else python3)
# --time --partition --account --qos --constraint --mem --cpus-per-task
# --mail-user --output sbatch's
# --sbatch=OPTION      any other option of sbatch, as often as needed
# --dry-run            print the submission and the commands of a job
#
# A shard that is preempted or reaches its time limit is requeued and resumes at
# its last cell. Submitting again runs the missing cells.
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
shards="${shards:-1}"
require_number --shards "$shards" 1
((nodes == 1)) || die "--nodes=$nodes: a shard is one node; see --shards"
submit_unless_in_job "$root" slurm_sweep.sh "--array=1-$shards"
work experiments.sweep "--shard=${SLURM_ARRAY_TASK_ID:-1}/$shards"
