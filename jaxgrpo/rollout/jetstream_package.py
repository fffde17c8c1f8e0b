"""Whether JetStream is installed, and the command that installs it. Imports neither jax nor any part of it.

google-jetstream 0.2.2 asks for seqio and so for TensorFlow, which is never used here. pip cannot leave a package's own
requirements aside, so the extra `jetstream` lists what the service needs and the package itself is installed without its own.
"""

import importlib.metadata
import shlex
import sys

from jaxgrpo.errors import UserError

VERSION = "0.2.2"
NEEDED = ("grpcio", "protobuf", "prometheus-client", "shortuuid")  # as the extra `jetstream` of pyproject.toml


class JetStreamMissing(UserError):
    """google-jetstream or something that it needs is not installed; the message gives the command."""


def require_jetstream(what: str) -> None:
    """JetStreamMissing, with the exact command, where what `what` names cannot run because packages are missing."""
    pip = f"{shlex.quote(sys.executable)} -m pip install"
    missing = [name for name in NEEDED if _version(name) is None]
    found = _version("google-jetstream")
    if found == VERSION and not missing:
        return
    commands = [f"{pip} {' '.join(missing)}"] if missing else []
    commands += [f"{pip} --no-deps google-jetstream=={VERSION}"] if found != VERSION else []
    absent = [*([] if found else ["google-jetstream"]), *missing]
    reasons = [f"{' and '.join(absent)} {'are' if len(absent) > 1 else 'is'} not installed"] if absent else []
    reasons += [f"google-jetstream {found} is not {VERSION}"] if found not in (None, VERSION) else []
    raise JetStreamMissing(f"{what} needs google-jetstream {VERSION}; {', '.join(reasons)}: run {' && '.join(commands)}")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
