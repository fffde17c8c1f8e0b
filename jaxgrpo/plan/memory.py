"""Bytes per chip of a run, worked out without a compiler: what lives through it exactly, what programs need besides by a model.

The model of the temporaries was fitted to the compiler's figures in benchmarks/ (tpu_training_programs.md, plan_tpu.json,
tpu_rollout_programs.md), for layers that are rematerialised and bfloat16 compute. How far it is off there: update at most 10 %,
reference's pass 32 %, prefill 45 %. Fitted to the first file alone, it was off by at most 17 % for the updates of the second.
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


def memory(config: Config, model: ModelConfig) -> Memory:
    """Of a resolved config."""
    table = memory_table(config, model)
    return Memory(table, temporaries(config, model, table["gradients"]))


def temporaries(config: Config, model: ModelConfig, gradients: int) -> dict[str, int]:
    """Bytes per chip that the largest program of each phase needs besides its arguments.

    Update: the gradients of a micro-batch and their sum with what the optimiser makes of them, every layer's input, the output
    matrix's gradient before it is spread over fsdp. Reference: states and weights of one layer, logits of one chunk. Rollout:
    those of the largest prefill, and its prefix, which holds the cache of four prompts.
    """
    rows, tensor = config.train.row_tokens, config.mesh.tensor
    itemsize = jnp.dtype(config.train.dtype).itemsize
    states = rows * model.embed
    inputs = model.layers * states * itemsize * _saved_states(config.train.remat, model, tensor)
    head = model.vocab * model.embed * 4 / tensor
    chunk = config.train.logit_chunk * model.vocab * 4 / tensor
    layer = (count_parameters(model)["total"] - (1 if model.tied else 2) * model.vocab * model.embed) / model.layers / tensor
    prefill = config.rollout.prefill_tokens
    prefix = prefill * cache_bytes_per_slot(config, model) // (config.data.max_prompt_tokens + config.rollout.max_new_tokens)
    return {
        "update": int(3.23 * gradients + 1.28 * inputs + 3.96 * head),
        "score": int(1.46 * chunk + 13.4 * states * 4 + 1.18 * layer * 2),
        "rollout": int(4.47 * prefill * model.embed * 4 + 1.7 * prefix),
    }


def _saved_states(remat: str, model: ModelConfig, tensor: int) -> float:
    """Arrays of a layer that wait for the backward pass, in arrays as large as its input."""
    attention = (2 * model.heads + 2 * model.kv_heads) * model.head_dim / tensor / model.embed  # projections and their result
    mlp = 2 * model.mlp / tensor / model.embed
    return {"layer": 1.0, "matmuls": 3 + attention + mlp, "none": 6 + attention + 1.5 * mlp}[remat]
