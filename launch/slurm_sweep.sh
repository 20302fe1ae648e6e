#!/usr/bin/env bash
#SBATCH --job-name=cfgd-sweep
#SBATCH --output=slurm-%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
# Run a sweep on a SLURM cluster: an array of jobs that train its models, then
# one that samples and scores its cells.
#
#   launch/slurm_sweep.sh --config=configs/sweep_imagenet64.py --workdir=DIR \
#     --shards=16 [--train-nodes=4] [--gpus=8] [--time=24:00:00] [--partition=P]
#
# --config=FILE        config of the sweep
# --workdir=DIR        folder that all nodes see, one for all jobs
# --shards=N           jobs that divide the cells (default 1), a node each
# --trainings=N        jobs that divide the models (default: one for each model,
#                      counted by experiments.sweep --list_trainings)
# --train-nodes=N      nodes of each of them (default 1)
# --part=P             trainings or cells, to submit only these (default: all)
# --config.X.Y=VALUE   field of the config, as often as needed
# --gpus=N             GPUs of each node (default 8); 0: run on CPUs
# --tasks-per-node=N   processes (default: 1 on one node; else one per GPU)
# --python=FILE        interpreter (default: .venv/bin/python, else python3)
# --time --partition --account --qos --constraint --mem --cpus-per-task
# --mail-user --output passed to sbatch
# --sbatch=OPTION      any other option of sbatch, as often as needed
# --dry-run            print the submissions and the commands of the jobs
#
# The cells start when all models are trained; if a training fails, they are
# cancelled. A job that is preempted, killed or reaches its time limit is requeued
# and resumes. Submitting again trains and runs what is missing.
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
((nodes == 1)) || die "--nodes=$nodes: see --train-nodes and --shards"
part="${part:-all}" shards="${shards:-1}"
[[ "$part" =~ ^(all|trainings|cells)$ ]] ||
  die "--part=$part: must be all, trainings or cells"
require_number --shards "$shards" 1
require_number --train-nodes "$train_nodes" 1
[[ -z "$trainings" ]] || require_number --trainings "$trainings" 1

if in_job; then
  work experiments.sweep "--part=$part" \
    "--shard=${SLURM_ARRAY_TASK_ID:-1}/$shards"
  exit
fi
require_command sbatch
require_config "$root" "$config"

# Sets `trainings`, the number of jobs that train, to that of the models.
count_models() {
  local folders count
  count=(env JAX_PLATFORMS=cpu "$(cd "$root" && find_python)"
    -m experiments.sweep --list_trainings "--config=$config"
    "--workdir=$workdir" ${passed[@]+"${passed[@]}"})
  if [[ -n "$DRY_RUN" ]]; then
    echo "# MODELS is the number of lines of:"
    quote "${count[@]}"
    trainings=MODELS
  else
    folders="$(cd "$root" && "${count[@]}")" || exit
    trainings="$(grep -c '' <<< "$folders")"
  fi
}

# Submits an array of $2 jobs for the part $1, on $3 nodes each, and sets `id`.
submit_array() {
  part="$1" shards="$2"
  prepare_submission "$root" slurm_sweep.sh "$3" --parsable \
    "--job-name=cfgd-$1" "--array=1-$2" "${@:4}"
  if [[ -n "$DRY_RUN" ]]; then
    quote "${submission[@]}"
    echo "# and each of the $2 jobs runs, as the first does:"
    work experiments.sweep "--part=$1" "--shard=1/$2"
    id=TRAININGS
  else
    id="$("${submission[@]}")" || exit
    id="${id%%;*}" # Of several clusters: id;cluster.
    echo "job $id: $1, an array of $2"
  fi
}

wanted="$part" cells="$shards" after=()
if [[ "$wanted" != cells ]]; then
  [[ -n "$trainings" ]] || count_models
  submit_array trainings "$trainings" "$train_nodes"
  after=("--dependency=afterok:$id" --kill-on-invalid-dep=yes)
fi
if [[ "$wanted" != trainings ]]; then
  submit_array cells "$cells" 1 ${after[@]+"${after[@]}"}
fi
