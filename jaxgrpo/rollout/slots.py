"""What moves through the engine: prefilled prompts, the state of all slots, requests for slots, results.

Shapes: B slots, R prompts of a prefill, T prompt bucket, S cache length, K kv heads, H head size, V vocab.
"""

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np


@partial(jax.tree_util.register_dataclass, data_fields=["k", "v", "logits_RV", "lengths_R"], meta_fields=[])
@dataclass(frozen=True)
class Prefix:
    """Prefilled prompts: per layer K [R, K, H, T] and V [R, K, T, H], the last logits, and true lengths."""

    k: tuple
    v: tuple
    logits_RV: jax.Array
    lengths_R: jax.Array


SLOT_FIELDS = ["token_B", "logp_B", "length_B", "count_B", "shown_B", "limit_B", "done_B", "key_B2", "temperature_B"]


@partial(jax.tree_util.register_dataclass, data_fields=["k", "v", *SLOT_FIELDS], meta_fields=[])
@dataclass(frozen=True)
class DecodeState:
    """All slots: per layer K [B, K, H, S] and V [B, K, S, H]; each slot's newest token, which is not in the cache yet, its
    log-probability, cache length, tokens generated, how many of them `generate` handed out, limit of new tokens, done flag, key
    and temperature."""

    k: tuple
    v: tuple
    token_B: jax.Array
    logp_B: jax.Array
    length_B: jax.Array
    count_B: jax.Array
    shown_B: jax.Array
    limit_B: jax.Array
    done_B: jax.Array
    key_B2: jax.Array
    temperature_B: jax.Array


@dataclass(frozen=True)
class ResultTokens:
    """What `generate` returns, laid out as JetStream's class of the same name: data [B, 3] = token, valid, length."""

    data: jax.Array
    tokens_idx: tuple[int, int] = (0, 1)
    valid_idx: tuple[int, int] = (1, 2)
    length_idx: tuple[int, int] = (2, 3)
    samples_per_slot: int = 1


@dataclass(frozen=True)
class SlotRequests:
    """What `insert_group` puts where: for every slot the prefix row (-1: leave the slot alone), key, temperature and limit."""

    row_B: np.ndarray
    key_B2: np.ndarray
    temperature_B: np.ndarray
    limit_B: np.ndarray

    @classmethod
    def empty(cls, slots: int) -> "SlotRequests":
        return cls(
            np.full(slots, -1, np.int32), np.zeros((slots, 2), np.uint32), np.ones(slots, np.float32), np.ones(slots, np.int32)
        )

    def set(self, slot: int, *, row: int, key: np.ndarray, temperature: float, limit: int) -> None:
        self.row_B[slot], self.key_B2[slot], self.temperature_B[slot], self.limit_B[slot] = row, key, temperature, limit
