#!/usr/bin/env bash
# A slice of TPU VMs, by queued resources.
#
#   launch/tpu_vm.sh [--dry-run] ACTION NAME [...]
#
#   create NAME                       ask for the slice and wait until it is there
#   install NAME                      copy this checkout (what git has committed) to all workers and install it
#   train NAME CONFIG [key=value ...] train on all workers; run_dir must be on a disk that they share
#   logs NAME [WORKER]                follow the output of a worker (default 0)
#   delete NAME                       give the slice back
#   run NAME CONFIG [key=value ...]   create, install, train; a spot slice that is taken away is asked for again. Then delete.
#
#   PROJECT, ZONE   of the slice (required)
#   ACCELERATOR     such as v5p-128 or v5litepod-16 (required by create and run)
#   RUNTIME         software version (default by ACCELERATOR)
#   SPOT=1          a spot slice: cheaper, and taken away at any moment
#   RESTARTS        how often `run` asks again (default 20)
set -uo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse_flags "$@"
[ ${#arguments[@]} -ge 2 ] || usage "ACTION and NAME are needed"
action=${arguments[0]} name=${arguments[1]}
rest=("${arguments[@]:2}")
cd "$HERE" || exit 1
made=                   # whether this call created the slice
errors=$(mktemp) || exit 1
trap 'rm -f "$errors"' EXIT

runtime() {
  case $ACCELERATOR in
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

tpu() { # gcloud's commands about one slice; $1 is its group, such as "tpu-vm ssh"
  local group
  read -ra group <<< "$1"
  shift
  run gcloud compute tpus "${group[@]}" "$@" "--project=$PROJECT" "--zone=$ZONE"
}

on_all() { # a command line on all workers
  tpu "tpu-vm ssh" "$name" --worker=all "--command=$1"
}

# One answer about the slice: its state, GONE where there is none, nothing where gcloud could not say.
answer() {
  local state
  if state=$(tpu "queued-resources describe" "$name" "--format=value(state.state)" 2> "$errors"); then
    echo "$state"
  elif grep -qiE 'NOT_FOUND|not found' "$errors"; then
    echo GONE
  else
    echo "tpu_vm.sh: asking about $name failed: $(tail -n 1 "$errors")" >&2
  fi
}

# What the slice is, for what cannot be undone: ACTIVE, or what three answers in a row say; UNKNOWN where ten do not tell.
state() {
  local try state last='' same=0
  for ((try = 0; try < 10; try++)); do
    [ "$try" -eq 0 ] || sleep "${POLL_S:-20}"
    state=$(answer)
    if [ -n "$state" ] && [ "$state" = "$last" ]; then same=$((same + 1)); else same=1; fi
    last=$state
    if [ "$state" = ACTIVE ] || { [ -n "$state" ] && [ "$same" -eq 3 ]; }; then
      echo "$state"
      return
    fi
  done
  echo UNKNOWN
}

create() {
  local spot=() state='' silent=0
  [ -n "${SPOT:-}" ] && spot=(--spot)
  tpu "queued-resources create" "$name" "--node-id=$name" "--accelerator-type=$ACCELERATOR" \
    "--runtime-version=${RUNTIME:-$(runtime)}" "${spot[@]}" || return
  made=1
  [ -n "$DRY_RUN" ] && return
  until [ "$state" = ACTIVE ]; do
    sleep "${POLL_S:-20}"
    state=$(answer)
    if [ -n "$state" ]; then silent=0; else silent=$((silent + 1)); fi
    echo "tpu_vm.sh: $name is ${state:-unknown}" >&2
    case $state in FAILED | SUSPENDED | GONE) return 1 ;; esac
    [ "$silent" -lt 10 ] || return 1
  done
}

install() {
  local archive=${TMPDIR:-/tmp}/jaxgrpo-$name.tar.gz
  run git archive --format=tar.gz "--output=$archive" HEAD || return
  tpu "tpu-vm scp" "$archive" "$name:jaxgrpo.tar.gz" --worker=all || return
  on_all "mkdir -p jaxgrpo && tar -xzf jaxgrpo.tar.gz -C jaxgrpo && cd jaxgrpo && EXTRAS=jetstream,tpu,gcs bash -c 'source launch/setup.sh'"
}

train() {
  [ ${#rest[@]} -ge 1 ] || usage "$action needs NAME and CONFIG"
  # Each worker keeps its output in train.log. hosts.count=0: JAX finds the workers in the TPU's metadata.
  on_all "cd jaxgrpo && set -o pipefail && .venv/bin/jaxgrpo train $(quoted "${rest[@]}" hosts.count=0) 2>&1 | tee -a train.log"
}

delete() {
  tpu "queued-resources delete" "$name" --force --quiet
}

case $action in
  create | run) require PROJECT=my-project ZONE=us-east5-a ACCELERATOR=v5p-128 ;;
  *) require PROJECT=my-project ZONE=us-east5-a ;;
esac
case $action in
  create | install | train | delete) "$action" ;;
  logs) tpu "tpu-vm ssh" "$name" "--worker=${rest[0]:-0}" "--command=tail -n 100 -F jaxgrpo/train.log" ;;
  run)
    [ ${#rest[@]} -ge 1 ] || usage "$action needs NAME and CONFIG"
    for ((attempt = 0; ; attempt++)); do
      code=0
      { [ -n "$made" ] || create; } && install && train || code=$?
      if [ -n "$DRY_RUN" ] || [ "$code" -eq 0 ]; then break; fi
      if [ -z "$made" ]; then # there may be a slice of this name, which is somebody else's
        echo "tpu_vm.sh: $name was not created (exit code $code); nothing is deleted" >&2
        exit "$code"
      fi
      # gcloud answers 1 when the machines are gone; a job that failed for a reason of its own says 1 or 2 as well, so look first.
      state=$(state)
      case $state in
        ACTIVE) worth_another_start "$code" || break ;;
        FAILED | SUSPENDING | SUSPENDED) [ "$attempt" -ge "${RESTARTS:-20}" ] || { delete && made=; } ;;
        GONE) made= ;;
        *)
          echo "tpu_vm.sh: exit code $code, and what became of $name cannot be told ($state): it stays, and may cost; the same" \
            "run_dir goes on with \`tpu_vm.sh train\`, \`tpu_vm.sh delete $name\` gives it back" >&2
          exit "$code"
          ;;
      esac
      if [ "$attempt" -ge "${RESTARTS:-20}" ]; then break; fi
      echo "tpu_vm.sh: exit code $code, the slice is $state; starting again ($((attempt + 1)) of ${RESTARTS:-20})" >&2
    done
    [ -z "$made" ] || delete
    exit "$code"
    ;;
  *) usage "$action is no action" ;;
esac
