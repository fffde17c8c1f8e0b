"""Whether curves belong into one fit: the same model at each size, the same evaluation, the same units.

What is certainly wrong is refused (units); what a fit can be made of, but perhaps should not, is told with the names of the
runs (other questions, other sampling, several models averaged into one).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from scaling.runs import Curve, DataError, Runs

BY_NAME = ("qwen2.5-base", "qwen2.5-instruct")  # families that were once told by the model's name alone
SETTINGS = ("model", "family", "data.test", "eval.temperature", "rollout.max_new_tokens")
LARGEST_SPREAD = {"compute": 200.0, "samples": 900.0}  # between runs, of tokens per prompt and of prompts per step
LARGEST_SPAN = 1e5  # of N in one fit
NEAR = 1.3  # sizes closer than this factor are hardly meant as two
ROUGHLY = 30.0  # how far compute may lie from 6 N tokens: N without embeddings, of a small model with a large vocabulary
SHOWN = 3


def settings_of(run_dir: Path) -> dict[str, str]:
    """Those SETTINGS that the run's config.yaml holds, as text; {} where there is no such file. Reads the block style of two
    levels that training writes, as this package does without a YAML parser."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        return {}
    section, found = "", {}
    for line in path.read_text(errors="replace").splitlines():
        match = re.fullmatch(r"( *)([\w.]+):(?: +(.*?))?\s*", line)
        if match:
            indent, key, value = match[1], match[2], re.sub(r"\s+#.*", "", match[3] or "").strip("'\"")
            section = section if indent else key
            found[f"{section}.{key}" if indent else key] = value
    return {key: found[key] for key in SETTINGS if key in found}


def check_size(curve: Curve) -> None:
    """DataError where compute is not 6 N tokens, not even roughly: one of the three is in another unit."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = curve.compute / (6 * curve.n * curve.tokens)
    ratio = ratio[np.isfinite(ratio)]
    if len(ratio) and not 1 / ROUGHLY < np.median(ratio) < ROUGHLY:
        raise DataError(
            f"{curve.where()}: compute_flops is {np.median(ratio):.2g} times 6 N tokens with N = {curve.n:.3g}: N counts "
            "parameters, tokens single tokens and compute FLOPs; one of them is in another unit"
        )


def check_units(runs: Runs) -> None:
    """DataError where runs that are to be fitted together cannot have the same units."""
    per_prompt = {c.where(): _median(c.compute / (c.n * c.samples)) for c in runs}
    _check_spread("compute", "compute_flops for its N and prompts", per_prompt)
    _check_spread("samples", "samples (prompts) for its steps", {c.where(): _median(c.samples / c.step) for c in runs})


def _median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else np.nan


def _check_spread(name: str, what: str, by_run: dict[str, float]) -> None:
    known = {run: value for run, value in by_run.items() if np.isfinite(value) and value > 0}
    if not known:
        return
    low, high = min(known, key=known.get), max(known, key=known.get)
    if known[high] > LARGEST_SPREAD[name] * known[low]:
        raise DataError(
            f"{high} has {known[high] / known[low]:.2g} times the {what} that {low} has: N, prompts and FLOPs must be in the "
            "same units in all runs; mend one of them, or leave it out"
        )


def differences(runs: Iterable[Curve]) -> list[str]:
    """What runs of one fit do not share though their losses are compared, each as a line with the names of the runs."""
    curves = list(runs)
    found = []
    for what, values_of in (
        ("test_n", lambda c: [f"{n:g}" for n in np.unique(c.test_n[np.isfinite(c.test_n)])]),
        ("data.test", lambda c: _stated(c, "data.test")),
        ("eval.temperature", lambda c: _stated(c, "eval.temperature")),
        ("rollout.max_new_tokens", lambda c: _stated(c, "rollout.max_new_tokens")),
    ):
        groups = _grouped(curves, values_of)
        if len(groups) > 1:
            found.append(f"MIXED EVALUATION: {what} is {_said(groups)}; losses of other evaluations do not lie on one law")
    for members in _groups(curves, lambda c: (c.family, c.n)).values():
        models = _grouped(members, lambda c: [name.lower() for name in _stated(c, "model")])
        if len(models) > 1:
            one = members[0]
            found.append(
                f"MIXED MODELS: {one.family} {one.size} is the mean of different models, {_said(models)}: fit them apart, or "
                "record another `family` for each"
            )
    sizes = sorted({c.n for c in curves})
    if sizes and sizes[-1] > LARGEST_SPAN * sizes[0]:
        found.append(f"UNITS? N goes from {sizes[0]:.3g} to {sizes[-1]:.3g} in one fit: N counts parameters")
    for small, large in zip(sizes[:-1], sizes[1:], strict=True):
        if large < NEAR * small:
            found.append(f"TOLD APART: N = {small:.4g} and N = {large:.4g} are fitted as two sizes, not averaged (see --size)")
    return found


def _stated(curve: Curve, key: str) -> list[str]:
    """A setting of the run, of a path its last part and of a number its value; [] where no config.yaml says it."""
    if key not in curve.about:
        return []
    try:
        return [f"{float(curve.about[key]):g}"]
    except ValueError:
        return [Path(curve.about[key]).name]


def assumed_families(curves: Iterable[Curve]) -> list[str]:
    """A line for each family name that runs carry from before families came from the weights."""
    old = [c for c in curves if c.directory is not None and c.family in BY_NAME and "family" not in c.about]
    return [
        f"{len(members)} runs were recorded as {family} when the model's name alone decided that: taken as {family}; "
        f"config.yaml names {', '.join(sorted({c.about.get('model', 'no model') for c in members}))}"
        for family, members in _groups(old, lambda c: c.family).items()
    ]


def _groups(curves: Iterable[Curve], key: Callable) -> dict:
    groups: dict = {}
    for curve in curves:
        groups.setdefault(key(curve), []).append(curve)
    return groups


def _grouped(curves: Iterable[Curve], values_of: Callable[[Curve], list[str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for curve in curves:
        for value in values_of(curve):
            groups.setdefault(value, []).append(f"{curve.size} ({curve.run})")
    return groups


def _said(groups: dict[str, list[str]]) -> str:
    """'500 in 1B (a), 3B (b) and 250 in 7B (c)'."""
    return " and ".join(f"{value} in {some(runs)}" for value, runs in groups.items())


def some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
