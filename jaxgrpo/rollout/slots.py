"""What moves through the engine: prefilled prompts, the state of all slots, requests for slots, results.

Shapes: B slots, R prompts of a prefill, C tokens of a chunk, V vocab. Caches: see rollout/cache.py.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from jaxgrpo.rollout.sampling import Sampling


@partial(jax.tree_util.register_dataclass, data_fields=["cache", "logits_RV", "lengths_R"], meta_fields=[])
@dataclass(frozen=True)
class Prefix:
    """Prefilled prompts: a LayerCache per layer, the last logits, and true lengths."""

    cache: tuple
    logits_RV: jax.Array
    lengths_R: jax.Array


SLOT_FIELDS = ("token_B", "logp_B", "length_B", "count_B", "shown_B", "limit_B", "done_B", "key_B2", "sampling")


@partial(jax.tree_util.register_dataclass, data_fields=["cache", *SLOT_FIELDS], meta_fields=[])
@dataclass(frozen=True)
class DecodeState:
    """All slots: a LayerCache per layer; each slot's newest token, which is not in the cache yet, its log-probability, cache
    length, tokens generated, how many of them `generate` handed out, limit of new tokens, done flag, key, sampling numbers."""

    cache: tuple
    token_B: jax.Array
    logp_B: jax.Array
    length_B: jax.Array
    count_B: jax.Array
    shown_B: jax.Array
    limit_B: jax.Array
    done_B: jax.Array
    key_B2: jax.Array
    sampling: Sampling

    @property
    def capacity(self) -> int:
        """Positions that every slot has room for."""
        blocks, _, _, _, block = self.cache[0].k.shape
        return blocks * block


class FirstTokens(NamedTuple):
    """What `insert_group` returns beside the state, of the slots that it filled: the first token [B], its log-probability, and
    whether it already ended the sequence."""

    token_B: jax.Array
    logp_B: jax.Array
    done_B: jax.Array


class Chunk(NamedTuple):
    """What `decode_chunk` returns beside the state: new tokens [B, C], their log-probabilities, which of them count, and which
    slots are done [B]."""

    token_BC: jax.Array
    logp_BC: jax.Array
    valid_BC: jax.Array
    done_B: jax.Array


@dataclass(frozen=True)
class ResultTokens:
    """What `generate` returns, laid out as JetStream's class of the same name: data [B, 5] = token, its log-probability as the
    bits of a float32, whether the two count, tokens so far."""

    data: jax.Array
    tokens_idx: tuple[int, int] = (0, 2)
    valid_idx: tuple[int, int] = (2, 4)
    length_idx: tuple[int, int] = (4, 5)
    samples_per_slot: int = 1


@dataclass(frozen=True)
class Placement:
    """One sample for one slot: the prefix's row, its key (uint32 [2]), how to sample it, and how many tokens it may have."""

    slot: int
    row: int
    key: np.ndarray
    sampling: Sampling
    limit: int


def placement_arrays(placements: list[Placement], slots: int) -> tuple:
    """(row_B, key_B2, sampling of [B], limit_B); row -1 leaves a slot alone."""
    row_B, limit_B = np.full(slots, -1, np.int32), np.ones(slots, np.int32)
    key_B2 = np.zeros((slots, 2), np.uint32)
    temperature_B, top_k_B = np.ones(slots, np.float32), np.zeros(slots, np.int32)
    top_p_B, min_p_B = np.ones(slots, np.float32), np.zeros(slots, np.float32)
    for p in placements:
        row_B[p.slot], key_B2[p.slot], limit_B[p.slot] = p.row, p.key, p.limit
        temperature_B[p.slot], top_k_B[p.slot] = p.sampling.temperature, p.sampling.top_k
        top_p_B[p.slot], min_p_B[p.slot] = p.sampling.top_p, p.sampling.min_p
    return row_B, key_B2, Sampling(temperature_B, top_k_B, top_p_B, min_p_B), limit_B
