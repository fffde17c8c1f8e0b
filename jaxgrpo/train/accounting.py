"""Floating-point operations and bytes, counted from the architecture: nothing here is measured except the CPU's peak.

A multiply-add counts as two operations. Matrix work of a token is 2 x (parameters that multiply it): all but the embedding
table, which is only looked up (a tied table still multiplies as the output matrix). Attention of a sequence of t tokens is
4 x layers x heads x head size for each of its t (t + 1) / 2 visible pairs: the causal half only.
"""

import time
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.config import Config
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.parameters import count_parameters

# Dense bf16 peak of one device in FLOP/s, from the makers' data sheets, by jax's device_kind.
PEAK_BF16_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


@dataclass(frozen=True)
class FlopCounter:
    """Forward operations of one model: of a token, of a visible pair, and of the output matrix's share of a token."""

    per_token: float
    per_pair: float
    per_output: float = 0.0

    @classmethod
    def of(cls, config: ModelConfig) -> "FlopCounter":
        matrix = count_parameters(config)["non_embedding"] + config.vocab * config.embed
        pair = 4.0 * config.layers * config.heads * config.head_dim
        return cls(2.0 * matrix, pair, 2.0 * config.vocab * config.embed)

    def forward(self, lengths) -> float:
        """One forward pass over whole sequences of these token counts."""
        lengths = np.asarray(lengths, np.float64)
        return float(self.per_token * lengths.sum() + self.per_pair * (lengths * (lengths + 1) / 2).sum())

    def packed(self, prompt_lengths, response_lengths, shared: bool, *, output: bool = True) -> float:
        """One forward pass of the update over groups of prompts [P] and responses [P, G], as little as the mathematics needs:
        no state of a response's last token, output products of predicted tokens only (none without `output`), and with `shared`
        each prompt once."""
        prompts = np.asarray(prompt_lengths, np.float64)[:, None]
        own = np.asarray(response_lengths, np.float64) - 1
        copies = 1 if shared else own.shape[1]
        states = copies * prompts.sum() + own.sum()
        pairs = copies * (prompts * (prompts + 1) / 2).sum() + (own * prompts + own * (own + 1) / 2).sum()
        predicted = (own + 1).sum() if output else 0
        return float((self.per_token - self.per_output) * states + self.per_output * predicted + self.per_pair * pairs)

    def full_attention(self) -> "FlopCounter":
        """The same model with attention counted as a square, its masked half too, as most published figures have it."""
        return replace(self, per_pair=2 * self.per_pair)

    def generate(self, prompt_lengths, response_lengths) -> float:
        """Prefilling each prompt once, with logits of its last token only, and decoding its responses [P, G] token by token."""
        prompts = np.asarray(prompt_lengths, np.float64)[:, None]
        responses = np.asarray(response_lengths, np.float64)
        steps = responses - 1  # the first token comes out of the prefill
        pairs = steps * prompts + steps * (steps + 1) / 2
        prefill = self.forward(prompts) - self.per_output * float((prompts - 1).sum())
        return prefill + float(self.per_token * steps.sum() + self.per_pair * pairs.sum())


def update_bytes(config: Config, n_params: int, micro_batches: int) -> float:
    """Bytes that an update moves at least, over all devices and activations aside: parameters and moments read and written,
    gradients written and read; for every micro-batch the weights read forwards, backwards and, where layers are computed again,
    once more, and its gradients added to the sum."""
    train = config.train
    weight = jnp.dtype(train.dtype).itemsize
    moments = {"adamw": 2 * jnp.dtype(config.optim.moments_dtype).itemsize, "sgd": 0}[config.optim.optimizer]
    once = 2 * 4 + 2 * moments + 2 * 4
    each = weight * (2 + (train.remat == "layer")) + 3 * 4
    return float(n_params) * (once + micro_batches * each)


def peak_flops(devices) -> float:
    """FLOP/s of all devices together at their best. CPUs are measured: a float32 product on one device's thread, times devices.

    An unknown accelerator gives NaN, and mfu with it: better no figure than a wrong one.
    """
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        return _cpu_flops(devices[0]) * len(devices)
    known = [name for name in PEAK_BF16_FLOPS if kind.startswith(name)]
    return PEAK_BF16_FLOPS[max(known, key=len)] * len(devices) if known else float("nan")  # "TPU v5 lite" is no "TPU v5"


def _cpu_flops(device, size: int = 768) -> float:
    a = jax.device_put(np.ones((size, size), np.float32), device)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
