"""Curves with a known law, as Runs and as run directories."""

import json

import numpy as np

from scaling.runs import Curve, Runs, size_label

K_MAX, N0 = 0.14, 13e9
SIZES = np.array([0.5, 1.5, 3, 7, 14, 32, 72]) * 1e9
LEVELS = np.array([0.004, 0.031, 0.048, 0.071, 0.115, 0.154, 0.185])  # log10 intercepts over data


def autoregressive(rng, shape, rho, sd):
    """Stationary AR(1) noise of standard deviation sd along the last axis."""
    noise = np.empty(shape)
    noise[..., 0] = rng.normal(size=shape[:-1])
    for j in range(1, shape[-1]):
        noise[..., j] = rho * noise[..., j - 1] + np.sqrt(1 - rho**2) * rng.normal(size=shape[:-1])
    return sd * noise


def make_runs(noise=0.0, k_max=K_MAX, n0=N0, sizes=SIZES, levels=LEVELS, steps=105, family="synthetic"):
    """Runs of L = 10^(E - k log10 D + noise); noise is a number or an array (sizes, steps)."""
    step = np.arange(1, steps + 1, dtype=float)
    samples = 512 * step
    noise = np.broadcast_to(noise, (len(sizes), steps))
    curves = []
    for i, n in enumerate(sizes):
        k = k_max / (1 + n0 / n)
        missing = np.full(steps, np.nan)
        curves.append(
            Curve(
                family=family, n=float(n), size=size_label(n), run="one", step=step, samples=samples,
                loss=10.0 ** (levels[i] - k * np.log10(samples) + noise[i]), tokens=missing,
                compute=6 * n * 5e6 * step, compute_total=missing, test_n=missing, response_length=missing,
                repeats=np.ones(steps),
            )
        )  # fmt: skip
    return Runs(tuple(curves))


def write_run(folder, n, losses, *, seed=0, family="mini", extra=None):
    """A run directory of the contract: config.yaml, metrics.jsonl with step 0 and one line per loss."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"seed: {seed}\n")
    lines = []
    for step, loss in enumerate(losses):
        line = {"model_family": family, "n_params": n, "step": step, "samples": 32 * step, "tokens": 2000 * step}
        line |= {"compute_flops": 6.0 * n * 2000 * step, "compute_flops_total": 9.0 * n * 2000 * step, "test_n": 500}
        if loss is not None:
            line["test_loss"] = loss
        lines.append(line | (extra or {}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
