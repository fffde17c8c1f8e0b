"""The optimiser: AdamW or SGD, moments in float32 or bfloat16, on the device or streamed from host memory layer by layer."""

import jax
import jax.numpy as jnp
import optax

from jaxgrpo.config import OptimConfig
from jaxgrpo.parallel.sharding import on_host, to_device
from jaxgrpo.train.state import TrainState


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """AdamW (decoupled weight decay on every parameter, as in the published runs) or plain SGD; linear warm-up, then constant.

    Gradients are clipped by the update step, which needs their norm anyway.
    """
    lr = config.lr
    if config.warmup_updates:
        lr = optax.linear_schedule(config.lr / config.warmup_updates, config.lr, config.warmup_updates - 1)
    if config.optimizer == "sgd":
        return optax.sgd(lr)
    adamw = optax.adamw(lr, config.beta1, config.beta2, config.eps, weight_decay=config.weight_decay)
    return adamw if config.moments_dtype == "float32" else _in_bfloat16(adamw)


def _in_bfloat16(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same arithmetic in float32, with the moments kept in bfloat16 between updates.

    A second moment with beta2 = 0.999 moves by less than half a unit in the last place of bfloat16, so that rounding to the
    nearest would never move it: it is rounded up or down at random, right on average.
    """

    def wide(state):
        return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, state)

    def narrow(state):
        count = next((x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.integer)), 0)
        return jax.tree.map(lambda x: _rounded(x, count) if x.dtype == jnp.float32 else x, state)

    def update(gradients, state, params):
        updates, state = inner.update(gradients, wide(state), params)
        return updates, narrow(state)

    return optax.GradientTransformation(lambda params: narrow(inner.init(params)), update)


def _rounded(x: jax.Array, count) -> jax.Array:
    """float32 to bfloat16, up with the probability of what is cut off. The random bits are a hash (MurmurHash3's finaliser) of
    the value and the update's number: the same on every mesh, for every part of an array, and in a resumed run."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    h = bits * jnp.uint32(2654435761) + jnp.asarray(count).astype(jnp.uint32) * jnp.uint32(0x9E3779B9)
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    h = h ^ (h >> 16)
    kept = (bits + (h & 0xFFFF)) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)


def apply_gradients(optimizer: optax.GradientTransformation, state: TrainState, gradients: dict, scale, finite) -> TrainState:
    """The state after one update with `scale * gradients`; where `finite` is False, the state as it was, bit for bit.

    Moments that lie in host memory come to the device, those of the layers one layer at a time, and go back.
    """

    def updated(params, opt_state, gradients):
        gradients = jax.tree.map(lambda g: g * scale, gradients)
        here = to_device(opt_state)
        updates, new_opt_state = optimizer.update(gradients, here, params)
        new = optax.apply_updates(params, updates), new_opt_state
        new_params, new_opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, (params, here))
        return new_params, jax.tree.map(back, new_opt_state, opt_state)

    def back(new, old):
        return jax.device_put(new, jax.memory.Space.Host) if on_host(old) else new

    def like_parameters(x):
        return isinstance(x, dict) and x.keys() == state.params.keys()

    trees = filter(like_parameters, jax.tree.leaves(state.opt_state, is_leaf=like_parameters))
    away = {name for tree in trees for name, x in tree.items() if on_host(x)}
    stacked = [name for name in state.params if name in away and name.startswith("layers.")]
    if not stacked:
        return TrainState(*updated(state.params, state.opt_state, gradients))
    rest = [name for name in state.params if name not in stacked]

    def pick(tree, names):
        """The part of a parameter-like dict, or of every such dict of an optimiser state, that `names` select."""
        part = lambda x: {name: x[name] for name in names} if like_parameters(x) else x  # noqa: E731
        return jax.tree.map(part, tree, is_leaf=like_parameters)

    def moments(function, *trees):
        """`function` on the moments of optimiser states; their counters from the first, as they are."""
        return jax.tree.map(lambda x, *more: x if x.ndim == 0 else function(x, *more), *trees)

    params_rest, opt_rest = updated(pick(state.params, rest), pick(state.opt_state, rest), pick(gradients, rest))
    layers = len(state.params[stacked[0]])
    take = lambda i: lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False)  # noqa: E731
    put = lambda i: lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, i, 0)  # noqa: E731
    gradients_stacked = pick(gradients, stacked)

    def layer(i, carry):
        params, opt_state = carry
        one = jax.tree.map(take(i), params), moments(take(i), opt_state), jax.tree.map(take(i), gradients_stacked)
        new_params, new_opt_state = updated(*one)
        return jax.tree.map(put(i), params, new_params), moments(put(i), opt_state, new_opt_state)

    carry = pick(state.params, stacked), pick(state.opt_state, stacked)
    params_stacked, opt_stacked = jax.lax.fori_loop(0, layers, layer, carry)

    def joined(a, b):
        return {name: (b if name in b else a)[name] for name in state.params}

    is_part = lambda x: isinstance(x, dict) and x.keys() == set(rest)  # noqa: E731
    opt_state = jax.tree.map(lambda a, b: joined(a, b) if is_part(a) else a, opt_rest, opt_stacked, is_leaf=is_part)
    return TrainState(joined(params_rest, params_stacked), opt_state)
