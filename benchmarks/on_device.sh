#!/usr/bin/env bash
# Check and measure this project on one NVIDIA GPU, in at most 35 minutes.
#
#   benchmarks/on_device.sh runs/h100 WHEELS=wheels PEER=guided-diffusion
#
# The first argument is the folder of the results. Each step is a process of its
# own, with a time limit, STEP.log and STEP.json; a step whose JSON is there is
# skipped, so the same command resumes. A step that fails leaves STEP.failed and
# is tried again by the next call, after those that were never tried.
#
# WHEELS=DIR      wheels to install into the folder, without their dependencies
# PEER=DIR        checkout of github.com/openai/guided-diffusion; without it no
#                 step is timed beside PyTorch
# DATA=idx:DIR    Fashion-MNIST's four files; without it no sweep
# BUDGET=SECONDS  after which no step runs; default 2100
# BATCHES64=LIST  of ADM-64, such as 64,128; default 128,64,256
# BATCHES128=LIST of ADM-128; default 32,64
# TINY=1          the same steps in small on a CPU, which proves this script
# PYTHON=PROGRAM  default python3
#
# All may be set in the environment, too. Steps, in this order: the networks
# against stored numbers and attention by cuDNN; the same images from several
# batch sizes; training and sampling at the first of each list of batches; the
# same beside PyTorch; the other batches; batch sizes at full size; and in what
# time is left the sweep over Fashion-MNIST. At the end a summary and
# a table of the measurements are printed, also to tables.md. Exit code 1 means
# that a step failed, 2 a mistake in the arguments.
#
# Python needs jax, flax, optax, orbax-checkpoint, numpy, pillow, scipy and
# opencv-python-headless, and for PEER torch. Beside these two small wheels are
# needed, of pure Python: ml_collections and clu. The sweep needs all of
# setup.py, TensorFlow included, and is skipped without.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=launch/shell.sh disable=SC1091
source "$root/launch/shell.sh"

WHEELS="${WHEELS:-}" PEER="${PEER:-}" DATA="${DATA:-}" TINY="${TINY:-}"
BUDGET="${BUDGET:-2100}" PYTHON="${PYTHON:-python3}"
BATCHES64="${BATCHES64:-}" BATCHES128="${BATCHES128:-}"

read_arguments() {
  local word
  [[ "${1:-}" != --help && "${1:-}" != -h ]] || { usage "$0" && exit; }
  (($#)) || die "no folder for the results: give it first, see --help"
  [[ "$1" != *=* && "$1" != -* ]] ||
    die "$1: the first argument is the folder of the results, see --help"
  folder="$1"
  for word in "${@:2}"; do
    case "$word" in
      WHEELS=* | PEER=* | DATA=* | BUDGET=* | TINY=* | PYTHON=* | \
        BATCHES64=* | BATCHES128=*) printf -v "${word%%=*}" %s "${word#*=}" ;;
      *) die "$word: unknown option, see --help" ;;
    esac
  done
}

check_arguments() {
  require_number BUDGET "$BUDGET" 1
  [[ -z "$TINY" || "$TINY" == 1 ]] || die "TINY=$TINY: must be 1 or nothing"
  [[ -z "$WHEELS" ]] || compgen -G "$WHEELS/*.whl" > /dev/null ||
    die "WHEELS=$WHEELS: no folder with wheels"
  [[ -z "$PEER" || -f "$PEER/guided_diffusion/unet.py" ]] ||
    die "PEER=$PEER: no checkout of guided-diffusion"
  [[ -z "$DATA" || "$DATA" == idx:* && -d "${DATA#idx:}" ]] ||
    die "DATA=$DATA: must be idx:DIR, a folder of Fashion-MNIST's files"
  local list
  for list in "BATCHES64=$BATCHES64" "BATCHES128=$BATCHES128"; do
    [[ "${list#*=}" =~ ^([1-9][0-9]{0,5}(,[1-9][0-9]{0,5})*)?$ ]] ||
      die "$list: must be numbers, such as 64,128"
    [[ -z "$(tr , '\n' <<< "${list#*=}" | sort | uniq -d)" ]] ||
      die "$list: one number is there twice"
  done
  command -v "$PYTHON" > /dev/null || die "PYTHON=$PYTHON: no such program"
  command -v flock timeout > /dev/null || die "needs Linux's flock and timeout"
}

absolute() { (cd "$1" && pwd); }

# Makes paths independent of the working directory, and takes the folder.
open_folder() {
  mkdir -p "$folder" 2> /dev/null || die "$folder: cannot be made"
  folder="$(absolute "$folder")"
  [[ -z "$WHEELS" ]] || WHEELS="$(absolute "$WHEELS")"
  [[ -z "$PEER" ]] || PEER="$(absolute "$PEER")"
  [[ -z "$DATA" ]] || DATA="idx:$(absolute "${DATA#idx:}")"
  exec 9> "$folder/lock"
  flock -n 9 || die "$folder: another call is at work there"
  cd "$root"
}

set_environment() {
  export PYTHONPATH="$root:$folder/site${PYTHONPATH:+:$PYTHONPATH}"
  export PYTHONUNBUFFERED=1
  # A step that was cut short compiles faster the next time.
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$folder/jax}"
  # The default leaves a quarter of the memory to others; there are none.
  export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}"
  [[ -z "$TINY" ]] || export JAX_PLATFORMS=cpu
}

install_wheels() {
  [[ -n "$WHEELS" ]] || return 0
  "$PYTHON" -m pip install --quiet --no-deps --no-index --upgrade \
    --disable-pip-version-check --target "$folder/site" "$WHEELS"/*.whl \
    > "$folder/wheels.log" 2>&1 ||
    die "WHEELS=$WHEELS: $(last_words "$folder/wheels.log")"
}

check_python() {
  local log="$folder/python.log"
  "$PYTHON" -c "import benchmarks.parity, benchmarks.programs" > "$log" 2>&1 ||
    die "$PYTHON: $(last_words "$log"); wheels are given by WHEELS=DIR"
  [[ -n "$TINY" ]] ||
    "$PYTHON" -c "import jax; jax.devices('gpu')" > "$log" 2>&1 ||
    die "JAX finds no GPU here; TINY=1 runs on a CPU"
}

# Prints one line of a log that says why a program failed.
last_words() {
  local line kinds='error|stopped|ERROR|FATAL|[A-Za-z_.]+(Error|Exception)'
  line="$(grep -aE "^($kinds):? " "$1" | tail -n 1)" ||
    line="$(grep -av '^\s*$' "$1" | tail -n 1)" || true
  printf '%s' "${line:0:160}"
}

left=() skipped=() tried=" " child="" pass=""

say() { printf '%5d s  %s\n' "$SECONDS" "$*"; }

# Returns whether step $1 is for this pass: first what never ran, then what
# failed in earlier calls, which is likely to fail again.
is_due() {
  [[ ! -e "$folder/$1.json" && "$tried" != *" $1 "* ]] || return 1
  if [[ "$pass" == again ]]; then
    [[ -e "$folder/$1.failed" ]]
  else
    [[ ! -e "$folder/$1.failed" ]]
  fi
}

# step NAME SECONDS COMMAND...: the command may write NAME.part, a report.
step() {
  local name="$1" limit="$2" before="$SECONDS" code=0 remaining
  shift 2
  if ! is_due "$name"; then return 0; fi
  remaining=$((BUDGET - SECONDS))
  if ((remaining <= 0)); then
    [[ "$pass" == again ]] || left+=("$name")
    return 0
  fi
  tried+="$name "
  rm -f "$folder/$name.part" "$folder/$name.failed"
  # Sent to the background: a trap would wait for a command in front.
  timeout -k 30 "$((remaining < limit ? remaining : limit))" "$@" \
    > "$folder/$name.log" 2>&1 9>&- &
  child=$!
  wait "$child" || code=$?
  child=""
  finish "$name" "$limit" "$code" "$remaining" "$((SECONDS - before))"
}

# finish NAME LIMIT CODE REMAINING SECONDS
finish() {
  local part="$folder/$1.part" why
  if (($3 == 0)); then
    [[ -e "$part" ]] || printf '{"program": "%s"}\n' "$1" > "$part"
    mv "$part" "$folder/$1.json"
    say "$1: done in $5 s"
  elif (($3 == 124 || $3 == 137)) && (($4 < $2 && $5 >= $4)); then
    left+=("$1")
    say "$1: cut off by BUDGET=$BUDGET"
  else
    why="$(last_words "$folder/$1.log")"
    (($3 != 124)) || why="took longer than its limit of $2 s"
    if [[ -e "$part" ]]; then mv "$part" "$folder/$1.failed"; fi
    touch "$folder/$1.failed"
    say "$1: FAILED with exit code $3: ${why:-see $1.log}"
  fi
}

skip() {
  [[ "$pass" == again ]] || skipped+=("$*")
}

# bench NAME SECONDS MODULE FLAGS...
bench() {
  step "$1" "$2" "$PYTHON" -m "benchmarks.$3" --json="$folder/$1.part" "${@:4}"
}

# Sets the sizes of all steps.
set_sizes() {
  model=(--config.model.dtype=bfloat16)
  sizes=(--matmul=8192) images=128 layouts=8,64,125,128 attention=8
  peers64=(32 64) peers128=(8 32) compile=(--compile)
  BATCHES64="${BATCHES64:-${TINY:+2,1}}" BATCHES128="${BATCHES128:-${TINY:+1}}"
  IFS=, read -ra batches64 <<< "${BATCHES64:-128,64,256}"
  IFS=, read -ra batches128 <<< "${BATCHES128:-32,64}"
  [[ -n "$TINY" ]] || return 0
  model=(--config.model.dtype=float32 --config.data.image_size=16
    --config.model.model_channels=32 "--config.model.channel_mult=(1,2)"
    --config.model.num_res_blocks=1 "--config.model.attention_resolutions=(8,)")
  sizes=(--matmul=256 --repeats=2) images=6 layouts=2,4,5 attention=1
  peers64=(2 2) peers128=(2 2) compile=()
}

# measure SIDE BATCH: training and sampling of a model.
measure() {
  local what
  for what in train_step sample; do
    bench "$what-imagenet$1-$2" 300 "$what" --batch="$2" "${sizes[@]}" \
      --config="configs/imagenet$1.py" "${model[@]}"
  done
}

# beside_peer SIDE TRAINING-BATCH SAMPLING-BATCH
beside_peer() {
  local what batch="$2"
  # Two libraries share the device: neither may take all of its memory.
  export XLA_PYTHON_CLIENT_PREALLOCATE=false
  for what in train_step sample; do
    bench "peer-$what-imagenet$1-$batch" 480 peer --peer="$PEER" \
      --what="$what" --batch="$batch" --config="configs/imagenet$1.py" \
      ${compile[@]+"${compile[@]}"} "${model[@]}" "${sizes[@]}"
    batch="$3"
  done
  unset XLA_PYTHON_CLIENT_PREALLOCATE
}

compare_peers() {
  if [[ -z "$PEER" ]]; then
    skip "peer-*: PEER is not given"
  elif ! "$PYTHON" -c "import torch" 2> /dev/null; then
    skip "peer-*: no torch"
  else
    beside_peer 64 "${peers64[@]}"
    beside_peer 128 "${peers128[@]}"
  fi
}

# compare_layouts NAME SECONDS FLAGS...
compare_layouts() {
  bench "layouts-$1" "$2" layouts --batches="$layouts" --images="$images" \
    "${@:3}"
}

run_sweep() {
  local config=configs/sweep_fashion_mnist.py plan=()
  if [[ -z "$DATA" ]]; then
    skip "sweep: DATA is not given"
    return 0
  fi
  if [[ -n "$TINY" ]]; then config+=:fast plan=(--plan); else config+=:gpu; fi
  local needs="experiments.sweep, array_record, grain, tensorflow_datasets"
  if ! "$PYTHON" -c "import $needs" > "$folder/sweep.imports.log" 2>&1; then
    skip "sweep: $(last_words "$folder/sweep.imports.log")"
    return 0
  fi
  step sweep "$BUDGET" "$PYTHON" -m experiments.sweep \
    --config="$config" --config.data.source="$DATA" \
    --config.data.dir="$folder/data" --workdir="$folder/sweep" \
    ${plan[@]+"${plan[@]}"}
}

all_steps() {
  local batch reported=(--config.model.dtype=bfloat16 --most=255)
  bench parity 420 parity --batch="$attention"
  compare_layouts float32 300
  compare_layouts bfloat16 300 "${reported[@]}"
  measure 64 "${batches64[0]}"
  measure 128 "${batches128[0]}"
  compare_peers
  for batch in "${batches64[@]:1}"; do measure 64 "$batch"; done
  for batch in "${batches128[@]:1}"; do measure 128 "$batch"; done
  compare_layouts imagenet64 600 --config=configs/imagenet64.py \
    "${model[@]}" --most=255
  run_sweep
}

summarize() {
  local file failed=()
  for file in "$folder"/*.failed; do
    [[ ! -e "$file" ]] || failed+=("$(basename "$file" .failed)")
  done
  printf '\n%d steps done; failed: %s; left for the next call: %s\n' \
    "$(find "$folder" -maxdepth 1 -name '*.json' | wc -l)" \
    "${failed[*]:-none}" "${left[*]:-none}"
  for file in ${skipped[@]+"${skipped[@]}"}; do
    printf 'skipped %s\n' "$file"
  done
  "$PYTHON" -m benchmarks.device_tables --folder="$folder" 2>&1 9>&- |
    tee "$folder/tables.md" || true
  ((${#failed[@]} == 0))
}

# shellcheck disable=SC2329 # Called by a trap.
stop() {
  [[ -z "$child" ]] || kill "$child" 2> /dev/null || true
  printf 'stopped: the same command continues\n' >&2
  exit 130
}

read_arguments "$@"
check_arguments
open_folder
set_environment
install_wheels
check_python
set_sizes
trap stop INT TERM
for pass in new again; do all_steps; done
summarize
