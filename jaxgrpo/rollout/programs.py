"""The programs of the engine as functions of arrays: prefill, insert, decode. `Engine` jits them for its mesh.

Insert and decode run inside `shard_map` over the replicas: every array with a slot axis is one replica's part, replicas never
wait for each other, and each leaves the decoding loop when its own slots are done. The tensor axis is left to the compiler.

Shapes: B slots of one replica, R prompts of a prefill, T prompt bucket, C chunk, D embed, V vocab.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from jaxgrpo.model.attention import attend, causal_mask
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.decode_attention import attend_cache
from jaxgrpo.model.packed_attention import SPLASH_TILE, attention_backend, packed_attention
from jaxgrpo.model.qwen2 import block, embed_tokens, output_logits, rms_norm, rope_angles
from jaxgrpo.parallel.sharding import constrain
from jaxgrpo.rollout import cache as kv
from jaxgrpo.rollout.sampling import Sampling, sample_tokens
from jaxgrpo.rollout.settings import EngineSettings
from jaxgrpo.rollout.slots import Chunk, DecodeState, FirstTokens, Prefix


def empty_state(config: ModelConfig, settings: EngineSettings, blocks: int) -> DecodeState:
    """All slots done."""
    B = settings.slots
    layer = (blocks, B, config.kv_heads, config.head_dim, settings.block, settings.cache_dtype)
    integers = {name: jnp.zeros(B, jnp.int32) for name in ("token_B", "length_B", "count_B", "shown_B", "limit_B")}
    return DecodeState(
        cache=tuple(kv.empty(*layer) for _ in range(config.layers)),
        logp_B=jnp.zeros(B, jnp.float32),
        done_B=jnp.ones(B, bool),
        key_B2=jnp.zeros((B, 2), jnp.uint32),
        sampling=Sampling(jnp.ones(B), jnp.zeros(B, jnp.int32), jnp.ones(B), jnp.zeros(B)),
        **integers,
    )


def prefill(config: ModelConfig, settings: EngineSettings, mesh, params, tokens_RT, lengths_R) -> Prefix:
    """Run whole prompts through the model and keep K, V and the logits after each prompt's last token."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        T = tokens_RT.shape[1]
        attend_fn = _prompt_attention(settings, mesh, tokens_RT)
        rope = rope_angles(jnp.broadcast_to(jnp.arange(T), tokens_RT.shape), config)
        x_RTD = embed_tokens(params, tokens_RT)
        caches = []
        for w in params["layers"]:
            x_RTD, (k, v) = block(config, w, x_RTD, rope, lambda q, k, v: (attend_fn(q, k, v), (k, v)))
            caches.append(kv.from_prompts(k, v, settings.block, settings.cache_dtype))
        last_RD = jnp.take_along_axis(x_RTD, (lengths_R - 1)[:, None, None], axis=1)[:, 0]
        return Prefix(tuple(caches), _logits(config, params, last_RD), lengths_R)


def _prompt_attention(settings: EngineSettings, mesh, tokens_RT) -> Callable:
    """`attend_fn(q_RTNH, k_RTKH, v_RTKH) -> out_RTNH`, causal: by the trainer's kernel, on a TPU where decoding has one too and
    the shape allows it. All scores at once, [R, N, T, T] in float32, are the most that prefill would hold."""
    R, T = tokens_RT.shape
    ones_RT = jnp.ones_like(tokens_RT)
    if attention_backend(mesh, settings.dtype) == "cudnn":
        return partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    if settings.attention in ("ragged", "interpret") and T % SPLASH_TILE == 0 and R % mesh.shape["replica"] == 0:
        backend = "splash" if settings.attention == "ragged" else settings.attention
        return packed_attention(backend, None, ones_RT, mesh)
    mask_R1TT = causal_mask(ones_RT)
    return lambda q, k, v: attend(q, k, v, mask_R1TT)


def insert(
    settings: EngineSettings, prefix: Prefix, state: DecodeState, row_B, key_B2, sampling: Sampling, limit_B
) -> tuple[DecodeState, FirstTokens]:
    """Put rows of a prefix into slots, row -1 leaving a slot alone, and sample each one's first token.

    One slot after the other, so that the work is that of the slots filled and a first token does not depend on their number.
    """
    slots_B = jnp.argsort(row_B < 0, stable=True)

    def fill(index, state):
        slot = slots_B[index]
        row = row_B[slot]
        here = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, slot, 1), (key_B2, sampling, limit_B))
        key_12, sampling_1, limit_1 = here
        logits_1V = jax.lax.dynamic_slice_in_dim(prefix.logits_RV, row, 1)
        token_1, logp_1 = sample_tokens(logits_1V, key_12, jnp.zeros(1, jnp.int32), sampling_1, **_choice(settings))
        one_1 = jnp.ones(1, jnp.int32)
        new = {
            "token_B": token_1,
            "logp_B": logp_1,
            "length_B": jax.lax.dynamic_slice_in_dim(prefix.lengths_R, row, 1),
            "count_B": one_1,
            "shown_B": 0 * one_1,
            "limit_B": limit_1,
            "done_B": _is_stop(settings, token_1) | (limit_1 <= 1),
            "key_B2": key_12,
            "sampling": sampling_1,
        }

        def put(old, value):
            return jax.lax.dynamic_update_slice_in_dim(old, value, slot, 0)

        fields = {name: jax.tree.map(put, getattr(state, name), value) for name, value in new.items()}
        cache = tuple(kv.insert(old, part, row, slot) for old, part in zip(state.cache, prefix.cache, strict=True))
        return DecodeState(cache=cache, **fields)

    state = jax.lax.fori_loop(0, jnp.sum(row_B >= 0), fill, state)
    return state, FirstTokens(state.token_B, state.logp_B, state.done_B)


def decode(config: ModelConfig, settings: EngineSettings, params, state: DecodeState, steps: int) -> tuple[DecodeState, Chunk]:
    """Decode up to `steps` tokens in every slot that is not done, ending early when all are."""
    B = state.token_B.shape[0]
    fresh = jnp.zeros((B, steps), jnp.int32), jnp.zeros((B, steps), jnp.float32), jnp.zeros((B, steps), bool)

    def unfinished(carry):
        index, state, _ = carry
        return (index < steps) & ~jnp.all(state.done_B)

    def advance(carry):
        index, state, outputs = carry
        state, new = _decode_one(config, settings, params, state, rope_S)
        outputs = tuple(
            jax.lax.dynamic_update_slice(out, column[:, None], (0, index)) for out, column in zip(outputs, new, strict=True)
        )
        return index + 1, state, outputs

    # All angles once per chunk: left inside the loop, XLA computes sines anew for every head of every layer.
    rope_S = jax.tree.map(lambda a: a[0], rope_angles(jnp.arange(state.capacity)[None], config))
    _, state, outputs = jax.lax.while_loop(unfinished, advance, (0, state, fresh))
    return state, Chunk(*outputs, state.done_B)


def show_and_decode(config: ModelConfig, settings: EngineSettings, params, state: DecodeState):
    """(state, data [B, 5]) of `Engine.generate`: hand out the token that each slot holds, then compute the next."""
    fresh_B = (state.shown_B < state.count_B).astype(jnp.int32)
    # Below zero, so that the bits are those of a negative float and no client takes them for a token.
    bits_B = jax.lax.bitcast_convert_type(jnp.minimum(state.logp_B, -1e-30), jnp.int32)
    data_B5 = jnp.stack([state.token_B, bits_B, fresh_B, fresh_B, state.count_B], axis=1)
    state, _ = decode(config, settings, params, replace(state, shown_B=state.count_B), 1)
    return state, data_B5


def _logits(config: ModelConfig, params, x_BD: jax.Array) -> jax.Array:
    return output_logits(params, rms_norm(x_BD, params["final_norm"], config.rms_eps))


def _choice(settings: EngineSettings) -> dict:
    """How `sample_tokens` chooses, in every program that does."""
    return {"truncate": settings.truncate, "unknown": settings.unknown}


def _is_stop(settings: EngineSettings, token_B: jax.Array) -> jax.Array:
    return jnp.isin(token_B, jnp.array(settings.stop_ids or (-1,), jnp.int32))


def _decode_one(config: ModelConfig, settings: EngineSettings, params, state: DecodeState, rope_S: tuple):
    """Run the newest token of every slot through the model and sample the next; done slots stay as they are."""
    rope = tuple(angle_S[state.length_B][:, None] for angle_S in rope_S)
    x_B1D = embed_tokens(params, state.token_B[:, None])
    seen_B = jnp.where(state.done_B, 1, state.length_B + 1)  # what a done slot says is dropped: it need not read
    caches = []
    for w, old in zip(params["layers"], state.cache, strict=True):

        def attend_fn(q, k, v, old=old):
            new = kv.write(old, state.length_B, k[:, 0], v[:, 0], settings.attention)
            out_BNH = attend_cache(q[:, 0], new.k, new.v, seen_B, new.k_scale, new.v_scale, backend=settings.attention)
            return out_BNH[:, None], new

        x_B1D, new = block(config, w, x_B1D, rope, attend_fn)
        caches.append(new)
    logits_BV = constrain(_logits(config, params, x_B1D[:, 0]), "batch", None)
    token_B, logp_B = sample_tokens(logits_BV, state.key_B2, state.count_B, state.sampling, **_choice(settings))
    going_B = ~state.done_B
    count_B = state.count_B + going_B
    state = replace(
        state,
        cache=tuple(caches),
        token_B=jnp.where(going_B, token_B, state.token_B),
        logp_B=jnp.where(going_B, logp_B, state.logp_B),
        length_B=state.length_B + going_B,
        count_B=count_B,
        done_B=state.done_B | _is_stop(settings, token_B) | (count_B >= state.limit_B),
    )
    return state, (token_B, logp_B, going_B)
