"""Compiles the rollout programs of real models for real TPUs, without one: needs the `tpu` extra.

    python tests/rollout/tpu_programs.py measure CASE ... > lines.jsonl     one JSON line a case
    python tests/rollout/tpu_programs.py table lines.jsonl ...              the lines as a Markdown document

A case is a model, a slice, and with it the sizes that `train/sizes.py` works out for training on all of the slice with the
paper's 512 prompts x 8 samples of 2048 + 4096 tokens. Compiled is what one host runs, or the hosts that share a replica: the
largest prefill, insert, decode and resize.
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import jaxgrpo  # noqa: E402
from jaxgrpo.config import Config, replace  # noqa: E402
from jaxgrpo.model.config import model_config, read_json  # noqa: E402
from jaxgrpo.plan.compiled import bytes_of, program_bytes, rollout_engine, rollout_peak, rollout_residents  # noqa: E402
from jaxgrpo.plan.topology import CHIPS, Topology  # noqa: E402
from jaxgrpo.rollout.engine import Engine  # noqa: E402
from jaxgrpo.train.sizes import GIB, memory_table, resolve_sizes  # noqa: E402

HOST = 4  # chips of one host of a slice
HOST_TOPOLOGY = {
    "v5e": {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8"},
    "v5p": {4: "2x2x1", 8: "2x2x2", 16: "2x2x4"},
    "v6e": {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8"},
}


@dataclass(frozen=True)
class Case:
    size: str  # of Qwen2.5
    chip: str
    slice: str  # the training slice
    weights: str = ""  # "int8": the sampler's matrices, as `rollout.weights` says

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.size, self.chip, self.slice, self.weights)))

    @property
    def topology(self) -> Topology:
        return Topology(CHIPS[self.chip], self.slice)


CASES = [
    Case(*row.split())
    for row in (
        "0.5b v5e 2x2",
        "1.5b v5e 2x2",
        "3b v5e 2x4",
        "7b v5e 4x4",
        "14b v5e 4x8",
        "32b v5e 8x16",
        "0.5b v5p 2x2x1",
        "1.5b v5p 2x2x1",
        "3b v5p 2x2x1",
        "7b v5p 2x2x2",
        "14b v5p 2x2x2",
        "32b v5p 2x2x4",
        "32b v5p 4x4x4",
        "72b v5p 4x4x4",
        "72b v5p 4x4x8",
        "0.5b v6e 2x2",
        "1.5b v6e 2x2",
        "3b v6e 2x2",
        "7b v6e 2x4",
        "14b v6e 4x4",
        "14b v6e 4x8",
        "32b v6e 4x8",
        "72b v6e 8x16 int8",
    )
]


def engine_of(case: Case) -> tuple[Engine, dict[str, int]]:
    """The engine of one host, or of the hosts that share a replica, and the bytes a chip of all that training keeps."""
    configurations = Path(jaxgrpo.__file__).parent / "model/configurations"
    model = model_config(read_json(configurations / f"qwen2.5-{case.size}.json"))
    changes = {"rollout.weights": case.weights}
    config = resolve_sizes(replace(Config(), changes), model, case.topology.chips, case.topology.memory)
    host = HOST_TOPOLOGY[case.chip][max(HOST, config.rollout.tensor)]
    return rollout_engine(config, model, Topology(case.topology.chip, host)), memory_table(config, model)


def measure(case: Case) -> dict:
    """Bytes a chip and compile seconds (of processor time) of the largest program of each kind; raises where one does not
    compile."""
    engine, held = engine_of(case)
    programs = {}
    for name, function, arguments in engine.programs():
        kind = name.split()[0]
        if kind in programs:
            continue
        started = time.process_time()
        programs[kind] = bytes_of(function, arguments, case.topology.chip) | {"name": name}
        seconds = programs[kind]["seconds"] = time.process_time() - started
        size = program_bytes(programs[kind]) / GIB
        print(f"{case.name} {name}: {size:.2f} GiB, {seconds:.0f} s", file=sys.stderr, flush=True)
    replicas, tensor = engine.mesh.devices.shape
    return asdict(case) | {
        "case": case.name,
        "replicas": replicas,
        "tensor": tensor,
        "slots": engine.settings.slots // replicas,
        "attention": engine.settings.attention,
        "block": engine.settings.block,
        "memory": case.topology.memory,
        "held": {kind: held[kind] for kind in ("parameters", "optimiser", "reference")},
        "programs": programs,
        "versions": {name: version(name) for name in ("jax", "libtpu")},
    }


def peak_bytes(line: dict) -> int:
    """The most that a chip holds during a rollout."""
    return rollout_peak(line["programs"], line["held"])


COLUMNS = (
    "model | slice | replicas x tensor | slots a replica | weights | slots' cache | prefix | prefill temp. | insert temp. | "
    "decode temp. | training state | peak | of | compile s: prefill, insert, decode"
)
NOTES = """\
# The rollout programs compiled for TPUs

Compiled ahead of time by libtpu {libtpu} with jax {jax} on a machine without a TPU; nothing ran. Each row is one training
slice with the sizes that `jaxgrpo/train/sizes.py` works out for it (512 prompts x 8 samples, 2048 + 4096 tokens, bfloat16). The
programs are those of one host of 4 chips, or of the hosts that share a replica where `tensor` is larger: the largest prefill,
insert, decode (32 tokens a dispatch) and resize. Decoding uses the ragged Pallas kernel with cache blocks of 512 positions.

Columns are GiB a chip. The peak is what training keeps (float32 parameters, Adam's moments, the bfloat16 reference), the
sampler's weights, all slots, one prefix, and what the hungriest program needs besides; `of` is what a program can have on that
chip. Compile seconds are processor time over all threads, with `exec_time_optimization_effort` at -1: at the default, 0.5B took
about seven times as long and needed slightly smaller temporaries.

    python tests/rollout/tpu_programs.py measure all > lines.jsonl
    python tests/rollout/tpu_programs.py table lines.jsonl > benchmarks/tpu_rollout_programs.md
"""


def table(lines: list[dict]) -> str:
    """The measured cases as a Markdown document."""
    heads = COLUMNS.split(" | ")
    rows = [heads, ["---"] * 2 + ["---:"] * (len(heads) - 2)]
    for line in sorted(lines, key=lambda line: [case.name for case in CASES].index(line["case"])):
        p = line["programs"]
        sizes = [*rollout_residents(p).values(), *(p[kind]["temporaries"] for kind in ("prefill", "insert", "decode"))]
        sizes += [sum(line["held"].values()), peak_bytes(line), line["memory"]]
        seconds = ", ".join(f"{p[kind]['seconds']:.0f}" for kind in ("prefill", "insert", "decode"))
        where = f"{line['chip']} {line['slice']}"
        shape = f"{line['replicas']} x {line['tensor']}"
        rows.append(
            [
                " ".join(filter(None, (line["size"].upper(), line["weights"]))),
                where,
                shape,
                str(line["slots"]),
                *(f"{x / GIB:.2f}" for x in sizes),
                seconds,
            ]
        )
    return NOTES.format(**lines[0]["versions"]) + "\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(command: str, *names: str) -> None:
    if command == "measure":
        for case in CASES:
            if case.name in names or "all" in names:
                print(json.dumps(measure(case)), flush=True)
    elif command == "table":
        print(table([json.loads(line) for name in names for line in Path(name).read_text().splitlines()]))
    else:
        raise SystemExit(f"unknown command {command!r}: measure or table")


if __name__ == "__main__":
    main(*sys.argv[1:])
