# Sourced by slurm_train.sh and slurm_sweep.sh, on the login node and in a job.
# shellcheck shell=bash disable=SC2034

max_restarts=1000
nodes=1 gpus=8 tasks_per_node="" python="" sbatch_options=() passed=()
config="" workdir="" shards=""

# Sorts options: SLURM's, ours, and what is passed on to Python.
parse_slurm() {
  case " $* " in *" --help "* | *" -h "*) usage "$0" && exit ;; esac
  while (($#)); do
    case "$1" in
      --nodes=*) nodes="${1#*=}" ;;
      --gpus=*) gpus="${1#*=}" ;;
      --tasks-per-node=*) tasks_per_node="${1#*=}" ;;
      --shards=*) shards="${1#*=}" ;;
      --time=* | --partition=* | --account=* | --qos=* | --constraint=* | \
        --mem=* | --cpus-per-task=* | --mail-user=* | --output=*)
        sbatch_options+=("$1")
        ;;
      --sbatch=*) sbatch_options+=("${1#*=}") ;;
      --python=*) python="${1#*=}" ;;
      --config=*) config="${1#*=}" ;;
      --workdir=*) workdir="${1#*=}" ;;
      --config.*=*) passed+=("$1") ;;
      --dry-run) DRY_RUN=1 ;;
      *) die "$1: unknown option; see --help" ;;
    esac
    shift
  done
  require --config "$config"
  require --workdir "$workdir"
  require_number --nodes "$nodes" 1
  require_number --gpus "$gpus"
  [[ -n "$tasks_per_node" ]] || tasks_per_node="$(default_tasks)"
  require_number --tasks-per-node "$tasks_per_node" 1
}

# On one node, one process drives all GPUs. On several, JAX takes one GPU for
# each task that SLURM starts on a node.
default_tasks() {
  if ((nodes > 1 && gpus > 1)); then echo "$gpus"; else echo 1; fi
}

# On the login node, submits the script $2 of the repository $1, with more
# options of sbatch, and exits. In a job, and in a dry run, returns.
submit_unless_in_job() {
  if [[ -z "${SLURM_JOB_ID:-}" ]]; then
    submit "$@"
    [[ -n "$DRY_RUN" ]] || exit 0
    echo '# and the job runs:'
  fi
  # shellcheck source=launch/environment.sh
  source "$1/launch/environment.sh"
}

submit() {
  local root="$1" script="$1/launch/$2" options=("${@:3}")
  ((gpus == 0)) || options+=("--gpus-per-node=$gpus")
  require_command sbatch
  (cd "$root" && [[ -f "${config%%:*}" ]]) ||
    die "--config=$config: no such file; paths are relative to $root"
  run sbatch --chdir="$root" --nodes="$nodes" \
    --ntasks-per-node="$tasks_per_node" "${options[@]}" \
    "${sbatch_options[@]}" "$script" ${shards:+"--shards=$shards"} \
    ${python:+"--python=$python"} --config="$config" --workdir="$workdir" \
    "${passed[@]}"
}

find_python() {
  if [[ -n "$python" ]]; then
    echo "$python"
  elif [[ -x .venv/bin/python ]]; then
    echo .venv/bin/python
  else
    echo python3
  fi
}

# Prints the id of this job. In an array it is the task's: SLURM_JOB_ID of one
# task is the id of the whole array.
job_id() {
  if [[ -n "${SLURM_ARRAY_JOB_ID:-}" ]]; then
    echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
  else
    echo "$SLURM_JOB_ID"
  fi
}

# Succeeds if the job is still running: one that was cancelled, or that SLURM
# requeues itself, is completing once its tasks have ended.
is_mine_to_requeue() {
  local state
  state="$(squeue --noheader --format=%T --jobs="$(job_id)")" || return 1
  [[ "$state" == RUNNING ]]
}

# Runs a module in all tasks of the job; requeues the job if it was preempted.
#
# Exit code 75 means saved, start again. 143 is SIGTERM before its handler was
# installed.
work() {
  local module="$1" code=0 child restarts
  shift
  run srun --kill-on-bad-exit=1 "$(find_python)" -m "$module" \
    --config="$config" --workdir="$workdir" "$@" "${passed[@]}" &
  child=$!
  trap 'kill -TERM "$child" 2> /dev/null || true' TERM
  wait "$child" || code=$?
  # A trapped signal ends `wait`, not the child.
  while kill -0 "$child" 2> /dev/null; do
    code=0
    wait "$child" || code=$?
  done
  if ((code == 75 || code == 143)) && is_mine_to_requeue; then
    restarts="${SLURM_RESTART_COUNT:-0}"
    ((restarts < max_restarts)) ||
      die "restarted $restarts times; run the same command again to resume"
    printf 'preempted (exit code %s): back into the queue\n' "$code" >&2
    run scontrol requeue "$(job_id)"
  fi
  exit "$code"
}
