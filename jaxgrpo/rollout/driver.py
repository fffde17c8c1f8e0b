"""JetStream's Driver, with requests that say how they are to be sampled.

A request of google-jetstream 0.2.2 has a prompt and a limit of tokens; it has no field for a key or a temperature. These travel
as HEADER ints before the prompt, which `RequestEngine` takes off again when the Driver prefills it. The Driver itself is the
package's; the subclass here only knows which requests it holds, and gives the slot of a cancelled one back at its next token
instead of decoding on for nobody.

What kills the Driver's process, and is kept from it: its assertion on free slots (`SlotCount`), prompts that are empty, too
long or not of the vocabulary (checked before they are queued), tokens as a list (always a NumPy array here), an event loop that
closes while a thread still posts to it (whoever asks keeps one loop alive to the end of the process).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxgrpo.rollout.engine import DecodeState, Engine, Placement, Prefix
from jaxgrpo.rollout.jetstream import JetStreamEngine, engine_api, tokenizer_api
from jaxgrpo.rollout.jetstream_import import jetstream_module
from jaxgrpo.rollout.sampling import Sampling
from jaxgrpo.rollout.settings import EngineError

orchestrator = jetstream_module("core.orchestrator")
multifuture = jetstream_module("core.utils.async_multifuture")

HEADER = 7  # ints: key (2), limit, temperature, top_k, top_p, min_p
NO_BOS = "none"  # any history path at all is how the package is told not to put a BOS before the prompt


def with_header(prompt: np.ndarray, key: np.ndarray, sampling: Sampling, limit: int) -> np.ndarray:
    """int32 [HEADER + len(prompt)]: how to sample, then the prompt. Floats travel as the bits of a float32."""
    header = np.empty(HEADER, np.int32)
    header[:2] = np.asarray(key, np.uint32).view(np.int32)
    header[2], header[4] = limit, sampling.top_k
    header[[3, 5, 6]] = np.array([sampling.temperature, sampling.top_p, sampling.min_p], np.float32).view(np.int32)
    return np.concatenate([header, np.asarray(prompt, np.int32)])


def read_header(tokens: np.ndarray) -> tuple[np.ndarray, Sampling, int]:
    """(key uint32 [2], sampling, limit) of what `with_header` wrote."""
    header = np.array(tokens[:HEADER], np.int32)
    temperature, top_p, min_p = header[[3, 5, 6]].view(np.float32).tolist()
    return header[:2].view(np.uint32), Sampling(temperature, int(header[4]), top_p, min_p), int(header[2])


@dataclass
class Weights:
    """What the Driver is given as parameters. It keeps them for good; the value may change while no request is in a slot."""

    value: dict


class RequestPrefix(NamedTuple):
    """A prefilled prompt and what its header said."""

    prefix: Prefix
    key: np.ndarray
    sampling: Sampling
    limit: int


class TokensOnly(tokenizer_api.Tokenizer):
    """The tokenizer of a Driver whose requests are tokens. It names no stop tokens: the engine ends sequences."""

    def __init__(self, pad_id: int):
        self._pad_id = pad_id

    def encode(self, s: str, **kwargs):
        raise EngineError("requests are tokens; text is tokenised before it reaches the Driver")

    def decode(self, token_ids: list[int], **kwargs) -> str:
        raise EngineError("responses are tokens; text is made after they left the Driver")

    @property
    def pad_id(self) -> int:
        return self._pad_id

    @property
    def eos_id(self) -> int:
        return self._pad_id

    @property
    def bos_id(self) -> int:
        return self._pad_id

    @property
    def stop_tokens(self) -> set[int]:
        return set()


class RequestEngine(JetStreamEngine):
    """Our engine for prompts with a header. logps: a token is handed out as two ints, itself and its log-probability's bits."""

    header = HEADER

    def __init__(self, engine: Engine, *, logps: bool):
        super().__init__(engine)
        self.logps = logps

    def build_tokenizer(self, metadata=None) -> TokensOnly:
        return TokensOnly(self.engine.settings.pad_id)

    def prefill(self, *, params: Weights, existing_prefix=None, padded_tokens, true_length: int) -> RequestPrefix:
        prompt = np.asarray(padded_tokens)[HEADER:true_length]
        prefix = super().prefill(
            params=params.value, existing_prefix=existing_prefix, padded_tokens=prompt, true_length=len(prompt)
        )
        return RequestPrefix(prefix, *read_header(padded_tokens))

    def insert(self, prefix: RequestPrefix, decode_state: DecodeState, slot: int) -> DecodeState:
        placement = Placement(slot, 0, prefix.key, prefix.sampling, prefix.limit)
        return self.engine.insert_group(prefix.prefix, decode_state, [placement])[0]

    def generate(self, params: Weights, decode_state: DecodeState) -> tuple[DecodeState, "engine_api.ResultTokens"]:
        decode_state, result = super().generate(params.value, decode_state)
        return decode_state, result if self.logps else result.replace(tokens_idx=(0, 1), valid_idx=(2, 3))


@dataclass
class HeldRequest(orchestrator.ActiveRequest):
    """A request that the Driver holds: queued, in a slot, or about to leave it."""

    held: set | None = None

    def enqueue_samples(self, generated_samples: list) -> None:
        """The Driver's detokenize thread hands over what a step made, and then frees the slot if all of `complete` is set."""
        if self.return_channel.cancelled():
            self.complete[:] = True
        super().enqueue_samples(generated_samples)
        if self.complete.all():
            self.held.discard(self.return_channel)


class RequestDriver(orchestrator.Driver):
    """The package's Driver over one engine. `held` has the return channel of every request from its queueing until its slot is
    free again."""

    def __init__(self, engine: RequestEngine, weights: Weights):
        self.held: set[multifuture.AsyncMultifuture] = set()
        super().__init__(
            prefill_engines=[engine],
            generate_engines=[engine],
            prefill_params=[weights],
            generate_params=[weights],
            interleaved_mode=True,
            jax_padding=False,
        )

    def place_request_on_prefill_queue(self, request: "orchestrator.ActiveRequest") -> None:
        self.held.add(request.return_channel)
        super().place_request_on_prefill_queue(HeldRequest(**vars(request), held=self.held))


async def ask(driver: RequestDriver, tokens: np.ndarray) -> list[int]:
    """Everything that the Driver answers to one prompt with a header. Call it on a loop that outlives the Driver's threads."""
    request = orchestrator.ActiveRequest(
        max_tokens=read_header(tokens)[2],
        history_path=NO_BOS,
        prefill_content=tokens,
        is_client_side_tokenization=True,
        return_channel=multifuture.AsyncMultifuture(),
    )
    driver.place_request_on_prefill_queue(request)
    return [token async for samples in request.return_channel for token in samples[0].token_ids]
