"""The files of the suites in one folder, where `eval.data` looks for them: `jaxgrpo data benchmarks`."""

from collections.abc import Callable
from pathlib import Path

from eval.suite import Suite, known_suites, load_suite
from jaxgrpo.data import DATA_SOURCE, DataError
from jaxgrpo.data.files import problems_of, write_parquet


class CollectionError(DataError):
    """Some suites could not be brought; the others are there."""


def collect(folder: Path, source: Path | None, say: Callable[[str], None]) -> None:
    """Bring the files of all suites into `folder`: from `source`, a folder that holds them or folders of them, or from the hub.

    What is there and whole stays; each file appears whole or not at all, so that a second call goes on. One line per suite goes
    to `say`. CollectionError, after all the others, where some could not be brought.
    """
    if source is not None and not source.is_dir():
        raise DataError(f"--from {source} is no folder; give the one that holds the benchmark files")
    suites = [suite for suite in map(load_suite, known_suites()) if suite.files != (DATA_SOURCE,)]
    missing, reachable = [], True
    for suite in suites:
        try:
            say(f"{suite.name:<10} {_bring(suite, folder, source, reachable)}")
        except DataError as error:
            reachable = reachable and not isinstance(error.__cause__, ConnectionError)
            missing.append(suite.name)
            say(f"{suite.name:<10} MISSING: {error}")
    if missing:
        remedy = "" if reachable else "; without a network, fetch the files elsewhere and give their folder with --from"
        raise CollectionError(
            f"{len(missing)} of {len(suites)} suites are missing in {folder}: {', '.join(missing)}; the reasons stand above. "
            f"The same command goes on with them{remedy}"
        )


def _bring(suite: Suite, folder: Path, source: Path | None, reachable: bool) -> str:
    """Bring one suite; returns what is to be said of it. reachable: no call to the hub has failed for the network."""
    stale = ""
    if (present := suite.local(folder)) is not None:
        try:
            return f"{len(_checked(suite, present))} problems, there already: {present}"
        except DataError as error:
            stale = f", in place of one that was no use ({error})"
    origin = suite.local(source) if source is not None else None
    if origin is None and not suite.hub:
        return f"left out: it is on no hub; `jaxgrpo data prepare LLM360/guru-RL-92k data` makes {suite.files[0]}"
    if origin is None and source is not None:
        raise DataError(f"there is no {' or '.join(suite.files)} in {source}; put it there, or leave --from out for the hub")
    if origin is None and not reachable:  # the client tries for half a minute each time
        raise DataError(f"{suite.hub} was not asked for, as the hub could not be reached before")
    rows = _checked(suite, origin or suite.hub)
    target = folder / (suite.files[0] if origin is None else origin.name)
    write_parquet(present or target, rows)
    return f"{len(rows)} problems from {origin or suite.hub}, written to {present or target}{stale}"


def _checked(suite: Suite, path: Path | str) -> list[dict]:
    """The rows of a suite's file, with the columns of a problem and as many as the suite has. DataError."""
    rows = suite.rows(str(path))
    problems_of(rows, str(path))
    if suite.count and len(rows) != suite.count:
        raise DataError(f"{path} has {len(rows)} problems, {suite.title} has {suite.count}; fetch it again")
    return rows
