#!/usr/bin/env bash
# Several GPU machines under SLURM, one process on each. A job that is preempted, or whose time is up in two minutes, saves, and is
# put back into the queue; it goes on from there.
#
#   sbatch --nodes 4 --gpus-per-node 8 launch/slurm.sh CONFIG [key=value ...]
#   launch/slurm.sh --dry-run CONFIG [key=value ...]      prints the command of the job; run nothing
#
# The checkout, its .venv (launch/gpu.sh makes it) and run_dir must lie on a disk that all machines share.
#SBATCH --job-name=jaxgrpo
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --output=jaxgrpo-%j.log
set -uo pipefail
# sbatch runs a copy of this file; the checkout is where it was called from.
# shellcheck source=launch/common.sh
source "${SLURM_SUBMIT_DIR:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}/launch/common.sh"
parse_flags "$@"
[ ${#arguments[@]} -ge 1 ] || usage "CONFIG is needed"
cd "$HERE" || exit 1

if [ -z "$DRY_RUN" ] && [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "slurm.sh: no SLURM job here: submit it with sbatch --nodes N $0 ${arguments[*]}" >&2
  exit 2
fi
first=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-}" 2> /dev/null | head -n 1)
port=$((20000 + ${SLURM_JOB_ID:-0} % 12000))
hosts="hosts.count=${SLURM_JOB_NUM_NODES:-NODES} hosts.coordinator=${first:-FIRST_NODE}:$port"
# SLURM_PROCID is known only inside each task.
# shellcheck disable=SC2016
job=(srun --kill-on-bad-exit=0 bash -c 'exec "$@" hosts.index="$SLURM_PROCID"' jaxgrpo "$(jaxgrpo_command)" train "${arguments[@]}")
read -ra words <<< "$hosts"
job+=("${words[@]}")

if [ -n "$DRY_RUN" ]; then
  run "${job[@]}"
  exit 0
fi
"${job[@]}" &
srun_pid=$!
trap 'kill -TERM $srun_pid 2> /dev/null' TERM # srun passes it on to all tasks
code=0
wait "$srun_pid" || code=$?
while kill -0 "$srun_pid" 2> /dev/null; do # the trap ended the first wait
  code=0
  wait "$srun_pid" || code=$?
done
if worth_another_start "$code" && [ "${SLURM_RESTART_COUNT:-0}" -lt "${RESTARTS:-20}" ]; then
  echo "slurm.sh: exit code $code; back into the queue" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
