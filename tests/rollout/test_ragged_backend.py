"""The ragged kernels inside the decode program, step by step on CPU: partitioned over replicas and over the tensor axis."""

import pytest
from engines import engine_of, prompts_of, requests_of

from jaxgrpo.rollout.scheduler import generate

SIZES = {"slots": 4, "max_prompt": 128, "max_new": 20, "prefill_tokens": 128, "block": 128}


@pytest.mark.parametrize(
    "kernel, replicas, tensor, cache_dtype",
    [
        ("interpret", 2, 1, ""),
        ("interpret", 2, 2, ""),
        ("interpret", 1, 4, ""),
        ("interpret", 1, 1, "int8"),
        ("interpret-triton", 2, 2, ""),
        ("interpret-triton", 1, 1, "int8"),
    ],
)
def test_the_ragged_backends_say_what_xla_says(model, kernel, replicas, tensor, cache_dtype):
    """Two K/V heads: over four devices every one of them holds both. Sequences cross from the first block into the second. In
    int8 a last bit of float32 can turn one rounding of a key: 4e-5 was seen of it."""
    requests = requests_of(prompts_of((3, 120, 126, 128, 50)), max_new=10)
    sizes = SIZES | {"cache_dtype": cache_dtype}
    want = generate(*engine_of(model, **sizes, attention="xla"), requests)
    got = generate(*engine_of(model, replicas, tensor, **sizes, attention=kernel), requests)
    for (ours,), (theirs,) in zip(got, want, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.logps == pytest.approx(theirs.logps, abs=2e-4 if cache_dtype == "int8" else 1e-5)
