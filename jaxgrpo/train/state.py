"""The trainer's state: float32 master parameters and optimiser moments, sharded by the parameter table."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.parameters import abstract_parameters, is_matrix, parameter_table
from jaxgrpo.parallel.sharding import named_sharding, replicated


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What an update reads and replaces."""

    params: dict[str, jax.Array]
    opt_state: optax.OptState


HOST = "pinned_host"  # the memory kind of arrays that wait in the host's memory


def parameter_shardings(config: ModelConfig, mesh) -> dict:
    return {spec.name: named_sharding(mesh, spec.axes, spec.shape) for spec in parameter_table(config)}


def host_shardings(shardings: dict) -> dict:
    """Shardings of parameters with the matrices in host memory. Norms and biases take next to no room, and the TPU compiler
    cannot cut one layer's out of a bfloat16 stack there."""
    return {name: sharding.with_memory_kind(HOST) if is_matrix(name) else sharding for name, sharding in shardings.items()}


def state_shardings(config: ModelConfig, optimizer: optax.GradientTransformation, mesh, offloaded: bool) -> TrainState:
    """Shardings of the whole state: moments as their parameters, with `offloaded` those of matrices in host memory, scalars on
    every device.

    Scalars need a sharding too: left on one device they restore onto one device, and a resumed step would not compile.
    """
    params = abstract_parameters(config)
    shardings = parameter_shardings(config, mesh)
    opt_state = jax.eval_shape(optimizer.init, params)
    opt_shardings = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        opt_state,
        host_shardings(shardings) if offloaded else shardings,
        transform_non_params=lambda _: replicated(mesh),
    )
    return TrainState(shardings, opt_shardings)


def abstract_params(config: ModelConfig, shardings: dict, dtype=jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of every parameter with its sharding."""
    shapes = abstract_parameters(config, dtype)
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name]) for name, x in shapes.items()}


def abstract_state(config: ModelConfig, optimizer: optax.GradientTransformation, mesh, offloaded=False) -> TrainState:
    """ShapeDtypeStructs with shardings: the target of a restore, and what a compilation ahead of time needs."""
    params = abstract_parameters(config)
    shapes = TrainState(params, jax.eval_shape(optimizer.init, params))
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        state_shardings(config, optimizer, mesh, offloaded),
    )


def init_state(params: dict, config: ModelConfig, optimizer: optax.GradientTransformation, mesh, offloaded=False) -> TrainState:
    """Fresh moments around float32 parameters that already lie on the mesh."""
    make = jax.jit(optimizer.init, out_shardings=state_shardings(config, optimizer, mesh, offloaded).opt_state)
    return TrainState(params, make(params))


def cast_params(params: dict, dtype, offloaded=False) -> dict:
    """A copy in `dtype` with the same shardings, with `offloaded` its matrices in host memory: the frozen reference."""
    shardings = {name: value.sharding for name, value in params.items()}
    if offloaded:
        shardings = host_shardings(shardings)
    return jax.jit(lambda p: {k: jnp.array(v, dtype, copy=True) for k, v in p.items()}, out_shardings=shardings)(params)
