"""The generation engine: prefill, insert, generate over the Flax model and a slotted KV cache.

It has the methods of JetStream 0.2.2's Engine interface with their meanings (load_params, prefill, insert, generate,
init_decode_state, max_concurrent_decodes, ...), and what that interface has no word for: `prefill_batch` of many prompts,
`insert_group` of one prefix into the slots of many samples, `decode_chunk` of many tokens per dispatch, a key and a temperature
per sample, log-probabilities, and stop tokens decided on the device.

Shapes: B slots, R prompts of a prefill, T prompt bucket, S cache length, C chunk, N/K/H heads, kv heads, head size, V vocab.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.model.attention import attend, attend_cache, causal_mask
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.parameters import parameter_table
from jaxgrpo.model.qwen2 import block, embed_tokens, output_matrix, rms_norm, rope_angles
from jaxgrpo.parallel.sharding import constrain, named_sharding, replicated
from jaxgrpo.rollout.layout import make_handover
from jaxgrpo.rollout.sampling import sample_tokens
from jaxgrpo.rollout.settings import EngineError, EngineSettings, NonFiniteError
from jaxgrpo.rollout.slots import SLOT_FIELDS, DecodeState, Prefix, ResultTokens, SlotRequests

__all__ = ["DecodeState", "Engine", "EngineError", "EngineSettings", "NonFiniteError", "Prefix", "ResultTokens", "SlotRequests"]


class Engine:
    """Generation with one model on one (replica, tensor) mesh. Slots are sharded over `replica`; all programs are jitted
    with explicit shardings, so that any thread may call them."""

    def __init__(self, config: ModelConfig, settings: EngineSettings, mesh, *, tokenizer=None):
        settings.check(config.vocab, mesh.shape["replica"])
        self.config, self.settings, self._mesh, self._tokenizer = config, settings, mesh, tokenizer
        self._dtype = jnp.dtype(settings.dtype)
        self._handover = make_handover(config, mesh, self._dtype)
        state, everywhere = self._state_shardings(), replicated(mesh)
        self._init = jax.jit(self._make_state, out_shardings=state)
        self._prefill = jax.jit(self._prefill_rows, out_shardings=self._prefix_sharding())
        self._insert = jax.jit(
            self._insert_slots, donate_argnames="state", out_shardings=(state, (everywhere, everywhere, everywhere))
        )
        self._decode = jax.jit(
            self._decode_tokens, static_argnames="steps", donate_argnames="state", out_shardings=(state, everywhere)
        )
        self._generate = jax.jit(self._show_and_decode, donate_argnames="state", out_shardings=(state, everywhere))

    # JetStream's interface -------------------------------------------------------------------------------------------

    @property
    def max_concurrent_decodes(self) -> int:
        return self.settings.slots

    @property
    def samples_per_slot(self) -> int:
        return 1

    @property
    def max_prefill_length(self) -> int:
        return self.settings.max_prompt

    @property
    def mesh(self):
        return self._mesh

    @property
    def colocated_cpus(self):
        return None

    def get_tokenizer(self):
        return self._tokenizer

    def get_prefix_destination_sharding(self):
        return replicated(self._mesh)

    def load_params(self, params: dict) -> dict:
        """The trainer's parameters, cast and moved to the rollout layout in one program. Parameters that lie on other devices
        than the engine's are first spread over these."""
        devices = {device for value in params.values() if isinstance(value, jax.Array) for device in value.devices()}
        if devices != set(self._mesh.devices.flat):
            specs = parameter_table(self.config)
            params = jax.device_put(params, {s.name: named_sharding(self._mesh, s.axes, s.shape) for s in specs})
        return self._handover(params)

    def init_decode_state(self) -> DecodeState:
        """Empty slots, all of them done."""
        return self._init()

    def prefill(self, *, params, existing_prefix=None, padded_tokens, true_length: int) -> Prefix:
        """Prefill one prompt, int tokens [T] of which the first `true_length` count. existing_prefix is not supported."""
        if existing_prefix is not None:
            raise EngineError("existing_prefix is not supported: prefill the whole prompt.")
        if not 1 <= true_length <= len(padded_tokens):
            raise EngineError(f"a prompt of true length {true_length} in {len(padded_tokens)} padded tokens.")
        return self.prefill_batch(params, [np.asarray(padded_tokens)[:true_length]])

    def insert(self, prefix: Prefix, decode_state: DecodeState, slot: int) -> DecodeState:
        """Put a prefix of one prompt into `slot`, to be decoded greedily up to the engine's limit."""
        slots = SlotRequests.empty(self.settings.slots)
        slots.set(slot, row=0, key=np.zeros(2, np.uint32), temperature=0.0, limit=self.settings.max_new)
        return self.insert_group(prefix, decode_state, slots)[0]

    def generate(self, params, decode_state: DecodeState) -> tuple[DecodeState, ResultTokens]:
        """Hand out the token that each slot holds and compute the next; a token is valid once; a done slot's is not again."""
        state, data_B3 = self._generate(params, decode_state)
        return state, ResultTokens(data_B3)

    # Additions -------------------------------------------------------------------------------------------------------

    def compile(self, params, *, stepwise: bool = False) -> None:
        """Run every program once on dummy data, those of the longest bucket first, so that no prompt compiles one later.

        Leaves nothing behind but the compiled programs. stepwise: also `generate`, which only JetStream's drivers use.
        """
        state, nothing = self.init_decode_state(), SlotRequests.empty(self.settings.slots)
        for bucket in reversed(self.settings.buckets):
            prefix = self.prefill_batch(params, [np.full(bucket, self.settings.pad_id, np.int32)])
            state, _ = jax.block_until_ready(self.insert_group(prefix, state, nothing))
        state, _ = self.decode_chunk(params, state)
        if stepwise:
            state, _ = self.generate(params, state)
        jax.block_until_ready(state)

    def prefill_rows(self, bucket: int) -> int:
        """Prompts that one `prefill_batch` of this bucket takes."""
        return self.settings.prefill_rows(bucket, self._mesh.shape["replica"])

    def check_prompt(self, prompt: np.ndarray, name: str = "the prompt") -> None:
        """EngineError unless the prompt has 1 to max_prompt tokens, all of them in the vocabulary."""
        if not 1 <= len(prompt) <= self.settings.max_prompt:
            raise EngineError(
                f"{name} has {len(prompt)} tokens; prompts need 1 to {self.settings.max_prompt} (data.max_prompt_tokens)."
            )
        low, high = int(np.min(prompt)), int(np.max(prompt))
        if low < 0 or high >= self.config.vocab:
            raise EngineError(
                f"{name} has token {low if low < 0 else high}, outside the vocabulary of {self.config.vocab}: "
                "the tokenizer is not the model's."
            )

    def prefill_batch(self, params, prompts: list[np.ndarray]) -> Prefix:
        """Prefill up to `prefill_rows(bucket)` prompts (int tokens, any lengths) in one dispatch, all in the bucket of the
        longest. EngineError for no prompt, too many, or one that `check_prompt` refuses."""
        for prompt in prompts:
            self.check_prompt(prompt)
        bucket = self.settings.bucket(max((len(p) for p in prompts), default=1))
        rows = self.prefill_rows(bucket)
        if not 1 <= len(prompts) <= rows:
            raise EngineError(f"{len(prompts)} prompts in one prefill of {rows} rows.")
        tokens_RT = np.full((rows, bucket), self.settings.pad_id, np.int32)
        lengths_R = np.ones(rows, np.int32)
        for row, prompt in enumerate(prompts):
            tokens_RT[row, : len(prompt)] = prompt
            lengths_R[row] = len(prompt)
        return self._prefill(params, tokens_RT, lengths_R)

    def insert_group(self, prefix: Prefix, state: DecodeState, slots: "SlotRequests"):
        """Put rows of a prefix into slots and sample each one's first token.

        Returns (state, (token_B, logp_B, done_B)): of the slots that were filled, the first token, its log-probability, and
        whether that already ended the sequence.
        """
        return self._insert(prefix, state, slots.row_B, slots.key_B2, slots.temperature_B, slots.limit_B)

    def decode_chunk(self, params, state: DecodeState):
        """Decode up to `settings.chunk` tokens in every slot that is not done, ending early when all are.

        Returns (state, (token_BC, logp_BC, valid_BC, done_B)): the new tokens, their log-probabilities, which of them count,
        and which slots are done now.
        """
        return self._decode(params, state, steps=self.settings.chunk)

    # Programs --------------------------------------------------------------------------------------------------------

    def _cache_shapes(self, rows: int, length: int) -> tuple[tuple, tuple]:
        K, H = self.config.kv_heads, self.config.head_dim
        return (rows, K, H, length), (rows, K, length, H)

    def _state_shardings(self) -> DecodeState:
        B, L = self.settings.slots, self.config.layers
        k_shape, v_shape = self._cache_shapes(B, self.settings.cache_length)
        per_slot = named_sharding(self._mesh, ("batch",), (B,))
        return DecodeState(
            k=(named_sharding(self._mesh, ("batch", "kv_heads", None, None), k_shape),) * L,
            v=(named_sharding(self._mesh, ("batch", "kv_heads", None, None), v_shape),) * L,
            **{name: per_slot for name in SLOT_FIELDS if name != "key_B2"},
            key_B2=named_sharding(self._mesh, ("batch", None), (B, 2)),
        )

    def _prefix_sharding(self) -> Prefix:
        heads = named_sharding(self._mesh, (None, "kv_heads", None, None), self._cache_shapes(1, 1)[0])
        everywhere = replicated(self._mesh)
        return Prefix((heads,) * self.config.layers, (heads,) * self.config.layers, everywhere, everywhere)

    def _make_state(self) -> DecodeState:
        B = self.settings.slots
        k_shape, v_shape = self._cache_shapes(B, self.settings.cache_length)
        return DecodeState(
            k=tuple(jnp.zeros(k_shape, self._dtype) for _ in range(self.config.layers)),
            v=tuple(jnp.zeros(v_shape, self._dtype) for _ in range(self.config.layers)),
            token_B=jnp.zeros(B, jnp.int32),
            logp_B=jnp.zeros(B, jnp.float32),
            length_B=jnp.zeros(B, jnp.int32),
            count_B=jnp.zeros(B, jnp.int32),
            shown_B=jnp.zeros(B, jnp.int32),
            limit_B=jnp.zeros(B, jnp.int32),
            done_B=jnp.ones(B, bool),
            key_B2=jnp.zeros((B, 2), jnp.uint32),
            temperature_B=jnp.ones(B, jnp.float32),
        )

    def _logits(self, params, x_BD: jax.Array) -> jax.Array:
        x_BD = rms_norm(x_BD, params["final_norm"], self.config.rms_eps)
        return jnp.einsum("BD,DV->BV", x_BD, output_matrix(params), preferred_element_type=jnp.float32)

    def _prefill_rows(self, params, tokens_RT, lengths_R) -> Prefix:
        with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):
            T = tokens_RT.shape[1]
            positions_RT = jnp.broadcast_to(jnp.arange(T), tokens_RT.shape)
            mask_R1TT = causal_mask(jnp.ones_like(tokens_RT))
            rope = rope_angles(positions_RT, self.config)
            x_RTD = embed_tokens(params, tokens_RT)
            caches = []
            for w in params["layers"]:
                x_RTD, kv = block(self.config, w, x_RTD, rope, lambda q, k, v: (attend(q, k, v, mask_R1TT), (k, v)))
                caches.append(kv)
            last_RD = jnp.take_along_axis(x_RTD, (lengths_R - 1)[:, None, None], axis=1)[:, 0]
            return Prefix(
                k=tuple(k.transpose(0, 2, 3, 1) for k, _ in caches),
                v=tuple(v.transpose(0, 2, 1, 3) for _, v in caches),
                logits_RV=self._logits(params, last_RD),
                lengths_R=lengths_R,
            )

    def _insert_slots(self, prefix: Prefix, state: DecodeState, row_B, key_B2, temperature_B, limit_B):
        filled_B = row_B >= 0
        row_B = jnp.maximum(row_B, 0)
        T = prefix.v[0].shape[2]

        def put_k(old, new):
            mixed = jnp.where(filled_B[:, None, None, None], jnp.take(new, row_B, axis=0), old[..., :T])
            return old.at[..., :T].set(mixed)

        def put_v(old, new):
            mixed = jnp.where(filled_B[:, None, None, None], jnp.take(new, row_B, axis=0), old[:, :, :T])
            return old.at[:, :, :T].set(mixed)

        logits_BV = jnp.take(prefix.logits_RV, row_B, axis=0)
        token_B, logp_B = sample_tokens(logits_BV, key_B2, jnp.zeros_like(row_B), temperature_B)
        done_B = self._is_stop(token_B) | (limit_B <= 1)
        state = DecodeState(
            k=tuple(put_k(old, new) for old, new in zip(state.k, prefix.k, strict=True)),
            v=tuple(put_v(old, new) for old, new in zip(state.v, prefix.v, strict=True)),
            token_B=jnp.where(filled_B, token_B, state.token_B),
            logp_B=jnp.where(filled_B, logp_B, state.logp_B),
            length_B=jnp.where(filled_B, jnp.take(prefix.lengths_R, row_B), state.length_B),
            count_B=jnp.where(filled_B, 1, state.count_B),
            shown_B=jnp.where(filled_B, 0, state.shown_B),
            limit_B=jnp.where(filled_B, limit_B, state.limit_B),
            done_B=jnp.where(filled_B, done_B, state.done_B),
            key_B2=jnp.where(filled_B[:, None], key_B2, state.key_B2),
            temperature_B=jnp.where(filled_B, temperature_B, state.temperature_B),
        )
        return state, (token_B, logp_B, done_B)

    def _is_stop(self, token_B: jax.Array) -> jax.Array:
        return jnp.isin(token_B, jnp.array(self.settings.stop_ids or (-1,), jnp.int32))

    def _decode_tokens(self, params, state: DecodeState, *, steps: int):
        B = self.settings.slots
        empty = jnp.zeros((B, steps), jnp.int32), jnp.zeros((B, steps), jnp.float32), jnp.zeros((B, steps), bool)

        def unfinished(carry):
            index, state, _ = carry
            return (index < steps) & ~jnp.all(state.done_B)

        def advance(carry):
            index, state, outputs = carry
            state, fresh = self._decode_one(params, state)
            outputs = tuple(
                jax.lax.dynamic_update_slice(out, new[:, None], (0, index)) for out, new in zip(outputs, fresh, strict=True)
            )
            return index + 1, state, outputs

        with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):
            _, state, outputs = jax.lax.while_loop(unfinished, advance, (0, state, empty))
        return state, (*outputs, state.done_B)

    def _show_and_decode(self, params, state: DecodeState):
        fresh_B = state.shown_B < state.count_B
        data_B3 = jnp.stack([state.token_B, fresh_B.astype(jnp.int32), state.count_B], axis=1)
        state, _ = self._decode_tokens(params, replace(state, shown_B=state.count_B), steps=1)
        return state, data_B3

    def _decode_one(self, params, state: DecodeState):
        """Run the newest token of every slot through the model and sample the next; done slots stay as they are."""
        rope = rope_angles(state.length_B[:, None], self.config)
        x_B1D = embed_tokens(params, state.token_B[:, None])
        write = jnp.minimum(state.length_B, self.settings.cache_length - 1)
        ks, vs = [], []
        for w, k_cache, v_cache in zip(params["layers"], state.k, state.v, strict=True):

            def attend_fn(q, k, v, k_cache=k_cache, v_cache=v_cache):
                k_new = jax.vmap(lambda c, u, p: jax.lax.dynamic_update_slice(c, u, (0, 0, p)))(
                    k_cache, k[:, 0, :, :, None], write
                )
                v_new = jax.vmap(lambda c, u, p: jax.lax.dynamic_update_slice(c, u, (0, p, 0)))(
                    v_cache, v[:, 0, :, None, :], write
                )
                return attend_cache(q[:, 0], k_new, v_new, state.length_B + 1)[:, None], (k_new, v_new)

            x_B1D, (k_cache, v_cache) = block(self.config, w, x_B1D, rope, attend_fn)
            ks.append(k_cache)
            vs.append(v_cache)
        logits_BV = constrain(self._logits(params, x_B1D[:, 0]), "batch", None)
        token_B, logp_B = sample_tokens(logits_BV, state.key_B2, state.count_B, state.temperature_B)
        going_B = ~state.done_B
        count_B = state.count_B + going_B
        state = DecodeState(
            k=tuple(ks),
            v=tuple(vs),
            token_B=jnp.where(going_B, token_B, state.token_B),
            logp_B=jnp.where(going_B, logp_B, state.logp_B),
            length_B=state.length_B + going_B,
            count_B=count_B,
            shown_B=state.shown_B,
            limit_B=state.limit_B,
            done_B=state.done_B | self._is_stop(token_B) | (count_B >= state.limit_B),
            key_B2=state.key_B2,
            temperature_B=state.temperature_B,
        )
        return state, (token_B, logp_B, going_B)
