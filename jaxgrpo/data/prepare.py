"""The paper's training data from its source: difficulty, curriculum, a held-out set, prompts, contamination.

Problems carry the share of samples with which a reference model solved them (`qwen2.5_7b_pass_rate`). Those of at least 0.3 are
easy, the others (also those without a rate) hard. The curriculum goes from high rates to low ones; the held-out set has as many
easy as hard problems, drawn by numpy's RandomState(seed) and RandomState(seed + 1) as the paper's pandas did, so that seed 42
draws the paper's positions. One deviation: the sort is stable, where the paper's left the order of equal rates to chance.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from jaxgrpo.data.contamination import Match, find_matches
from jaxgrpo.data.files import problem_rows, write_parquet
from jaxgrpo.data.problem import DataError
from jaxgrpo.data.prompts import maths_prompt
from jaxgrpo.data.repair import Repairs

RATE, OTHER_RATE = "qwen2.5_7b_pass_rate", "qwen3_30b_pass_rate"
EASY = 0.3  # least pass rate of an easy problem
SOURCES = {"LLM360/guru-RL-92k": "LLM360/guru-RL-92k:train/math__combined_54.4k.parquet"}  # the file that is meant
TRAIN, HELDOUT, SUMMARY = "train.parquet", "heldout.parquet", "summary.json"


@dataclass
class Prepared:
    """What `prepare` made. Rows have the columns data_source, prompt, ability, reward_model, extra_info."""

    train: list[dict]
    heldout: list[dict]
    repairs: Repairs
    matches: list[Match] = field(default_factory=list)  # rows count in `train` before anything was removed
    removed: int = 0

    def summary(self) -> dict:
        """Counts for people and for summary.json."""
        return {
            "train": _counts(self.train),
            "heldout": _counts(self.heldout),
            "repairs": asdict(self.repairs),
            "contamination": [asdict(match) for match in self.matches],
            "removed": self.removed,
        }


def pass_rate(row: dict) -> float:
    """The pass rate of a row, from its column or its extra_info; 0.0 where there is none."""
    rate = row.get(RATE, row["extra_info"].get(RATE))
    return 0.0 if rate is None or np.isnan(rate) else float(rate)


def prepare(
    source: str, *, heldout: int = 500, seed: int = 42, against: dict[str, list[str]] | None = None, remove: bool = False
) -> Prepared:
    """Training and held-out rows from `source`: a hub id, or a parquet or JSONL file with `data_source`, `prompt`,
    `reward_model` and the pass rate as a column or in `extra_info`.

    heldout: problems to hold out, 0 for none. against: prompts of benchmarks by name; training problems that occur there, or in
    the held-out set, are reported, and left out with `remove`. Rows that are prepared already keep all they have, repairs
    apart. Raises DataError for a source that cannot be used, and where fewer problems are there than shall be held out.
    """
    repairs = Repairs()
    rows = problem_rows(SOURCES.get(source, source), repairs)
    if not any(RATE in row or RATE in row["extra_info"] for row in rows):
        raise DataError(f"{source}: no row has a {RATE}, as a column or in extra_info; add the share of samples solved, 0 to 1")
    if not 0 <= heldout < len(rows):
        raise DataError(f"{source} has {len(rows)} problems, {heldout} cannot be held out; choose 0 to {len(rows) - 1}")
    order = np.argsort([-pass_rate(row) for row in rows], kind="stable")
    rows = [_prepared(rows[old], position) for position, old in enumerate(order)]
    held = set(heldout_positions([pass_rate(row) >= EASY for row in rows], heldout, seed))
    made = Prepared(
        [row for position, row in enumerate(rows) if position not in held],
        [_held_out(rows[position]) for position in sorted(held)],
        repairs,
    )
    benchmarks = dict(against or {})
    if held:
        benchmarks["heldout"] = [_text(row) for row in made.heldout]
    made.matches = find_matches([_text(row) for row in made.train], benchmarks)
    if remove:
        found = {match.row for match in made.matches}
        made.train, made.removed = [row for n, row in enumerate(made.train) if n not in found], len(found)
    return made


def heldout_positions(easy: list[bool], count: int, seed: int) -> np.ndarray:
    """Positions of `count` held-out problems, half of them easy; where one kind falls short the other fills up."""
    kinds = np.flatnonzero(easy), np.flatnonzero(~np.asarray(easy, bool))
    wanted = [count // 2, count - count // 2]
    for kind in (0, 1):
        short = wanted[kind] - min(wanted[kind], len(kinds[kind]))
        wanted[kind] -= short
        wanted[1 - kind] += short
    return np.concatenate([draw(kind, n, seed + offset) for offset, (kind, n) in enumerate(zip(kinds, wanted, strict=True))])


def draw(positions: np.ndarray, count: int, seed: int | list[int]) -> np.ndarray:
    """`count` of the positions without repetition: what pandas' DataFrame.sample(count, random_state=seed) draws."""
    return positions[np.random.RandomState(seed).choice(len(positions), count, replace=False)]


def write_prepared(made: Prepared, out: Path) -> dict:
    """train.parquet, heldout.parquet (where there is one) and summary.json; returns the summary."""
    write_parquet(out / TRAIN, made.train)
    if made.heldout:
        write_parquet(out / HELDOUT, made.heldout)
    summary = made.summary()
    (out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _text(row: dict) -> str:
    return row["prompt"][-1]["content"]


def _prepared(row: dict, position: int) -> dict:
    """A row in the paper's schema. One that says which split it belongs to was prepared before."""
    messages = [*row["prompt"][:-1], row["prompt"][-1] | {"content": maths_prompt(_text(row))}]
    info = row["extra_info"]
    if "split" not in info or RATE not in info:
        rates = {name: row.get(name, info.get(name)) for name in (RATE, OTHER_RATE)}
        info = {"index": position, **rates, "split": "train"}
    return {
        "data_source": row["data_source"],
        "prompt": messages,
        "ability": row.get("ability") or "math",
        "reward_model": {"style": "rule"} | row["reward_model"],
        "extra_info": info,
    }


def _held_out(row: dict) -> dict:
    return row | {"extra_info": row["extra_info"] | {"split": "test"}}


def _counts(rows: list[dict]) -> dict:
    rates = Counter(pass_rate(row) for row in rows)
    return {
        "problems": len(rows),
        "easy": sum(count for rate, count in rates.items() if rate >= EASY),
        "by_data_source": dict(sorted(Counter(row["data_source"] for row in rows).items())),
        "by_pass_rate": {f"{rate:g}": rates[rate] for rate in sorted(rates, reverse=True)},
    }
