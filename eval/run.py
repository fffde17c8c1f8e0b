"""An evaluation in a folder: one JSON line for each question and sample, written as they are graded, and gone on with after a
kill.

    settings.json           what was asked of which model; another question about another model needs another folder
    SUITE.partial.jsonl     outcomes so far, in the order in which they ended
    SUITE.jsonl             all outcomes, by question and sample, once the suite is complete
    checksums.json          of every SUITE.jsonl
    summary.json, report.md, report.png
"""

import fcntl
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eval.sampling import Outcome, read_records, sample_and_grade, write_records
from jaxgrpo.data import EncodedPrompt
from jaxgrpo.errors import UserError
from jaxgrpo.reward import GraderPool
from jaxgrpo.rollout.engine import Engine
from jaxgrpo.rollout.sampling import Sampling
from jaxgrpo.storage import naming
from jaxgrpo.whole_file import file_checksum, write_whole


class EvaluationError(UserError):
    """An evaluation that cannot go on; the message says why and what would help."""

    exit_code = 2


@dataclass(frozen=True)
class Questions:
    """The questions of one suite as token ids; `overlong` were left out because their prompts are too long. `digest` is of all
    its problems, also of those that were left out."""

    name: str
    title: str
    prompts: list[EncodedPrompt]
    overlong: int = 0
    digest: str = ""


class EvaluationFolder:
    """Where the outcomes of one model lie, and what was asked."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = None

    def open(self, settings: dict) -> None:
        """Begin an evaluation here, or go on with one of the same settings, to which more may come. EvaluationError for a
        folder that holds another evaluation or that another process writes to."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / "lock", "w")  # noqa: SIM115 (held until the process ends)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvaluationError(f"another process writes to {self.path}: wait for it, or choose another --out.") from None
        except OSError as error:
            raise EvaluationError(f"{self.path} cannot be used ({error.strerror}): choose another --out.") from None
        file = self.path / "settings.json"
        stored = self.settings if file.exists() else {}
        if not stored and (strange := sorted(self.path.glob("*.jsonl"))):
            raise EvaluationError(
                f"{self.path} holds {strange[0].name}, but no settings.json that says of which model: choose another --out."
            )
        changed = [
            f"{key}: {stored[key]} there, {value} here" for key, value in settings.items() if stored.get(key, value) != value
        ]
        if changed:
            raise EvaluationError(f"{self.path} holds another evaluation ({'; '.join(changed)}): choose another --out.")
        write_whole(file, json.dumps(stored | settings, indent=2) + "\n")

    @property
    def settings(self) -> dict:
        """What was asked. EvaluationError where no evaluation is."""
        try:
            stored = json.loads((self.path / "settings.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise EvaluationError(f"{self.path} holds no evaluation ({why}): name one that `jaxgrpo eval` wrote.") from None
        if not isinstance(stored, dict):
            raise EvaluationError(f"{self.path / 'settings.json'} is no JSON object: evaluate again in a new folder.")
        return stored

    def outcomes(self, suite: str) -> list[dict] | None:
        """All outcomes of a complete suite by question and sample, else None. EvaluationError where they were changed."""
        path = self.path / f"{suite}.jsonl"
        if not path.exists() or self.lost(suite):
            return None
        known = self._checksums().get(suite)
        if known is not None and known != file_checksum(path):
            raise EvaluationError(f"{path} was changed after it was written: delete it, and the same command asks again.")
        return read_records(path)

    def lost(self, suite: str) -> str | None:
        """What a complete suite no longer holds, in words."""
        path, settings = self.path / f"{suite}.jsonl", self.settings if (self.path / "settings.json").exists() else {}
        if f"suite {suite}" not in settings or not path.exists():
            return None
        records = read_records(path)
        samples = settings.get("samples") or 1 + max((record["sample"] for record in records), default=0)
        expected = settings[f"suite {suite}"]["questions"] * samples
        found = len({(record["question"], record["sample"]) for record in records})
        return f"{path} holds {found:,} of {expected:,} outcomes" if found < expected else None

    def _checksums(self) -> dict[str, str]:
        """Of the complete suites; there were none before."""
        try:
            return json.loads((self.path / "checksums.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            raise EvaluationError(f"{self.path / 'checksums.json'} is damaged: delete it to do without.") from None

    def missing(self, asked: list[Questions]) -> list[Questions]:
        """Those of the suites that are not complete here."""
        return [questions for questions in asked if self.outcomes(questions.name) is None]

    def partial(self, suite: str) -> Path:
        """Where the outcomes of a suite are collected."""
        return self.path / f"{suite}.partial.jsonl"

    def complete(self, suite: str, records: list[dict]) -> None:
        """All outcomes of a suite are there."""
        path = self.path / f"{suite}.jsonl"
        write_records(path, sorted(records, key=lambda r: (r["question"], r["sample"])))
        write_whole(self.path / "checksums.json", json.dumps(self._checksums() | {suite: file_checksum(path)}, indent=2) + "\n")
        self.partial(suite).unlink(missing_ok=True)


def run_suite(
    engine: Engine,
    weights,
    questions: Questions,
    folder: EvaluationFolder,
    *,
    tokenizer,
    pool: GraderPool,
    seed: int,
    step: int,
    samples: int,
    sampling: Sampling,
    max_new: int,
    report: Callable[[int, int, float], None] = lambda done, total, right: None,
) -> list[dict]:
    """Outcomes of a suite, `samples` a question, those that the folder holds already included; nothing is asked twice.

    report: called with (outcomes so far, all there will be, mean score so far) after every one.
    """
    stored = folder.outcomes(questions.name)
    if stored is not None:
        return stored
    records = read_records(folder.partial(questions.name)) or read_records(folder.path / f"{questions.name}.jsonl")
    known = {(record["question"], record["sample"]) for record in records}
    missing = [[s for s in range(samples) if (prompt.problem.index, s) not in known] for prompt in questions.prompts]
    total, right = samples * len(questions.prompts), sum(record["score"] for record in records)
    write_records(folder.partial(questions.name), records)  # without a torn line
    report(len(records), total, right / max(1, len(records)))
    with open(folder.partial(questions.name), "a", encoding="utf-8") as file:

        def keep(outcome: Outcome) -> None:
            nonlocal right
            record = outcome.record()
            with naming(file.name):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                file.flush()
            records.append(record)
            right += outcome.score
            report(len(records), total, right / len(records))

        sample_and_grade(
            engine,
            weights,
            questions.prompts,
            tokenizer=tokenizer,
            pool=pool,
            stream=questions.name,
            seed=seed,
            step=step,
            samples=missing,
            sampling=sampling,
            max_new=max_new,
            on_outcome=keep,
        )
    folder.complete(questions.name, records)
    return folder.outcomes(questions.name)
