# shellcheck shell=bash
# Sourced by the launchers: --dry-run, --help, quoting, and which exit codes are worth another start.

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DRY_RUN=${DRY_RUN:-}

# The comment at the head of the calling script.
show_help() {
  awk 'NR > 1 { if (!/^# ?/ || /^#SBATCH/ || /^# shellcheck/) exit; sub(/^# ?/, ""); print }' "$0"
}

# The same for a command that cannot be meant; $1 says why.
usage() {
  show_help >&2
  printf '\n%s\n' "$(basename "$0"): $1" >&2
  exit 2
}

# Ends unless all of these variables are set; each comes with an example: NAME=VALUE.
require() {
  local one missing=''
  for one in "$@"; do
    local name=${one%%=*}
    [ -n "${!name:-}" ] || missing+=" $one"
  done
  [ -z "$missing" ] || { echo "$(basename "$0"): set$missing (these are examples; see --help)" >&2; exit 2; }
}

# Takes --dry-run and --help out of the arguments, wherever they stand; what is left is in the array `arguments`.
parse_flags() {
  arguments=()
  local argument
  for argument in "$@"; do
    case $argument in
      --dry-run) DRY_RUN=1 ;;
      -h | --help) show_help; exit 0 ;;
      *) arguments+=("$argument") ;;
    esac
  done
}

# The words of a command as one line that a shell reads back to the same words.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# Runs a command, or with --dry-run prints it as it would be typed.
run() {
  if [ -n "$DRY_RUN" ]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

# Whether a job that ended with this code goes on when it is started again: 75 is stopped and saved, 76 that another host was lost;
# from 128 on it was killed, or aborted by JAX because another process was; 130 is a Ctrl-C. Anything else has a reason that a second try meets again.
worth_another_start() {
  [ "$1" -eq 75 ] || [ "$1" -eq 76 ] || { [ "$1" -ge 128 ] && [ "$1" -ne 130 ]; }
}

# The jaxgrpo command of this checkout's environment where there is one.
jaxgrpo_command() {
  if [ -x "$HERE/.venv/bin/jaxgrpo" ]; then echo "$HERE/.venv/bin/jaxgrpo"; else echo jaxgrpo; fi
}
