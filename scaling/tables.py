"""Results as plain text tables: a fit, the published comparison, held-out errors, laws against each other, spending."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from scaling.allocation import Requirement, best_size, crossovers
from scaling.comparison import Score
from scaling.design import free_lines
from scaling.extrapolation import Prediction
from scaling.heldout import HeldOut, Trajectory
from scaling.law import Law
from scaling.published import Comparison
from scaling.reuse import Reuse
from scaling.runs import X_LABELS, size_label
from scaling.settings import Setting

_GAP = "  "
SCATTER_ONLY = "\n(intervals hold the scatter of evaluations within a run, not that between runs)"


_width: ContextVar[int | None] = ContextVar("width", default=None)


@contextmanager
def narrowed(width: int | None) -> Iterator[None]:
    """Inside, tables are at most `width` wide where that can be: columns that do not fit come below, after the first one again.
    No figure is left out or cut."""
    token = _width.set(width)
    try:
        yield
    finally:
        _width.reset(token)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest entry, the first to the left, the others to the right; see `narrowed`."""
    widths = [max(len(str(row[i])) for row in (header, *rows)) for i in range(len(header))]
    blocks: list[list[int]] = [[0]]
    for column in range(1, len(header)):
        taken = sum(widths[i] + len(_GAP) for i in blocks[-1]) + widths[column]
        if _width.get() is not None and taken > _width.get() and len(blocks[-1]) > 1:
            blocks.append([0])
        blocks[-1].append(column)

    def line(row, columns):
        return _GAP.join(str(row[i]).rjust(widths[i]) if i else str(row[i]).ljust(widths[i]) for i in columns).rstrip()

    def block(columns):
        rule = _GAP.join("-" * widths[i] for i in columns)
        return "\n".join([line(header, columns), rule, *(line(row, columns) for row in rows)])

    return "\n\n".join(map(block, blocks))


def wrapped(text: str, width: int | None) -> str:
    """Lines longer than `width` columns go on below, broken between words alone."""
    if width is None:
        return text

    def lines(line: str) -> list[str]:
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        words = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False, "drop_whitespace": True}
        return textwrap.wrap(line, width, subsequent_indent=indent, **words) if len(line) > width else [line]

    return "\n".join(part for line in text.split("\n") for part in lines(line))


def spread(pair: tuple[float, float] | None, scale: float = 1.0, digits: int = 4) -> str:
    """An interval as text, '-' where there is none."""
    return "-" if pair is None else f"[{pair[0] / scale:.{digits}f}, {pair[1] / scale:.{digits}f}]"


def loss_text(loss: float, digits: int = 4) -> str:
    """A loss as text; what the law gives above 1 is none."""
    return "> 1" if loss > 1 else f"{loss:.{digits}f}"


def figure(value: float, form: str) -> str:
    """A number as text, '-' where there is none (R2 of a curve that does not vary)."""
    return "-" if value != value else f"{value:{form}}"


def amount(x: float, searched: tuple[float, float], digits: int = 2) -> str:
    """X as text; outside the range that was searched only on which side it lies."""
    low, high = searched
    return f"< {low:.0e}" if x < low else f"> {high:.0e}" if x > high else f"{x:.{digits}e}"


def law_table(law: Law, said: Sequence[str] = ()) -> str:
    """Parameters with 95 % intervals, goodness pooled and per model, and above all else every warning, and what was done to
    the data, but for the notes that were `said` before."""
    interval = law.intervals
    own, _, _ = free_lines(law.design)
    diagnostics = law.residuals
    n0_scale, n0_unit = _n0_unit(law.n0)
    lines = [f"{law.family}: log10 L = -k(N) log10 X + E(N), k(N) = K_max / (1 + N_0/N), X = {X_LABELS[law.x]}"]
    lines += [f"  ! {warning}" for warning in law.warnings]
    lines += [f"  note: {note}" for note in law.design.notes if note not in said]
    lines += [
        f"  objective {law.objective}, weights {law.weights}, {int(law.design.counts.sum())} points, "
        + (
            f"{len(law.draws.k_max)} bootstrap fits ({law.resample}" + (f", block {law.block})" if law.block else ")")
            if law.draws is not None
            else "no bootstrap"
        )
        + f", seed {law.seed}, data {law.digest[:12]}",
        f"  K_max {law.k_max:.5f} {spread(interval.get('k_max'), digits=4)}   "
        f"N_0 {law.n0 / n0_scale:.3f}{n0_unit} {spread(interval.get('n0'), n0_scale, 2)}",
        f"  R2 pooled {figure(law.r2, '.5f')} (between sizes), within models {figure(law.r2_within, '.4f')}; "
        f"fit: {'converged' if law.convergence['converged'] else 'NOT CONVERGED'}, "
        f"{law.convergence['starts_agreeing']} of {law.convergence['starts']} starts agree, "
        f"gradient {law.convergence['relative_gradient']:.0e}",
    ]
    rows = []
    for i, n in enumerate(law.sizes):
        label = law.design.labels[i]
        rows.append(
            [
                label,
                int(law.design.counts[i]),
                f"{law.k(float(n)):.4f}",
                spread(interval.get("k", {}).get(label)),
                f"{own[i]:.4f}",
                f"{law.e(float(n)):.4f}",
                spread(interval.get("e", {}).get(label)),
                figure(law.r2_per_model[label], ".3f"),
                f"{diagnostics.rho[i]:.2f}",
                f"{diagnostics.n_eff[i]:.0f}",
                f"{diagnostics.curvature[i]:+.4f}",
                f"{diagnostics.curvature_p[i]:.2f}",
            ]
        )
    header = ["size", "points", "k(N)", "95 %", "k alone", "E(N)", "95 %", "R2", "rho", "n_eff", "curvature", "p"]
    return "\n".join([*lines, table(header, rows)])


def _n0_unit(n0: float) -> tuple[float, str]:
    return next(((scale, unit) for scale, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if n0 >= scale / 10), (1.0, ""))


def published_table(comparisons: Sequence[Comparison]) -> str:
    """Table 6 and the full fits beside ours, with intervals, the verdict on each figure, and the reason of every
    miss."""
    rows, reasons = [], []
    for c in comparisons:
        p, interval = c.published, c.law.intervals
        mark = ""
        if not c.reproduced:
            reasons.append(c.reason)
            mark = f" ({len(reasons)})"
        rows.append(
            [
                f"{p.family} L(N,{'C' if p.x == 'compute' else 'D'}) {p.protocol}",
                int(c.law.design.counts.sum()),
                f"{p.k_max:.4f}",
                f"{c.law.k_max:.4f}",
                spread(interval.get("k_max"), digits=3),
                f"{p.n0 / 1e9:.2f}",
                f"{c.law.n0 / 1e9:.2f}",
                spread(interval.get("n0"), 1e9, 1),
                f"{p.r2:.4f}",
                f"{c.law.r2:.4f}",
                f"{c.law.r2_within:.3f}",
                "-" if c.e_deviation is None else f"{c.e_deviation:.4f}",
                ("reproduced" if c.reproduced else "NOT reproduced") + mark,
            ]
        )
    header = [
        "fit",
        "points",
        "K_max",
        "ours",
        "95 %",
        "N_0 (B)",
        "ours",
        "95 %",
        "R2",
        "ours",
        "within",
        "max dE",
        "verdict",
    ]
    notes = [f"({i}) {reason}" for i, reason in enumerate(reasons, 1)]
    return "\n".join([table(header, rows), *dict.fromkeys(notes)])


def slopes_table(slopes: dict[str, list[tuple[str, float, float, float]]], within: float = 0.00015) -> str:
    """Published slopes of each model by itself beside ours; agreement to `within`, or the difference."""
    rows = [
        [
            f"{family} {size}",
            f"{published:.4f}",
            f"{ours:.4f}",
            f"{quality:.2f}",
            "reproduced" if abs(ours - published) <= within else f"off by {ours - published:+.4f}",
        ]
        for family, entries in slopes.items()
        for size, published, ours, quality in entries
    ]
    text = table(["one power law per model, D", "k", "ours", "R2 (log)", "verdict"], rows)
    return text + "\n(the recovered instruct curves lack steps 1 to 3, so instruct slopes need not agree)"


def heldout_table(rows: Sequence[HeldOut]) -> str:
    """Errors of predictions, each with what it was allowed to see."""
    return table(
        ["prediction", "points", "MAE", "MAPE", "end bias", "R2", "coverage", "width"],
        [
            [
                r.basis,
                r.points,
                f"{r.mae:.4f}",
                f"{r.mape:.1%}",
                f"{r.end_bias:+.4f}",
                figure(r.r2, ".3f"),
                "-" if r.coverage is None else f"{r.coverage:.0%}",
                "-" if r.width is None else f"{r.width:.3f}",
            ]
            for r in rows
        ],
    )


def trajectory_table(trajectories: Sequence[Trajectory]) -> str:
    """The rest of all curves from their beginnings: pooled errors, coverage, and the sizes whose interval fails."""
    rows = []
    for t in trajectories:
        p = t.pooled
        poor = [
            f"{size} {row.coverage:.0%}" for size, row in t.per_size.items() if row.coverage is not None and row.coverage < 0.85
        ]
        rows.append(
            [
                f"first {t.fraction:.0%}",
                p.points,
                f"{p.mae:.4f}",
                f"{t.baseline_mae:.4f}",
                f"{p.end_bias:+.4f}",
                "-" if p.coverage is None else f"{p.coverage:.0%}",
                ", ".join(poor) or "none",
            ]
        )
    header = ["fitted on", "predicted", "MAE", "last value", "end bias", "coverage", "sizes covered below 85 %"]
    return table(header, rows)


def score_table(scores: Sequence[Score]) -> str:
    """Laws against each other, best hold-out first. '-': too few effective points, or no such figure."""
    rows = []
    for s in scores:
        aicc = "-" if s.aicc != s.aicc else f"{s.aicc:.0f}"
        difference = "-" if s.name == "joint" else f"[{s.difference[0]:+.4f}, {s.difference[1]:+.4f}]"
        rows.append(
            [
                s.name + ("" if s.converged else " (NOT CONVERGED)"),
                s.parameters or "-",
                "-" if s.rmse != s.rmse else f"{s.rmse:.5f}",
                aicc,
                f"{s.mape:.2%}",
                *(f"{value:.2%}" for value in s.mape_per_origin.values()),
                f"{s.bias:+.2%}",
                difference,
            ]
        )
    origins = [f"from {fraction:.0%}" for fraction in (scores[0].mape_per_origin if scores else {})]
    return table(
        ["law", "parameters", "rmse log10", "dAICc", "held-out MAPE", *origins, "end bias", "MAPE - joint, 95 %"], rows
    )


def prediction_table(predictions: Sequence[Prediction]) -> str:
    """One row per predicted point: loss, band of the law, interval of a new evaluation, and what was known of that
    size; below, why there is no interval, and what to mind."""
    rows, below = [], []
    for p in predictions:
        below += [*p.cautions, *([p.reason] if p.reason else [])]
        for i, (x, possible, basis) in enumerate(zip(p.x, p.possible, p.bases(), strict=True)):
            known = possible and p.low is not None
            band = f"[{p.mean_low[i]:.4f}, {p.mean_high[i]:.4f}]" if known else "-"
            new = f"[{p.low[i]:.4f}, {p.high[i]:.4f}]" if known else "-"
            rows.append([size_label(p.n), f"{x:.3e}", loss_text(p.loss[i]), band, new, basis])
    header = ["size", "X", "loss", "band of the law", "interval of an evaluation", "basis"]
    return "\n".join([table(header, rows), *dict.fromkeys(below)])


def target_table(law: Law, target: float, needed: Sequence[Requirement]) -> str:
    """X that each size needs for a loss; what lies far outside the data is said in words."""
    rows = []
    for r in needed:
        interval = "-" if r.low is None else f"[{amount(r.low, r.searched)}, {amount(r.high, r.searched)}]"
        x = "never" if r.basis.startswith("never") else amount(r.x, r.searched)
        rows.append([law.design.labels[law.design.index(r.n)], x, "-" if x == "never" else interval, r.basis])
    return table([f"{law.x} for loss {target:g}", "X", "95 %", "basis"], rows)


def spending_table(law: Law, budgets: Sequence[float]) -> str:
    """Crossovers of neighbouring sizes, and the size to train at each budget among those whose data cover it."""
    rows = []
    for c in crossovers(law):
        where = "inside the data" if c.covered else "OUTSIDE the data of at least one"
        if c.x is None:
            where = f"no crossover in range: {c.lower} is lower from {c.searched[0]:.0e} to {c.searched[1]:.0e}"
        interval = "-" if c.low is None else f"[{amount(c.low, c.searched, 1)}, {amount(c.high, c.searched, 1)}]"
        rows.append([f"{c.small} -> {c.large}", "none" if c.x is None else f"{c.x:.2e}", interval, where])
    lines = [table([f"crossover in {law.x}", "X", "95 %", "where"], rows)]
    for budget in budgets:
        choices = best_size(law, budget)
        covered = [c for c in choices if c.covered]
        if not covered:
            lines.append(f"at {law.x} = {budget:.2e}: no size has data there, so none is recommended")
            continue
        shares = ", ".join(
            f"{c.size} {loss_text(c.loss, 3)}" + ("" if c.probability_best is None else f" (best in {c.probability_best:.0%})")
            for c in covered
        )
        left = ", ".join(c.size for c in choices if not c.covered)
        lines.append(f"at {law.x} = {budget:.2e}: {shares}" + (f"; not covered by data: {left}" if left else ""))
    return "\n".join(lines)


def reuse_table(rows: Sequence[Reuse]) -> str:
    """Reuse factors against tau = 1: 'worse' or 'better' where the interval of the difference excludes 0."""
    body = []
    for r in rows:
        body.append(
            [
                f"tau {r.factor:g}",
                r.runs,
                f"{r.final:.4f}",
                spread(r.final_interval),
                f"{r.difference:+.4f}",
                spread(r.difference_interval),
                f"{r.k:.4f}",
                "reference" if r.factor == 1 else _verdict(r.difference_interval),
            ]
        )
    text = table(["data reuse", "runs", "final loss", "95 %", "minus tau 1", "95 %", "k", "verdict"], body)
    return text + SCATTER_ONLY


def _verdict(difference: tuple[float, float]) -> str:
    low, high = difference
    return "worse" if low > 0 else "better" if high < 0 else "no difference seen"


def settings_table(rows: Sequence[Setting], x: str) -> str:
    """Settings of one model over X against the first of them; the verdict as in `reuse_table`."""
    body = []
    for r in rows:
        body.append(
            [
                r.name,
                int(r.curve.repeats.max()),
                len(r.curve),
                f"{r.curve.x(x).max():.2e}",
                f"{r.k:.4f}",
                spread(r.k_interval),
                f"{r.final:.4f}",
                spread(r.final_interval),
                f"{r.difference:+.4f}",
                spread(r.difference_interval),
                "reference" if r is rows[0] else _verdict(r.difference_interval),
            ]
        )
    header = ["setting", "runs", "points", "last X", "k", "95 %", "final loss", "95 %", "minus first", "95 %", "verdict"]
    return table(header, body) + SCATTER_ONLY
