"""Compiles the training step of real models for whole slices of real TPUs, without one: needs the `tpu` extra.

    python tests/train/tpu_training.py measure CASE ... > lines.jsonl     one JSON line a case
    python tests/train/tpu_training.py table lines.jsonl ...              the lines as a Markdown document

A case is a model, a slice and a mesh. Compiled are the update (AdamW, bfloat16 compute, layers rematerialised) and the
reference's scoring pass of the paper's minibatches: 128 prompts x 8 samples of up to 2048 + 4096 tokens.
"""

import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import numpy as np  # noqa: E402

import jaxgrpo  # noqa: E402
from jaxgrpo.config import Config, replace  # noqa: E402
from jaxgrpo.model.config import ModelConfig, model_config, read_json  # noqa: E402
from jaxgrpo.model.parameters import count_parameters  # noqa: E402
from jaxgrpo.plan.compiled import bytes_of, program_bytes, training_peaks, training_programs  # noqa: E402
from jaxgrpo.plan.topology import CHIPS, Topology  # noqa: E402
from jaxgrpo.train.accounting import FlopCounter, update_bytes  # noqa: E402
from jaxgrpo.train.sizes import GIB, memory_table, resolve_sizes  # noqa: E402

SEQUENCES, PROMPT, RESPONSE = 512 * 8, 100, 1000  # of a step, and mean lengths like the paper's


@dataclass(frozen=True)
class Case:
    size: str  # of Qwen2.5
    chip: str
    slice: str
    tensor: int
    row_tokens: int

    @property
    def name(self) -> str:
        return f"{self.size}-{self.chip}-{self.slice}"

    @property
    def topology(self) -> Topology:
        return Topology(CHIPS[self.chip], self.slice)

    def model(self) -> ModelConfig:
        configurations = Path(jaxgrpo.__file__).parent / "model/configurations"
        return model_config(read_json(configurations / f"qwen2.5-{self.size}.json"))

    def config(self) -> Config:
        changes = {"mesh.tensor": self.tensor, "train.row_tokens": self.row_tokens}
        return resolve_sizes(replace(Config(), changes), self.model(), self.topology.chips, self.topology.memory)


CASES = [
    Case(size, chip, slice, int(tensor), int(tokens))
    for size, chip, slice, tensor, tokens in map(
        str.split,
        (
            "0.5b v5e 2x2 1 8192",
            "1.5b v5e 2x2 1 6144",
            "3b v5e 2x4 2 6144",
            "7b v5e 4x4 4 6144",
            "7b v6e 2x4 2 8192",
            "14b v6e 4x8 2 8192",
            "32b v5p 4x4x4 1 8192",
            "72b v5p 4x4x8 4 8192",
            "72b v6e 8x16 8 8192",
        ),
    )
]


def measure(case: Case) -> dict:
    """Bytes a chip and compile seconds (of processor time) of both programs; raises where one does not compile."""
    measured = {}
    for name, function, arguments in training_programs(case.config(), case.model(), case.topology):
        started = time.process_time()
        measured[name] = bytes_of(function, arguments, case.topology.chip) | {"seconds": time.process_time() - started}
        print(f"{case.name} {name}: {program_bytes(measured[name]) / GIB:.2f} GiB", file=sys.stderr, flush=True)
    config, model = case.config(), case.model()
    held = memory_table(config, model)
    return asdict(case) | {
        "case": case.name,
        "mesh": [config.mesh.data, config.mesh.fsdp, config.mesh.tensor],
        "memory": case.topology.memory,
        "parameters": held["parameters"],
        "moments": held["optimiser"],
        "reference": held["reference"],
        "programs": measured,
        "estimated_s": estimated_seconds(case),
        "versions": {name: version(name) for name in ("jax", "libtpu")},
    }


def peak_bytes(line: dict) -> dict[str, int]:
    """The most that a chip holds in each phase."""
    held = {"reference": line["reference"], "parameters": line["parameters"], "optimiser": line["moments"]}
    return training_peaks(line["programs"], held)


def estimated_seconds(case: Case) -> dict[str, float]:
    """Of the reference's pass and the four updates of one step, each limit by itself and reached in full: operations at the
    chip's peak, bytes of memory, and of links (weights gathered in every pass over a micro-batch, gradients scattered)."""
    model, config = case.model(), case.config()
    counter = FlopCounter.of(model)
    prompts, responses = np.full(SEQUENCES // 8, PROMPT), np.full((SEQUENCES // 8, 8), RESPONSE)
    forward = counter.packed(prompts, responses, shared=False)
    operations = 4 * forward + counter.packed(prompts, responses, shared=False, output=False)
    devices = config.mesh.data * config.mesh.fsdp
    micro_batches = math.ceil(SEQUENCES * (PROMPT + RESPONSE) / config.train.row_tokens / devices)
    part = count_parameters(model)["total"] / config.mesh.tensor  # what one chip multiplies with
    passes = 2 * 4 * part  # bfloat16 weights: reference, forwards, computed again, backwards
    state = 4 * update_bytes(config, count_parameters(model)["total"], 0) / case.topology.chips
    return {
        "operations": operations / case.topology.chips / CHIPS[case.chip].flops,
        "memory": (state + micro_batches * (passes + 8 * part)) / CHIPS[case.chip].memory_bytes_per_s,
        "links": micro_batches * (passes + 4 * part) / CHIPS[case.chip].link_bytes_per_s,
    }


NOTES = """\
# The training step compiled for TPUs

Compiled ahead of time by libtpu {libtpu} with jax {jax} on a machine without a TPU; nothing ran. Each row is the update (AdamW,
float32 master weights and moments, bfloat16 compute, layers rematerialised, splash attention, fused loss) and the reference's
scoring pass of a minibatch of 128 prompts x 8 samples of up to 2048 + 4096 tokens, on the whole slice, with
`exec_time_optimization_effort` at -1.

Columns are GiB a chip. `update` and `score` are the peaks of the two programs with all that stays beside them: the bfloat16
reference beside the update, parameters and moments beside the score. The rollout's peak (its weights, bfloat16 or int8, and its
cache) is another phase, which holds no gradients and no activations of these: `tpu_rollout_programs.md`. `of` is what a program
can have on that chip.

Seconds are estimates of the reference's pass and the four updates of one step (4,096 sequences of 100 + 1,000 tokens) from
counted operations and bytes: each limit (bfloat16 peak, memory, links between chips) by itself, as if it were reached in full.
The largest of the three is a floor.

    python tests/train/tpu_training.py measure all > lines.jsonl
    python tests/train/tpu_training.py table lines.jsonl > benchmarks/tpu_training_programs.md
"""
COLUMNS = (
    "model | slice | fsdp x tensor | row | parameters | moments | reference | update temp. | score temp. | update | score | "
    "of | s: operations | memory | links"
)


def table(lines: list[dict]) -> str:
    """The measured cases as a Markdown document."""
    heads = COLUMNS.split(" | ")
    rows = [heads, ["---"] * 3 + ["---:"] * (len(heads) - 3)]
    for line in sorted(lines, key=lambda line: [case.name for case in CASES].index(line["case"])):
        p, peaks = line["programs"], peak_bytes(line)
        sizes = [line[kind] for kind in ("parameters", "moments", "reference")]
        sizes += [p["update"]["temporaries"], p["score"]["temporaries"], peaks["update"], peaks["score"], line["memory"]]
        _, fsdp, tensor = line["mesh"]
        where = [line["size"].upper(), f"{line['chip']} {line['slice']}", f"{fsdp} x {tensor}", f"{line['row_tokens']:,}"]
        seconds = [f"{value:.1f}" for value in line["estimated_s"].values()]
        rows.append([*where, *(f"{x / GIB:.2f}" for x in sizes), *seconds])
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
