#!/usr/bin/env bash
# A machine with GPUs: installs into .venv with CUDA, then trains on all of them; a run that was killed or stopped goes on.
#
#   launch/gpu.sh [--dry-run] CONFIG [key=value ...]
#
#   RESTARTS  how often a run that was lost is started again (default 3)
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse_flags "$@"
[ ${#arguments[@]} -ge 1 ] || usage "CONFIG is needed"
cd "$HERE"

asked=
trap 'asked=1' INT # Ctrl-C reaches the run too, which saves: it is not started again

run env EXTRAS="${EXTRAS:-jetstream,cuda,gcs}" bash -c 'source launch/setup.sh'
for ((attempt = 0; ; attempt++)); do
  code=0
  run "$HERE/.venv/bin/jaxgrpo" train "${arguments[@]}" || code=$?
  if [ -n "$DRY_RUN$asked" ] || ! worth_another_start "$code" || [ "$attempt" -ge "${RESTARTS:-3}" ]; then exit "$code"; fi
  echo "gpu.sh: exit code $code; starting again ($((attempt + 1)) of ${RESTARTS:-3})" >&2
done
