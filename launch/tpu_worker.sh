#!/usr/bin/env bash
# Runs on every worker of a pod, with the same arguments, for tpu_pod.sh.
#
#   launch/tpu_worker.sh start MODULE --config=... --workdir=...
#   launch/tpu_worker.sh status     one line: running, or how it ended
#   launch/tpu_worker.sh stop       SIGTERM: it saves and ends
#
# `start` returns at once. The run is logged to ~/cfgd-run/log and restarted
# whenever it ends with exit code 75, saved before a preemption.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/shell.sh
source "$here/shell.sh"

run_dir="$HOME/cfgd-run"
python="$HOME/cfgd-venv/bin/python"
port=8476
metadata="http://metadata.google.internal/computeMetadata/v1/instance/attributes"

ask() {
  curl --silent --fail --retry 5 --header 'Metadata-Flavor: Google' \
    "$metadata/$1"
}

# Sets JAX's variables for a pod. The endpoints are uid:port:address, by worker.
join_pod() {
  local endpoints first workers
  endpoints="$(ask worker-network-endpoints)" ||
    die "no metadata server: is this a TPU VM?"
  IFS=, read -ra workers <<< "$endpoints"
  ((${#workers[@]} > 1)) || return 0
  IFS=: read -r _ _ first <<< "${workers[0]}"
  JAX_PROCESS_ID="$(ask agent-worker-number)"
  export JAX_PROCESS_ID JAX_NUM_PROCESSES="${#workers[@]}"
  export JAX_COORDINATOR_ADDRESS="$first:$port"
}

is_running() {
  [[ -f "$run_dir/pid" && ! -f "$run_dir/code" ]] && kill -0 "$(cat "$run_dir/pid")" 2> /dev/null
}

work() {
  local code=75 child=""
  trap 'echo "$?" > "$run_dir/code"' EXIT
  # shellcheck source=launch/environment.sh
  source "$here/environment.sh"
  join_pod
  trap '[[ -z "$child" ]] || kill -TERM "$child" 2> /dev/null; stopping=1' TERM
  while ((code == 75)) && [[ -z "${stopping:-}" ]]; do
    "$python" -m "$@" &
    child=$!
    code=0
    wait "$child" || code=$?
    while kill -0 "$child" 2> /dev/null; do
      code=0
      wait "$child" || code=$?
    done
  done
  exit "$code"
}

action="${1:---help}"
(($# == 0)) || shift
case "$action" in
  --help | -h) usage "$0" ;;
  start)
    (($#)) || die "start: which module?"
    [[ -x "$python" ]] || die "$python: no such program; run tpu_pod.sh sync"
    ! is_running || die "$(hostname): a run is under way; see status and stop"
    mkdir -p "$run_dir"
    rm -f "$run_dir/code"
    cd "$here/.."
    setsid nohup "$here/tpu_worker.sh" work "$@" >> "$run_dir/log" 2>&1 &
    echo "$!" > "$run_dir/pid"
    ;;
  work) work "$@" ;;
  status)
    if is_running; then
      state=running
    elif [[ -f "$run_dir/code" ]]; then
      state="ended with $(cat "$run_dir/code")"
    elif [[ -f "$run_dir/pid" ]]; then
      state=died
    else
      state="not started"
    fi
    line="$(tail -n 1 "$run_dir/log" 2> /dev/null || true)"
    printf '%s: %s%s\n' "$(hostname)" "$state" "${line:+ | $line}"
    ;;
  stop)
    is_running || { echo "$(hostname): nothing runs" && exit; }
    kill -TERM "$(cat "$run_dir/pid")"
    for ((i = 0; i < 300; i++)); do
      is_running || { echo "$(hostname): stopped" && exit; }
      sleep 1
    done
    die "$(hostname): still saving after 300 s; see ~/cfgd-run/log"
    ;;
  *) die "$action: start, status or stop; see --help" ;;
esac
