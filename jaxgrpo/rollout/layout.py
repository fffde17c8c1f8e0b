"""The rollout layout of the weights: a tuple of per-layer dicts in the compute dtype, on the (replica, tensor) mesh; with int8
weights the matrices are quantised.

Decoding scans over layers are slow because a stacked cache is copied; a tuple of per-layer arrays is not. The layers' matrices
are [inputs, outputs], with heads and head size as one dimension: of [D, N, H] a TPU keeps a second copy in another tiling
through every decoding loop (14B on one v5p chip: 3.3 GiB).
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.parameters import ParameterSpec, layer_slice, parameter_table
from jaxgrpo.model.quantised import Quantised, quantise
from jaxgrpo.parallel.sharding import named_sharding, partition_spec


def input_axes(spec: ParameterSpec, tied: bool) -> tuple[int, ...]:
    """The axes over which one int8 scale reaches, () for what stays in the compute dtype.

    That is norms, biases, and the embedding of an untied model, of which a token reads one row. A tied embedding is also the
    output matrix, transposed: it has a scale per row.
    """
    if spec.name == "embed":
        return (1,) if tied else ()
    first = int(spec.stacked)
    return tuple(range(first, first + spec.inputs))


def rollout_shardings(config: ModelConfig, mesh, weights: str) -> dict:
    """The tree of shardings that `to_rollout_layout` produces; weights: "int8", or the dtype of all."""

    def sharding(spec, axes):
        return named_sharding(mesh, tuple(spec.axes[a] for a in axes), tuple(spec.shape[a] for a in axes))

    def places(spec, inputs):
        """Of an array and of its int8 scale. A layer's matrix lies where its heads lie, which are dealt out whole."""
        if _is_matrix(spec):
            of = partition_spec(spec.axes, spec.shape, mesh)
            rows, columns = of[1], of[1 + spec.inputs]
            return NamedSharding(mesh, P(rows, columns)), NamedSharding(mesh, P(columns))
        axes = range(int(spec.stacked), len(spec.shape))
        return sharding(spec, axes), sharding(spec, [a for a in axes if a not in inputs])

    flat, layer = {}, {}
    for spec in parameter_table(config):
        inputs = input_axes(spec, config.tied)
        place, scale = places(spec, inputs)
        if weights == "int8" and inputs:
            place = Quantised(place, scale)
        (layer if spec.stacked else flat)[spec.name.removeprefix("layers.")] = place
    return flat | {"layers": tuple(dict(layer) for _ in range(config.layers))}


def to_rollout_layout(params: dict, config: ModelConfig, dtype: str, weights: str) -> dict:
    """Cast or quantise, and split the stacked layers: {"embed", "final_norm", "lm_head"?, "layers": (dict, ...)}."""
    stored = {}
    for spec in parameter_table(config):
        value, inputs = params[spec.name], input_axes(spec, config.tied)
        value = quantise(value, inputs) if weights == "int8" and inputs else value.astype(jnp.dtype(dtype))
        stored[spec.name] = _as_matrix(spec, value) if _is_matrix(spec) else value
    flat = {name: value for name, value in stored.items() if not name.startswith("layers.")}
    return flat | {"layers": tuple(layer_slice(stored, layer) for layer in range(config.layers))}


def _is_matrix(spec: ParameterSpec) -> bool:
    return spec.stacked and spec.inputs > 0


def _as_matrix(spec: ParameterSpec, value):
    """[L, inputs, outputs], and the scales [L, outputs], of a layer's matrix in the shape of the table."""
    outputs = math.prod(spec.layer_shape[spec.inputs :])
    if isinstance(value, Quantised):
        return Quantised(value.values.reshape(len(value.values), -1, outputs), value.scale.reshape(-1, outputs))
    return value.reshape(len(value), -1, outputs)


def make_handover(config: ModelConfig, mesh, dtype: str, weights: str):
    """The jitted cast + reshard from the trainer's parameters to the rollout layout on `mesh`. Along a mesh axis `host` every
    part is a whole copy: `own_part` takes this host's."""
    layout = partial(to_rollout_layout, config=config, dtype=dtype, weights=weights)
    return jax.jit(layout, out_shardings=rollout_shardings(config, mesh, weights))


def own_part(weights: dict, shardings: dict) -> dict:
    """This host's copy of weights that lie on the devices of all hosts, as arrays of its own devices (`shardings`)."""
    return jax.tree.map(
        lambda x, place: jax.make_array_from_single_device_arrays(x.shape, place, [part.data for part in x.addressable_shards]),
        weights,
        shardings,
    )
