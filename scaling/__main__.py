"""`python -m scaling [METRICS ...]`, also `jaxgrpo fit METRICS ...`.

Without METRICS: the published curves, the paper's Table 6 beside our fits, and what it leaves out; with options that ask for
something else, these act on the published curves as on any others. Exit codes: 0 done, 1 failed (the data cannot support a
fit), 2 bad usage.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from scaling import published, report, tables
from scaling.design import OBJECTIVES, WEIGHTS
from scaling.law import RESAMPLES
from scaling.reading import SMALLEST_N, load
from scaling.runs import X_COLUMNS, DataError

TABLE_6 = {"bootstrap", "seed", "compare", "out"}  # options of the comparison with the published fits
PROG = "python -m scaling"
SELECTION = ("family", "size", "warmup", "ending")  # options that say which points are read
REUSE = {*SELECTION, "bootstrap", "seed", "out"}  # of runs that differ in reuse_factor
UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}


def quantity(text: str) -> float:
    """'72e9' or '72B' as a positive number."""
    match = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)([kmb]?)", text.strip().lower())
    try:
        value = float(match[1]) * UNITS[match[2]] if match else 0.0
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number such as 72e9 or 72B")
    return value


def prediction(text: str) -> tuple[float, float | None]:
    """'N=72e9' or 'N=72e9,X=1e20' as (N, X or None)."""
    parts = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    if "N" not in parts or set(parts) - {"N", "X"} or len(parts) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form N=72e9 or N=72e9,X=1e20")
    n = quantity(parts["N"])
    if n < SMALLEST_N:
        raise argparse.ArgumentTypeError(f"N={parts['N']}: N counts parameters, not billions of them: N=72e9 or N=72B")
    return n, quantity(parts["X"]) if "X" in parts else None


def path(text: str) -> str:
    """A path, the home directory for a leading `~/`: the shell leaves that in quotes and behind `--out=`."""
    return os.path.expanduser(text) if text.startswith("~/") else text


def loss(text: str) -> float:
    """A loss strictly between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a loss between 0 and 1")
    return value


def count(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command line of `python -m scaling` and `jaxgrpo fit`; options that are not given are absent from what it returns."""
    p = argparse.ArgumentParser(
        prog=prog,
        description="Fit log10 L = -k(N) log10 X + E(N), k(N) = K_max / (1 + N_0/N), to held-out loss; predict; draw.",
        epilog="Without METRICS: the published curves of arXiv 2509.25300 against its published fits (--bootstrap, --seed, "
        "--compare and --out act there); with any other option, a fit of the published curves as of your own.",
        argument_default=argparse.SUPPRESS,
    )
    p.add_argument("metrics", metavar="METRICS", nargs="*", type=path, help="run directories, metrics.jsonl files or CSV files")
    p.add_argument("--x", choices=sorted(X_COLUMNS), help="what L is a law of (default: compute, 6 N tokens)")
    p.add_argument(
        "--predict",
        type=prediction,
        action="append",
        metavar="N=72e9[,X=1e20]",
        help="predict a size; one that is among the runs is also held out and predicted from the smaller ones",
    )
    p.add_argument("--target", type=loss, action="append", metavar="LOSS", help="X that each size needs for this loss")
    p.add_argument(
        "--out", type=lambda text: Path(path(text)), metavar="DIR", help="write law.json and the figures (PDF, PNG) there"
    )
    p.add_argument("--family", help="only this model_family")
    p.add_argument("--objective", choices=OBJECTIVES, help="log (default), linear (the paper's) or huber")
    p.add_argument("--weights", choices=WEIGHTS, help="equal total per model (default), per point, or 1/variance")
    p.add_argument("--size", help="key that N is read from (default: n_nominal, else n_params)")
    p.add_argument("--warmup", type=count, metavar="K", help="drop the first K points of every curve")
    p.add_argument("--ending", type=count, metavar="K", help="drop the last K points of every curve")
    p.add_argument(
        "--bootstrap",
        type=count,
        metavar="R",
        help="bootstrap fits (default: 2000, of the published curves 1000; 0: no intervals)",
    )
    p.add_argument("--resample", choices=RESAMPLES, help="what is drawn again: residual blocks (default), runs or questions")
    p.add_argument("--block", type=count, metavar="STEPS", help="length of --resample block (default: n^(1/3))")
    p.add_argument("--seed", type=count, help="of everything that is drawn (default: 0)")
    p.add_argument("--compare", action="store_true", help="also compare other laws by AICc and rolling-origin hold-out")
    return p


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Run the command line; returns the exit code. prog: the command as it was typed, for help and messages."""
    try:
        given = vars(parser(prog).parse_args(None if argv is None else list(argv)))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() or os.environ.get("COLUMNS") else None
    try:
        with tables.narrowed(width):
            _fit(given, lambda text: print(tables.wrapped(text, width)))
    except _Refused as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except (DataError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    return 0


class _Refused(DataError):
    """Options that cannot be meant together."""


def _fit(given: dict, say: Callable[[str], None]) -> None:
    metrics = given.pop("metrics", [])
    family, size = given.get("family"), given.get("size", "n_nominal")
    options = report.Options(**{name: value for name, value in given.items() if name not in SELECTION})
    if options.bootstrap == 0 and given.keys() & {"resample", "block"}:
        raise _refused(given.keys() & {"resample", "block"}, "with --bootstrap 0, which draws nothing")
    if not metrics and not given.keys() - TABLE_6:
        report.from_paper(options, say)
        return
    if not metrics:
        say("no METRICS: the published curves of arXiv 2509.25300; without these options, the paper's Table 6")
    runs = load(metrics or published.DATA / published.MAIN, size=size)
    if family is not None:
        runs = runs.select(family=family)
    runs = runs.clip(given.get("warmup", 0), given.get("ending", 0))
    if not report.is_reuse(runs):
        report.own(runs, options, say)
    elif given.keys() - REUSE:
        raise _refused(given.keys() - REUSE, "to runs that differ in reuse_factor: these are compared, no law is fitted")
    else:
        report.own_reuse(runs, options, say)


def _refused(options: Iterable[str], where: str) -> _Refused:
    named = ", ".join(f"--{name}" for name in sorted(options))
    return _Refused(f"{named} means nothing {where}; leave it out")


if __name__ == "__main__":
    sys.exit(main())
