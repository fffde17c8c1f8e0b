"""`python -m eval`: the same as `jaxgrpo eval`."""

import sys

from jaxgrpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
