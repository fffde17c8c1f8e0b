"""The two reports of `python -m scaling`: the reader's own runs, and the published curves against the published
fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaling import agreement, figures, outcomes, panels, published, reuse, tables
from scaling.allocation import required_x
from scaling.comparison import compare
from scaling.extrapolation import GROWS_WITH_N, Prediction, reach
from scaling.heldout import coverage_table, largest_out
from scaling.law import Law, fit
from scaling.runs import DataError, Runs, size_label

PREDICTED_POINTS = 5
OWN_BOOTSTRAP, PAPER_BOOTSTRAP = 2000, 1000


@dataclass(frozen=True)
class Options:
    """What the command line asked for; see `scaling.__main__`. bootstrap: None is OWN_BOOTSTRAP or PAPER_BOOTSTRAP."""

    x: str = "compute"
    objective: str = "log"
    weights: str = "model"
    bootstrap: int | None = None
    resample: str = "block"
    block: int | None = None
    seed: int = 0
    compare: bool = False
    predict: Sequence[tuple[float, float | None]] = ()
    target: Sequence[float] = ()
    out: Path | None = None


def own(runs: Runs, options: Options, say: Callable[[str], None] = print) -> list[Law]:
    """Fit every family of `runs`, say the tables, and write law.json and figures where options.out is set."""
    for note in (*runs.notes, *told_apart(runs)):
        say(f"note: {note}")
    laws = []
    bootstrap = OWN_BOOTSTRAP if options.bootstrap is None else options.bootstrap
    for family in runs.families:
        chosen = runs.select(family=family)
        law = fit(
            chosen,
            options.x,
            options.objective,
            bootstrap,
            options.seed,
            weights=options.weights,
            resample=options.resample,
            block=options.block,
        )
        laws.append(law)
        say("\n" + tables.law_table(law, runs.notes))
        if options.predict:
            say("\n" + tables.prediction_table([_predict(law, n, x) for n, x in options.predict]))
            for n in dict.fromkeys(n for n, _ in options.predict if law.design.index(n) is not None):
                _say_held_out(chosen, n, law, options, say)
        for target in options.target:
            say("\n" + _needed(law, target))
        say("\n" + tables.spending_table(law, _budgets(law)))
        if options.compare:
            say(f"\nlaws against each other over {options.x} (least squares of log10 L, sizes weighted by their scatter):")
            say(tables.score_table(compare(chosen, options.x, seed=options.seed)))
        if options.out is not None:
            _write(law, chosen, options, "" if len(runs.families) == 1 else f"-{file_name(family)}", say)
    return laws


def file_name(family: str) -> str:
    """A family as a part of a file's name."""
    return family.replace("/", "-")


def told_apart(runs: Runs) -> list[str]:
    """A line where runs of several families are not fitted together."""
    counts = {family: len(runs.select(family=family)) for family in runs.families}
    each = ", ".join(f"{family} ({count} {'run' if count == 1 else 'runs'})" for family, count in counts.items())
    return [f"{len(counts)} families, each fitted by itself: {each}"] if len(counts) > 1 else []


def _predict(law: Law, n: float, x: float | None) -> Prediction:
    """Prediction at x, or at points along the X of a fitted size, or that a new size would be trained with."""
    if x is not None:
        return law.predict(n, x)
    row = law.design.index(n)
    ends = reach(law.design, n) if row is None else 10.0 ** law.design.t_MT[row, law.design.present[row]][[0, -1]]
    return law.predict(n, np.geomspace(*ends, PREDICTED_POINTS))


def _say_held_out(runs: Runs, n: float, law: Law, options: Options, say: Callable[[str], None]) -> None:
    below = [size for size in runs.sizes if size < n * (1 - 1e-9)]
    if len(below) < 2:
        say(f"\n{size_label(n)} has {len(below)} smaller sizes beside it: it cannot be held out and predicted from them")
        return
    draws = 0 if law.draws is None else len(law.draws.k_max)
    how = {"weights": options.weights, "resample": options.resample, "block": options.block}
    _, rows = largest_out(runs, options.x, n, options.objective, draws, options.seed, **how)
    say(f"\n{size_label(n)} is among the runs; held out and predicted from the smaller ones:\n" + tables.heldout_table(rows))


def _needed(law: Law, target: float) -> str:
    return tables.target_table(law, target, [required_x(law, float(n), target) for n in law.sizes])


def _budgets(law: Law) -> list[float]:
    """The ends of the curves: budgets that at least one size has reached."""
    ends = {float(10.0 ** law.design.t_MT[i, present].max()) for i, present in enumerate(law.design.present)}
    return sorted(ends) if GROWS_WITH_N[law.x] else [min(ends)]


def _write(law: Law, runs: Runs, options: Options, suffix: str, say: Callable[[str], None]) -> None:
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    law_file = out / f"law{suffix}.json"
    with figures.naming(law_file):
        law_file.write_text(law.to_json() + "\n")
    drawn = {
        "curves": figures.curves(law, new_sizes=[n for n, _ in options.predict if law.design.index(n) is None]),
        "saturation": figures.saturation([("law", law)]),
        "residuals": figures.residuals(law),
        "n0_profile": figures.n0_profile(law),
    }
    averaged = runs.mean()
    series = [(c.size, c.step, c.response_length) for c in averaged if np.isfinite(c.response_length).all()]
    if series:
        drawn["response_length"] = panels.lengths(series, "training step", "response length (tokens)", law.family)
    if any(outcomes.suites(curve) for curve in runs):
        drawn["benchmarks"] = panels.benchmarks(list(runs), law.x)
    for name, figure in drawn.items():
        figures.save(figure, out, name + suffix)
    say(f"\nwritten to {out}: law{suffix}.json, " + ", ".join(f"{name}{suffix}.pdf/.png" for name in drawn))


def own_reuse(runs: Runs, options: Options, say: Callable[[str], None] = print) -> None:
    """Runs that differ in reuse_factor: the reuse table and figure of every family and size."""
    for note in (*runs.notes, *told_apart(runs)):
        say(f"note: {note}")
    draws = OWN_BOOTSTRAP if options.bootstrap is None else options.bootstrap
    if not draws:
        raise DataError("reuse factors are told apart by their intervals only: --bootstrap must be at least 1")
    for family in runs.families:
        for n in runs.select(family=family).sizes:
            chosen = runs.select(family=family, n=n)
            notes = [f"! {warning}" for warning in agreement.differences(chosen)]
            notes += [f"note: {note}" for note in chosen.mean().notes if note not in runs.notes]
            rows = reuse.analyse(chosen, draws=draws, seed=options.seed)
            say("\n".join(["", f"{family} {size_label(n)}", *notes, tables.reuse_table(rows)]))
            if options.out is not None:
                figures.save(
                    panels.data_reuse(chosen, rows, f"{family} {size_label(n)}"),
                    options.out,
                    f"reuse-{file_name(family)}-{size_label(n)}",
                )


def from_paper(options: Options, say: Callable[[str], None] = print) -> None:
    """Table 6 beside our fits, then what the published figures do not show: held-out errors, coverage, other laws,
    reuse."""
    bootstrap = PAPER_BOOTSTRAP if options.bootstrap is None else options.bootstrap
    say(
        "Published fits of arXiv 2509.25300 (Table 6, and the authors' full fits) against fits of the published\n"
        "curves, same objective (linear, equal weight per size); 95 % intervals by moving-block bootstrap. 'within':\n"
        "R2 within models, 'max dE' the largest difference of an intercept.\n"
    )
    comparisons = published.compare_published(bootstrap, options.seed)
    say(tables.published_table(comparisons))
    say("\n" + tables.slopes_table(published.slopes_alone()))
    runs = published.curves()
    for name, family in published.FAMILIES.items():
        chosen = runs.select(family=family)
        full = fit(chosen, "compute", "linear")
        say(
            f"\n{name}: R2 {full.r2:.4f} pooled, {full.r2_within:.3f} within models; per size "
            + ", ".join(f"{size} {value:.2f}" for size, value in full.r2_per_model.items())
        )
        for x, symbol in (("compute", "C"), ("data", "D")):
            say(f"\n{name}, 72B from the sizes up to 32B, L(N,{symbol}), log objective:")
            say(tables.heldout_table(largest_out(chosen, x, bootstrap=bootstrap, seed=options.seed)[1]))
            say(f"\n{name}, the rest of every curve from its beginning, L(N,{symbol}), log objective:")
            say(tables.trajectory_table(coverage_table(chosen, x, bootstrap=bootstrap, seed=options.seed)))
        if options.compare:
            say(
                f"\n{name}, laws against each other over data:\n"
                + tables.score_table(compare(chosen, "data", seed=options.seed))
            )
    reused = published.reuse_curves()
    for name, family in published.FAMILIES.items():
        say(f"\n{name} 7B\n" + tables.reuse_table(reuse.analyse(reused.select(family=family), seed=options.seed)))
    if options.out is not None:
        names = _paper_figures(runs, reused, bootstrap, options)
        say(f"\nwritten to {options.out}: {len(names)} figures, each as PDF and PNG: {', '.join(names)}")
    else:
        say("\nadd --out DIR for the figures" + ("" if options.compare else ", --compare for other laws"))


def _paper_figures(runs: Runs, reused: Runs, bootstrap: int, options: Options) -> list[str]:
    """The paper's figures from the published curves: inter and intra predictions, k(N), reuse, lengths; and
    residuals."""
    drawn = {}
    for name, family in published.FAMILIES.items():
        chosen = runs.select(family=family)
        for x, symbol in (("compute", "C"), ("data", "D")):
            rows = {row.protocol: row for row in published.FITS if row.family == name and row.x == x}
            laws = {
                protocol: fit(published.protocol_runs(rows[protocol], runs), x, "linear", bootstrap, options.seed)
                for protocol in ("early steps", "<= 32B")
            }
            drawn[f"extrapolation_{name}_{symbol}"] = figures.curves(
                laws["<= 32B"], list(chosen), f"{name}: 72B predicted (dashed)"
            )
            drawn[f"early_{name}_{symbol}"] = figures.curves(
                laws["early steps"], list(chosen), f"{name}: later steps predicted (dashed)"
            )
            pair = [("early steps", laws["early steps"]), ("≤ 32B", laws["<= 32B"])]
            drawn[f"saturation_{name}_{symbol}"] = figures.saturation(pair, f"{name}, L(N, {symbol})")
        full = fit(chosen, "compute", bootstrap=bootstrap, seed=options.seed)
        drawn[f"residuals_{name}"] = figures.residuals(full)
        drawn[f"n0_profile_{name}"] = figures.n0_profile(full)
        tau = reused.select(family=family)
        drawn[f"reuse_{name}"] = panels.data_reuse(
            tau, reuse.analyse(tau, seed=options.seed), f"{name} 7B, each prompt seen τ times"
        )
        series = [(curve.size, *published.implied_tokens(curve)) for curve in chosen]
        drawn[f"length_{name}"] = panels.lengths(series, "training step", "prompt + response tokens", f"{name}, implied by C")
    for name, figure in drawn.items():
        figures.save(figure, options.out, name)
    return list(drawn)


def is_reuse(runs: Runs) -> bool:
    """Whether the runs are a reuse experiment: one size per family and several reuse factors."""
    factors = {curve.reuse_factor for curve in runs}
    if len(factors) > 1 and None in factors:
        raise DataError("some runs carry a reuse_factor and some do not: give them separately")
    return len(factors) > 1
