"""Sampling one token per slot. Randomness is a function of the slot's key and its token index, never of the slot.

Shapes: B slots, V vocab.
"""

import jax
import jax.numpy as jnp
import numpy as np


def sample_keys(seed: int, stream: str, step: int, prompts: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Raw Threefry keys [M, 2] uint32, one per response: a hash of (seed, stream, step, prompt, sample).

    stream separates uses that share the other numbers, such as "train" and the name of an evaluation suite.
    """
    name = int.from_bytes(stream.encode(), "little")
    words = [(seed, name, step, int(prompt), int(sample)) for prompt, sample in zip(prompts, samples, strict=True)]
    return np.array([np.random.SeedSequence(w).generate_state(2) for w in words], np.uint32).reshape(-1, 2)


def sample_tokens(
    logits_BV: jax.Array, keys_B2: jax.Array, index_B: jax.Array, temperature_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One token per slot and its log-probability (float32) under softmax(logits / temperature), not truncated.

    Temperature 0 takes the largest logit and reports its log-probability at temperature 1. Gumbel-max: argmax(logits /
    temperature + Gumbel noise) is an exact sample and needs no sort of the vocabulary. index_B is the number of tokens that
    each slot has generated before this one.
    """
    greedy_B = temperature_B == 0
    scaled_BV = logits_BV.astype(jnp.float32) / jnp.where(greedy_B, 1.0, temperature_B)[:, None]

    def noise(key_2, index):
        key = jax.random.fold_in(jax.random.wrap_key_data(key_2, impl="threefry2x32"), index)
        return jax.random.gumbel(key, logits_BV.shape[1:], jnp.float32)

    noise_BV = jnp.where(greedy_B[:, None], 0.0, jax.vmap(noise)(keys_B2, index_B))
    token_B = jnp.argmax(scaled_BV + noise_BV, axis=-1).astype(jnp.int32)
    chosen_B = jnp.take_along_axis(scaled_BV, token_B[:, None], axis=-1)[:, 0]
    return token_B, chosen_B - jax.nn.logsumexp(scaled_BV, axis=-1)
