"""Learning curves as data: one `Curve` per run, `Runs` for a set of them, with their provenance.

Shapes: T points of one curve. Units: loss = 1 - held-out Pass@1, compute = 6 N tokens in FLOPs, compute_total = operations
counted for generation, scoring and updates (a shared prompt once, so that they may be fewer), samples = prompts consumed,
tokens = prompt plus response tokens; all cumulative. N is the nominal parameter count (the size in the model's name) where
a file gives one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

X_COLUMNS = {"compute": "compute", "compute_total": "compute_total", "data": "samples", "step": "step"}
X_LABELS = {
    "compute": "training compute C (FLOPs)",
    "compute_total": "counted operations (FLOPs)",
    "data": "data D (prompts)",
    "step": "training step",
}
SERIES = ("samples", "tokens", "compute", "compute_total", "loss", "test_n", "response_length")


class DataError(ValueError):
    """The data cannot be used as they are; the message holds the place, the value and the remedy."""


@dataclass(frozen=True)
class Curve:
    """One held-out learning curve. Every array has shape (T,); an entry is NaN where the file gave no value."""

    family: str
    n: float
    size: str
    run: str
    step: np.ndarray
    loss: np.ndarray
    samples: np.ndarray
    tokens: np.ndarray
    compute: np.ndarray
    compute_total: np.ndarray
    test_n: np.ndarray
    response_length: np.ndarray
    repeats: np.ndarray
    reuse_factor: float | None = None
    sources: tuple[str, ...] = ()
    directory: str | None = None
    about: dict[str, str] = field(default_factory=dict)  # settings of the run that a comparison must know

    def __len__(self) -> int:
        return len(self.step)

    def x(self, name: str) -> np.ndarray:
        """X of every point, shape (T,), in the unit of `name`. Raises DataError where the curve does not carry it."""
        if name not in X_COLUMNS:
            raise DataError(f"x={name!r} is not known: choose one of {', '.join(X_COLUMNS)}")
        values = np.asarray(getattr(self, X_COLUMNS[name]), dtype=float)
        missing = ~np.isfinite(values)
        if missing.any():
            raise DataError(
                f"{self.where()}: x={name!r} needs the column of {X_COLUMNS[name]!r}, which {int(missing.sum())} of "
                f"{len(self)} points lack: log it, or fit another x"
            )
        return values

    def take(self, index: np.ndarray) -> Curve:
        """The points at `index` (integers or booleans), in that order."""
        series = {name: getattr(self, name)[index] for name in (*SERIES, "step", "repeats")}
        return replace(self, **series)

    def where(self) -> str:
        tau = "" if self.reuse_factor is None else f" tau={self.reuse_factor:g}"
        return f"{self.family} {self.size}{tau} ({self.run})"


def size_label(n: float) -> str:
    """A short name of a parameter count: 500000000 -> '0.5B', 101888 -> '102k'."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= scale * (0.1 if unit == "B" else 1.0):
            return f"{n / scale:.3g}{unit}"
    return f"{n:.3g}"


@dataclass(frozen=True)
class Runs:
    """A set of curves. `notes` says in words what was done to the data so far; it ends up in the table and in
    law.json."""

    curves: tuple[Curve, ...]
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.curves)

    def __iter__(self) -> Iterator[Curve]:
        return iter(self.curves)

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(curve.family for curve in self.curves))

    @property
    def sizes(self) -> tuple[float, ...]:
        return tuple(sorted({curve.n for curve in self.curves}))

    @property
    def points(self) -> int:
        return sum(len(curve) for curve in self.curves)

    def select(
        self,
        family: str | None = None,
        n: float | list[float] | None = None,
        max_n: float | None = None,
        reuse_factor: float | None = None,
    ) -> Runs:
        """The curves of one family, of the sizes `n`, of at most `max_n` parameters, of one reuse factor. DataError if
        none."""
        kept = self.curves
        if family is not None:
            kept = tuple(curve for curve in kept if curve.family == family)
        if n is not None:
            kept = tuple(curve for curve in kept if np.isclose(curve.n, n, rtol=1e-9).any())
        if max_n is not None:
            kept = tuple(curve for curve in kept if curve.n <= max_n * (1 + 1e-9))
        if reuse_factor is not None:
            kept = tuple(curve for curve in kept if curve.reuse_factor == reuse_factor)
        if not kept:
            have = ", ".join(dict.fromkeys(f"{curve.family} {curve.size}" for curve in self.curves))
            asked = f"family={family}, n={n}, max_n={max_n}, reuse_factor={reuse_factor}"
            raise DataError(f"no curve matches {asked}: there are {have}")
        return replace(self, curves=kept)

    def clip(self, warmup: int = 0, ending: int = 0) -> Runs:
        """Drop the first `warmup` and the last `ending` points of every curve (the paper's warmup_clip,
        ending_clip)."""
        if warmup < 0 or ending < 0:
            raise DataError(f"warmup={warmup}, ending={ending}: both count points to drop and cannot be negative")
        if not warmup and not ending:
            return self
        return self._cut(lambda curve: slice(warmup, max(len(curve) - ending, warmup)), f"clip {warmup}+{ending}")

    def head(self, fraction: float) -> Runs:
        """The first `fraction` of the points of every curve (rounded to the nearest point)."""
        if not 0 < fraction <= 1:
            raise DataError(f"fraction={fraction}: must lie in (0, 1]")
        return self._cut(lambda curve: slice(0, round(fraction * len(curve))), f"first {fraction:.0%} of points")

    def between(self, first: int | None = None, last: int | None = None) -> Runs:
        """The points whose step lies in [first, last]."""
        low, high = (-np.inf if first is None else first), (np.inf if last is None else last)
        return self._cut(lambda curve: (curve.step >= low) & (curve.step <= high), f"steps {first} to {last}")

    def _cut(self, choose, note: str) -> Runs:
        curves = tuple(curve.take(choose(curve)) for curve in self.curves)
        empty = [curve.where() for curve in curves if not len(curve)]
        if empty:
            raise DataError(f"{note} leaves no point of {', '.join(empty)}: clip less")
        return Runs(curves, (*self.notes, note))

    def mean(self, common_steps_only: bool = False) -> Runs:
        """One curve per (family, N, reuse factor): the mean over its runs at every step, as the paper does.

        A step that only some runs reached is a mean of fewer runs (`repeats` counts them), which makes the curve jump
        where a run ends; `common_steps_only` keeps the steps that all of them reached.
        """
        groups: dict[tuple, list[Curve]] = {}
        for curve in self.curves:
            groups.setdefault((curve.family, curve.n, curve.reuse_factor or 1), []).append(curve)
        curves, notes = [], list(self.notes)
        for group in groups.values():
            if len(group) > 1:
                names = ", ".join(curve.run for curve in group)
                notes.append(f"{group[0].family} {group[0].size}: mean of {len(group)} runs ({names})")
            curves.append(group[0] if len(group) == 1 else _mean_curve(group, common_steps_only))
        return Runs(tuple(sorted(curves, key=lambda c: (c.family, c.n, c.reuse_factor or 0))), tuple(notes))

    def digest(self) -> str:
        """SHA-256 over what a fit reads (family, N, run, step, X columns, loss): equal data give an equal digest."""
        sha = hashlib.sha256()
        for curve in sorted(self.curves, key=lambda c: (c.family, c.n, c.reuse_factor or 0, c.run)):
            sha.update(f"{curve.family}|{curve.n!r}|{curve.reuse_factor}".encode())
            for name in ("step", "samples", "compute", "compute_total", "loss"):
                sha.update(np.ascontiguousarray(getattr(curve, name), dtype="<f8").tobytes())
        return sha.hexdigest()


def _mean_curve(group: list[Curve], common_steps_only: bool) -> Curve:
    steps = sorted(
        set.intersection(*(set(curve.step.tolist()) for curve in group))
        if common_steps_only
        else set.union(*(set(curve.step.tolist()) for curve in group))
    )
    if not steps:
        raise DataError(f"{group[0].family} {group[0].size}: its {len(group)} runs have no step in common")
    columns = {}
    for name in SERIES:
        table = np.full((len(group), len(steps)), np.nan)
        for row, curve in enumerate(group):
            at = {step: i for i, step in enumerate(curve.step.tolist())}
            for column, step in enumerate(steps):
                if step in at:
                    table[row, column] = getattr(curve, name)[at[step]]
        present = np.isfinite(table)
        count = present.sum(0)
        columns[name] = np.where(count, np.where(present, table, 0).sum(0) / np.maximum(count, 1), np.nan)
        if name == "loss":
            repeats = count.astype(float)
    first = group[0]
    return replace(
        first,
        run=f"mean of {len(group)} runs",
        step=np.asarray(steps, dtype=float),
        repeats=repeats,
        sources=tuple(dict.fromkeys(source for curve in group for source in curve.sources)),
        directory=None,
        **columns,
    )
