"""Digests of weights against the same hash in NumPy, on several meshes; digests of what else a run reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.data import Problem
from jaxgrpo.model.hf import load_params
from jaxgrpo.model.source import resolve_model
from jaxgrpo.parallel.mesh import trainer_mesh
from jaxgrpo.train.fingerprints import _sum, demonstrations_digest, problems_digest, weights_digest
from jaxgrpo.train.state import parameter_shardings


def hashed(values: np.ndarray) -> int:
    """The sum in 64 bits, from the description in fingerprints.py alone."""
    low = np.uint64(0xFFFFFFFF)
    h = values.view(np.uint32 if values.itemsize == 4 else np.uint16).astype(np.uint64)
    for index, step in zip(np.indices(values.shape), (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D), strict=False):
        h = (h + index.astype(np.uint64) * np.uint64(step)) & low
    h = ((h ^ (h >> np.uint64(16))) * np.uint64(0x85EBCA6B)) & low
    h = ((h ^ (h >> np.uint64(13))) * np.uint64(0xC2B2AE35)) & low
    return int(np.sum(h ^ (h >> np.uint64(16)))) & 0xFFFFFFFF


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_sum_is_that_of_the_description(dtype):
    values = np.random.default_rng(0).standard_normal((3, 5, 7)).astype(dtype)
    assert int(jax.jit(_sum)(jnp.asarray(values))) == hashed(values)


def test_the_digest_is_the_same_on_every_mesh_and_another_for_every_change():
    source = resolve_model("random:miniature-16")
    params = {name: np.asarray(value) for name, value in load_params(source, dtype=jnp.float32).items()}
    digests = {weights_digest({name: jnp.asarray(value) for name, value in params.items()})}
    for shape in ((1, 8, 1), (2, 2, 2)):
        shardings = parameter_shardings(source.config, trainer_mesh(shape, jax.devices()))
        digests.add(weights_digest({name: jax.device_put(value, shardings[name]) for name, value in params.items()}))
    assert len(digests) == 1
    rng = np.random.default_rng(0)
    for name, value in list(params.items())[:4]:
        flipped = value.copy()
        place = tuple(int(rng.integers(size)) for size in value.shape)
        flipped.view(np.uint32)[place] ^= np.uint32(1 << int(rng.integers(32)))
        digests.add(weights_digest({k: jnp.asarray(v) for k, v in (params | {name: flipped}).items()}))
    swapped = params["embed"].copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    digests.add(weights_digest({k: jnp.asarray(v) for k, v in (params | {"embed": swapped}).items()}))
    assert len(digests) == 6


def test_everything_of_a_problem_counts_and_so_does_the_order():
    def problem(index=0, text="1 + 1?", truth="2", info=None):
        return Problem(index, ({"role": "user", "content": text},), "math__x", truth, info or {})

    other = [problem(text="1 + 2?"), problem(truth="3"), problem(info={"prefix": "x"})]
    lists = [[problem()], *([p] for p in other), [problem(), other[0]], [other[0], problem()], []]
    assert len({problems_digest(problems) for problems in lists}) == len(lists)
    assert problems_digest([problem(index=5)]) == problems_digest([problem()]), "its place in the file is not its content"
    messages = ({"role": "user", "content": "a"},)
    assert demonstrations_digest([(messages, "b")]) != demonstrations_digest([(messages, "c")])
