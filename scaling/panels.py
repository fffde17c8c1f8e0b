"""Figures beside the law: data reuse, response length, and one panel per benchmark."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from scaling import outcomes
from scaling.figures import BLUE, COLUMN, GREY, MARKERS, PAGE, canvas, colours, loss_axis, styled, x_axis
from scaling.reuse import FIRST_STEP, Reuse
from scaling.runs import X_LABELS, Curve, DataError, Runs
from scaling.settings import Setting


def rolling_median(values: np.ndarray, width: int = 9) -> np.ndarray:
    """Median over a centred window, shortened at the ends; shape as given."""
    half = width // 2
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


@styled
def data_reuse(runs: Runs, rows: Sequence[Reuse], title: str = "") -> Figure:
    """Left: curves of every reuse factor (rolling median over the points). Right: final loss with 95 % intervals."""
    figure, axes = canvas(PAGE, 2.5, 1, 2)
    left, right = axes[0]
    ordered = sorted(runs.mean().between(first=FIRST_STEP), key=lambda c: c.reuse_factor or 0)
    for colour, curve in zip(colours(len(ordered)), ordered, strict=True):
        left.scatter(curve.step, curve.loss, s=3, color=colour, alpha=0.25, linewidths=0)
        left.plot(curve.step, rolling_median(curve.loss, 15), color=colour, label=f"τ = {curve.reuse_factor:g}")
    left.set_xscale("log")
    left.xaxis.set_major_locator(FixedLocator([10, 20, 50, 100, 200, 500, 1000]))
    left.xaxis.set_minor_locator(NullLocator())
    left.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    left.set_xlabel("training step")
    loss_axis(left)
    left.legend(ncols=2)
    left.set_title(title or "every prompt seen τ times")
    factors = np.array([row.factor for row in rows])
    final = np.array([row.final for row in rows])
    low, high = np.array([row.final_interval for row in rows]).T
    right.axhspan(low[0], high[0], color=GREY, alpha=0.15, linewidth=0, label="τ = 1, 95 %")
    right.errorbar(
        factors,
        final,
        [np.maximum(final - low, 0), np.maximum(high - final, 0)],
        fmt="o",
        markersize=3.5,
        color=BLUE,
        capsize=2,
        elinewidth=0.8,
    )
    right.set_xscale("log")
    close = [i > 0 and factor < 1.5 * factors[i - 1] for i, factor in enumerate(factors)]
    right.set_xticks(
        factors, [("\n" if low_row else "") + f"{factor:g}" for factor, low_row in zip(factors, close, strict=True)]
    )
    right.xaxis.set_minor_locator(NullLocator())
    right.set_xlabel("reuse factor τ")
    right.set_ylabel("mean loss of the last 10 evaluations")
    repeated = sorted({row.runs for row in rows})
    count = f"{repeated[0]}" if len(repeated) == 1 else f"{repeated[0]} to {repeated[-1]}"
    right.set_title(f"scatter of evaluations only, {count} {'run' if count == '1' else 'runs'} each")
    right.legend(loc="upper left")
    return figure


@styled
def lengths(series: Sequence[tuple[str, np.ndarray, np.ndarray]], xlabel: str, ylabel: str, title: str = "") -> Figure:
    """(label, x, tokens) for every model: points, and their rolling median. DataError where no series is given."""
    if not series:
        raise DataError("no response lengths: the runs hold no response_length_mean")
    figure, axes = canvas(COLUMN, 2.5)
    axis = axes[0, 0]
    for colour, marker, (label, x, tokens) in zip(colours(len(series)), MARKERS * len(series), series, strict=False):
        axis.scatter(x, tokens, s=3, color=colour, marker=marker, alpha=0.25, linewidths=0)
        axis.plot(x, rolling_median(tokens), color=colour, label=label)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.set_ylim(0.7 * min(np.percentile(t, 1) for *_, t in series), 1.05 * max(np.percentile(t, 99) for *_, t in series))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1000:g}k" if v >= 1000 else f"{v:g}"))
    axis.legend(ncols=4, loc="lower left", columnspacing=0.8, handlelength=1.2)
    axis.set_title(title)
    return figure


@styled
def benchmarks(runs: Sequence[Curve], x: str = "data") -> Figure:
    """One panel per suite found in the run directories: 1 - mean score of every run along X. DataError where there is
    none."""
    names = list(dict.fromkeys(suite for curve in runs for suite in outcomes.suites(curve)))
    if not names:
        raise DataError("no eval files in the run directories: nothing to draw per benchmark")
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = canvas(PAGE if columns > 1 else COLUMN, 1.7 * rows + 0.4, rows, columns)
    ordered = sorted(runs, key=lambda c: (c.n, c.run))
    sizes = sorted({curve.n for curve in ordered})
    palette = dict(zip(sizes, colours(len(sizes)), strict=True))
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        labelled = set()
        for curve in ordered:
            if name not in outcomes.suites(curve):
                continue
            steps, loss = outcomes.suite_curve(curve, name)
            known = np.isin(steps, curve.step) & (loss > 0)
            at = {step: i for i, step in enumerate(curve.step)}
            place = [at[step] for step in steps[known]]
            axis.plot(
                curve.x(x)[place],
                loss[known],
                color=palette[curve.n],
                marker=".",
                markersize=3,
                label=curve.size if curve.n not in labelled else None,
            )
            labelled.add(curve.n)
        axis.set_title(name)
        x_axis(axis, "")
        loss_axis(axis)
        axis.set_ylabel("")
    axes.flat[0].legend()
    figure.supylabel("1 − mean score", fontsize=8)
    figure.supxlabel(X_LABELS[x], fontsize=8)
    return figure


@styled
def settings(rows: Sequence[Setting], x: str) -> Figure:
    """Left: the averaged curve of every setting with its power law. Right: final loss with 95 % intervals."""
    figure, axes = canvas(PAGE, 2.5, 1, 2)
    left, right = axes[0]
    for place, (colour, marker, row) in enumerate(zip(colours(len(rows)), MARKERS * len(rows), rows, strict=False)):
        at = row.curve.x(x)
        left.scatter(at, row.curve.loss, s=6, color=colour, marker=marker, alpha=0.5, linewidths=0)
        left.plot(at, 10.0**row.intercept * at**-row.k, color=colour, marker=marker, markersize=0, label=row.name)
        low, high = row.final_interval
        error = [[max(row.final - low, 0)], [max(high - row.final, 0)]]
        right.errorbar([place], [row.final], error, fmt=marker, markersize=4, color=colour, capsize=2, elinewidth=0.8)
    x_axis(left, X_LABELS[x])
    loss_axis(left)
    left.legend()
    right.set_xticks(range(len(rows)), [row.name for row in rows])
    right.set_ylabel("mean loss of the last points")
    right.set_title("scatter of evaluations only")
    return figure
