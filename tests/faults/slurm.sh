#!/usr/bin/env bash
# Run launch/slurm_*.sh on a real SLURM of four nodes, all of them this machine.
#
#   tests/faults/slurm.sh [STAGE ...]
#
# STAGE: train sweep signal kill quick failure drain requeue down (default: all)
#
# Needs root and Debian's packages slurm-wlm and munge, of which no service must
# run: daemons, keys and ports are its own, in a new folder. It prints a
# line for each check with its time and ends with code 1 if one does not hold.
#
# PYTHON: interpreter (default .venv/bin/python, else python3)
#
# shellcheck disable=SC2329 # Checks and stages are called by their names.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
cd "$root"
python="${PYTHON:-.venv/bin/python}"
[[ -x "$python" ]] || python=python3
base=$((20000 + RANDOM % 20000))
folder="$(mktemp -d "${TMPDIR:-/tmp}/cfgd-slurm.XXXXXX")"
export SLURM_CONF="$folder/slurm.conf" JAX_PLATFORMS=cpu
failed=0 began=0 steps=400

# The nodes are named by addresses that every Linux has, so that tasks find the
# first one by its name. 5 s and not 120 before a requeued job starts again.
configure() {
  cat > "$SLURM_CONF" << END
ClusterName=cfgd
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$base
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=5,bf_interval=5
NodeName=127.0.0.[1-4] NodeHostname=$(hostname -s) NodeAddr=127.0.0.[1-4] \
Port=[$((base + 1))-$((base + 4))] CPUs=8
PartitionName=cpu Nodes=ALL Default=YES State=UP
END
}

start_cluster() {
  local node
  mkdir "$folder/state"
  head -c 64 /dev/urandom > "$folder/munge.key"
  chmod 400 "$folder/munge.key"
  chmod 711 "$folder"
  munged --force --key-file="$folder/munge.key" \
    --socket="$folder/munge.socket" --pid-file="$folder/munge.pid" \
    --log-file="$folder/munge.log" --seed-file="$folder/munge.seed"
  configure
  slurmctld
  for node in 1 2 3 4; do
    slurmd -N "127.0.0.$node"
  done
  wait_until 30 all_idle
}

all_idle() { [[ "$(sinfo --noheader --format='%D %t')" == "4 idle" ]]; }

stop_cluster() {
  local file
  scancel --user=root > /dev/null 2>&1 || true
  sleep 3
  for file in "$folder"/slurmd-*.pid "$folder"/slurmctld.pid \
    "$folder"/munge.pid; do
    [[ ! -f "$file" ]] || kill "$(cat "$file")" 2> /dev/null || true
  done
  if ((failed)); then
    echo "logs are in $folder" >&2
  else
    sleep 3
    rm -rf "$folder"
  fi
}

# Waits until a command succeeds; fails after $1 seconds.
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.5
  done
}

# A check: $1 in words, then a command.
check() {
  local what="$1"
  shift
  if "$@"; then
    printf 'ok      %4d s  %s\n' "$((SECONDS - began))" "$what"
  else
    printf 'FAILED  %4d s  %s\n' "$((SECONDS - began))" "$what"
    failed=1
  fi
}

begin() {
  began=$SECONDS
  printf '%s\n' "-- $*"
}

tiny() {
  "$python" -c "
import sys
from tests import tiny
from tests.faults import stages
fields = stages.SWEEP if sys.argv[1] == 'sweep' else stages.TINY
print(*tiny.flags(dict(fields)), sep='\n')" "$1"
}

# Submits a training of $2 steps with two processes, on $3 nodes, into $1.
submit_train() {
  local name="$1" nodes="$3"
  launch/slurm_train.sh --config=configs/sweep_embedded.py \
    --workdir="$folder/$name" --gpus=0 --nodes="$nodes" \
    --tasks-per-node="$((2 / nodes))" --cpus-per-task=2 --python="$python" \
    --output="$folder/$name.log" --sbatch=--parsable "${train_flags[@]}" \
    --config.train.steps="$2" --config.train.checkpoint_every=20
}

# Prints the state of job $1, with its exit code and number of restarts.
field() { scontrol show job "$1" 2> /dev/null | grep -o "$2=[^ ]*" | head -n 1; }
ended_well() { [[ "$(field "$1" JobState)" == JobState=COMPLETED ]]; }
has_state() { [[ "$(field "$1" JobState)" == "JobState=$2" ]]; }
restarted() { [[ "$(field "$1" Restarts)" == "Restarts=$2" ]]; }
says() { grep -qE "$2" "$1" 2> /dev/null; }
count() { grep -cE "$2" "$1" 2> /dev/null || true; }
times() { [[ "$(count "$1" "$2")" == "$3" ]]; }
trained() { [[ -f "$folder/$1/checkpoints/$2/manifest.json" ]]; }
saved() { compgen -G "$folder/$1/checkpoints/*/manifest.json" > /dev/null; }

stage_train() {
  local job nodes
  for nodes in 1 2; do
    begin "a training of two processes on $nodes node(s)"
    job="$(submit_train "train$nodes" 20 "$nodes")"
    check "ends with code 0" wait_until 240 ended_well "$job"
    check "has its last checkpoint" trained "train$nodes" 20
    check "was two processes of one run" says "$folder/train$nodes.log" \
      '; 2 processes, '
  done
}

stage_sweep() {
  local cells trainings submitted
  begin "a sweep of six cells: 2 trainings of 2 nodes each, then 4 jobs"
  submitted="$(launch/slurm_sweep.sh --config=configs/sweep_embedded.py \
    --workdir="$folder/sweep" --gpus=0 --train-nodes=2 --shards=4 \
    --python="$python" \
    --output="$folder/sweep-%A_%a.log" "${sweep_flags[@]}")"
  check "says what was submitted" test "$(wc -l <<< "$submitted")" = 2
  trainings="$(sed -n 's/^job \([0-9]*\): trainings, an array of 2$/\1/p' <<< "$submitted")"
  cells="$(sed -n 's/^job \([0-9]*\): cells, an array of 4$/\1/p' <<< "$submitted")"
  check "a training saves" wait_until 240 saved sweep/runs/p0.1
  check "no cell has started" test ! -e "$folder/sweep-${cells}_1.log"
  scancel --signal=TERM "${trainings}_1"
  check "a training that gets SIGTERM goes back into the queue" wait_until 60 \
    says "$folder/sweep-${trainings}_1.log" 'exit code 75 .*back into the queue'
  check "the cells wait for it all the same" \
    test ! -e "$folder/sweep-${cells}_1.log"
  check "all cells end" wait_until 500 all_end "$cells" 4
  check "all six cells are there, each made once" six_cells
  check "two trainings" test "$(find "$folder/sweep/runs" -mindepth 1 -maxdepth 1 | wc -l)" = 2
  begin "the same sweep again"
  submitted="$(launch/slurm_sweep.sh --config=configs/sweep_embedded.py \
    --workdir="$folder/sweep" --gpus=0 --shards=2 --python="$python" \
    --output="$folder/again-%A_%a.log" "${sweep_flags[@]}")"
  cells="$(sed -n 's/^job \([0-9]*\): cells.*/\1/p' <<< "$submitted")"
  check "ends" wait_until 240 all_end "$cells" 2
  check "and makes no cell" test -z "$(grep -h ' Cell ' "$folder"/again-*.log)"
}

all_end() {
  [[ "$(scontrol show job "$1" | grep -c JobState=COMPLETED)" == "$2" ]]
}

six_cells() {
  local made
  made="$(grep -ho ' Cell .*' "$folder"/sweep-*.log | sort)"
  [[ "$(wc -l <<< "$made")" == 6 && "$(uniq <<< "$made" | wc -l)" == 6 ]] &&
    [[ "$(find "$folder/sweep/cells" -name metrics.json | wc -l)" == 6 ]]
}

# Disturbs a training of two nodes by a command, with the job's id added, once it
# steps, and waits for its end.
disturb() {
  local name="$1" wanted="$2" job log="$folder/$1.log"
  shift 2
  begin "$name"
  job="$(submit_train "$name" "$steps" 2)"
  check "saves" wait_until 180 saved "$name"
  began=$SECONDS
  "$@" "$job"
  check "ends within a minute" wait_until 60 restarting "$job" "$log"
  [[ -z "$wanted" ]] || check "is told" wait_until 10 says "$log" "$wanted"
  [[ "$name" != down ]] || scontrol update NodeName=127.0.0.2 State=RESUME
  check "steps again" wait_until 180 resumed "$log"
  check "ends with code 0" wait_until 400 ended_well "$job"
  check "was restarted once" restarted "$job" 1
  check "has its last checkpoint" trained "$name" "$steps"
}

restarting() { restarted "$1" 1 || says "$2" 'back into the queue'; }
resumed() { says "$1" 'Resuming from the checkpoint'; }

stage_signal() {
  local back='exit code 75 .*back into the queue'
  disturb signal "$back" scancel --signal=TERM
  disturb signal-batch "$back" scancel --batch --signal=TERM
  # To srun too, which kills its tasks.
  disturb signal-full 'back into the queue' scancel --full --signal=TERM
}

stage_kill() {
  disturb kill 'back into the queue' kill_rank
}

# Kills process 1 of the training.
kill_rank() {
  local pid
  for pid in /proc/[0-9]*; do
    if words_of "$pid/environ" | grep -qx SLURM_PROCID=1 &&
      words_of "$pid/cmdline" | grep -qx -- "--workdir=$folder/kill"; then
      kill -KILL "${pid#/proc/}"
      return
    fi
  done
  echo "no process 1 found" >&2
  return 1
}

words_of() { { tr '\0' '\n' < "$1"; } 2> /dev/null; }

stage_quick() {
  local job
  begin "a training that is killed at once, always"
  printf '#!/bin/sh\nkill -KILL $$\n' > "$folder/dies"
  chmod +x "$folder/dies"
  job="$(python="$folder/dies" submit_train quick 20 1)"
  check "is given up" wait_until 180 has_state "$job" FAILED
  check "after five deaths" times "$folder/quick.log" 'back into the queue' 4
  check "which is told" says "$folder/quick.log" '5 times in a row'
}

stage_failure() {
  local job submitted
  begin "a process that fails while the other one sleeps"
  # shellcheck disable=SC2016 # Expanded in the task.
  printf '#!/bin/sh\n[ $SLURM_PROCID = 1 ] && exit 1\nexec sleep 300\n' \
    > "$folder/fails"
  chmod +x "$folder/fails"
  job="$(python="$folder/fails" submit_train failure 20 2)"
  check "fails" wait_until 90 has_state "$job" FAILED
  check "with its code" test "$(field "$job" ExitCode)" = ExitCode=1:0
  check "and is not restarted" restarted "$job" 0
  check "which is told" says "$folder/failure.log" 'exit code 1: not started again'
  begin "a sweep whose training fails"
  submitted="$(launch/slurm_sweep.sh --config=configs/sweep_embedded.py \
    --workdir="$folder/failed" --gpus=0 --shards=2 --trainings=1 \
    --tasks-per-node=2 --python="$folder/fails" --output="$folder/failed.log")"
  job="$(sed -n 's/^job \([0-9]*\): cells.*/\1/p' <<< "$submitted")"
  check "waits" has_state "$job" PENDING
  check "its cells are cancelled" wait_until 60 has_state "$job" CANCELLED
}

# The job of a drained node continues; requeued, it starts on other nodes.
stage_drain() {
  local job log="$folder/drain.log"
  begin "drain"
  job="$(submit_train drain "$steps" 2)"
  check "saves" wait_until 180 saved drain
  began=$SECONDS
  scontrol update NodeName=127.0.0.2 State=DRAIN Reason=test
  sleep 3
  check "continues" has_state "$job" RUNNING
  scontrol requeue "$job"
  check "is requeued, onto another node" wait_until 180 resumed "$log"
  check "and not onto that one" test "$(field "$job" NodeList)" != \
    'NodeList=127.0.0.[1-2]'
  scontrol update NodeName=127.0.0.2 State=RESUME
  check "ends with code 0" wait_until 400 ended_well "$job"
  check "has its last checkpoint" trained drain "$steps"
}

stage_requeue() {
  disturb requeue '' scontrol requeue
}

stage_down() {
  disturb down '' node_down
}

node_down() {
  scontrol update NodeName=127.0.0.2 State=DOWN Reason=test
}

stages=(train sweep signal kill quick failure drain requeue down)
(($# == 0)) || stages=("$@")
fields="$(tiny train)" sweep_fields="$(tiny sweep)"
mapfile -t train_flags <<< "$fields"
mapfile -t sweep_flags <<< "$sweep_fields"
trap stop_cluster EXIT
trap 'exit 130' INT TERM
slurmctld -V
start_cluster
for stage in "${stages[@]}"; do
  "stage_$stage"
done
((failed == 0)) && echo 'all checks hold'
exit "$failed"
