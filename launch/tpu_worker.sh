#!/usr/bin/env bash
# Runs on every worker of a pod, with the same arguments, for tpu_pod.sh.
#
#   launch/tpu_worker.sh start MODULE --config=... --workdir=...
#   launch/tpu_worker.sh status     one line: running, or how it ended
#   launch/tpu_worker.sh stop       SIGTERM: it saves and ends
#
# `start` returns at once. The run is logged to ~/cfgd-run/log. It is started
# again when it ends with exit code 75, saved before a preemption, or by a
# signal, and, under systemd, after the worker itself has restarted.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/shell.sh
source "$here/shell.sh"

run_dir="$HOME/cfgd-run"
python="$HOME/cfgd-venv/bin/python"
unit=/etc/systemd/system/cfgd.service
# Others wait this long for a worker that is restarting.
join_seconds=1800
# A run that a signal ends this often in a row, each time within `quick`
# seconds, is given up: it would go on for ever, say out of memory.
max_quick_deaths=5 quick=600 pause="${CFGD_PAUSE:-10}"

is_running() {
  [[ -f "$run_dir/pid" && ! -f "$run_dir/code" ]] && kill -0 "$(cat "$run_dir/pid")" 2> /dev/null
}

# Runs the command of `start` until it is done, has failed or was stopped.
supervise() {
  local code=75 child="" began deaths=0 command=() stopping=""
  # After a restart of the machine: nothing to do if the run had ended.
  [[ ! -f "$run_dir/code" ]] || exit 0
  echo "$$" > "$run_dir/pid"
  while IFS= read -r -d '' word; do command+=("$word"); done \
    < "$run_dir/command"
  # shellcheck source=launch/environment.sh
  source "$here/environment.sh"
  trap '[[ -z "$child" ]] || kill -TERM "$child" 2> /dev/null; stopping=1' TERM
  while true; do
    began="$SECONDS"
    "$python" -m "${command[@]}" &
    child=$!
    code=0
    wait "$child" || code=$?
    # A trapped signal ends `wait`, not the child.
    while kill -0 "$child" 2> /dev/null; do
      code=0
      wait "$child" || code=$?
    done
    child=""
    [[ -z "$stopping" ]] || break
    ((code == 75 || (code > 128 && code != 130))) || break
    if ((code > 128 && SECONDS - began < quick)); then
      deaths=$((deaths + 1))
    else
      deaths=0
    fi
    if ((deaths >= max_quick_deaths)); then
      echo "killed (exit code $code) $deaths times in a row, each time within" \
        "$quick s: not started again; is there too little memory?"
      break
    fi
    echo "ended with exit code $code: starting it again"
    sleep "$pause"
    [[ -z "$stopping" ]] || break
  done
  # Without `stop` it was the machine that goes down: it resumes after that.
  [[ -n "$stopping" && ! -f "$run_dir/stop" ]] || echo "$code" > "$run_dir/code"
}

# Starts `supervise`, as a service where there is systemd.
launch() {
  if systemctl list-units > /dev/null 2>&1 && sudo -n true 2> /dev/null; then
    write_unit | sudo tee "$unit" > /dev/null
    sudo systemctl daemon-reload
    sudo systemctl enable --quiet cfgd.service
    sudo systemctl restart cfgd.service
  else
    setsid nohup "$here/tpu_worker.sh" supervise >> "$run_dir/log" 2>&1 &
  fi
}

write_unit() {
  cat << END
[Unit]
Description=A run of cfgd, started by launch/tpu_worker.sh
Wants=network-online.target
After=network-online.target

[Service]
User=$(id -un)
Environment=HOME=$HOME
WorkingDirectory=$(dirname "$here")
ExecStart=$here/tpu_worker.sh supervise
StandardOutput=append:$run_dir/log
StandardError=append:$run_dir/log
# SIGTERM to the script alone, which passes it on and waits for the end.
KillMode=mixed
TimeoutStopSec=300
# Only if the script itself is killed; it restarts the run by itself.
Restart=on-abnormal
RestartSec=10
# The default limits of a service are lower than those of a login.
LimitNOFILE=1048576
LimitMEMLOCK=infinity

[Install]
WantedBy=multi-user.target
END
}

start() {
  local i
  [[ -x "$python" ]] || die "$python: no such program; run tpu_pod.sh sync"
  ! is_running || die "$(hostname): a run is under way; see status and stop"
  mkdir -p "$run_dir"
  rm -f "$run_dir/code" "$run_dir/stop" "$run_dir/pid"
  printf '%s\0' "$1" "--join_seconds=$join_seconds" "${@:2}" \
    > "$run_dir/command"
  cd "$here/.."
  launch
  for ((i = 0; i < 100; i++)); do
    [[ ! -f "$run_dir/pid" ]] || return 0
    sleep 0.1
  done
  die "$(hostname): it did not start; see ~/cfgd-run/log"
}

action="${1:---help}"
(($# == 0)) || shift
case "$action" in
  --help | -h) usage "$0" ;;
  start)
    (($#)) || die "start: which module?"
    start "$@"
    ;;
  supervise) supervise ;;
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
    touch "$run_dir/stop"
    kill -TERM "$(cat "$run_dir/pid")"
    for ((i = 0; i < 300; i++)); do
      is_running || { echo "$(hostname): stopped" && exit; }
      sleep 1
    done
    die "$(hostname): still saving after 300 s; see ~/cfgd-run/log"
    ;;
  *) die "$action: start, status or stop; see --help" ;;
esac
