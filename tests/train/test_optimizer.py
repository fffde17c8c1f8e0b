"""Moments in bfloat16 follow those in float32, and moments in host memory change nothing but where they lie."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_step import ALGO, MODEL, TEMPERATURE, TRAIN, mesh_of, packed, placed, random_params, random_sequences

from jaxgrpo.config import CheckpointConfig, OptimConfig
from jaxgrpo.model.parameters import is_matrix
from jaxgrpo.train.checkpoint import Checkpoints
from jaxgrpo.train.optimizer import make_optimizer
from jaxgrpo.train.state import HOST, abstract_state, cast_params, init_state
from jaxgrpo.train.step import make_score, make_update

ADAMW = OptimConfig(lr=1e-3)
HALF = dataclasses.replace(ADAMW, moments_dtype="bfloat16")


def moments(state):
    return optax.tree.get(state, "mu"), optax.tree.get(state, "nu")


def run(optim, gradients, start=0.0):
    """(parameters, optimiser state) after one update for each gradient."""
    optimizer = make_optimizer(optim)
    params = {"w": jnp.full(gradients.shape[1], start)}

    @jax.jit
    def update(params, state, gradient):
        updates, state = optimizer.update({"w": gradient}, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for gradient in gradients:
        params, state = update(params, state, gradient)
    return params["w"], state


def test_bfloat16_moments_follow_float32_ones_where_rounding_to_the_nearest_stands_still():
    rng = np.random.default_rng(0)
    gradients = rng.normal(1.0, 0.5, (400, 2000)).astype(np.float32)
    gradients[100:] *= 0.1  # from here on the second moment falls by less than a thousandth a step
    gradients = jnp.asarray(gradients)
    params, state = run(ADAMW, gradients)
    half_params, half_state = run(HALF, gradients)
    (mu, nu), (half_mu, half_nu) = moments(state), moments(half_state)
    assert half_mu["w"].dtype == half_nu["w"].dtype == jnp.bfloat16
    assert np.mean(half_nu["w"].astype(jnp.float32)) == pytest.approx(float(np.mean(nu["w"])), rel=0.01)
    assert np.mean(half_mu["w"].astype(jnp.float32)) == pytest.approx(float(np.mean(mu["w"])), rel=0.01)
    assert np.linalg.norm(half_params - params) < 0.02 * np.linalg.norm(params)
    nearest = jnp.zeros(2000, jnp.bfloat16)
    for gradient in gradients:
        nearest = (0.999 * nearest.astype(jnp.float32) + 0.001 * gradient**2).astype(jnp.bfloat16)
    assert np.mean(nearest.astype(jnp.float32)) > 1.2 * np.mean(nu["w"]), "which is why it is rounded at random"


def test_bfloat16_moments_are_the_same_in_every_run_and_for_every_part_of_an_array():
    gradients = jnp.asarray(np.random.default_rng(1).normal(size=(5, 64)), jnp.float32)
    whole, again, part = run(HALF, gradients), run(HALF, gradients), run(HALF, gradients[:, 20:40])
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True))
    assert np.array_equal(whole[0][20:40], part[0])


def trained(devices, offload, optim=ADAMW, updates=2):
    """(state, metrics) after updates on the same minibatch."""
    mesh, optimizer = mesh_of(devices), make_optimizer(optim)
    train = dataclasses.replace(TRAIN, offload=offload)
    rows, used = packed(random_sequences(), 24, True, mesh)
    state = init_state(placed(random_params(), mesh), MODEL, optimizer, mesh, offload != "none")
    update = make_update(MODEL, train, ALGO, TEMPERATURE, 1.0, optimizer, mesh)
    for _ in range(updates):
        state, metrics = update(state, rows, rows.behaviour_logp, rows.behaviour_logp, used)
    assert update._cache_size() == 1
    return state, metrics


@pytest.mark.parametrize("devices, optim", [(1, ADAMW), (8, HALF)])
def test_an_update_with_moments_in_host_memory_is_the_same(devices, optim):
    """Up to the last bit of float32: XLA may fuse the two programs differently, and jax 0.12 sometimes does."""
    (resident, _), (offloaded, _) = trained(devices, "none", optim), trained(devices, "moments", optim)
    for tree in moments(offloaded.opt_state):
        assert all((leaf.sharding.memory_kind == HOST) == is_matrix(name) for name, leaf in tree.items())
    assert all(leaf.sharding.memory_kind != HOST for leaf in offloaded.params.values())
    assert jax.tree.structure(resident) == jax.tree.structure(offloaded)
    for a, b in zip(jax.tree.leaves(jax.device_get(resident)), jax.tree.leaves(jax.device_get(offloaded)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=0, atol=2e-7)


def test_a_reference_in_host_memory_scores_the_same():
    mesh = mesh_of(8)
    rows, used = packed(random_sequences(), 24, True, mesh)
    params = placed(random_params(), mesh)
    away = cast_params(params, jnp.float32, offloaded=True)
    assert all((leaf.sharding.memory_kind == HOST) == is_matrix(name) for name, leaf in away.items())
    score = make_score(MODEL, TRAIN, TEMPERATURE, mesh)
    assert np.array_equal(*(np.asarray(score(weights, rows, used)) for weights in (params, away)))


def test_a_checkpoint_of_offloaded_moments_comes_back_to_host_memory(tmp_path):
    state, _ = trained(8, "moments")
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(every=1))
    checkpoints.save(3, state, {"step": 3}, {})
    checkpoints.wait()
    mesh, optimizer = mesh_of(8), make_optimizer(ADAMW)
    restored, _ = checkpoints.restore(3, abstract_state(MODEL, optimizer, mesh, offloaded=True))
    checkpoints.close()
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, state)
    for a, b in zip(jax.tree.leaves(jax.device_get(state)), jax.tree.leaves(jax.device_get(restored)), strict=True):
        assert np.array_equal(a, b)
