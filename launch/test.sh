#!/usr/bin/env bash
# The tests, from nothing: installs into .venv, then runs pytest. Usage: bash launch/test.sh [pytest arguments]
#   bash launch/test.sh -m slow      the long ones
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m pytest "$@"
