"""The Qwen2.5 forward pass: one definition for the trainer (stacked layers, scanned) and the sampler (layer by layer).
The sampler's matrices may be quantised (model/quantised.py).

Pre-norm transformer with RMSNorm, rotary embeddings (the two halves of a head rotate against each other), grouped-query
attention with biases on q, k and v only, and a SwiGLU MLP. Functions of arrays; `Qwen2` is the thin nnx shell.

Shapes: B batch, T positions, D embed, N query heads, K kv heads, H head size, F mlp, V vocab, L layers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgrpo.model.attention import attend, causal_mask
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.parameters import check_parameters, parameter_table, stacked_layers
from jaxgrpo.model.quantised import Quantised, look_up, product
from jaxgrpo.parallel.sharding import constrain, to_device


def rms_norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * scale over the last axis; the mean square is taken in float32."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return normed.astype(x.dtype) * scale_D.astype(x.dtype)


def rope_angles(positions_BT: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """cos and sin [B, T, 1, H/2] of the rotary embedding, float32."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1h = positions_BT[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle_BT1h), jnp.sin(angle_BT1h)


def rotate(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Apply the rotary embedding in float32."""
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTNH.dtype)


@jax.custom_vjp
def widened(x_BTD: jax.Array, w_DF) -> jax.Array:
    """[B, T, F]: x @ w, whose weight gradient reads x, the narrow operand, transposed.

    Left to itself XLA transposes the gradient of the output: on a CPU, computing that again along columns took four times as
    long as the product itself."""
    return product("BTD,DF->BTF", x_BTD, w_DF)


def _widened_forward(x_BTD, w_DF):
    return product("BTD,DF->BTF", x_BTD, w_DF), (x_BTD, w_DF)  # written out: rematerialisation looks for products here


def _widened_backward(saved, d_BTF):
    x_BTD, w_DF = saved
    return jnp.einsum("BTF,DF->BTD", d_BTF, w_DF), jnp.einsum("BTD,BTF->DF", x_BTD, d_BTF)


widened.defvjp(_widened_forward, _widened_backward)


def block(config: ModelConfig, w: dict, x_BTD: jax.Array, rope: tuple, attend_fn: Callable) -> tuple[jax.Array, object]:
    """One transformer layer. `attend_fn(q_BTNH, k_BTKH, v_BTKH) -> (out_BTNH, carry)` is where trainer, prefill and
    decoding differ; its carry (a cache, or nothing) is handed back beside the new x_BTD."""
    h_BTD = rms_norm(x_BTD, w["attn_norm"], config.rms_eps)
    q_BTNH = rotate(_to_heads(h_BTD, w["q_w"], w["q_b"]), *rope)
    k_BTKH = rotate(_to_heads(h_BTD, w["k_w"], w["k_b"]), *rope)
    v_BTKH = _to_heads(h_BTD, w["v_w"], w["v_b"])
    out_BTNH, carry = attend_fn(q_BTNH, k_BTKH, v_BTKH)
    x_BTD = constrain(x_BTD + _from_heads(out_BTNH, w["o_w"]), "batch", None, None)
    h_BTD = rms_norm(x_BTD, w["mlp_norm"], config.rms_eps)
    h_BTF = jax.nn.silu(widened(h_BTD, w["gate_w"])) * widened(h_BTD, w["up_w"])
    return constrain(x_BTD + product("BTF,FD->BTD", h_BTF, w["down_w"]), "batch", None, None), carry


def _to_heads(x_BTD: jax.Array, w, b_NH: jax.Array) -> jax.Array:
    """[B, T, N, H] of the trainer's matrix [D, N, H], or of the sampler's [D, N * H]."""
    if _is_flat(w):
        return product("BTD,DF->BTF", x_BTD, w).reshape(*x_BTD.shape[:2], *b_NH.shape) + b_NH
    return product("BTD,DNH->BTNH", x_BTD, w) + b_NH


def _from_heads(x_BTNH: jax.Array, w) -> jax.Array:
    """[B, T, D] of the trainer's matrix [N, H, D], or of the sampler's [N * H, D]."""
    if _is_flat(w):
        return product("BTF,FD->BTD", x_BTNH.reshape(*x_BTNH.shape[:2], -1), w)
    return product("BTNH,NHD->BTD", x_BTNH, w)


def _is_flat(w) -> bool:
    return isinstance(w, Quantised) or w.ndim == 2


def embed_tokens(params: dict, tokens_BT: jax.Array) -> jax.Array:
    """[B, T, D] embeddings; a token outside the vocabulary is a caller's error and reads the nearest row."""
    table_VD = params["embed"]
    if not isinstance(table_VD, Quantised):
        table_VD = constrain(table_VD, "vocab", None)  # gathered over fsdp once; rows looked up where they are
    return constrain(look_up(table_VD, tokens_BT, params["final_norm"].dtype), "batch", None, None)


def output_logits(params: dict, x: jax.Array) -> jax.Array:
    """float32 logits [..., V] of normed final states x [..., D]. A tied table is read as it lies, [V, D]: transposing it would
    copy it in every decoded token."""
    if "lm_head" in params:
        return product("...D,DV->...V", x, params["lm_head"], dtype=jnp.float32)
    return product("...D,VD->...V", x, params["embed"], dtype=jnp.float32)


def output_matrix(params: dict) -> jax.Array:
    """The output projection as it lies: [V, D], the embedding, in tied models, else [D, V]."""
    return params.get("lm_head", params["embed"])


REMAT = {
    "layer": None,  # keep the input of each layer, compute the rest again
    "matmuls": jax.checkpoint_policies.save_from_both_policies(  # keep products with weights, and what attention gives
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, jax.checkpoint_policies.save_only_these_names("attention")
    ),
}


def hidden_states(
    params: dict,
    config: ModelConfig,
    x_BTD: jax.Array,
    positions_BT: jax.Array,
    attend_fn: Callable,
    *,
    dtype=jnp.float32,
    remat: str = "none",
    unroll: int = 1,
) -> jax.Array:
    """[B, T, D] states after the final norm from embedded tokens x_BTD, computed in `dtype` over stacked parameters.

    `attend_fn(q_BTNH, k_BTKH, v_BTKH) -> out_BTNH` knows which tokens see which. `remat` says what the backward pass computes
    again ("none", or a key of REMAT); `unroll` layers are laid out in one iteration of the scan. A layer that lies in host
    memory comes to the device when its turn comes.
    """
    rope = rope_angles(positions_BT, config)

    def layer(x_BTD, w):
        w = {name: value.astype(dtype) for name, value in to_device(w).items()}
        return block(config, w, x_BTD, rope, lambda q, k, v: (attend_fn(q, k, v), None))

    body = layer if remat == "none" else jax.checkpoint(layer, prevent_cse=False, policy=REMAT[remat])
    x_BTD, _ = jax.lax.scan(body, x_BTD.astype(dtype), stacked_layers(params), unroll=unroll)
    return rms_norm(x_BTD, params["final_norm"], config.rms_eps)


class Qwen2(nnx.Module):
    """A Qwen2.5 model for interactive use: `model(tokens_BT) -> logits_BTV`.

    `weights` holds one nnx.Param per row of `parameter_table`, annotated with its logical axis names; `params` is the
    same as the plain dict of arrays that every function of the library takes.
    """

    def __init__(self, config: ModelConfig, params: dict, *, hf_config: dict | None = None):
        check_parameters(config, params)
        self.config = config
        self.hf_config = nnx.static(hf_config)
        self.weights = nnx.Dict(
            {
                spec.name: nnx.Param(params[spec.name], out_sharding=spec.axes, eager_sharding=False)
                for spec in parameter_table(config)
            }
        )

    @property
    def params(self) -> dict[str, jax.Array]:
        return {name: self.weights[name][...] for name in self.weights}

    def __call__(self, tokens_BT, positions=None, segment_ids=None) -> jax.Array:
        """Logits [B, T, V] in float32 of int tokens [B, T]; positions default to 0..T-1, segment_ids to one segment."""
        tokens_BT = jnp.asarray(tokens_BT)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        if segment_ids is None:
            segment_ids = jnp.ones(tokens_BT.shape, jnp.int32)
        params = self.params
        mask_B1TT = causal_mask(segment_ids)
        dense = lambda q, k, v: attend(q, k, v, mask_B1TT)  # noqa: E731
        x_BTD = embed_tokens(params, tokens_BT)
        x_BTD = hidden_states(params, self.config, x_BTD, positions, dense, dtype=params["embed"].dtype)
        return output_logits(params, x_BTD)
