"""The paper's training data from its source: difficulty, curriculum, a held-out set, prompts, contamination.

Problems carry the share of samples with which a reference model solved them (`pass_rate`, as `jaxgrpo data rate` writes it, or
the hub's `qwen2.5_7b_pass_rate`). Those of at least 0.3 are easy, the others (also those without a rate) hard. The curriculum
goes from high rates to low ones; the held-out set has as many easy as hard problems, drawn by numpy's RandomState(seed) and
RandomState(seed + 1) as the paper's pandas did, so that seed 42 draws the paper's positions. One deviation: the sort is stable,
where the paper's left the order of equal rates to chance. A file without any rate keeps its order, and what is held out is
drawn from all of it.
"""

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from jaxgrpo.data.contamination import Match, find_matches
from jaxgrpo.data.files import HELDOUT, TRAIN, problem_rows, write_parquet
from jaxgrpo.data.problem import DataError
from jaxgrpo.data.prompts import TEMPLATES, Template, asked, in_template, is_maths
from jaxgrpo.data.repair import Repairs
from jaxgrpo.data.values import short
from jaxgrpo.whole_file import write_whole

RATE, HUB_RATE, OTHER_RATE = "pass_rate", "qwen2.5_7b_pass_rate", "qwen3_30b_pass_rate"
RATED_BY = "pass_rate_model"
RATES = (RATE, HUB_RATE)  # what a problem is sorted by: the first that it has
COLUMNS = ("data_source", "prompt", "ability", "reward_model", "extra_info")
EASY = 0.3  # least pass rate of an easy problem
SOURCES = {"LLM360/guru-RL-92k": "LLM360/guru-RL-92k:train/math__combined_54.4k.parquet"}  # the file that is meant
SUMMARY, PICTURE = "summary.json", "difficulty.png"


@dataclass
class Prepared:
    """What `prepare` made. Rows have the columns data_source, prompt, ability, reward_model, extra_info."""

    train: list[dict]
    heldout: list[dict]
    repairs: Repairs
    template: Template
    prompted: int = 0  # problems whose prompt the template changed
    unrated: int = 0  # problems without a pass rate
    compared: tuple[str, ...] = ()  # what was looked for in `train`
    matches: list[Match] = field(default_factory=list)  # rows count in `train` before anything was removed
    removed: int = 0

    @property
    def rated(self) -> bool:
        """Whether any problem has a pass rate, so that there is a curriculum."""
        return self.unrated < len(self.train) + len(self.heldout) + self.removed

    def summary(self) -> dict:
        """Counts for people and for summary.json."""
        return {
            "train": _counts(self.train),
            "heldout": _counts(self.heldout),
            "repairs": asdict(self.repairs),
            "contamination": [asdict(match) for match in self.matches],
            "removed": self.removed,
            "order": "curriculum" if self.rated else "source",
            "without_pass_rate": self.unrated,
            "template": self.template.text if self.template.name != "maths" else "maths",
        }


def pass_rate(row: dict) -> float:
    """The pass rate of a row, from a column or its extra_info; 0.0 where there is none."""
    rate = known_rate(row)
    return 0.0 if rate is None else rate


def known_rate(row: dict) -> float | None:
    """The pass rate of a row, None where it has none or, as tables write it, NaN."""
    for name in RATES:
        for place in (row, row["extra_info"]):
            rate = place.get(name)
            if rate is not None and not (isinstance(rate, float) and math.isnan(rate)):
                return rate
    return None


def rated_rows(source: str, repairs: Repairs, keep: tuple[str, ...] | None = None) -> list[dict]:
    """`problem_rows` whose pass rates, where there are any, are numbers in [0, 1]; DataError with the row where one is not."""
    rows = problem_rows(source, repairs, keep)
    for index, row in enumerate(rows):
        rate = known_rate(row)
        if rate is None:
            continue
        if isinstance(rate, bool) or not isinstance(rate, int | float):
            raise DataError(
                f"{source}, row {index}: the pass rate is {short(rate)}, {type(rate).__name__} and no number; write the share "
                "of samples solved, such as 0.25, or null"
            )
        if not 0 <= rate <= 1:
            raise DataError(
                f"{source}, row {index}: the pass rate is {rate}, outside [0, 1]; write the share of samples solved, such as "
                "0.25 for 4 of 16"
            )
    return rows


def prepare(
    source: str,
    *,
    heldout: int = 500,
    seed: int = 42,
    against: dict[str, list[str]] | None = None,
    remove: bool = False,
    template: Template = TEMPLATES["maths"],
) -> Prepared:
    """Training and held-out rows from `source`: a hub id, or a parquet or JSONL file with `data_source`, `prompt`,
    `reward_model` and, for a curriculum, the pass rate as a column or in `extra_info`.

    heldout: problems to hold out, 0 for none. against: prompts of benchmarks by name; training problems that occur there, or in
    the held-out set, are reported, and left out with `remove`. template: what is put around the user's last message. Rows that
    are prepared already keep all they have, repairs apart. Raises DataError for a source that cannot be used, and where fewer
    problems are there than shall be held out.
    """
    repairs = Repairs()
    source = SOURCES.get(source, source)
    rows = rated_rows(source, repairs, (*COLUMNS, RATED_BY, OTHER_RATE))
    if not 0 <= heldout < len(rows):
        raise DataError(
            f"{source} has {len(rows)} problems, --heldout {heldout} cannot be held out; choose 0 to {len(rows) - 1}"
        )
    unrated = sum(known_rate(row) is None for row in rows)
    rated = unrated < len(rows)
    order = np.argsort([-pass_rate(row) for row in rows], kind="stable")
    made = Prepared([], [], repairs, template, unrated=unrated)
    prepared = []
    for position, old in enumerate(order):
        prepared.append(_prepared(rows[old], position, template, rated, f"{source}, row {old}"))
        made.prompted += prepared[-1]["prompt"] != rows[old]["prompt"]
    if rated:
        held = set(heldout_positions([pass_rate(row) >= EASY for row in prepared], heldout, seed))
    else:
        held = set(draw(np.arange(len(prepared)), heldout, seed))
    made.train = [row for position, row in enumerate(prepared) if position not in held]
    made.heldout = [_held_out(prepared[position]) for position in sorted(held)]
    benchmarks = dict(against or {})
    if held:
        benchmarks["heldout"] = [asked(row["prompt"]) for row in made.heldout]
    made.compared = tuple(benchmarks)
    made.matches = find_matches([asked(row["prompt"]) for row in made.train], benchmarks)
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
    write_whole(out / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _prepared(row: dict, position: int, template: Template, rated: bool, where: str) -> dict:
    """A row in the paper's schema. One that says which split it belongs to was prepared before. rated: any row has a rate."""
    source, info = row["data_source"], row["extra_info"]
    if "split" not in info or (rated and not any(name in info for name in RATES)):
        names = (RATE, RATED_BY, HUB_RATE, OTHER_RATE)
        rates = {name: row.get(name, info.get(name)) for name in names if name in row or name in info}
        info = info | {"index": position} | rates | {"split": "train"}
    return {
        "data_source": source,
        "prompt": in_template(row["prompt"], template, source, where),
        "ability": row.get("ability") or ("math" if is_maths(source) else source.partition("__")[0]),
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
