#!/usr/bin/env bash
# A slice of TPUs on GKE, as a JobSet: one pod on every host, started again when one is lost or preempted.
#
#   launch/gke.sh [--dry-run] NAME CONFIG [key=value ...]       --dry-run prints the manifest instead of applying it
#
#   IMAGE       container image with this project installed in /jaxgrpo/.venv (required)
#   ACCELERATOR node label, such as tpu-v5p-slice or tpu-v5-lite-podslice (required)
#   TOPOLOGY    such as 4x4x8 (required)
#   CHIPS       of a host (default 4)
#   SLICES      joined over the data centre's network; then set mesh.data to a multiple (default 1)
#   SPOT=1      spot nodes
#   RESTARTS    of the whole job (default 20)
#
# JobSet must be installed in the cluster; run_dir must be on storage that all pods see.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse_flags "$@"
[ ${#arguments[@]} -ge 2 ] || usage "NAME and CONFIG are needed"
require IMAGE=REGISTRY/jaxgrpo ACCELERATOR=tpu-v5p-slice TOPOLOGY=2x2x2
export IMAGE ACCELERATOR TOPOLOGY CHIPS=${CHIPS:-4} SLICES=${SLICES:-1} SPOT=${SPOT:-} RESTARTS=${RESTARTS:-20}
manifest=$(python3 "$HERE/launch/gke_manifest.py" "${arguments[@]}")
if [ -n "$DRY_RUN" ]; then
  printf '%s\n' "$manifest"
else
  printf '%s\n' "$manifest" | kubectl apply -f -
  echo "gke.sh: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=${arguments[0]},batch.kubernetes.io/job-completion-index=0" >&2
fi
