"""The trainer's state: float32 master parameters and optimiser moments, sharded by the parameter table."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from jaxgrpo.config import OptimConfig
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.parameters import abstract_parameters, parameter_table
from jaxgrpo.parallel.sharding import named_sharding, replicated


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What an update reads and replaces."""

    params: dict[str, jax.Array]
    opt_state: optax.OptState


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """AdamW (decoupled weight decay on every parameter, as in the published runs) or plain SGD; linear warm-up, then constant.

    Gradients are clipped by the update step, which needs their norm anyway.
    """
    lr = config.lr
    if config.warmup_updates:
        lr = optax.linear_schedule(config.lr / config.warmup_updates, config.lr, config.warmup_updates - 1)
    if config.optimizer == "sgd":
        return optax.sgd(lr)
    return optax.adamw(lr, config.beta1, config.beta2, config.eps, weight_decay=config.weight_decay)


def parameter_shardings(config: ModelConfig, mesh) -> dict:
    return {spec.name: named_sharding(mesh, spec.axes, spec.shape) for spec in parameter_table(config)}


def state_shardings(config: ModelConfig, optimizer: optax.GradientTransformation, mesh) -> TrainState:
    """Shardings of the whole state: moments as their parameters, scalars on every device.

    Scalars need a sharding too: left on one device they restore onto one device, and a resumed step would not compile.
    """
    params = abstract_parameters(config)
    shardings = parameter_shardings(config, mesh)
    opt_state = jax.eval_shape(optimizer.init, params)
    opt_shardings = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        opt_state,
        shardings,
        transform_non_params=lambda _: replicated(mesh),
    )
    return TrainState(shardings, opt_shardings)


def abstract_state(config: ModelConfig, optimizer: optax.GradientTransformation, mesh) -> TrainState:
    """ShapeDtypeStructs with shardings: the target of a restore, and what a compilation ahead of time needs."""
    params = abstract_parameters(config)
    shapes = TrainState(params, jax.eval_shape(optimizer.init, params))
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        state_shardings(config, optimizer, mesh),
    )


def init_state(params: dict, config: ModelConfig, optimizer: optax.GradientTransformation, mesh) -> TrainState:
    """Fresh moments around float32 parameters that already lie on the mesh."""
    make = jax.jit(optimizer.init, out_shardings=state_shardings(config, optimizer, mesh).opt_state)
    return TrainState(params, make(params))


def cast_params(params: dict, dtype) -> dict:
    """A copy in `dtype` with the same shardings: the frozen reference."""
    shardings = {name: value.sharding for name, value in params.items()}
    return jax.jit(lambda p: {k: jnp.array(v, dtype, copy=True) for k, v in p.items()}, out_shardings=shardings)(params)
