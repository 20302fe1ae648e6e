#!/usr/bin/env bash
# Train and sweep on a Cloud TPU pod slice, all of its workers at once.
#
#   launch/tpu_pod.sh create --name=N --zone=Z --type=v5p-128 [--spot]
#   launch/tpu_pod.sh sync   --name=N --zone=Z [--data=gs://BUCKET/data]
#   launch/tpu_pod.sh train  --name=N --zone=Z --config=configs/imagenet64.py \
#     --workdir=gs://BUCKET/imagenet64 [--config.X.Y=VALUE ...]
#   launch/tpu_pod.sh sweep  ... the same flags; of several pods also
#     --part=trainings or --part=cells, each with --shard=I/N
#   launch/tpu_pod.sh status | logs | stop | delete  --name=N --zone=Z
#
# create   requests the slice as a queued resource and waits until it is active
# sync     copies git's files to every worker and installs them, and prepared
#          data from a bucket to ~/tensorflow_datasets
# train    starts experiments.train on every worker and returns
# sweep    the same with experiments.sweep
# status   of the queued resource, and of the run on every worker
# logs     follows the log of a worker
# stop     SIGTERM to the run on every worker: it saves and ends; train and sweep
#          with the same flags resume it
# delete   deletes the queued resource and its slice, after asking
#
# --name=N      of the queued resource and of its node
# --zone=Z      such as us-east5-a
# --project=P   (default: gcloud's)
# --type=T      accelerator type, such as v5p-128, v6e-64, v4-32
# --runtime=R   software version (default: the one for the type)
# --spot        cheaper, may be preempted
# --data=DIR    folder in a bucket with what experiments.prepare_data made
# --python=V    version of Python on the workers (default 3.11)
# --watch       of train and sweep: stay, recreate a preempted slice and resume;
#               needs --type, and --spot and --data as create and sync had them
# --worker=I    of logs (default 0)
# --every=S     seconds between polls (default 60)
# --yes         delete without asking
# --dry-run     print every command
#
# Needs gcloud, logged in, whose credentials are used.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"
# shellcheck source=launch/shell.sh
source "$here/shell.sh"

name="" zone="" project="" type="" runtime="" spot="" data="" version=3.11
watch="" every=60 yes="" worker=0 config="" workdir="" shard="" part=""
passed=()
action="${1:---help}"
(($# == 0)) || shift

parse() {
  while (($#)); do
    case "$1" in
      --name=*) name="${1#*=}" ;;
      --zone=*) zone="${1#*=}" ;;
      --project=*) project="${1#*=}" ;;
      --type=*) type="${1#*=}" ;;
      --runtime=*) runtime="${1#*=}" ;;
      --spot) spot=1 ;;
      --data=*) data="${1#*=}" ;;
      --python=*) version="${1#*=}" ;;
      --watch) watch=1 ;;
      --every=*) every="${1#*=}" ;;
      --yes) yes=1 ;;
      --worker=*) worker="${1#*=}" ;;
      --config=*) config="${1#*=}" ;;
      --workdir=*) workdir="${1#*=}" ;;
      --shard=*) shard="${1#*=}" ;;
      --part=*) part="${1#*=}" ;;
      --config.*=*) passed+=("$1") ;;
      --dry-run) DRY_RUN=1 ;;
      --help | -h) usage "$0" && exit ;;
      *) die "$1: unknown option; see --help" ;;
    esac
    shift
  done
  require --name "$name"
  require --zone "$zone"
  [[ "$name" =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
    die "--name=$name: lower-case letters, digits and hyphens, a letter first"
  require_number --every "$every"
  where=("--zone=$zone" ${project:+"--project=$project"})
  require_command gcloud
}

queued() {
  run gcloud compute tpus queued-resources "$1" "$name" "${where[@]}" "${@:2}"
}

# Runs a command in a shell of workers: all, or one by its number.
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" \
    "--command=$2"
}

# Prints the state of the queued resource, such as ACTIVE; NONE if there is
# none, UNKNOWN if gcloud fails.
state() {
  local errors
  errors="$(mktemp)"
  if ! queued describe '--format=value(state.state)' 2> "$errors"; then
    if grep -q NOT_FOUND "$errors"; then
      echo NONE
    else
      cat "$errors" >&2
      echo UNKNOWN
    fi
  fi
  rm -f "$errors"
}

runtime_of() {
  case "$1" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) die "--type=$1: unknown; give its --runtime, too" ;;
  esac
}

create() {
  require --type "$type"
  [[ -n "$runtime" ]] || runtime="$(runtime_of "$type")"
  queued create "--node-id=$name" "--accelerator-type=$type" \
    "--runtime-version=$runtime" ${spot:+--spot}
  await_slice
}

await_slice() {
  local now
  if [[ -n "$DRY_RUN" ]]; then
    echo "# until it prints ACTIVE, every $every s:"
    state
    return
  fi
  while true; do
    now="$(state)"
    case "$now" in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | NONE)
        die "queued resource $name is $now: tpu_pod.sh status says more"
        ;;
    esac
    echo "$name: $now" >&2
    sleep "$every"
  done
}

# Copies git's files in their present state and installs them. uv provides the
# Python that the workers' system lacks.
sync_code() {
  local archive=/tmp/cfgd.tar.gz
  [[ -n "$DRY_RUN" ]] || archive="$(mktemp -d)/cfgd.tar.gz"
  # shellcheck disable=SC2016 # Expanded by the inner shell.
  run bash -o pipefail -c \
    'git -C "$1" ls-files -z | tar -C "$1" --null -T - -czf "$2"' \
    pack "$root" "$archive"
  run gcloud compute tpus tpu-vm scp "$archive" "$name:" "${where[@]}" \
    --worker=all
  on_workers all "mkdir -p cfgd && tar -xzf cfgd.tar.gz -C cfgd"
  on_workers all "python3 -m pip install --quiet --user uv"
  on_workers all "test -x cfgd-venv/bin/python ||\
 python3 -m uv venv --quiet --python $version cfgd-venv"
  on_workers all "python3 -m uv pip install --quiet\
 --python cfgd-venv/bin/python --editable './cfgd[tpu]'"
}

# Copies data to where TFDS and data.dir='' look for it.
sync_data() {
  [[ -n "$data" ]] || return 0
  on_workers all "mkdir -p tensorflow_datasets && gcloud storage rsync\
 --recursive $(quote "$data") tensorflow_datasets"
}

start() {
  local module="experiments.$1"
  on_workers all "cfgd/launch/tpu_worker.sh start $(quote "$module" \
    "--config=$config" "--workdir=$workdir" ${part:+"--part=$part"} \
    ${shard:+"--shard=$shard"} ${passed[@]+"${passed[@]}"})"
}

launch() {
  require --config "$config"
  require --workdir "$workdir"
  require_config "$root" "$config"
  [[ "$workdir" == gs://* ]] ||
    die "--workdir=$workdir: must be in a bucket, gs://..., which all workers see"
  [[ "$1" == sweep || -z "$shard$part" ]] ||
    die "--shard and --part belong to sweep"
  [[ -z "$part" || "$part" =~ ^(all|trainings|cells)$ ]] ||
    die "--part=$part: must be all, trainings or cells"
  [[ -z "$shard" || "$shard" =~ ^[1-9][0-9]*/[1-9][0-9]*$ ]] ||
    die "--shard=$shard: must be i/n, such as 2/4"
  [[ -z "$shard" ]] || ((${shard%/*} <= ${shard#*/})) ||
    die "--shard=$shard: i must be at most n"
  [[ -z "$watch" ]] || require --type "$type"
  start "$1"
  [[ -z "$watch" ]] || watch_run "$1"
}

# Polls the slice and worker 0 until the run has ended.
watch_run() {
  local now line
  if [[ -n "$DRY_RUN" ]]; then
    echo "# every $every s:"
    state
    on_workers 0 'cfgd/launch/tpu_worker.sh status'
    echo '# and if the slice was preempted:'
    make_anew "$1"
    return
  fi
  while true; do
    sleep "$every"
    now="$(state)"
    case "$now" in
      SUSPENDING | SUSPENDED | FAILED | NONE)
        echo "$name: $now; making it anew" >&2
        make_anew "$1"
        continue
        ;;
    esac
    # A worker that does not answer is polled again.
    line="$(on_workers 0 'cfgd/launch/tpu_worker.sh status' 2> /dev/null)" ||
      continue
    echo "$line" >&2
    case "$line" in
      *": running"*) ;;
      *": ended with 0"*) return ;;
      # The other workers may still run.
      *": not started"* | *": died"*) start "$1" || true ;;
      *": ended with 75"*) die "$name: stopped; run the same command again to resume" ;;
      *": ended with "*) die "$name: the run failed; see tpu_pod.sh logs" ;;
    esac
  done
}

# Recreates the slice; the run's files are in the bucket.
make_anew() {
  [[ "${now:-SUSPENDED}" == NONE ]] || queued delete --force --quiet
  create
  sync_code
  sync_data
  start "$1"
}

delete() {
  local answer
  echo "This deletes the queued resource $name in $zone, its TPU slice, and the" \
    "disks of its workers. Buckets stay." >&2
  if [[ -z "$yes" && -z "$DRY_RUN" ]]; then
    read -r -p "Type its name to go on: " answer || true
    [[ "$answer" == "$name" ]] || die "not deleted: '$answer' is not '$name'"
  fi
  queued delete --force --quiet
}

case "$action" in
  --help | -h) usage "$0" && exit ;;
  create | sync | train | sweep | status | logs | stop | delete) parse "$@" ;;
  *) die "$action: create, sync, train, sweep, status, logs, stop or delete" ;;
esac
case "$action" in
  create) create ;;
  sync)
    sync_code
    sync_data
    ;;
  train | sweep) launch "$action" ;;
  status)
    queued describe '--format=yaml(name,state,tpu)'
    on_workers all 'cfgd/launch/tpu_worker.sh status'
    ;;
  logs) on_workers "$worker" 'tail -n 50 -F cfgd-run/log' ;;
  stop) on_workers all 'cfgd/launch/tpu_worker.sh stop' ;;
  delete) delete ;;
esac
