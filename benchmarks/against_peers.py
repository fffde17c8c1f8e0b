"""Our rollouts against a peer's own sampler on exactly the same work, taking turns in one run.

    python benchmarks/against_peers.py --peers FOLDER --tunix PYTHON --transformers PYTHON [--rounds 5] [--json OUT]

FOLDER holds bench_tunix.py and bench_trl.py, PYTHON is the interpreter of an environment with google-tunix 0.1.7 or with torch
and transformers. Every process stays warm and only one of them works at a time: ours with responses of full length, ours with
long-tail lengths, then each peer, `rounds` times over. A peer's rows wait for the longest of their batch, so that its time for
long-tail lengths is its time at the limit; its useful tokens are those that were asked for.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path

from jaxgrpo.parallel.mesh import prepare_cpu_devices

prepare_cpu_devices(0)

from jaxgrpo.bench.machine import Stopwatch, describe, spread  # noqa: E402  (virtual devices come before jax)
from jaxgrpo.bench.task import Task, make_bench  # noqa: E402
from jaxgrpo.rollout.scheduler import generate  # noqa: E402


class Peer:
    """A warm process of benchmarks/peer_sampler.py."""

    def __init__(self, name: str, python: str, folder: str):
        program = Path(__file__).with_name("peer_sampler.py")
        command = [python, str(program), name, folder]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if self.process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{name} did not start: run `{' '.join(command)}` to see why.")

    def __call__(self) -> tuple[float, float]:
        print("go", file=self.process.stdin, flush=True)
        wall, cpu = map(float, self.process.stdout.readline().split())
        return wall, cpu


class Ours:
    """Our engine with forced response lengths."""

    def __init__(self, task: Task):
        self.bench = make_bench(task)
        self.weights = self.bench.engine.load_params(self.bench.params)
        self.bench.engine.compile(self.weights)
        self()

    def __call__(self) -> tuple[float, float]:
        watch = Stopwatch()
        generate(self.bench.engine, self.weights, self.bench.requests)
        return watch.seconds()

    @property
    def tokens(self) -> int:
        return int(self.bench.lengths_PG.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, help="folder of the peers' programs")
    parser.add_argument("--tunix", metavar="PYTHON")
    parser.add_argument("--transformers", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="OUT")
    arguments = parser.parse_args()
    fixed, tail = Task(), dataclasses.replace(Task(), lengths="long-tail")
    runners = {"jaxgrpo fixed": Ours(fixed), "jaxgrpo long-tail": Ours(tail)}
    useful = {name: ours.tokens for name, ours in runners.items()}
    peers = [name for name in ("tunix", "transformers") if getattr(arguments, name)]
    runners |= {name: Peer(name, getattr(arguments, name), arguments.peers) for name in peers}
    result = describe() | {"seconds": {name: [] for name in runners}, "cpu_seconds": {name: [] for name in runners}}
    for number in range(arguments.rounds):
        for name, run in runners.items():
            wall, cpu = run()
            result["seconds"][name].append(wall)
            result["cpu_seconds"][name].append(cpu)
            print(f"round {number + 1}  {name:<18} {wall:7.2f} s  {cpu:7.2f} cpu s", file=sys.stderr, flush=True)
    median = {name: statistics.median(walls) for name, walls in result["seconds"].items()}
    result["useful_tokens"] = useful
    result["tokens_per_s"] = {name: spread([useful[name] / s for s in result["seconds"][name]]) for name in useful}
    result["ratio"] = {f"{ours} / {peer}": median[peer] / median[ours] for peer in peers for ours in useful}
    for peer in peers:
        rates = [useful["jaxgrpo fixed"] / s for s in result["seconds"][peer]]
        result["tokens_per_s"][peer] = spread(rates)
    text = json.dumps(result, indent=1)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
