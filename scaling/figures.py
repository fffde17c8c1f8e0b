"""Figures of a law in the manner of the paper: curves with predicted parts and bands, k(N), residuals, the profile of
N_0.

Single-column figures are 3.4 inches wide, text 7 to 8 points. Sizes are coloured by an ordered, colour-blind-safe map
(viridis), and markers repeat the information; predictions are dashed. `save` writes vector (PDF) and PNG.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from scaling.design import fitted, free_lines
from scaling.extrapolation import reach
from scaling.goodness import autocorrelation
from scaling.law import Law, profile
from scaling.runs import X_LABELS, Curve, size_label

COLUMN = 3.4
PAGE = 7.0
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "font.family": "sans-serif",
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
    "axes.grid": True,
    "grid.linewidth": 0.3,
    "grid.color": "0.88",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.axisbelow": True,
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.45"
LOSS_TICKS = np.array(
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of what is written inside names `path`, which the system does not do of a full disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error


def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write `name`.pdf and `name`.png into `folder` and return their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("pdf", "png")]
    with matplotlib.rc_context(STYLE):
        for path in paths:
            drawn, kind = (
                io.BytesIO(),
                path.suffix[1:],
            )  # on a full disk the writer of PDFs fails in its tidying up
            figure.savefig(drawn, format=kind, bbox_inches="tight", metadata={"CreationDate": None} if kind == "pdf" else None)
            with naming(path):
                path.write_bytes(drawn.getvalue())
    return paths


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under STYLE without touching the caller's matplotlib settings."""

    @wraps(draw)
    def wrapper(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **options):
    """A figure without global state, and its axes as an array of shape (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def colours(count: int) -> list:
    """`count` ordered colours, dark to light, none too pale to see on white."""
    return [matplotlib.colormaps["viridis"](v) for v in np.linspace(0.0, 0.88, count)]


def loss_axis(axis) -> None:
    """Logarithmic loss with plain decimal ticks."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    ticks = LOSS_TICKS[(LOSS_TICKS >= low) & (LOSS_TICKS <= high)]
    if len(ticks) < 3:  # a short span
        ticks = np.array([tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high])
    if len(ticks) > 7:
        ticks = ticks[:: -(-len(ticks) // 7)]
    axis.yaxis.set_major_locator(FixedLocator(ticks))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_ylabel("held-out loss 1 − Pass@1")


def x_axis(axis, label: str) -> None:
    """Logarithmic X with ticks at decades (at 1, 2, 5 where fewer than two decades are shown)."""
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    if np.log10(high / low) < 2.5:
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(_plain))
    else:
        axis.xaxis.set_major_locator(LogLocator(numticks=8))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(label)


def _plain(value: float, _=None) -> str:
    """20000 -> '20k'; powers of ten stay short, FLOPs are written as 2e+19."""
    return f"{value:.0e}".replace("e+", "e") if value >= 1e7 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def size_axis(axis, sizes: Sequence[float], labels: Sequence[str]) -> None:
    """Logarithmic N with the models' names as ticks."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(list(sizes)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(list(sizes), list(labels))
    axis.set_xlabel("model size N (parameters)")


@styled
def curves(law: Law, measured: Sequence[Curve] = (), title: str = "", new_sizes: Sequence[float] = ()) -> Figure:
    """Measured points with the law: solid over the fitted points, dashed with its interval where it predicts.

    `measured` holds full curves: their points beyond those fitted, and sizes that were not fitted, are drawn hollow.
    The law is continued to their end, or to twice the X of the fitted points; `new_sizes` are predicted where they
    would be trained.
    """
    d = law.design
    known = {curve.n: curve for curve in measured}
    sizes = sorted({*law.sizes, *known, *new_sizes})
    figure, axes = canvas(COLUMN, 2.9)
    axis = axes[0, 0]
    for colour, marker, n in zip(colours(len(sizes)), MARKERS * len(sizes), sizes, strict=False):
        row, curve = d.index(n), known.get(n)
        style = {"marker": marker, "s": 5, "linewidths": 0.4, "zorder": 2}
        begin, last = reach(d, n)[0], 0.0
        if row is not None:
            x = 10.0 ** d.t_MT[row, d.present[row]]
            last = begin = x.max()
            axis.scatter(x, d.loss_MT[row, d.present[row]], color=colour, alpha=0.55, **style)
            span = np.geomspace(x.min(), last, 60)
            axis.plot(span, law.predict(n, span).loss, color=colour, zorder=4)
        if curve is not None:
            x = curve.x(law.x)
            axis.scatter(x[x > last], curve.loss[x > last], facecolors="none", edgecolors=[colour], alpha=0.7, **style)
            begin, end = last or x.min(), x.max()
        else:
            end = 2 * last if row is not None else reach(d, n)[1]
        if end > begin * 1.01:
            _predicted(axis, law, n, np.geomspace(begin, end, 60), colour)
        label = size_label(n) if row is None else d.labels[row]
        shape = {} if row is None and curve is None else {"marker": marker, "markersize": 3}
        axis.plot([], [], "-" if row is not None else "--", color=colour, label=label, **shape)
    x_axis(axis, X_LABELS[law.x])
    axis.set_ylim(*_loss_limits(axis))
    loss_axis(axis)
    axis.set_title(title or f"{law.family}: solid fitted, dashed predicted")
    axis.legend(ncols=2, loc="lower left", handlelength=1.4, columnspacing=0.8, labelspacing=0.25)
    return figure


def _loss_limits(axis) -> tuple[float, float]:
    """Limits that hold all points and lines and, below them, room for the legend. A wide band is cut."""
    points = [collection.get_offsets()[:, 1] for collection in axis.collections if len(collection.get_offsets()) > 1]
    lines = [line.get_ydata() for line in axis.lines if len(line.get_ydata())]
    values = np.concatenate([np.asarray(part, dtype=float) for part in points + lines])
    low, high = np.nanmin(values), np.nanmax(values)
    margin = (high / low) ** 0.06
    return low / margin / (high / low) ** 0.25, high * margin


def _predicted(axis, law: Law, n: float, span: np.ndarray, colour) -> None:
    prediction = law.predict(n, span)
    axis.plot(span, np.where(prediction.possible, prediction.loss, np.nan), "--", color=colour, zorder=4)
    if prediction.low is not None:
        axis.fill_between(span, prediction.low, prediction.high, color=colour, alpha=0.16, linewidth=0, zorder=1)


@styled
def saturation(laws: Sequence[tuple[str, Law]], title: str = "") -> Figure:
    """k(N) of one or two laws with 95 % bands, and every model's own slope with its autocorrelation-corrected error."""
    figure, axes = canvas(COLUMN, 2.4)
    axis = axes[0, 0]
    reference = max((law for _, law in laws), key=lambda law: len(law.sizes))
    top = 0.0
    for (name, law), colour, line in zip(laws, (BLUE, ORANGE, GREY), ("-", "--", ":"), strict=False):
        n = np.geomspace(reference.sizes.min() / 1.5, reference.sizes.max() * 1.8, 100)
        axis.plot(n, law.k(n), line, color=colour, label=f"{name}: $K_{{max}}$ {law.k_max:.3f}, $N_0$ {size_label(law.n0)}")
        top = max(top, float(law.k(n).max()))
        if law.draws is not None:
            low, high = np.percentile(law.draws.slopes(n), [2.5, 97.5], axis=0)
            axis.fill_between(n, low, high, color=colour, alpha=0.15, linewidth=0)
    own, error = own_slopes(reference)
    axis.errorbar(
        reference.sizes,
        own,
        1.96 * error,
        fmt="o",
        markersize=3,
        color="black",
        elinewidth=0.7,
        capsize=1.5,
        label="each model alone, 95 %",
        zorder=5,
    )
    size_axis(axis, reference.sizes, reference.design.labels)
    axis.set_ylim(min(0, float((own - 1.96 * error).min())), 1.35 * max(top, float((own + 1.96 * error).max())))
    axis.set_ylabel("slope k(N)")
    axis.set_title(title or f"{reference.family}, X = {reference.x}")
    axis.legend(loc="upper left", borderpad=0.1)
    return figure


def own_slopes(law: Law) -> tuple[np.ndarray, np.ndarray]:
    """Every model's own slope and its standard error, enlarged by sqrt(tau) for autocorrelation; each of shape (M,)."""
    d = law.design
    own, _, line = free_lines(d)
    errors = []
    for i, present in enumerate(d.present):
        t, r = d.t_MT[i, present], (d.y_MT - line)[i, present]
        errors.append(np.sqrt(r @ r / (len(t) - 2) * autocorrelation(r)[1] / ((t - t.mean()) ** 2).sum()))
    return own, np.array(errors)


@styled
def residuals(law: Law) -> Figure:
    """Log10 residuals of every model along X: a law that holds leaves a flat band; curvature is what it cannot
    describe."""
    d = law.design
    columns = min(4, len(law.sizes))
    rows = -(-len(law.sizes) // columns)
    figure, axes = canvas(PAGE, 1.35 * rows + 0.3, rows, columns, sharey=True)
    left = d.y_MT - fitted(d, law.solution)
    for axis in axes.flat[len(law.sizes) :]:
        axis.set_visible(False)
    for i, axis in enumerate(axes.flat[: len(law.sizes)]):
        x, r = 10.0 ** d.t_MT[i, d.present[i]], left[i, d.present[i]]
        axis.axhline(0, color=GREY, linewidth=0.6)
        axis.scatter(x, r, s=4, color=BLUE, alpha=0.6, linewidths=0)
        width = max(3, len(r) // 8)
        smooth = np.convolve(r, np.ones(width) / width, "valid")
        axis.plot(x[width // 2 : width // 2 + len(smooth)], smooth, color=ORANGE)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(numticks=4))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(f"{d.labels[i]}: R² {law.r2_per_model[d.labels[i]]:.2f}, ρ {law.residuals.rho[i]:.2f}")
    for axis in axes[:, 0]:
        axis.set_ylabel("residual of log₁₀ L")
    figure.supxlabel(X_LABELS[law.x], fontsize=8)
    return figure


@styled
def n0_profile(law: Law) -> Figure:
    """Left: profile likelihood of N_0 with its interval. Right: the bootstrap fits in the plane of N_0 and K_max."""
    result = profile(law)
    figure, axes = canvas(PAGE, 2.3, 1, 2)
    left, right = axes[0]
    n0, drop = result["n0"], result["drop"]
    shown = drop < 25
    left.plot(n0[shown], drop[shown], color=BLUE)
    left.axhline(3.84, color=ORANGE, linestyle="--", linewidth=0.8, label="95 %")
    left.set_xscale("log")
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xticks(_one_two_five(n0[shown].min(), n0[shown].max()))
    left.xaxis.set_major_formatter(FuncFormatter(lambda v, _: size_label(v)))
    left.set_ylim(0, 25)
    left.set_xlabel("$N_0$ (parameters)")
    left.set_ylabel("twice the log-likelihood lost")
    low, high = result["interval"]
    left.set_title("open: not bounded by the data" if result["open"] else f"95 %: {size_label(low)} to {size_label(high)}")
    left.legend()
    if law.draws is not None:
        right.scatter(law.draws.n0, law.draws.k_max, s=2, color=BLUE, alpha=0.25, linewidths=0)
        right.set_xscale("log")
        right.xaxis.set_minor_formatter(NullFormatter())
        right.set_xticks(_one_two_five(law.draws.n0.min(), law.draws.n0.max()))
        right.xaxis.set_major_formatter(FuncFormatter(lambda v, _: size_label(v)))
    right.scatter([law.n0], [law.k_max], marker="+", color=ORANGE, s=40, zorder=5, label="fit")
    right.set_xlabel("$N_0$ (parameters)")
    right.set_ylabel("$K_{max}$")
    right.set_title(f"{0 if law.draws is None else len(law.draws.k_max)} bootstrap fits")
    right.legend(loc="upper left")
    return figure


def _one_two_five(low: float, high: float) -> list[float]:
    """Ticks 1, 2, 5 (only 1 beyond two decades) inside [low, high]."""
    steps = (1,) if high / low > 100 else (1, 2, 5) if high / low > 4 else (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 8)
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
