"""The one description of the parameters, from which loader, exporter, initialiser, sharding and masks all follow.

A model's parameters are a flat dict `name -> array`. Names that start with `layers.` are stacked over the layers
(leading axis L) for the trainer's scan. Matrices are stored input-first, as they are used: `x @ w`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.model.config import ModelConfig


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter: its shape as used, logical axis names, and where it is found in a Hugging Face file."""

    name: str
    shape: tuple[int, ...]  # as stored here, with the leading L when stacked
    axes: tuple[str, ...]  # logical axis of every dimension; parallel/sharding.py maps them to mesh axes
    hf_name: str  # with {layer} when stacked
    inputs: int  # leading dimensions (after L) that are inputs of a linear layer; HF stores [out, in]; 0 = as is
    init: str  # "normal" | "ones" | "zeros"

    @property
    def stacked(self) -> bool:
        return self.name.startswith("layers.")

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Shape of one layer's array, or of the array itself when it is not stacked."""
        return self.shape[1:] if self.stacked else self.shape

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Shape of the (one layer's) tensor in a safetensors file, where heads and head size are one dimension."""
        shape = self.layer_shape
        if self.inputs:
            return (int(np.prod(shape[self.inputs :])), int(np.prod(shape[: self.inputs])))
        return shape if self.name == "embed" else (int(np.prod(shape)),)

    @property
    def hf_names(self) -> list[str]:
        layers = self.shape[0] if self.stacked else 1
        return [self.hf_name.format(layer=layer) for layer in range(layers)]


def parameter_table(config: ModelConfig) -> list[ParameterSpec]:
    """Every parameter of the model, in a fixed order. Tied models have no `lm_head`."""
    c = config
    specs = [ParameterSpec("embed", (c.vocab, c.embed), ("vocab", "embed"), "model.embed_tokens.weight", 0, "normal")]

    def layer(name, shape, axes, hf, inputs, init):
        specs.append(
            ParameterSpec(f"layers.{name}", (c.layers, *shape), ("layers", *axes), f"model.layers.{{layer}}.{hf}", inputs, init)
        )

    layer("attn_norm", (c.embed,), ("embed_norm",), "input_layernorm.weight", 0, "ones")
    for letter, heads, axis in (("q", c.heads, "heads"), ("k", c.kv_heads, "kv_heads"), ("v", c.kv_heads, "kv_heads")):
        hf = f"self_attn.{letter}_proj"
        layer(f"{letter}_w", (c.embed, heads, c.head_dim), ("embed", axis, "head_dim"), f"{hf}.weight", 1, "normal")
        layer(f"{letter}_b", (heads, c.head_dim), (axis, "head_dim"), f"{hf}.bias", 0, "zeros")
    layer("o_w", (c.heads, c.head_dim, c.embed), ("heads", "head_dim", "embed"), "self_attn.o_proj.weight", 2, "normal")
    layer("mlp_norm", (c.embed,), ("embed_norm",), "post_attention_layernorm.weight", 0, "ones")
    layer("gate_w", (c.embed, c.mlp), ("embed", "mlp"), "mlp.gate_proj.weight", 1, "normal")
    layer("up_w", (c.embed, c.mlp), ("embed", "mlp"), "mlp.up_proj.weight", 1, "normal")
    layer("down_w", (c.mlp, c.embed), ("mlp", "embed"), "mlp.down_proj.weight", 1, "normal")
    specs.append(ParameterSpec("final_norm", (c.embed,), ("embed_norm",), "model.norm.weight", 0, "ones"))
    if not c.tied:
        specs.append(ParameterSpec("lm_head", (c.embed, c.vocab), ("embed", "vocab"), "lm_head.weight", 1, "normal"))
    return specs


def is_matrix(name: str) -> bool:
    """Whether a parameter is a matrix (or a stack of them), not a norm or a bias."""
    return not name.endswith(("norm", "_b"))


def initialise(config: ModelConfig, seed: int, dtype=jnp.float32) -> dict[str, jax.Array]:
    """Random parameters as transformers draws them: normal(0, init_std) matrices, ones for norms, zeros for biases.

    Pure function of (config, seed); jit it with out_shardings to create them in shards.
    """
    params = {}
    for index, spec in enumerate(parameter_table(config)):
        if spec.init == "normal":
            key = jax.random.fold_in(jax.random.key(seed), index)
            params[spec.name] = (jax.random.normal(key, spec.shape) * config.init_std).astype(dtype)
        else:
            params[spec.name] = jnp.full(spec.shape, 1 if spec.init == "ones" else 0, dtype)
    return params


def abstract_parameters(config: ModelConfig, dtype=jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of every parameter, without memory."""
    return {spec.name: jax.ShapeDtypeStruct(spec.shape, dtype) for spec in parameter_table(config)}


def check_parameters(config: ModelConfig, params: dict) -> None:
    """Raise ValueError unless `params` has exactly the names and shapes of the table."""
    expected = {spec.name: spec.shape for spec in parameter_table(config)}
    got = {name: tuple(value.shape) for name, value in params.items()}
    if expected != got:
        wrong = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        details = ", ".join(f"{name} {got.get(name)} != {expected.get(name)}" for name in wrong)
        raise ValueError(f"parameters do not fit the config: {details}")


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Exact counts: `total` (every stored number) and `non_embedding` (without embedding and output matrix)."""
    sizes = {spec.name: int(np.prod(spec.shape)) for spec in parameter_table(config)}
    total = sum(sizes.values())
    return {"total": total, "non_embedding": total - sizes["embed"] - sizes.get("lm_head", 0)}


def layer_slice(params: dict, layer: int) -> dict:
    """The unstacked weights of one layer, without the `layers.` prefix."""
    return jax.tree.map(lambda value: value[layer], stacked_layers(params))


def stacked_layers(params: dict) -> dict:
    """The stacked weights of all layers, without the `layers.` prefix: what the trainer scans over."""
    return {name.removeprefix("layers."): value for name, value in params.items() if name.startswith("layers.")}
