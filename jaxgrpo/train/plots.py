"""The learning curve of a run as a picture: held-out Pass@1 with its interval, reward, response length, entropy and KL."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.statistics import wilson
from jaxgrpo.picture import BLUE, GREEN, ORANGE, plain, plt, save


def draw_learning_curve(records: list[dict], path: Path, *, title: str, changed_after: Sequence[int] = ()) -> None:
    """Write a PNG of the metrics of one run. Records without an evaluation are left out of the Pass@1 panel. A dotted line
    stands where something was changed after a step."""
    tested = [r for r in records if r.get("test_loss") is not None]
    trained = [r for r in records if "reward_mean" in r]
    figure, axes = plt.subplots(2, 2, figsize=(9.6, 6.4), sharex=True, layout="constrained")
    figure.suptitle(title, fontsize=12)
    _pass1_panel(axes[0, 0], tested, trained)
    steps = [r["step"] for r in trained]
    _line(axes[0, 1], steps, [r["response_length_mean"] for r in trained], "mean response length (tokens)")
    _line(axes[1, 0], steps, [r["entropy"] for r in trained], "entropy (nats per token)")
    _line(axes[1, 1], steps, [r["kl"] for r in trained], "KL to the reference (nats per token)")
    for axis in axes[1]:
        axis.set_xlabel("step")
    for axis in axes.flat:
        for step in changed_after:
            axis.axvline(step + 0.5, color="0.5", lw=0.8, ls=":")
    plain(axes.flat)
    save(figure, path)


def _pass1_panel(axis, tested: list[dict], trained: list[dict]) -> None:
    axis.plot([r["step"] for r in trained], [r["reward_mean"] for r in trained], color=ORANGE, lw=1, alpha=0.8)
    if tested:
        steps = [r["step"] for r in tested]
        score = np.array([1 - r["test_loss"] for r in tested])
        intervals = [wilson(float(p), r["test_n"]) for p, r in zip(score, tested, strict=True)]
        low, high = [interval.low for interval in intervals], [interval.high for interval in intervals]
        axis.fill_between(steps, low, high, color=BLUE, alpha=0.2, lw=0)
        axis.plot(steps, score, color=BLUE, marker="o", ms=3, lw=1.6)
        axis.annotate(f"{score[0]:.2f}", (steps[0], score[0]), xytext=(6, -14), textcoords="offset points", color=BLUE)
        axis.annotate(f"{score[-1]:.2f}", (steps[-1], score[-1]), xytext=(-22, -14), textcoords="offset points", color=BLUE)
    axis.plot([], [], color=BLUE, marker="o", ms=3, label="held-out Pass@1, 95 % interval")
    axis.plot([], [], color=ORANGE, label="training reward")
    axis.set_ylim(0, 1)
    axis.set_title("held-out Pass@1 and training reward", fontsize=10)
    axis.legend(loc="lower right", fontsize=8, frameon=False)


def _line(axis, steps, values, name: str) -> None:
    axis.plot(steps, [np.nan if v is None else v for v in values], color=GREEN, lw=1.4)
    axis.set_title(name, fontsize=10)
    axis.set_ylim(bottom=0)
