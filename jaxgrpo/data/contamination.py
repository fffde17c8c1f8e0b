"""Which training problems a benchmark holds too, word for word or nearly so.

A problem is known by the words of its question: no case, no LaTeX markup, no punctuation, no prompt around it. Two questions
are the same when these words are; they overlap when most runs of eight words of the one occur in the other.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from jaxgrpo.data.prompts import question_of

GRAM = 8  # words
OVERLAP = 0.8  # share of a benchmark question's runs of words found in one training problem, from which on it is reported

_WORD = re.compile(r"[^\W_]+")
_REQUEST = re.compile(r"\s*please (?:solve step by step and put your|output the) final answer within \\boxed\{\}\.?\s*$", re.I)


@dataclass(frozen=True)
class Match:
    """Row `row` of the training data and question `question` of `benchmark` are the same, or share `overlap` of the words."""

    row: int
    benchmark: str
    question: int
    overlap: float

    @property
    def verbatim(self) -> bool:
        return self.overlap == 1.0


def words(prompt: str) -> tuple[str, ...]:
    """The words by which a question is known."""
    text = _REQUEST.sub("", question_of(prompt))
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def find_matches(prompts: Sequence[str], benchmarks: dict[str, Sequence[str]]) -> list[Match]:
    """Matches between training prompts and the prompts of benchmarks by name, in the order of the training rows.

    Overlap 1.0 means word for word; it is otherwise the share of the benchmark question's runs of `GRAM` words that occur in
    the training problem, at least `OVERLAP` and below 1. One match per training row and benchmark: the closest one.
    """
    whole: dict[tuple, list[tuple[str, int]]] = defaultdict(list)
    grams: dict[tuple, list[tuple[str, int]]] = defaultdict(list)
    sizes: dict[tuple[str, int], int] = {}
    for name, questions in benchmarks.items():
        for index, prompt in enumerate(questions):
            known = words(prompt)
            whole[known].append((name, index))
            runs = _grams(known)
            sizes[name, index] = len(runs)
            for run in runs:
                grams[run].append((name, index))
    matches = []
    for row, prompt in enumerate(prompts):
        known = words(prompt)
        found = {name: Match(row, name, index, 1.0) for name, index in reversed(whole.get(known, ()))}
        shared = Counter(place for run in _grams(known) for place in grams.get(run, ()))
        for (name, index), count in shared.items():
            overlap = min(count / sizes[name, index], 0.999)
            if overlap >= OVERLAP and (name not in found or found[name].overlap < overlap):
                found[name] = Match(row, name, index, overlap)
        matches += found.values()
    return matches


def _grams(known: tuple[str, ...]) -> set[tuple[str, ...]]:
    return {known[start : start + GRAM] for start in range(len(known) - GRAM + 1)}
