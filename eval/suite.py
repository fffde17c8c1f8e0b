"""A benchmark as a small YAML file: where its problems lie and, where they come as bare questions, how to ask them.

Keys: title; files (names to look for, first come first served); hub ("org/name" or "org/name:file"), subset and split there. A
table with the columns of a problem file (see jaxgrpo.data.files) needs no more. For one of questions and answers: question and
answer (its columns), answer_after (the mark in the answer column behind which the answer stands), prompt (a text with
{question}), data_source (which chooses the grader). count, where it is given, is how many problems `jaxgrpo data benchmarks`
must find.
"""

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path

import yaml

from jaxgrpo.data import DATA_SOURCE, DataError, Problem, heldout_problems
from jaxgrpo.data.files import problems_of, read_rows
from jaxgrpo.typed_text import from_home, read_text

_FOLDER = Path(__file__).with_name("suites")


@dataclass(frozen=True)
class Suite:
    """One benchmark; the keys of its file, and `name`, that file's name."""

    name: str
    title: str
    files: tuple[str, ...]
    hub: str = ""
    subset: str = ""
    split: str = "train"
    question: str = ""
    answer: str = ""
    answer_after: str = ""
    prompt: str = ""
    data_source: str = ""
    count: int = 0  # how many problems it has; 0: not said

    def problems(self, folder: str) -> list[Problem]:
        """The problems, from the first of `files` that lies in `folder` or in a folder in it, else from the hub.

        Raises DataError when there are none, or when they lack what a problem needs.
        """
        if self.files == (DATA_SOURCE,):
            return heldout_problems()
        path = self.local(Path(folder)) or self.hub
        if not path:
            names = " or ".join(self.files)
            raise DataError(f"suite {self.name}: there is no {names} in {folder}; put it there, or set eval.data to its folder")
        return problems_of(self.rows(str(path)), str(path))

    def local(self, folder: Path) -> Path | None:
        """The first of `files` that lies in `folder` or in a folder in it."""
        found = [path for name in self.files for path in (folder / name, *sorted(folder.glob(f"*/{name}")))]
        return next((path for path in found if path.exists()), None)

    def rows(self, path: str) -> list[dict]:
        """The rows of a file or hub table of this suite, in the columns of a problem file. DataError where they are not."""
        rows = read_rows(path, (), split=self.split, subset=self.subset or None)
        if self.question and "prompt" not in rows[0]:
            rows = [self._row(row, f"{path}, row {index}") for index, row in enumerate(rows)]
        for index, row in enumerate(rows):
            missing = [column for column in ("data_source", "prompt", "reward_model") if column not in row]
            if missing:
                raise DataError(
                    f"suite {self.name}: {path}, row {index} has no column {', '.join(missing)}; add it, or name the columns "
                    "of a question and its answer in the suite's file"
                )
        return rows

    def _row(self, row: dict, where: str) -> dict:
        for column in (self.question, self.answer):
            if row.get(column) in (None, ""):
                raise DataError(f"suite {self.name}: {where} has no {column}; mend it, or name the column in the suite's file")
        answer = str(row[self.answer])
        if self.answer_after:
            answer = answer.rpartition(self.answer_after)[2]
        prompt = self.prompt.replace("{question}", str(row[self.question]))
        return {"data_source": self.data_source, "prompt": prompt, "reward_model": {"ground_truth": answer.strip()}}


def known_suites() -> tuple[str, ...]:
    """Names of the suites that come with the package."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_suite(name: str) -> Suite:
    """The suite of that name, or of a YAML file given by its path. DataError for one that does not exist or is malformed."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else _FOLDER / f"{name}.yaml"
    if not path.exists():
        near = difflib.get_close_matches(name, known_suites(), n=1)
        known = f"the suites are {', '.join(known_suites())}; or give the path of a YAML file"
        hint = f"did you mean {near[0]}?" if near else known
        raise DataError(f"there is no suite {name!r}; {hint}")
    try:
        values = read_text(path.read_text(encoding="utf-8"))  # every key is text
        values = {"title": path.stem} | values | {"name": path.stem}
        values["files"] = tuple(map(from_home, values.get("files", ())))
        suite = Suite(**values | {"count": int(values.get("count", 0))})
    except (yaml.YAMLError, TypeError, ValueError) as error:  # ValueError: no UTF-8, or a count that is no number
        keys = ", ".join(field.name for field in dataclasses.fields(Suite) if field.name != "name")
        raise DataError(f"suite file {path}: {str(error).splitlines()[0]}; its keys are {keys}") from None
    if not suite.files and not suite.hub:
        raise DataError(f"suite file {path} names neither files nor a hub id; give it at least one of them")
    raw = [suite.question, suite.answer, suite.prompt, suite.data_source]
    if any(raw) and not all(raw):
        raise DataError(f"suite file {path}: question, answer, prompt and data_source belong together; give all four or none")
    if suite.prompt and "{question}" not in suite.prompt:
        raise DataError(f"suite file {path}: the prompt has no {{question}} in it; say where the question goes")
    return suite
