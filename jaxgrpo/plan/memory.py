"""Bytes per chip of a run, worked out without a compiler: what lives through it exactly, what programs need besides by a model.

The model of the temporaries was fitted to what the compilers say (benchmarks/): for TPUs tpu_training_programs.md and
tpu_rollout_programs.md, for GPUs plan_gpu.json; bfloat16 compute. How far it is off there: on TPUs update at most 15 %, the
reference's pass 16 %, rollout 15 %, and no more in plan_tpu.json, whose plans were made afterwards; on GPUs 13, 24 and 16 %.
`jaxgrpo plan` prints the compiler's own figures beside it where it is installed.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from jaxgrpo.config import Config
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.parameters import count_parameters
from jaxgrpo.plan.topology import Topology
from jaxgrpo.train.sizes import cache_bytes_per_slot, memory_table, resolve_sizes

PHASES = ("update", "score", "rollout")


@dataclass(frozen=True)
class Memory:
    """Bytes of one chip by kind (`memory_table`), and the temporaries of each phase."""

    table: dict[str, int]
    temporaries: dict[str, int]

    def peak(self, phase: str) -> int:
        """All that a chip holds at the worst moment of a phase."""
        held = sum(self.table[kind] for kind in ("parameters", "optimiser", "reference"))
        own = self.table["rollout weights"] + self.table["KV cache"] if phase == "rollout" else 0
        return held + own + self.temporaries[phase]


def resolved(config: Config, model: ModelConfig, topology: Topology) -> Config:
    """The config with the sizes that a run on this topology would work out. ConfigError where it cannot hold the run."""
    return resolve_sizes(config, model, topology.chips, topology.memory, topology.hosts)


def memory(config: Config, model: ModelConfig, topology: Topology) -> Memory:
    """Of a resolved config."""
    table = memory_table(config, model)
    return Memory(
        table,
        {
            "update": _update_temporaries(config, model, topology, table["gradients"]),
            "score": _score_temporaries(config, model, topology),
            "rollout": _rollout_temporaries(config, model, topology),
        },
    )


def _update_temporaries(config: Config, model: ModelConfig, topology: Topology, gradients: int) -> int:
    """The gradients of a micro-batch and their sum with what the optimiser makes of them, every layer's input, and the output
    matrix's gradient before it is spread over fsdp.

    With moments in host memory the optimiser takes layer after layer: 2.5 copies are within 20 % of what the TPU compiler says.
    On GPUs the compiler lets the optimiser write over the gradients, wherever the moments are."""
    tensor = config.mesh.tensor
    states = config.train.row_tokens * model.embed * jnp.dtype(config.train.dtype).itemsize
    inputs = model.layers * states * _saved_states(config.train.remat, model, tensor)
    head = model.vocab * model.embed * 4 / tensor
    if not topology.chip.is_tpu:
        return int(2 * gradients + inputs + (2.8 if config.mesh.fsdp > 1 else 0.5) * head)
    copies = 3.23 if config.train.offload == "none" else 2.5
    return int(copies * gradients + 1.28 * inputs + 3.96 * head)


def _score_temporaries(config: Config, model: ModelConfig, topology: Topology) -> int:
    """The output matrix gathered over fsdp, the logits of one chunk, and a row's states in float32 twice.

    Three matrices where the gathered parts fill no whole tiles, or are too many: the compiler then gathers by a sum. On GPUs
    a layer's weights are gathered too, of two parts of the output matrix there are further copies, and so there are of states
    that are summed over `tensor`."""
    fsdp, tensor = config.mesh.fsdp, config.mesh.tensor
    head = model.vocab * model.embed * 2 / tensor
    chunk, states = config.train.logit_chunk * model.vocab * 4 / tensor, config.train.row_tokens * model.embed * 4
    if not topology.chip.is_tpu:
        gathered = fsdp > 1 or config.train.offload == "all"
        copies = {1: 2 if gathered else 0, 2: 2.5}.get(fsdp, 1.2)
        return int(chunk + (2 if tensor == 1 else 6) * states + copies * head + gathered * _layer_bytes(model, tensor))
    summed = topology.chip.name == "v5p" and fsdp >= 64
    copies = 3 if summed or (model.tied and model.embed // fsdp % 128) else 1
    return int(chunk + 2 * states + (copies + 2 / fsdp) * head)


def _rollout_temporaries(config: Config, model: ModelConfig, topology: Topology) -> int:
    """One prefix, and the largest of three. Prefill: its states in float32 twice and, on a TPU, the prefix again where the
    replicas of a host exchange their parts of it, and a layer's weights where they are int8; on a GPU the MLP's arrays.
    Decoding: the logits of all slots twice. Cutting the cache: the smaller copy of a layer, two thirds."""
    c, tensor = config.rollout, config.rollout.tensor
    replicas = max(1, min(topology.chips, topology.chip.per_host) // tensor)
    slots = c.slots * tensor // topology.chips
    longest = config.data.max_prompt_tokens + c.max_new_tokens
    prefix = c.prefill_tokens * cache_bytes_per_slot(config, model) // longest
    prefill = 2.1 * c.prefill_tokens * model.embed * 4
    if topology.chip.is_tpu:
        prefill = prefill / replicas + prefix * (replicas > 1) + _layer_bytes(model, tensor) * (c.weights == "int8")
    else:
        prefill += 2 * c.prefill_tokens * model.mlp * 2 / tensor
    decode = 2.1 * slots * model.vocab * 4
    cut = 2 / 3 * slots * cache_bytes_per_slot(config, model) / model.layers
    return int(prefix + max(prefill, decode, cut))


def _layer_bytes(model: ModelConfig, tensor: int) -> float:
    """The weights of one layer in bfloat16 on one device."""
    embedding = (1 if model.tied else 2) * model.vocab * model.embed
    return 2 * (count_parameters(model)["total"] - embedding) / model.layers / tensor


def _saved_states(remat: str, model: ModelConfig, tensor: int) -> float:
    """Arrays of a layer that wait for the backward pass, in arrays as large as its input."""
    attention = (2 * model.heads + 2 * model.kv_heads) * model.head_dim / tensor / model.embed  # projections and their result
    mlp = 2 * model.mlp / tensor / model.embed
    return {"layer": 1.0, "matmuls": 3 + attention + mlp, "none": 6 + attention + 1.5 * mlp}[remat]
