"""Our rollouts, or our whole GRPO steps, against the peers' own on exactly the same work, taking turns in one run.

    python benchmarks/against_peers.py rollout|step --peers FOLDER --tunix PYTHON --trl PYTHON [--rounds 5] [--json OUT]

FOLDER holds bench_tunix.py and bench_trl.py, PYTHON is the interpreter of an environment with google-tunix 0.1.7, or with
torch, transformers and trl. Every process stays warm and only one of them works at a time: ours with responses of full length,
ours with long-tail lengths, then each peer, `rounds` times over, after a first turn that is not counted. A peer generates until
the longest of its batch ends and trains on padded batches, so that its time for long-tail lengths is its time at the limit; its
useful tokens are those that were asked for.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path

from jaxgrpo.parallel.mesh import prepare_cpu_devices

STEP_KEYS = ("wall", "cpu", "rollout_wall", "rollout_cpu", "peak_rss_mb")
ROLLOUT_KEYS = ("wall", "cpu", "peak_rss_mb")


class Process:
    """A warm process that answers a line with a line of figures."""

    def __init__(self, command: list[str], keys: tuple[str, ...]):
        self.command, self.keys = command, keys
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __call__(self) -> dict[str, float]:
        print("go", file=self.process.stdin, flush=True)
        values = self.process.stdout.readline().split()
        if len(values) != len(self.keys):
            raise SystemExit(f"`{' '.join(self.command)}` gave {values or 'nothing'}: run it to see why.")
        return dict(zip(self.keys, map(float, values), strict=True))


def ours(part: str, lengths: str) -> None:
    """What our own process does: a rollout or a step for every line."""
    prepare_cpu_devices(0)
    from jaxgrpo.bench.machine import Stopwatch, peak_memory_mb
    from jaxgrpo.bench.step import Stepper
    from jaxgrpo.bench.task import Task, make_bench

    bench = make_bench(dataclasses.replace(Task(), lengths=lengths))
    stepper = Stepper(bench)
    bench.engine.compile(bench.engine.load_params(stepper.state.params))
    for _ in sys.stdin:
        watch = Stopwatch()
        responses = stepper.rollout()
        if part == "step":
            stepper.learn(responses)
        rollout = stepper.times["rollout"][-1] if part == "step" else ()
        print(*watch.seconds(), *rollout, peak_memory_mb()["peak_rss_mb"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["rollout", "step"])
    parser.add_argument("--peers", help="folder of the peers' programs")
    parser.add_argument("--tunix", metavar="PYTHON")
    parser.add_argument("--trl", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--ours", choices=["fixed", "long-tail"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        return ours(arguments.part, arguments.ours)
    compare(arguments)


def compare(arguments) -> None:
    keys = STEP_KEYS if arguments.part == "step" else ROLLOUT_KEYS
    here = [sys.executable, __file__, arguments.part, "--ours"]
    commands = {f"jaxgrpo {lengths}": [*here, lengths] for lengths in ("fixed", "long-tail")}
    peers = [name for name in ("tunix", "trl") if getattr(arguments, name)]
    for peer in peers:
        program = str(Path(__file__).with_name("peer_process.py"))
        options = ["--parts", "step", "--repeats", str(arguments.rounds)] if arguments.part == "step" else []
        commands[peer] = [getattr(arguments, peer), program, arguments.part, peer, arguments.peers, *options]
    figures: dict[str, list[dict]] = {name: [] for name in commands}
    runners = {name: Process(command, keys) for name, command in commands.items()}
    for number in range(arguments.rounds + 1):
        for name, run in runners.items():
            figures[name].append(run())
            shown = "  ".join(f"{key} {value:8.2f}" for key, value in figures[name][-1].items())
            print(f"round {number}  {name:<18} {shown}", file=sys.stderr, flush=True)
    result = summary(figures, peers, arguments.part)
    text = json.dumps(result, indent=1)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")
    print(text)


def summary(figures: dict[str, list[dict]], peers: list[str], part: str) -> dict:
    """Medians over the counted rounds, tokens per second, and ratios of our speed to each peer's in useful tokens."""
    from jaxgrpo.bench.machine import describe
    from jaxgrpo.bench.task import Task, response_lengths

    def tokens(lengths: str, with_prompts: bool) -> int:
        made = response_lengths(dataclasses.replace(Task(), lengths=lengths))
        return int(made.sum() + with_prompts * Task().prompt_len * made.size)

    def seconds(name: str, what: str) -> float:
        rounds = figures[name][1:]
        if what == "update":
            return statistics.median(r["wall"] - r["rollout_wall"] for r in rounds)
        return statistics.median(r["wall" if what == part else "rollout_wall"] for r in rounds)

    parts = ["rollout"] if part == "rollout" else ["step", "rollout", "update"]
    result = describe() | {"first_round": {name: rounds[0] for name, rounds in figures.items()}}
    result["rounds"] = {name: rounds[1:] for name, rounds in figures.items()}
    result["median_s"] = {name: {what: seconds(name, what) for what in parts} for name in figures}
    result["peak_rss_mb"] = {name: rounds[-1]["peak_rss_mb"] for name, rounds in figures.items()}
    result["useful_tokens_per_s"], result["ratio"] = {}, {}
    for lengths in ("fixed", "long-tail"):
        for what in parts:
            work = tokens(lengths, what != "rollout")
            name = f"jaxgrpo {lengths}"
            rates = {runner: work / seconds(runner, what) for runner in (name, *peers)}
            result["useful_tokens_per_s"][f"{what}, {lengths}"] = rates
            result["ratio"] |= {f"{what}, {lengths}, to {peer}": rates[name] / rates[peer] for peer in peers}
    return result


if __name__ == "__main__":
    main()
