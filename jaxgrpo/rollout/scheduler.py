"""Continuous batching: prompts in, finished responses out, slots refilled between chunks.

Every prompt is prefilled once and its cache copied into the slots of its samples. Prompts of one length bucket are prefilled
together, so that what a prompt is batched with does not change the program it runs. Which slot a sample gets, and when, does
not change what it says. The host runs one chunk behind the device: while one chunk is decoded, the one before is read, and
slots that it freed are filled for the next. Decisions depend only on the requests and on what was generated, so a rerun repeats
them.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import numpy as np

from jaxgrpo.rollout.engine import Engine, EngineError, NonFiniteError
from jaxgrpo.rollout.sampling import Sampling
from jaxgrpo.rollout.slots import Chunk, FirstTokens, Placement, Prefix

# Results that may be on their way at once. XLA's CPU client holds 32 programs of a device and locks up when it is full of
# collectives whose other half was not launched yet; an insertion is two programs.
MAX_UNREAD = 8


@dataclass(frozen=True)
class Request:
    """One prompt and its samples."""

    prompt: np.ndarray  # int32 tokens
    keys: np.ndarray  # uint32 [samples, 2]
    sampling: Sampling
    max_new: int | np.ndarray  # tokens, of every sample or of each [samples]

    @property
    def limits(self) -> np.ndarray:
        """Most new tokens of each sample [samples]."""
        return np.broadcast_to(self.max_new, len(self.keys))


@dataclass
class Response:
    """One sample. tokens include the stop token when one was generated."""

    request: int  # position of its Request
    sample: int
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)  # behaviour log-probabilities, one per token
    finish: str = ""  # "stop" | "length" once it is finished


def generate(
    engine: Engine, params, requests: list[Request], on_finish: Callable[[Response], None] = lambda response: None
) -> list[list[Response]]:
    """Generate all samples of all requests. Returns responses[request][sample]; `on_finish` sees each as it ends.

    EngineError, before anything is generated, for a request that the engine cannot serve; NonFiniteError for one whose
    log-probabilities are not finite.
    """
    check_requests(engine, requests)
    return _Rollout(engine, params, requests, on_finish).run()


def check_requests(engine: Engine, requests: list[Request]) -> None:
    """EngineError that names the first request which the engine cannot serve."""
    for index, request in enumerate(requests):
        _check(engine, index, request)


def _check(engine: Engine, index: int, request: Request) -> None:
    engine.check_prompt(request.prompt, f"the prompt of request {index}")
    if np.ndim(request.keys) != 2 or np.shape(request.keys)[1] != 2:
        raise EngineError(f"request {index} has keys of shape {np.shape(request.keys)}; it needs [samples, 2].")
    if np.shape(request.max_new) not in ((), (len(request.keys),)):
        raise EngineError(f"request {index} has {np.size(request.max_new)} limits for its {len(request.keys)} samples.")
    for limit in np.unique(request.max_new).tolist():
        engine.check_sampling(request.sampling, limit, f"request {index}")


@dataclass
class _OpenPrompt:
    """A prefilled prompt some of whose samples still wait for a slot."""

    request: int
    prefix: Prefix
    row: int
    next_sample: int = 0


@dataclass
class _Seat:
    """A response in a slot. `longest` bounds the positions it may take up after all chunks that were dispatched."""

    response: Response
    end: int  # positions at its limit
    longest: int


class _Rollout:
    def __init__(self, engine, params, requests, on_finish):
        self.engine, self.params, self.requests, self.on_finish = engine, params, requests, on_finish
        self.waiting: dict[int, deque[int]] = {}  # requests without a prefix, by bucket
        for index, request in enumerate(requests):
            if len(request.keys):
                self.waiting.setdefault(engine.settings.bucket(len(request.prompt)), deque()).append(index)
        self.open: deque[_OpenPrompt] = deque()
        self.free = deque(range(engine.max_concurrent_decodes))
        self.seats: dict[int, _Seat] = {}
        self.unread: deque[tuple] = deque()  # results on their way from the device, oldest first, and whose they are
        self.responses = [[Response(r, s) for s in range(len(q.keys))] for r, q in enumerate(requests)]

    def run(self) -> list[list[Response]]:
        state = None
        while self.waiting or self.open or self.seats:
            state = self.fill_slots(state)
            unfinished = any(seat.longest < seat.end for seat in self.seats.values())
            if unfinished:
                state = self.decode(state)
            while len(self.unread) > unfinished:  # all but the chunk that was just dispatched
                self.read()
        return self.responses

    def decode(self, state):
        """Dispatch one chunk, in a cache as large as its longest sequence may become."""
        for seat in self.seats.values():
            seat.longest = min(seat.end, seat.longest + self.engine.settings.chunk)
        state = self.engine.resize(state, max(seat.longest for seat in self.seats.values()))
        state, chunk = self.engine.decode_chunk(self.params, state)
        self.unread.append((chunk, dict(self.seats)))
        return state

    def fill_slots(self, state):
        """Insert samples until no slot is free or nothing waits."""
        while self.free and (self.open or self.waiting):
            if not self.open:
                self.prefill()
            prefix, placements, seats = self.open[0].prefix, [], {}
            while self.free and self.open and self.open[0].prefix is prefix:
                prompt = self.open[0]
                request, sample, slot = self.requests[prompt.request], prompt.next_sample, self.free.popleft()
                limit, length = int(request.limits[sample]), len(request.prompt)
                placements.append(Placement(slot, prompt.row, request.keys[sample], request.sampling, limit))
                seats[slot] = _Seat(self.responses[prompt.request][sample], length + limit, length + 1)
                prompt.next_sample += 1
                if prompt.next_sample == len(request.keys):
                    self.open.popleft()
            self.seats |= seats
            if state is None:
                state = self.engine.init_decode_state(max(seat.longest for seat in seats.values()))
            state, first = self.engine.insert_group(prefix, state, placements)
            self.unread.append((first, seats))
            while len(self.unread) > MAX_UNREAD:
                self.read()
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

    def read(self) -> None:
        """Take the oldest result off the device."""
        result, seats = self.unread.popleft()
        result = jax.device_get(result)
        if isinstance(result, FirstTokens):
            for slot, seat in seats.items():
                at = slice(slot, slot + 1)
                self.extend(slot, seat, result.token_B[at], result.logp_B[at], bool(result.done_B[slot]))
        else:
            self.read_chunk(result, seats)

    def read_chunk(self, chunk: Chunk, seats: dict[int, _Seat]) -> None:
        for slot, seat in seats.items():
            if not seat.response.finish:  # else it ended in an earlier chunk, which had not been read when this one started
                valid_C = chunk.valid_BC[slot]
                self.extend(slot, seat, chunk.token_BC[slot][valid_C], chunk.logp_BC[slot][valid_C], bool(chunk.done_B[slot]))

    def extend(self, slot: int, seat: _Seat, tokens: np.ndarray, logps: np.ndarray, done: bool) -> None:
        response = seat.response
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
            del self.seats[slot]
            self.free.append(slot)
            self.on_finish(response)
