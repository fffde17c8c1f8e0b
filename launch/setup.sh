# shellcheck shell=bash
# Sourced by the other scripts: makes .venv in this checkout with uv and installs the project. A second run reuses it.
#   PYTHON  the interpreter to use (default python3; 3.11 or newer)
#   VENV    the environment's folder (default .venv)
#   EXTRAS  the extras to install (default jetstream,test)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
EXTRAS=${EXTRAS:-jetstream,test}
case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac

version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || {
  echo "jaxgrpo needs Python 3.11 or newer; '$PYTHON' does not run. Set PYTHON=/path/to/python3.11." >&2
  exit 2
}
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "jaxgrpo needs Python 3.11 or newer; '$PYTHON' is $version. Set PYTHON=/path/to/python3.11." >&2
  exit 2
fi
constraints=launch/constraints-$version.txt
[ -f "$constraints" ] || constraints=launch/constraints-3.12.txt # newer interpreters: the newest set known to work

# What the environment was made of; when that changes, it is installed anew.
wanted=$(cat pyproject.toml "$constraints" launch/setup.sh | cksum; echo "$EXTRAS")
if [ "$(cat "$VENV/.installed" 2>/dev/null)" != "$wanted" ]; then
  started=$SECONDS
  echo "installing jaxgrpo[$EXTRAS] and what it needs into $VENV; the first time this downloads some 500 MB ..." >&2
  if [ -x "$VENV/bin/python" ] && [ "$("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != "$version" ]; then
    rm -rf "$VENV" # made by another interpreter
  fi
  if [ ! -x "$VENV/bin/python" ]; then
    "$PYTHON" -m venv "$VENV" || {
      rm -rf "$VENV"
      echo "'$PYTHON -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
      exit 1
    }
  fi
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check uv
  VIRTUAL_ENV="$VENV" "$VENV/bin/uv" pip install --quiet --constraint "$constraints" --editable ".[$EXTRAS]"
  case ",$EXTRAS," in
    *,jetstream,*) # without what it asks for: seqio, and so TensorFlow, which it never needs here
      VIRTUAL_ENV="$VENV" "$VENV/bin/uv" pip install --quiet --no-deps --constraint "$constraints" google-jetstream
      ;;
  esac
  echo "$wanted" > "$VENV/.installed"
  echo "installed jaxgrpo and its dependencies into $VENV in $((SECONDS - started)) s"
fi
export PATH="$VENV/bin:$PATH"
