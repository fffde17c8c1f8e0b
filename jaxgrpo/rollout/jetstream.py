"""Our engine as an `Engine` of google-jetstream 0.2.2, for JetStream's own drivers. Decoding is greedy; rollout/driver.py
has the subclass whose requests say how to sample.

Beyond delegation: results are the package's `ResultTokens`, so that its Driver recognises them, and the tokenizer speaks its
Tokenizer API. Stop tokens are decided by the engine: the stop token itself is handed out as a valid token and the slot's next
one is not valid, which is what ends a request in the Driver; the tokenizer therefore names no stop tokens, which the Driver
would swallow.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.rollout.engine import DecodeState, Engine, Prefix
from jaxgrpo.rollout.jetstream_import import jetstream_module
from jaxgrpo.rollout.settings import EngineError

engine_api = jetstream_module("engine.engine_api")
tokenizer_api = jetstream_module("engine.tokenizer_api")
tokenizer_pb2 = jetstream_module("engine.tokenizer_pb2")

PADDED_LENGTHS = tuple(2**i for i in range(4, 16))  # what the package pads prompts to


class JetStreamTokenizer(tokenizer_api.Tokenizer):
    """A Hugging Face tokenizer behind JetStream's Tokenizer API."""

    def __init__(self, tokenizer, pad_id: int):
        self.tokenizer, self._pad_id = tokenizer, pad_id

    def encode(self, s: str, **kwargs) -> tuple[jax.Array | np.ndarray, int]:
        """Padded ids and their number. No BOS is added: Qwen has none. EngineError for text over `max_prefill_length`."""
        tokens = np.array(self.tokenizer(s, add_special_tokens=False)["input_ids"], np.int32)
        limit = kwargs.get("max_prefill_length")
        if limit is not None and len(tokens) > limit:
            raise EngineError(f"the prompt has {len(tokens)} tokens, the engine takes at most {limit}.")
        lengths = kwargs.get("prefill_lengths") or PADDED_LENGTHS
        length = next(n for n in lengths if n >= len(tokens))
        padded = np.pad(tokens, (0, length - len(tokens)), constant_values=self._pad_id)
        return (jnp.asarray(padded) if kwargs.get("jax_padding", True) else padded), len(tokens)

    def decode(self, token_ids: list[int], **kwargs) -> str:
        return self.tokenizer.decode(token_ids)

    @property
    def pad_id(self) -> int:
        return self._pad_id

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def bos_id(self) -> int:
        """Never put before a prompt; the package asks for some id."""
        return self._pad_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

    @property
    def stop_tokens(self) -> set[int]:
        """None: the engine ends sequences."""
        return set()


class SlotCount(int):
    """The number of slots, larger than any number of free ones even when all are free.

    The Driver's generate thread asserts that fewer slots are free than there are, while its detokenize thread may free the last
    one at that very moment; the assertion then kills the process. What it guards against, a step over slots that are all done,
    costs our engine nothing.
    """

    def __gt__(self, other) -> bool:
        return True


class JetStreamEngine(engine_api.Engine):
    """The package's Engine around ours. `header` more ints than the longest prompt fit before it."""

    header = 0

    def __init__(self, engine: Engine):
        longest = engine.max_prefill_length + self.header
        if longest > PADDED_LENGTHS[-1]:
            raise EngineError(
                f"JetStream pads prompts to at most {PADDED_LENGTHS[-1]} tokens; lower data.max_prompt_tokens="
                f"{engine.max_prefill_length} to {PADDED_LENGTHS[-1] - self.header}."
            )
        self._padded_length = next(length for length in PADDED_LENGTHS if length >= longest)
        self.engine = engine

    def load_params(self, *args, **kwargs):
        return self.engine.load_params(*args, **kwargs)

    def init_decode_state(self, *args, **kwargs) -> DecodeState:
        return self.engine.init_decode_state()

    def prefill(self, *, params, existing_prefix=None, padded_tokens, true_length: int) -> Prefix:
        return self.engine.prefill(
            params=params, existing_prefix=existing_prefix, padded_tokens=padded_tokens, true_length=true_length
        )

    def insert(self, prefix: Prefix, decode_state: DecodeState, slot: int) -> DecodeState:
        return self.engine.insert(prefix, decode_state, slot)

    def generate(self, params, decode_state: DecodeState) -> tuple[DecodeState, "engine_api.ResultTokens"]:
        decode_state, ours = self.engine.generate(params, decode_state)
        return decode_state, engine_api.ResultTokens(
            data=ours.data,
            tokens_idx=ours.tokens_idx,
            valid_idx=ours.valid_idx,
            length_idx=ours.length_idx,
            samples_per_slot=ours.samples_per_slot,
        )

    def get_prefix_destination_sharding(self):
        return self.engine.get_prefix_destination_sharding()

    def get_tokenizer(self) -> "tokenizer_pb2.TokenizerParameters":
        return tokenizer_pb2.TokenizerParameters(path="", extra_ids=0)

    def build_tokenizer(self, metadata=None) -> JetStreamTokenizer:
        tokenizer = self.engine.get_tokenizer()
        if tokenizer is None:
            raise EngineError("JetStream's drivers need a tokenizer: make the Engine with tokenizer=...")
        return JetStreamTokenizer(tokenizer, self.engine.settings.pad_id)

    @property
    def max_concurrent_decodes(self) -> SlotCount:
        return SlotCount(self.engine.max_concurrent_decodes)

    @property
    def samples_per_slot(self) -> int:
        return self.engine.samples_per_slot

    @property
    def max_prefill_length(self) -> int:
        """The longest prompt, in the padding that the package knows."""
        return self._padded_length

    @property
    def mesh(self):
        return self.engine.mesh

    @property
    def colocated_cpus(self):
        return self.engine.colocated_cpus
