"""Continuous batching: prompts in, finished responses out, slots refilled between chunks.

Every prompt is prefilled once and its prefix inserted into the slots of its samples. Prompts of one length bucket are prefilled
together, so that what a prompt is batched with does not change the program it runs. Which slot a sample gets, and when, does
not change what it says. Decisions depend only on the requests and on what was generated, so a rerun repeats them.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import numpy as np

from jaxgrpo.rollout.engine import Engine, EngineError, NonFiniteError, Prefix, SlotRequests


@dataclass(frozen=True)
class Request:
    """One prompt and its samples."""

    prompt: np.ndarray  # int32 tokens
    keys: np.ndarray  # uint32 [samples, 2]
    temperature: float
    max_new: int


@dataclass
class Response:
    """One sample. tokens include the stop token when one was generated."""

    request: int  # position of its Request
    sample: int
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)  # behaviour log-probabilities, one per token
    finish: str = "length"  # "stop" | "length"


@dataclass
class _OpenPrompt:
    """A prefilled prompt some of whose samples still wait for a slot."""

    request: int
    prefix: Prefix
    row: int
    next_sample: int = 0


def generate(
    engine: Engine, params, requests: list[Request], on_finish: Callable[[Response], None] = lambda response: None
) -> list[list[Response]]:
    """Generate all samples of all requests. Returns responses[request][sample]; `on_finish` sees each as it ends.

    EngineError, before anything is generated, for a request that the engine cannot serve; NonFiniteError for one whose
    log-probabilities are not finite.
    """
    for index, request in enumerate(requests):
        _check(engine, index, request)
    return _Rollout(engine, params, requests, on_finish).run()


def _check(engine: Engine, index: int, request: Request) -> None:
    engine.check_prompt(request.prompt, f"the prompt of request {index}")
    if not 1 <= request.max_new <= engine.settings.max_new:
        raise EngineError(
            f"request {index} asks for {request.max_new} new tokens; the engine gives 1 to {engine.settings.max_new} "
            "(rollout.max_new_tokens)."
        )
    if not 0 <= request.temperature < float("inf"):
        raise EngineError(f"request {index} has temperature {request.temperature}; it needs a finite one of at least 0.")
    if np.ndim(request.keys) != 2 or np.shape(request.keys)[1] != 2:
        raise EngineError(f"request {index} has keys of shape {np.shape(request.keys)}; it needs [samples, 2].")


class _Rollout:
    def __init__(self, engine, params, requests, on_finish):
        self.engine, self.params, self.requests, self.on_finish = engine, params, requests, on_finish
        self.waiting: dict[int, deque[int]] = {}  # requests without a prefix, by bucket
        for index, request in enumerate(requests):
            if len(request.keys):
                self.waiting.setdefault(engine.settings.bucket(len(request.prompt)), deque()).append(index)
        self.open: deque[_OpenPrompt] = deque()
        self.free = deque(range(engine.max_concurrent_decodes))
        self.active: dict[int, Response] = {}
        self.responses = [[Response(r, s) for s in range(len(q.keys))] for r, q in enumerate(requests)]

    def run(self) -> list[list[Response]]:
        state = self.engine.init_decode_state()
        while self.waiting or self.open or self.active:
            state = self.fill_slots(state)
            if self.active:
                state, outputs = self.engine.decode_chunk(self.params, state)
                self.collect(*jax.device_get(outputs))
        return self.responses

    def fill_slots(self, state):
        """Insert samples until no slot is free or nothing waits."""
        while self.free and (self.open or self.waiting):
            if not self.open:
                self.prefill()
            prefix = self.open[0].prefix
            slots, placed = SlotRequests.empty(self.engine.max_concurrent_decodes), []
            while self.free and self.open and self.open[0].prefix is prefix:
                prompt = self.open[0]
                request = self.requests[prompt.request]
                slot = self.free.popleft()
                slots.set(
                    slot,
                    row=prompt.row,
                    key=request.keys[prompt.next_sample],
                    temperature=request.temperature,
                    limit=request.max_new,
                )
                placed.append((slot, self.responses[prompt.request][prompt.next_sample]))
                prompt.next_sample += 1
                if prompt.next_sample == len(request.keys):
                    self.open.popleft()
            state, first = self.engine.insert_group(prefix, state, slots)
            token_B, logp_B, done_B = jax.device_get(first)
            for slot, response in placed:
                self.active[slot] = response
                self.extend(slot, token_B[slot : slot + 1], logp_B[slot : slot + 1], bool(done_B[slot]))
        return state

    def prefill(self) -> None:
        """Prefill the prompt that waits longest, and with it as many of its bucket as one dispatch takes."""
        bucket = min(self.waiting, key=lambda b: self.waiting[b][0])
        queue = self.waiting[bucket]
        batch = [queue.popleft() for _ in range(min(len(queue), self.engine.prefill_rows(bucket)))]
        if not queue:
            del self.waiting[bucket]
        prefix = self.engine.prefill_batch(self.params, [self.requests[r].prompt for r in batch])
        self.open.extend(_OpenPrompt(request, prefix, row) for row, request in enumerate(batch))

    def collect(self, token_BC, logp_BC, valid_BC, done_B) -> None:
        for slot in list(self.active):
            valid_C = valid_BC[slot]
            self.extend(slot, token_BC[slot][valid_C], logp_BC[slot][valid_C], bool(done_B[slot]))

    def extend(self, slot: int, tokens: np.ndarray, logps: np.ndarray, done: bool) -> None:
        response = self.active[slot]
        logps = logps.tolist()
        if not math.isfinite(sum(logps)):
            raise NonFiniteError(
                f"request {response.request}, sample {response.sample}: the log-probability of one of its tokens "
                f"{len(response.tokens)} to {len(response.tokens) + len(logps) - 1} is not finite, so the model's weights or "
                "activations are not. Start a new run_dir from a sound checkpoint (jaxgrpo export) with a lower learning rate."
            )
        response.tokens.extend(tokens.tolist())
        response.logps.extend(logps)
        if done:
            response.finish = "stop" if response.tokens[-1] in self.engine.settings.stop_ids else "length"
            del self.active[slot]
            self.free.append(slot)
            self.on_finish(response)
