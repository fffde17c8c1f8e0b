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
[ ${#arguments[@]} -ge 2 ] || usage
action=${arguments[0]} name=${arguments[1]}
rest=("${arguments[@]:2}")
cd "$HERE" || exit 1

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

create() {
  local spot=()
  [ -n "${SPOT:-}" ] && spot=(--spot)
  tpu "queued-resources create" "$name" "--node-id=$name" "--accelerator-type=$ACCELERATOR" \
    "--runtime-version=${RUNTIME:-$(runtime)}" "${spot[@]}" || return
  [ -n "$DRY_RUN" ] && return
  local state=''
  until [ "$state" = ACTIVE ]; do
    sleep "${POLL_S:-20}"
    state=$(tpu "queued-resources describe" "$name" "--format=value(state.state)") || return
    echo "tpu_vm.sh: $name is ${state:-unknown}" >&2
    case $state in FAILED | SUSPENDED) return 1 ;; esac
  done
}

install() {
  local archive=${TMPDIR:-/tmp}/jaxgrpo-$name.tar.gz
  run git archive --format=tar.gz "--output=$archive" HEAD || return
  tpu "tpu-vm scp" "$archive" "$name:jaxgrpo.tar.gz" --worker=all || return
  on_all "mkdir -p jaxgrpo && tar -xzf jaxgrpo.tar.gz -C jaxgrpo && cd jaxgrpo && EXTRAS=jetstream,tpu,gcs bash -c 'source launch/setup.sh'"
}

train() {
  [ ${#rest[@]} -ge 1 ] || usage
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
    [ ${#rest[@]} -ge 1 ] || usage
    for ((attempt = 0; ; attempt++)); do
      code=0
      create && install && train || code=$?
      # gcloud answers 1 when the machines are gone; a job that failed for a reason of its own says 1 or 2 as well, so look first.
      if [ -n "$DRY_RUN" ] || [ "$code" -eq 0 ] || [ "$attempt" -ge "${RESTARTS:-20}" ]; then break; fi
      state=$(tpu "queued-resources describe" "$name" "--format=value(state.state)")
      if [ "$state" = ACTIVE ] && ! worth_another_start "$code"; then break; fi
      echo "tpu_vm.sh: exit code $code, the slice is ${state:-gone}; starting again ($((attempt + 1)) of ${RESTARTS:-20})" >&2
      if [ "$state" != ACTIVE ]; then delete; fi
    done
    delete
    exit "$code"
    ;;
  *) echo "tpu_vm.sh: $action is no action" >&2; usage ;;
esac
