"""The sizes of an engine, which its compiled programs depend on, and the error of what it cannot serve."""

import math
from dataclasses import dataclass, replace

from jaxgrpo.errors import UserError
from jaxgrpo.model.decode_attention import BACKENDS, can_run, choose_backend


class EngineError(UserError):
    """A request or size that the engine cannot serve; the message gives the value and the remedy."""

    exit_code = 2


class NonFiniteError(EngineError):
    """The model produced a NaN or an infinite log-probability: the work failed, whatever the configuration says."""

    exit_code = 1


def block_length(longest: int) -> int:
    """Cache positions of a block for sequences of up to `longest` tokens: a sixth of them, so that the cache can follow the
    longest sequence closely, but enough for efficient products, and in whole tiles of the hardware."""
    sixth = -(-longest // 6)
    tile = 128 if sixth > 64 else 32 if longest > 16 else 16
    return min(512, -(-sixth // tile) * tile)


@dataclass(frozen=True)
class EngineSettings:
    """Sizes that the compiled programs depend on."""

    slots: int  # sequences decoded at once
    max_prompt: int  # tokens
    max_new: int  # tokens
    chunk: int  # tokens per `decode_chunk`
    prefill_tokens: int  # prompt tokens of one `prefill_batch`
    stop_ids: tuple[int, ...]
    pad_id: int = 0
    unknown: tuple[tuple[int, int], ...] = ()  # ranges (first, end) of ids that the tokenizer lacks: never sampled
    dtype: str = "bfloat16"  # of weights and activations
    cache_dtype: str = ""  # of the KV cache, "int8" for a quantised one; default: dtype
    weights: str = ""  # "int8" for quantised matrices; default: dtype
    truncate: bool = False  # compile top-k, top-p and min-p into the sampler
    block: int = 0  # cache positions of a block; default: see `block_length`
    attention: str = ""  # decoding's backend, see model/decode_attention.py; default: by the platform, see `on`

    def __post_init__(self):
        object.__setattr__(self, "block", self.block or block_length(self.cache_length))
        object.__setattr__(self, "cache_dtype", self.cache_dtype or self.dtype)
        object.__setattr__(self, "weights", self.weights or self.dtype)

    def on(self, platform: str, head_dim: int) -> "EngineSettings":
        """These settings with what they leave to the platform filled in. EngineError for attention that it does not have."""
        if not can_run(self.attention, platform, self.block, head_dim):
            raise EngineError(
                f"rollout.attention={self.attention} does not run on a {platform} device with heads of {head_dim} in blocks of "
                f"{self.block}: leave it out, or say xla."
            )
        return replace(self, attention=self.attention or choose_backend(platform, self.block, head_dim))

    def check(self, vocab: int, replicas: int) -> None:
        """EngineError for sizes that no engine with this vocabulary and number of replicas can have."""
        for name in ("slots", "max_prompt", "max_new", "chunk", "prefill_tokens"):
            if getattr(self, name) < 1:
                raise EngineError(f"{name} = {getattr(self, name)}: the engine needs at least 1.")
        if self.attention not in BACKENDS:
            raise EngineError(f"attention = {self.attention!r}: decoding knows {', '.join(BACKENDS)}.")
        if self.slots % replicas:
            raise EngineError(f"{self.slots} slots do not divide over {replicas} replicas: set rollout.slots to a multiple.")
        for name in ("weights", "cache_dtype"):
            if getattr(self, name) not in (self.dtype, "int8"):
                raise EngineError(f"{name} = {getattr(self, name)}: the engine knows int8 and its own dtype, {self.dtype}.")
        bad = [i for i in self.stop_ids if not 0 <= i < vocab]
        if bad:
            raise EngineError(f"stop token ids {bad} lie outside the vocabulary of {vocab}: mend generation_config.json.")
        known = vocab - sum(end - first for first, end in self.unknown)
        if known < 1 or any(not 0 <= first < end <= vocab for first, end in self.unknown):
            raise EngineError(f"unknown token ids {self.unknown} leave nothing of a vocabulary of {vocab} or lie outside it.")
        if not 0 <= self.pad_id < vocab:
            raise EngineError(f"pad token id {self.pad_id} lies outside the vocabulary of {vocab}.")

    @property
    def cache_blocks(self) -> tuple[int, ...]:
        """Cache sizes in blocks that insert and decode are compiled for, smallest first: the longest sequence, and at most four
        times two thirds of the next larger one, none too small for the longest prompt."""
        most, least = self.blocks(self.cache_length), self.blocks(self.max_prompt + 1)
        sizes = [most]
        while len(sizes) < 5 and sizes[-1] > least:
            sizes.append(max(least, min(sizes[-1] - 1, math.ceil(sizes[-1] / 1.5))))
        return tuple(reversed(sizes))

    @property
    def cache_length(self) -> int:
        """Positions of the longest sequence."""
        return self.max_prompt + self.max_new

    def blocks(self, length: int) -> int:
        """Blocks that hold `length` positions."""
        return -(-length // self.block)

    @property
    def buckets(self) -> tuple[int, ...]:
        """Prompt lengths that prefill is compiled for: max_prompt and the powers of two from max_prompt / 16 (at least 16)
        up to it. Every bucket costs compilations, so the smallest prompts share one."""
        powers = [2**i for i in range(4, 31) if self.max_prompt / 16 <= 2**i < self.max_prompt]
        return (*powers, self.max_prompt)

    def bucket(self, length: int) -> int:
        """The bucket that a prompt is prefilled in: a function of its length alone, so that a prompt always runs the same
        program whatever it is batched with."""
        return next(b for b in self.buckets if b >= length)

    def prefill_rows(self, bucket: int, replicas: int = 1) -> int:
        """Prompts of one prefill: what `prefill_tokens` allows, in multiples of the replicas where it allows that many."""
        rows = max(1, min(self.slots, self.prefill_tokens // bucket))
        return rows - rows % replicas if rows > replicas else rows
