"""What `jaxgrpo data` shows: a table of what was made and a histogram of how hard it is."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxgrpo.data.prepare import EASY, RATES, Prepared, pass_rate

_SHOWN = 10  # matches printed in full


def print_summary(made: Prepared, summary: dict, console: Console) -> None:
    """The counts of `Prepared.summary`, and the first matches with benchmarks."""
    table = Table(title="problems")
    for column in ("split", "problems", "easy", "hard", "never solved", "data sources"):
        table.add_column(column, justify="left" if column in ("split", "data sources") else "right")
    for split in ("train", "heldout"):
        counts = summary[split]
        sources = "\n".join(f"{n:,} {name}" for name, n in counts["by_data_source"].items())
        hard, never = counts["problems"] - counts["easy"], counts["by_pass_rate"].get("0", 0)
        kinds = [f"{n:,}" for n in (counts["easy"], hard, never)] if made.rated else ["-"] * 3
        table.add_row(split, f"{counts['problems']:,}", *kinds, sources)
    console.print(table)
    if not made.rated:
        drawn = "; the held-out problems are drawn at random from all" if made.heldout else ""
        console.print(
            f"order     no problem has a pass rate ({' or '.join(RATES)}): the source's order is kept{drawn}. "
            "`jaxgrpo data rate` makes pass rates, for a curriculum."
        )
    elif made.unrated:
        console.print(f"order     {made.unrated:,} problems without a pass rate count as hard and come last")
    total = sum(summary[split]["problems"] for split in ("train", "heldout")) + made.removed
    console.print(f"prompts   template {made.template}, put around {made.prompted:,} of {total:,}", markup=False)
    console.print(f"repaired  {made.repairs}")
    if not made.matches:
        looked_for = ", ".join(made.compared)
        found = f"no question of {looked_for} was found in the training problems" if looked_for else "nothing was looked for"
        without = "" if set(made.compared) - {"heldout"} else "; --against names benchmark files"
        console.print(f"copies    {found}{without}", markup=False)
        return
    verbatim = sum(match.verbatim for match in made.matches)
    fate = "left out" if made.removed else "still in: --remove-contaminated leaves them out"
    console.print(f"{len(made.matches)} matches with benchmarks and held-out problems, {verbatim} word for word; {fate}")
    for match in made.matches[:_SHOWN]:
        kind = "word for word" if match.verbatim else f"{min(match.overlap, 0.99):.0%} of its words"
        console.print(f"  {match.benchmark} question {match.question}, training row {match.row}: {kind}", highlight=False)
    if len(made.matches) > _SHOWN:
        console.print(f"  and {len(made.matches) - _SHOWN} more in summary.json")


def draw_difficulty(made: Prepared, path: Path, title: str) -> None:
    """A PNG: share of problems by pass rate in both splits, and where in the curriculum each pass rate lies."""
    import numpy as np

    from jaxgrpo.picture import BLUE, GREY, ORANGE, plain, plt, save

    figure, (bars, line) = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=12)
    rates = [[pass_rate(row) for row in split] for split in (made.train, made.heldout)]
    levels = np.unique(np.concatenate(rates))
    width = 0.4 * min(1 / 16, np.diff(levels).min() if len(levels) > 1 else 1.0)
    for shift, values, name, colour in zip((-0.5, 0.5), rates, ("train", "held-out"), (BLUE, ORANGE), strict=True):
        if values:
            share = [np.mean(np.array(values) == level) for level in levels]
            bars.bar(levels + shift * width, share, width, label=f"{name}, {len(values):,}", color=colour)
    bars.axvline(EASY, color=GREY, ls="--", lw=1)
    bars.text(EASY, bars.get_ylim()[1] * 0.97, " easy", color="#666666", fontsize=8, va="top")
    bars.set_xlabel("pass rate of the reference model")
    bars.set_ylabel("share of problems")
    bars.legend(fontsize=8, frameon=False)
    line.plot(np.arange(1, len(rates[0]) + 1), rates[0], color=BLUE)
    line.set_xlabel("position in the curriculum")
    line.set_ylabel("pass rate")
    line.set_ylim(bottom=0)
    plain((bars, line))
    save(figure, path)
