"""How a step scales to many hosts: rollouts of unequal length on hosts that wait for each other, synchronous or one step off.

    python -m jaxgrpo.plan.scale RUN_DIR [OUT.png]    from the phases and response lengths that a run has measured
    python -m jaxgrpo.plan.scale [OUT.png]            from the plan of a 7B model on v5p and long-tailed lengths

A table is printed, and drawn where OUT.png is named (a run's else in RUN_DIR/plots/scale.png). A run's machines, all of its
hosts together, count as one host here. The batch stays the same while hosts are added, so that slots run empty and the longest
response decides: the simulation shows where that begins. Prompts are dealt out to hosts in turn, as in training; a host's slots
take the next sequence when one ends. A token takes as long with few busy slots as with all of them, pessimistic where reading
the cache takes most of it.

Shapes: P prompts, G samples of each.
"""

import argparse
import heapq
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxgrpo.errors import UserError

CHIPS_PER_HOST = 4
HOSTS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # 8 to 4,096 chips


@dataclass(frozen=True)
class Phases:
    """Of one host: seconds that all its busy slots take for one token, and how many slots it has. Of a step: operations of
    updates and scoring in host-seconds, seconds that do not shrink with hosts (hand-over, logging), prompts of a minibatch."""

    token_s: float
    slots: int
    update_host_s: float
    fixed_s: float


@dataclass(frozen=True)
class Step:
    """Seconds of a step, of its rollout, and the share of all host-seconds in which a host waits for another one, or in which
    its slots are empty."""

    hosts: int
    step_s: float
    rollout_s: float
    idle: float


def rollout_seconds(lengths_PG: np.ndarray, hosts: int, phases: Phases) -> np.ndarray:
    """Seconds until each host is done with its prompts' responses, shape (hosts,)."""
    return np.array([_host_seconds(lengths_PG[host::hosts].reshape(-1), phases) for host in range(hosts)])


def _host_seconds(lengths: np.ndarray, phases: Phases) -> float:
    """Continuous batching: the slot that is free first takes the next sequence."""
    if len(lengths) <= phases.slots:
        return float(lengths.max(initial=0)) * phases.token_s
    free = list(lengths[: phases.slots].astype(float))
    heapq.heapify(free)
    for length in lengths[phases.slots :]:
        heapq.heapreplace(free, free[0] + float(length))
    return max(free) * phases.token_s


def synchronous(lengths_PG: np.ndarray, hosts: int, phases: Phases) -> Step:
    """All hosts generate, meet, and update together."""
    rollouts = rollout_seconds(lengths_PG, hosts, phases)
    update = phases.update_host_s / hosts
    step = rollouts.max() + update + phases.fixed_s
    busy = lengths_PG.sum() * phases.token_s / phases.slots + phases.update_host_s
    return Step(hosts, float(step), float(rollouts.max()), float(1 - busy / (hosts * step)))


def one_step_off(lengths_PG: np.ndarray, hosts: int, phases: Phases) -> Step:
    """Some hosts generate the next batch while the others update on this one; the division with the shortest step."""
    if hosts < 2:
        return synchronous(lengths_PG, hosts, phases)
    best = None
    for generating in sorted({*np.unique(np.geomspace(1, hosts - 1, 24).astype(int)), hosts // 2}):
        rollout = rollout_seconds(lengths_PG, int(generating), phases).max()
        step = max(rollout, phases.update_host_s / (hosts - generating)) + phases.fixed_s
        busy = lengths_PG.sum() * phases.token_s / phases.slots + phases.update_host_s
        found = Step(hosts, float(step), float(rollout), float(1 - busy / (hosts * step)))
        if best is None or found.step_s < best.step_s:
            best = found
    return best


def long_tailed(prompts: int, samples: int, mean: int = 1000, limit: int = 4096, seed: int = 0) -> np.ndarray:
    """Response lengths [P, G] like the paper's: log-normal, prompts differing more than samples, cut at the limit."""
    rng = np.random.default_rng(seed)
    logs = rng.normal(0, 0.6, (prompts, 1)) + rng.normal(0, 0.4, (prompts, samples))
    lengths = np.exp(logs)
    return np.clip(np.round(lengths * mean / lengths.mean()), 1, limit).astype(int)


def measured(run_dir: str) -> tuple[np.ndarray, Phases]:
    """Lengths [questions, samples] of a run's newest evaluation, and its mean phases. UserError where it has none."""
    import yaml

    run = Path(run_dir)
    try:
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [step for step in steps if step.get("rollout_s")]
        evaluations = sorted(run.glob("eval/heldout-*.jsonl"), key=lambda path: int(path.stem.rpartition("-")[2]))
        rows = [json.loads(line) for line in evaluations[-1].read_text().splitlines()] if evaluations else []
        config = yaml.safe_load((run / "config.yaml").read_text())
        samples, slots = config["rollout"]["samples"], config["rollout"]["slots"]
        prompts, pool = config["data"]["prompts_per_step"], np.array([row["tokens"] for row in rows])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run} is no run directory that can be read ({error}): give one that training has written.") from None
    if not steps or not len(pool):
        raise UserError(f"{run} holds no finished step, or no evaluation: nothing to scale from. Train further.")
    if not slots:
        raise UserError(f"{run}/config.yaml says rollout.slots=0: only the resolved config of a run that has started tells.")
    lengths = np.random.default_rng(0).choice(pool, (prompts, samples))
    last = steps[len(steps) // 2 :]

    def mean(key: str) -> float:
        return float(np.mean([step.get(key) or 0.0 for step in last]))

    token_s = mean("rollout_s") / (_host_seconds(lengths.reshape(-1), Phases(1.0, slots, 0, 0)))
    return lengths, Phases(token_s, slots, mean("update_s") + mean("score_s"), mean("sync_s") + max(mean("other_s"), 0.0))


def planned() -> tuple[np.ndarray, Phases]:
    """The 7B model on hosts of four v5p chips, by the figures of `jaxgrpo plan`."""
    from jaxgrpo.config import Config, replace
    from jaxgrpo.model.source import resolve_model
    from jaxgrpo.plan.memory import resolved
    from jaxgrpo.plan.timing import Assumptions, phase_seconds
    from jaxgrpo.plan.topology import parse_topology

    topology = parse_topology("v5p:2x2x4")
    model = resolve_model("random:qwen2.5-7b", need_weights=False).config
    config = resolved(replace(Config(), {"model": "random:qwen2.5-7b"}), model, topology)
    a = Assumptions(tail=1.0)
    seconds = phase_seconds(config, model, topology, a)
    lengths = long_tailed(config.data.prompts_per_step, config.rollout.samples)
    slots = config.rollout.slots // topology.hosts
    token_s = seconds["rollout"] * slots / (lengths.size / topology.hosts * a.response)
    return lengths, Phases(token_s, slots, (seconds["update"] + seconds["score"]) * topology.hosts, seconds["sync"] + 2.0)


def draw(lengths_PG: np.ndarray, phases: Phases, path: Path, unit: str, each: int) -> None:
    """Step time and idle share over the number of `unit`, of which a host has `each`, both ways."""
    from scaling.figures import BLUE, ORANGE, PAGE, canvas, save, styled

    @styled
    def figure():
        drawn, axes = canvas(PAGE, 2.5, 1, 2)
        left, right = axes[0]
        for name, simulate, colour, marker in (
            ("synchronous", synchronous, BLUE, "o"),
            ("one step off", one_step_off, ORANGE, "s"),
        ):
            steps = [simulate(lengths_PG, hosts, phases) for hosts in HOSTS]
            counts = [each * step.hosts for step in steps]
            left.plot(counts, [step.step_s for step in steps], color=colour, marker=marker, markersize=3, label=name)
            right.plot(counts, [step.idle for step in steps], color=colour, marker=marker, markersize=3, label=name)
        alone = synchronous(lengths_PG, 1, phases).step_s
        left.plot(counts, [alone / hosts for hosts in HOSTS], ":", color="0.45", label="without any loss")
        left.set_yscale("log")
        left.set_ylabel("seconds a step")
        right.set_ylim(0, 1)
        right.set_ylabel("share of host-seconds idle")
        for axis in (left, right):
            axis.set_xscale("log", base=2)
            axis.set_xticks(counts[::2], [f"{c:,}" for c in counts[::2]])
            axis.set_xlabel(unit)
            axis.legend()
        left.set_title(f"the same batch of {lengths_PG.size:,} responses on more {unit}")
        return drawn

    save(figure(), path.parent, path.stem)


def arguments_of(argv: list[str]) -> tuple[str | None, Path | None]:
    """(run directory, picture); ends with exit code 2 for what is neither."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxgrpo.plan.scale",
        description="How a step scales to many hosts: table, and picture where one is named.",
        epilog="Without RUN_DIR: the plan of a 7B model on v5p with long-tailed lengths.",
    )
    parser.add_argument("named", metavar="RUN_DIR | OUT.png", nargs="*", help="a run directory, a picture to draw, or both")
    named = parser.parse_args(argv).named
    pictures = [Path(name) for name in named if Path(name).suffix == ".png" and not Path(name).is_dir()]
    runs = [name for name in named if Path(name) not in pictures]
    if len(runs) > 1 or len(pictures) > 1:
        parser.error(f"one run directory and one OUT.png at most, not {' '.join(named)}")
    if runs and not (Path(runs[0]) / "metrics.jsonl").is_file():
        parser.error(f"{runs[0]} is no run directory (it has no metrics.jsonl), and no picture, whose name ends in .png")
    run = runs[0] if runs else None
    return run, pictures[0] if pictures else Path(run, "plots", "scale.png") if run else None


def main(argv: list[str]) -> int:
    run, picture = arguments_of(argv)
    try:
        lengths, phases = measured(run) if run else planned()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    unit, each = ("machines", 1) if run else ("chips", CHIPS_PER_HOST)
    print(f"{run}, whose machines are one here" if run else "plan of a 7B model on v5p, four chips a host")
    print(f"{lengths.size:,} responses, mean {lengths.mean():.0f}, longest {lengths.max()} tokens; {phases.slots} slots a host")
    print(f"{unit:<8}   synchronous s  idle   one step off s  idle")
    for hosts in HOSTS:
        a, b = synchronous(lengths, hosts, phases), one_step_off(lengths, hosts, phases)
        print(f"{each * hosts:8d}   {a.step_s:13.2f}  {a.idle:4.0%}   {b.step_s:14.2f}  {b.idle:4.0%}")
    if picture:
        draw(lengths, phases, picture, unit, each)
        print(f"picture {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
