# Sourced by slurm_train.sh and slurm_sweep.sh, on the login node and in a job.
# shellcheck shell=bash disable=SC2034

max_restarts=1000
# A job whose tasks die by a signal this often in a row, each time within
# `quick` seconds, is given up: it would go on for ever, say out of memory.
max_quick_deaths=5 quick=600
nodes=1 gpus=8 tasks_per_node="" python="" sbatch_options=() passed=()
config="" workdir="" shards="" part="" trainings="" train_nodes=1

# Sorts options: SLURM's, ours, and what is passed on to Python.
parse_slurm() {
  case " $* " in *" --help "* | *" -h "*) usage "$0" && exit ;; esac
  while (($#)); do
    case "$1" in
      --nodes=*) nodes="${1#*=}" ;;
      --gpus=*) gpus="${1#*=}" ;;
      --tasks-per-node=*) tasks_per_node="${1#*=}" ;;
      --shards=*) shards="${1#*=}" ;;
      --part=*) part="${1#*=}" ;;
      --trainings=*) trainings="${1#*=}" ;;
      --train-nodes=*) train_nodes="${1#*=}" ;;
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
  [[ -z "$tasks_per_node" ]] ||
    require_number --tasks-per-node "$tasks_per_node" 1
}

in_job() { [[ -n "${SLURM_JOB_ID:-}" ]]; }

# On one node, one process drives all GPUs. On several, JAX takes one GPU for
# each task that SLURM starts on a node. $1 is the number of nodes.
tasks_on() {
  if [[ -n "$tasks_per_node" ]]; then
    echo "$tasks_per_node"
  elif (($1 > 1 && gpus > 1)); then
    echo "$gpus"
  else
    echo 1
  fi
}

# Sets the array `submission`: sbatch with the script $2 of the repository $1 on
# $3 nodes, and more options of sbatch. The script's own come from parse_slurm.
prepare_submission() {
  local root="$1" script="$1/launch/$2" count="$3" options=("${@:4}")
  ((gpus == 0)) || options+=("--gpus-per-node=$gpus")
  submission=(sbatch "--chdir=$root" "--nodes=$count"
    "--ntasks-per-node=$(tasks_on "$count")"
    ${options[@]+"${options[@]}"} ${sbatch_options[@]+"${sbatch_options[@]}"}
    "$script" ${part:+"--part=$part"} ${shards:+"--shards=$shards"}
    ${python:+"--python=$python"} "--config=$config" "--workdir=$workdir"
    ${passed[@]+"${passed[@]}"})
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

# Prints a field of this job, by the letter that squeue has for it.
job_field() {
  squeue --noheader --format="%$1" --jobs="$(job_id)"
}

# Succeeds if the job is still running: one that was cancelled, or that SLURM
# requeues itself, is completing once its tasks have ended.
is_mine_to_requeue() {
  local state
  state="$(job_field T)" || return 1
  [[ "$state" == RUNNING ]]
}

# Runs a module in all tasks of the job. If it was stopped or killed, puts the
# job back into the queue.
work() {
  local module="$1" command begin="$SECONDS" code=0
  shift
  # srun does not take --cpus-per-task over from sbatch since SLURM 22.05.
  command=(srun --kill-on-bad-exit=1
    ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"}
    "$(find_python)" -m "$module" "--config=$config" "--workdir=$workdir" "$@"
    ${passed[@]+"${passed[@]}"})
  if [[ -n "$DRY_RUN" ]]; then
    quote "${command[@]}"
    return
  fi
  # shellcheck source=launch/environment.sh
  source "$root/launch/environment.sh"
  run_tasks "${command[@]}" || code=$?
  if should_restart "$code" "$((SECONDS - begin))"; then
    scontrol requeue "$(job_id)"
  fi
  exit "$code"
}

# Runs srun and returns the exit code of the task that ended first. srun's own
# is the highest, and the task that failed may have the lowest: the others are
# killed then, which is 137.
run_tasks() {
  local folder child reader code=0 first
  folder="$(mktemp -d)"
  mkfifo "$folder/errors"
  # Passes on what it reads, and keeps what srun says of tasks that end.
  (trap '' TERM && exec sed -u -E \
    "/^srun: error: [^ ]+ tasks? [0-9,-]+: /w $folder/ends" \
    < "$folder/errors" >&2) &
  reader=$!
  "$@" 2> "$folder/errors" &
  child=$!
  # To the tasks: srun itself answers SIGTERM by killing them.
  trap 'scancel --signal=TERM "$(job_id)" || true' TERM
  wait "$child" || code=$?
  # A trapped signal ends `wait`, not the child.
  while kill -0 "$child" 2> /dev/null; do
    code=0
    wait "$child" || code=$?
  done
  wait "$reader" || true
  first="$(head -n 1 "$folder/ends")"
  rm -r "$folder"
  if [[ "$first" =~ 'Exited with exit code '([0-9]+)$ ]]; then
    code="${BASH_REMATCH[1]}"
  fi
  return "$code"
}

# Succeeds if a job that ended with code $1 after $2 seconds should run again,
# and says what happens in one line: 75 is saved, start again; above 128, a
# signal ended it, but 130 is Ctrl-C.
should_restart() {
  local code="$1" restarts="${SLURM_RESTART_COUNT:-0}" deaths=0
  ((code)) || return 1
  if ((code != 75 && (code <= 128 || code == 130))); then
    say "exit code $code: not started again, as it would fail again"
    return 1
  fi
  is_mine_to_requeue || return 1
  if ((restarts >= max_restarts)); then
    say "restarted $restarts times; run the same command again to resume"
    return 1
  fi
  if ((code > 128 && $2 < quick)); then
    deaths="$(($(quick_deaths) + 1))"
  fi
  if ((deaths >= max_quick_deaths)); then
    say "killed (exit code $code) $deaths times in a row, each time within" \
      "$quick s: not started again; is there too little memory?"
    return 1
  fi
  record_quick_deaths "$deaths"
  say "ended with exit code $code after $2 s: back into the queue"
}

say() { printf '%s: %s\n' "$(job_id)" "$*" >&2; }

# Their number is kept in the job's comment, as SLURM keeps that of a job that
# it starts again.
quick_deaths() {
  local comment
  comment="$(job_field k)"
  if [[ "$comment" =~ ^quick\ deaths:\ ([0-9]+)$ ]]; then
    echo "${BASH_REMATCH[1]}"
  else
    echo 0
  fi
}

record_quick_deaths() {
  [[ "$1" == "$(quick_deaths)" ]] ||
    scontrol update "JobId=$(job_id)" "Comment=quick deaths: $1"
}
