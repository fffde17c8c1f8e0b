"""Sampling one token per slot. Randomness is a function of the slot's key and its token index, never of the slot.

An exact sample of softmax(logits / temperature) without a sort and without a second logarithm: with p = exp(scaled logits -
their maximum) and E drawn from the unit exponential distribution for every token, argmax p / E is that sample, because
log(p / E) is the scaled logit plus Gumbel noise. The uniform bits behind E come from a counter hash keyed by (sample key, token
index); they cost a tenth of what Threefry for every entry of the vocabulary would.

Truncation keeps the tokens whose probability reaches a threshold, so that top-k, top-p and min-p are one comparison each; the
threshold of top-k and top-p is found by bisection over the bits of a float32, which needs no sort either.

A model's vocabulary is often padded: ids that its tokenizer does not know would be trained on and decode to nothing. They are
never drawn, but they keep their share of the softmax that log-probabilities are taken of, as tokens that truncation leaves out
do: the trainer's log-softmax runs over the whole vocabulary (so do transformers', verl's and TRL's), and sampler and trainer
must agree. What is drawn follows the same probabilities over the tokenizer's ids, scaled to a sum of 1.

Shapes: B slots, V vocab, K ids up to the last one that the tokenizer knows.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


@partial(jax.tree_util.register_dataclass, data_fields=["temperature", "top_k", "top_p", "min_p"], meta_fields=[])
@dataclass(frozen=True)
class Sampling:
    """How to sample: numbers for one request, arrays [B] for all slots. Temperature 0 takes the largest logit. Truncation, in
    this order: the top_k largest (0: all), of these the fewest that hold top_p of the probability, and of these those that have
    at least min_p times the largest probability. Tokens as probable as the last one kept are kept too."""

    temperature: float | jax.Array = 1.0
    top_k: int | jax.Array = 0
    top_p: float | jax.Array = 1.0
    min_p: float | jax.Array = 0.0

    def truncates(self) -> bool:
        """Whether this request needs the truncating programs."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def complaint(self) -> str | None:
        """What is wrong with the numbers of a request, and what would be right; None if nothing is."""
        if not 0 <= self.temperature < float("inf"):
            return f"temperature {self.temperature}; it needs a finite one of at least 0"
        if self.top_k < 0:
            return f"top_k {self.top_k}; it needs at least 1, or 0 for no such limit"
        if not 0 < self.top_p <= 1:
            return f"top_p {self.top_p}; it needs more than 0 and at most 1, which keeps every token"
        if not 0 <= self.min_p <= 1:
            return f"min_p {self.min_p}; it needs 0, which keeps every token, to 1"
        return None


def sample_keys(seed: int, stream: str, step: int, prompts: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Raw Threefry keys [M, 2] uint32, one per response: a hash of (seed, stream, step, prompt, sample).

    stream separates uses that share the other numbers, such as "train" and the name of an evaluation suite.
    """
    name = int.from_bytes(stream.encode(), "little")
    words = [(seed, name, step, int(prompt), int(sample)) for prompt, sample in zip(prompts, samples, strict=True)]
    return np.array([np.random.SeedSequence(w).generate_state(2) for w in words], np.uint32).reshape(-1, 2)


def sample_tokens(
    logits_BV: jax.Array,
    keys_B2: jax.Array,
    index_B: jax.Array,
    sampling: Sampling,
    *,
    truncate: bool,
    unknown: tuple[tuple[int, int], ...] = (),
) -> tuple[jax.Array, jax.Array]:
    """One token per slot and its log-probability (float32) under softmax(logits / temperature), not truncated.

    Temperature 0 takes the largest logit and reports its log-probability at temperature 1. index_B is the number of tokens that
    each slot has generated before this one. truncate: whether top_k, top_p and min_p are looked at. unknown: ranges of ids
    (first, end), in order, that are never drawn and of which truncation does not know either.
    """
    greedy_B = sampling.temperature == 0
    scaled_BV = logits_BV.astype(jnp.float32) / jnp.where(greedy_B, 1.0, sampling.temperature)[:, None]
    scaled_BK, unknown_BU = _split(scaled_BV, unknown)
    K = scaled_BK.shape[1]
    largest_B1 = jnp.max(scaled_BK, axis=-1, keepdims=True)
    below_BK = scaled_BK - largest_B1
    p_BK = jnp.exp(below_BK)
    logz_B = jnp.log(jnp.sum(p_BK, axis=-1))
    if unknown_BU is not None:
        logz_B = jnp.logaddexp(logz_B, jax.nn.logsumexp(unknown_BU - largest_B1, axis=-1))
    allowed_BK = p_BK
    if truncate:
        allowed_BK = jnp.where(p_BK >= truncation_threshold(p_BK, sampling)[:, None], p_BK, -1.0)
    score_BK = jnp.where(greedy_B[:, None], below_BK, allowed_BK / exponential_noise(keys_B2, index_B, K))
    best_B1 = jnp.max(score_BK, axis=-1, keepdims=True)
    # The first of the best. Two plain reductions: a variadic argmax runs five times slower on CPU.
    token_B = jnp.min(jnp.where(score_BK == best_B1, jnp.arange(K, dtype=jnp.int32), K - 1), axis=-1)
    chosen_B = jnp.take_along_axis(below_BK, token_B[:, None], axis=-1)[:, 0]
    return token_B, chosen_B - logz_B


def _split(scaled_BV: jax.Array, unknown: tuple[tuple[int, int], ...]) -> tuple[jax.Array, jax.Array | None]:
    """(what is drawn from [B, K], the rest [B, U] or None). Unknown ids at the end, the usual place, are cut off; others
    are -inf in the first and alone finite in the second."""
    V = scaled_BV.shape[1]
    if not unknown:
        return scaled_BV, None
    K = unknown[-1][0] if unknown[-1][1] == V else V
    holes_V = np.zeros(V, bool)
    for first, end in unknown:
        holes_V[first:end] = True
    if not holes_V[:K].any():
        return scaled_BV[:, :K], scaled_BV[:, K:]
    return jnp.where(holes_V[:K], -jnp.inf, scaled_BV[:, :K]), jnp.where(holes_V, scaled_BV, -jnp.inf)


def exponential_noise(keys_B2: jax.Array, index_B: jax.Array, vocab: int) -> jax.Array:
    """[B, vocab] draws of the unit exponential distribution, fully resolved near 0, where the smallest decides."""

    def fold(key_2, index):
        return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(key_2, impl="threefry2x32"), index))

    word_B2 = jax.vmap(fold)(keys_B2, index_B)
    counter_V = jnp.arange(vocab, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    bits_BV = _scramble(_scramble(counter_V + word_B2[:, :1]) ^ word_B2[:, 1:])
    return -jnp.log1p(-(bits_BV.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-32))


def _scramble(x: jax.Array) -> jax.Array:
    """The 32-bit finaliser of MurmurHash3: a bijection in which every input bit flips every output bit half of the time."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def truncation_threshold(p_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """[B]: tokens with p of at least this are kept. p_BV is proportional to the probabilities and has maximum 1."""
    limit_B = jnp.where(sampling.top_k > 0, sampling.top_k, p_BV.shape[1])
    kth_B = _largest_threshold(lambda kept_BV: jnp.sum(kept_BV, axis=-1) >= limit_B, p_BV)
    mass_B = sampling.top_p * jnp.sum(jnp.where(p_BV >= kth_B[:, None], p_BV, 0.0), axis=-1)

    def enough(kept_BV):
        return jnp.sum(jnp.where(kept_BV, p_BV, 0.0), axis=-1) >= mass_B

    pth_B = jnp.where(sampling.top_p < 1, _largest_threshold(enough, p_BV), 0.0)
    return jnp.maximum(jnp.maximum(kth_B, pth_B), sampling.min_p)


def _largest_threshold(enough, p_BV: jax.Array) -> jax.Array:
    """[B]: the largest float32 t in [0, 1] for which `enough(p >= t)` holds; it must hold for 0 and fall with t.

    Non-negative floats are ordered like their bits, so that 31 halvings find it.
    """
    B = p_BV.shape[0]

    def halve(_, bounds):
        low_B, high_B = bounds
        middle_B = low_B + (high_B - low_B) // 2
        holds_B = enough(p_BV >= jax.lax.bitcast_convert_type(middle_B, jnp.float32)[:, None])
        return jnp.where(holds_B, middle_B, low_B), jnp.where(holds_B, high_B, middle_B)

    one = jax.lax.bitcast_convert_type(jnp.float32(1.0), jnp.int32)
    low_B, _ = jax.lax.fori_loop(0, 31, halve, (jnp.zeros(B, jnp.int32), jnp.full(B, one + 1)))
    return jax.lax.bitcast_convert_type(low_B, jnp.float32)
