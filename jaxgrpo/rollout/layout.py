"""The rollout layout of the weights: a tuple of per-layer dicts in the compute dtype, on the (replica, tensor) mesh.

Decoding scans over layers are slow because a stacked cache is copied; a tuple of per-layer arrays is not.
"""

from functools import partial

import jax

from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.parameters import layer_slice, parameter_table
from jaxgrpo.parallel.sharding import named_sharding


def rollout_shardings(config: ModelConfig, mesh) -> dict:
    """The tree of shardings that `to_rollout_layout` produces."""
    flat, layer = {}, {}
    for spec in parameter_table(config):
        if spec.stacked:
            layer[spec.name.removeprefix("layers.")] = named_sharding(mesh, spec.axes[1:], spec.shape[1:])
        else:
            flat[spec.name] = named_sharding(mesh, spec.axes, spec.shape)
    return flat | {"layers": tuple(dict(layer) for _ in range(config.layers))}


def unstack(params: dict, layers: int, dtype) -> dict:
    """Cast to `dtype` and split the stacked layers: {"embed", "final_norm", "lm_head"?, "layers": (dict, ...)}."""
    params = {name: value.astype(dtype) for name, value in params.items()}
    flat = {name: value for name, value in params.items() if not name.startswith("layers.")}
    return flat | {"layers": tuple(layer_slice(params, layer) for layer in range(layers))}


def make_handover(config: ModelConfig, mesh, dtype):
    """The jitted cast + reshard from the trainer's parameters to the rollout layout on `mesh`."""
    return jax.jit(partial(unstack, layers=config.layers, dtype=dtype), out_shardings=rollout_shardings(config, mesh))
