"""Seconds of each phase of a step, from counted operations and bytes and the shares of the hardware's limits that are reached.

Nothing is measured here. The shares are assumptions, printed with every plan: updates reached 45 to 50 % of the measured
bfloat16 rate of an H200 (benchmarks/update_h200.md); of decoding no figure of an accelerator has been taken yet.
"""

import math
from dataclasses import dataclass

import numpy as np

from jaxgrpo.config import Config
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.decode_attention import choose_backend
from jaxgrpo.model.parameters import count_parameters
from jaxgrpo.plan.topology import Topology
from jaxgrpo.rollout.settings import block_length
from jaxgrpo.train.accounting import FlopCounter, update_bytes
from jaxgrpo.train.sizes import cache_bytes_per_slot, memory_table, shares_prompts


@dataclass(frozen=True)
class Assumptions:
    """Mean lengths in tokens, and the shares of peak operations and of memory and link bytes that are reached."""

    prompt: int = 100
    response: int = 1000
    compute: float = 0.45
    bandwidth: float = 0.6
    longest: float = 0.75  # of the limit: how far the longest of many sequences reaches, on average over a rollout
    tail: float = 1.15  # a rollout's last sequences keep few slots busy: its time over that of full slots


def phase_seconds(config: Config, model: ModelConfig, topology: Topology, a: Assumptions) -> dict[str, float]:
    """Seconds of one step of a resolved config by phase, in the order in which they come; `eval` is spread over the steps."""
    chip, chips = topology.chip, topology.chips
    c, counter = config, FlopCounter.of(model)
    groups, samples = c.data.prompts_per_step, c.rollout.samples
    prompts, responses = np.full(groups, a.prompt), np.full((groups, samples), a.response)
    shared = shares_prompts(chip.platform)
    forward = counter.packed(prompts, responses, shared=shared)
    body = counter.packed(prompts, responses, shared=shared, output=False)
    rate, memory_rate = chips * chip.flops * a.compute, chip.memory_bytes_per_s * a.bandwidth
    network_rate = chip.network_bytes_per_s * a.bandwidth
    # Weights are gathered over fsdp: between the machines of GPUs where one machine does not hold them all.
    link_rate = chip.link_bytes_per_s * a.bandwidth
    if not chip.is_tpu and c.mesh.fsdp * c.mesh.tensor > chip.per_host:
        link_rate = network_rate
    total = count_parameters(model)["total"]
    devices = c.mesh.data * c.mesh.fsdp
    tokens = groups * (samples * a.response + (a.prompt if shared else samples * a.prompt))
    micro_batches = max(1, math.ceil(tokens / c.train.row_tokens / devices))
    part = total / c.mesh.tensor  # what one chip multiplies with, gathered from its fsdp neighbours
    passes_back = 3 if c.train.remat == "layer" else 2
    updates = groups // c.train.minibatch_prompts
    scored = (c.algo.kl_coef > 0) + (c.algo.old_logprobs == "recompute") * (updates - 1) / updates

    def longest(operations: float, read: float, gathered: float, summed: float = 0.0) -> float:
        return max(operations / rate, read / memory_rate, gathered / link_rate + summed / network_rate)

    weights = memory_table(c, model)["rollout weights"]
    seconds = {
        "rollout": _rollout_seconds(c, model, topology, a, groups * samples, groups),
        "score": scored * longest(forward, micro_batches * 2 * part, micro_batches * 2 * part),
        "update": longest(
            3 * forward + (c.train.remat == "layer") * body,
            updates * update_bytes(c, total, 0) / chips + micro_batches * (2 * passes_back + 12) * part,
            micro_batches * (2 * passes_back + 4) * part,
            micro_batches * (c.mesh.data > 1) * 2 * 2 * part / c.mesh.fsdp,  # gradients, between the copies of the state
        ),
        "sync": weights / link_rate,
    }
    if c.eval.every:
        questions = (c.eval.limit or 500) * c.eval.samples
        seconds["eval"] = _rollout_seconds(c, model, topology, a, questions, questions // c.eval.samples) / c.eval.every
    return seconds


def _rollout_seconds(c: Config, model: ModelConfig, topology: Topology, a: Assumptions, sequences: int, prompts: int) -> float:
    """Prefill every prompt once, then decode: each step of a replica reads its weights and the cache of its slots, as far as
    each is filled where a ragged kernel runs, else as far as the longest sequence of all reaches."""
    chip, counter = topology.chip, FlopCounter.of(model)
    replicas = topology.chips // c.rollout.tensor
    slots = max(1, min(c.rollout.slots, sequences) // replicas)
    steps = math.ceil(sequences / replicas / slots) * a.response * a.tail
    longest = c.data.max_prompt_tokens + c.rollout.max_new_tokens
    backend = c.rollout.attention or choose_backend(chip.platform, block_length(longest), model.head_dim)
    filled = min(1.0, (a.prompt + a.response / 2) / longest)
    cache = slots * cache_bytes_per_slot(c, model) * (max(filled, a.longest) if backend == "xla" else filled)
    read = (memory_table(c, model)["rollout weights"] + cache) / (chip.memory_bytes_per_s * a.bandwidth)
    token = (counter.per_token + counter.per_pair * (a.prompt + a.response / 2)) / c.rollout.tensor
    multiplied = slots * token / (chip.flops * a.compute)
    prefill = counter.forward(np.full(prompts, a.prompt)) / (topology.chips * chip.flops * a.compute)
    return prefill + steps * max(read, multiplied)
