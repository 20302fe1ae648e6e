# Sourced by the scripts beside it: one-line errors, dry runs, quoting.
# shellcheck shell=bash
#
# Bash 3.2, which macOS has, has no mapfile and no wait -n, and under `set -u`
# an empty array counts as unset: hence ${words[@]+"${words[@]}"}.

DRY_RUN="${DRY_RUN:-}"

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Prints a script's head comment, its help.
usage() {
  awk 'NR > 1 && !/^#/ { exit } NR > 1 && !/^#SBATCH/ { sub(/^# ?/, ""); print }' \
    "$1"
}

# Prints words quoted for a shell.
quote() {
  local word words=() escaped="'\\''"
  for word; do
    if [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]]; then
      words+=("$word")
    else
      words+=("'${word//\'/$escaped}'")
    fi
  done
  printf '%s\n' "${words[*]-}"
}

# Runs a command, or prints it in a dry run.
run() {
  if [[ -n "$DRY_RUN" ]]; then quote "$@"; else "$@"; fi
}

require() {
  [[ -n "$2" ]] || die "$1 is missing; see --help"
}

require_number() {
  [[ "$2" =~ ^(0|[1-9][0-9]*)$ ]] ||
    die "$1=$2: must be a whole number, without zeros in front"
  ((${#2} < 10)) || die "$1=$2: is too large"
  (($2 >= ${3:-0})) || die "$1=$2: must be at least ${3:-0}"
}

# $1 is the repository, $2 a config of it, perhaps with :FORM after its path.
require_config() {
  (cd "$1" && [[ -f "${2%%:*}" ]]) ||
    die "--config=$2: no such file; paths are relative to $1"
}

require_command() {
  [[ -n "$DRY_RUN" ]] || command -v "$1" > /dev/null ||
    die "$1: no such command on this machine; it is needed for ${0##*/}"
}
