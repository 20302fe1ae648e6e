#!/usr/bin/env bash
# Run one command in several processes of this machine that train together.
#
#   launch/local_processes.sh --processes=2 -- \
#     python -m experiments.train --workdir=runs/digits
#
# --processes=N        how many (default 2)
# --gpus-per-process=N GPUs of each; 0: all processes run on the CPU (default)
# --port=N             of the coordinator, process 0 (default: a free one)
# --log-dir=DIR        a log per process (default: a new folder in /tmp)
# --grace=SECONDS      from SIGTERM to SIGKILL for the others when one process
#                      fails (default 10)
# --dry-run            print the commands
#
# On one machine this is not needed for training: one process uses all GPUs.
# Shows the output of process 0. If a process fails, ends the others, shows the
# end of its log and returns its exit code; after 75 the same command resumes.
# Ctrl-C and SIGTERM reach every process.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/shell.sh
source "$here/shell.sh"

processes=2 gpus=0 port="" log_dir="" grace=10
while (($#)); do
  case "$1" in
    --processes=*) processes="${1#*=}" ;;
    --gpus-per-process=*) gpus="${1#*=}" ;;
    --port=*) port="${1#*=}" ;;
    --log-dir=*) log_dir="${1#*=}" ;;
    --grace=*) grace="${1#*=}" ;;
    --dry-run) DRY_RUN=1 ;;
    --help | -h) usage "$0" && exit ;;
    --) shift && break ;;
    *) die "$1: unknown option; the command stands after --, see --help" ;;
  esac
  shift
done
require_number --processes "$processes" 1
require_number --gpus-per-process "$gpus"
require_number --grace "$grace"
[[ -z "$port" ]] || require_number --port "$port" 1
(($#)) || die "no command: give it after --, see --help"

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0));
print(s.getsockname()[1])'
}

# Sets the array `variables`, the environment of process $1.
set_variables() {
  local gpu list=""
  variables=("JAX_COORDINATOR_ADDRESS=127.0.0.1:$port"
    "JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$1")
  if ((gpus)); then
    for ((gpu = $1 * gpus; gpu < ($1 + 1) * gpus; gpu++)); do
      list="$list,$gpu"
    done
    variables+=("CUDA_VISIBLE_DEVICES=${list#,}")
  else
    variables+=("JAX_PLATFORMS=cpu")
  fi
}

if [[ -n "$DRY_RUN" ]]; then
  port="${port:-8476}"
  for ((i = 0; i < processes; i++)); do
    set_variables "$i"
    printf '%s > %s 2>&1 &\n' "$(quote env "${variables[@]}" "$@")" \
      "$(quote "${log_dir:-LOG_DIR}/process_$i.log")"
  done
  exit
fi

# shellcheck source=launch/environment.sh
source "$here/environment.sh"
port="${port:-$(free_port)}"
log_dir="${log_dir:-$(mktemp -d "${TMPDIR:-/tmp}/cfgd-processes.XXXXXX")}"
mkdir -p "$log_dir"
pids=()
for ((i = 0; i < processes; i++)); do
  set_variables "$i"
  : > "$log_dir/process_$i.log" # `show` needs it before the process runs.
  env "${variables[@]}" "$@" > "$log_dir/process_$i.log" 2>&1 &
  pids+=("$!")
done
printf '%s processes, logs in %s\n' "$processes" "$log_dir" >&2

# Shows what process 0 has written since the last call.
shown=0
show() {
  local written
  # Without its log, which anybody may remove, the processes go on.
  written="$(wc -c 2> /dev/null < "$log_dir/process_0.log")" || return 0
  ((written > shown)) || return 0
  tail -c "+$((shown + 1))" "$log_dir/process_0.log" |
    head -c "$((written - shown))" || true # More was written meanwhile.
  shown=$((written))
}

send_all() {
  kill -s "$1" "${pids[@]}" 2> /dev/null || true
}
trap 'send_all TERM' TERM INT

# Ends the remaining processes: one whose peer died would wait forever.
end_others() {
  local deadline=$((SECONDS + grace))
  send_all TERM
  while ((SECONDS < deadline)) && kill -0 "${pids[@]}" 2> /dev/null; do
    sleep 0.2
  done
  send_all KILL
}

# Checks all: `wait -n` misses processes that ended before the call.
failed="" code=0 running=("${pids[@]}")
while ((${#running[@]})) && [[ -z "$failed" ]]; do
  sleep 0.2
  show
  left=()
  for pid in "${running[@]}"; do
    if kill -0 "$pid" 2> /dev/null; then
      left+=("$pid")
    elif wait "$pid"; then
      :
    else
      code="$?" failed="$pid"
      break
    fi
  done
  running=(${left[@]+"${left[@]}"})
done

if [[ -n "$failed" ]]; then
  # After a preemption all processes save and end by themselves.
  ((code == 75)) || end_others
fi
wait "${pids[@]}" 2> /dev/null || true
show
if [[ -n "$failed" ]]; then
  for ((i = 0; i < processes; i++)); do
    [[ "${pids[i]}" == "$failed" ]] && break
  done
  if ((code == 75)); then
    printf 'preempted, hung, or a process gone: run the same command again to resume\n' >&2
  else
    printf 'error: process %s of %s ended with code %s; the others were ended. Last lines of %s:\n' \
      "$i" "$processes" "$code" "$log_dir/process_$i.log" >&2
    tail -n 20 "$log_dir/process_$i.log" >&2
  fi
fi
exit "$code"
