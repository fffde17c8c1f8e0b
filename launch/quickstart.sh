#!/usr/bin/env bash
# The main job, from nothing: installs into .venv, then trains the built-in miniature by GRPO on this machine's processor.
# Usage: bash launch/quickstart.sh [key=value ...]     such as seed=1 run_dir=runs/second
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec jaxgrpo train configs/quickstart.yaml "$@"
