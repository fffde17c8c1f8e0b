"""Slices of TPUs and machines of GPUs, by name: `v5p:4x4x8`, `h200:8`. Figures are the makers' data sheets."""

import difflib
import math
import re
from dataclasses import dataclass

from jaxgrpo.errors import UserError
from jaxgrpo.train.accounting import PEAK_BF16_FLOPS


class TopologyError(UserError):
    """A topology that is not known; the message names those that are."""

    exit_code = 2


@dataclass(frozen=True)
class Chip:
    """memory_gib: what a program can have of it. Bytes per second: of its memory, over all its links inside a slice or machine,
    and of its share of the network between slices or machines."""

    name: str
    kind: str  # "TPU ..." or "NVIDIA ...", as jax calls the device
    memory_gib: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    network_bytes_per_s: float
    per_host: int
    slices: tuple[str, ...]  # to suggest, rising; of GPUs numbers of them

    @property
    def is_tpu(self) -> bool:
        return self.kind.startswith("TPU")

    @property
    def platform(self) -> str:
        """As jax calls it."""
        return "tpu" if self.is_tpu else "gpu"

    @property
    def flops(self) -> float:
        return PEAK_BF16_FLOPS[self.kind]


_2D = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
_HOST_SHAPES = {"v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2"}
_GPUS = ("1", "2", "4", "8", "16", "32", "64", "128", "256", "512")
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "TPU v5e", 15.75, 819e9, 200e9, 3.1e9, 4, _2D),
        Chip("v5p", "TPU v5p", 95.0, 2765e9, 600e9, 6.2e9, 4, _3D),
        Chip("v6e", "TPU v6e", 31.25, 1640e9, 400e9, 12.5e9, 4, _2D),
        Chip("a100", "NVIDIA A100", 73.0, 2039e9, 600e9, 25e9, 8, _GPUS),
        Chip("h100", "NVIDIA H100", 73.0, 3350e9, 900e9, 50e9, 8, _GPUS),
        Chip("h200", "NVIDIA H200", 128.0, 4800e9, 900e9, 50e9, 8, _GPUS),
        Chip("b200", "NVIDIA B200", 164.0, 8000e9, 1800e9, 50e9, 8, _GPUS),
    )
}


@dataclass(frozen=True)
class Topology:
    """A slice, or GPUs in machines."""

    chip: Chip
    shape: str

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{self.shape}"

    @property
    def chips(self) -> int:
        return math.prod(int(side) for side in self.shape.split("x"))

    @property
    def hosts(self) -> int:
        return max(1, self.chips // self.chip.per_host)

    @property
    def memory(self) -> int:
        """Bytes that a program can have of one chip."""
        return int(self.chip.memory_gib * 2**30)

    def one_host(self) -> "Topology":
        """The chips of one host."""
        if self.chips <= self.chip.per_host:
            return self
        return Topology(self.chip, _HOST_SHAPES.get(self.chip.name, str(self.chip.per_host)))

    def larger(self) -> list["Topology"]:
        """The slices of the same chip that have more of them, rising."""
        return [t for shape in self.chip.slices if (t := Topology(self.chip, shape)).chips > self.chips]


def parse_topology(text: str) -> Topology:
    """`v5p:4x4x8` or `h200:8`. TopologyError for a chip that is not known or a shape that it does not come in."""
    name, _, shape = text.lower().partition(":")
    chip = CHIPS.get(name)
    if chip is None:
        near = difflib.get_close_matches(name, CHIPS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(CHIPS)}."
        raise TopologyError(f"topology {text}: chip {name!r} is not known; {hint} Such as v5p:4x4x8 or h200:8.")
    dimensions = len(chip.slices[0].split("x"))
    example = chip.slices[len(chip.slices) // 2]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or len(shape.split("x")) != dimensions:
        raise TopologyError(f"topology {text}: {name} comes in shapes such as {name}:{example}.")
    topology = Topology(chip, shape)
    if topology.chips > chip.per_host and topology.chips % chip.per_host:
        raise TopologyError(f"topology {text}: {topology.chips} chips are no whole number of hosts of {chip.per_host}.")
    return topology
