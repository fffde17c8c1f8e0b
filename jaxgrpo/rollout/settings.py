"""The sizes of an engine, which its compiled programs depend on, and the error of what it cannot serve."""

from dataclasses import dataclass

from jaxgrpo.errors import UserError


class EngineError(UserError):
    """A request or size that the engine cannot serve; the message gives the value and the remedy."""

    exit_code = 2


class NonFiniteError(EngineError):
    """The model produced a NaN or an infinite log-probability: the work failed, whatever the configuration says."""

    exit_code = 1


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
    dtype: str = "bfloat16"

    def check(self, vocab: int, replicas: int) -> None:
        """EngineError for sizes that no engine with this vocabulary and number of replicas can have."""
        for name in ("slots", "max_prompt", "max_new", "chunk", "prefill_tokens"):
            if getattr(self, name) < 1:
                raise EngineError(f"{name} = {getattr(self, name)}: the engine needs at least 1.")
        if self.slots % replicas:
            raise EngineError(f"{self.slots} slots do not divide over {replicas} replicas: set rollout.slots to a multiple.")
        bad = [i for i in self.stop_ids if not 0 <= i < vocab]
        if bad:
            raise EngineError(f"stop token ids {bad} lie outside the vocabulary of {vocab}: mend generation_config.json.")
        if not 0 <= self.pad_id < vocab:
            raise EngineError(f"pad token id {self.pad_id} lies outside the vocabulary of {vocab}.")

    @property
    def cache_length(self) -> int:
        return self.max_prompt + self.max_new

    @property
    def buckets(self) -> tuple[int, ...]:
        """Prompt lengths that prefill is compiled for: max_prompt and the powers of two from max_prompt / 16 (at least 16)
        up to it. Every bucket costs two compilations, so the smallest prompts share one."""
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
