#!/usr/bin/env bash
# The main job, from nothing: installs into .venv, then trains the built-in miniature by GRPO on this machine's processor.
#
#   launch/quickstart.sh [key=value ...]     such as seed=1 run_dir=runs/second
#
# Any key of `jaxgrpo train --help`. The same command goes on with its run, or finds it finished.
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse_flags "$@"
[ -z "$DRY_RUN" ] || arguments+=(--dry-run)
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec jaxgrpo train configs/quickstart.yaml "${arguments[@]}"
