"""`jaxgrpo bench rollout`: whole rollouts through the scheduler, and decoding alone with every slot full."""

import time

import jax
import numpy as np

from jaxgrpo.bench.machine import Stopwatch, spread
from jaxgrpo.bench.task import Bench, cache_bytes_per_token, weight_bytes
from jaxgrpo.rollout.sampling import Sampling
from jaxgrpo.rollout.scheduler import generate
from jaxgrpo.rollout.slots import Placement
from jaxgrpo.train.accounting import FlopCounter


def bench_rollout(bench: Bench, peaks: dict) -> dict:
    """The figures of `task.repeats` rollouts after one that is not counted, and of decoding alone."""
    task, engine = bench.task, bench.engine
    weights = engine.load_params(bench.params)
    start = time.perf_counter()
    engine.compile(weights)
    compile_s = time.perf_counter() - start
    walls, cpus = [], []
    for repeat in range(task.repeats + 1):
        watch = Stopwatch()
        responses = generate(engine, weights, bench.requests)
        wall, cpu = watch.seconds()
        if repeat:
            walls.append(wall)
            cpus.append(cpu)
    made = np.array([[len(r.tokens) for r in group] for group in responses])
    assert (made == bench.lengths_PG).all(), "every response has exactly the length that was asked for"
    flops = FlopCounter.of(bench.model).generate(np.full(task.prompts, task.prompt_len), made)
    wall, cpu = spread(walls), spread(cpus)
    return {
        "rollout_tokens_per_s": made.sum() / wall["median"],
        "rollout_tokens_per_cpu_s": made.sum() / cpu["median"],
        "rollout_s": wall,
        "rollout_cpu_s": cpu,
        "compile_s": compile_s,
        "slots": engine.max_concurrent_decodes,
        "chunk": engine.settings.chunk,
        "cache_blocks": list(engine.settings.cache_blocks),
        "cache_block": engine.settings.block,
        "flops_per_s": flops / wall["median"],
        "flops_share_of_peak": flops / wall["median"] / peaks["flops_per_s"],
        "decode": bench_decode(bench, weights, peaks),
    }


def bench_decode(bench: Bench, weights, peaks: dict) -> dict:
    """Decoding with every slot full from the prompt length on: tokens per second, and the bytes that a step must read (the
    weights once per replica, and the cache of every sequence as far as it reaches) as a share of what memory gives."""
    task, engine, settings = bench.task, bench.engine, bench.engine.settings
    steps = min(task.new_tokens - 1, max(2 * settings.chunk, 16))
    chunks = max(1, steps // settings.chunk)
    rows = engine.prefill_rows(settings.bucket(task.prompt_len))
    prompts = [bench.requests[i % task.prompts].prompt for i in range(rows)]
    state = engine.init_decode_state(task.prompt_len + 1)
    prefix = engine.prefill_batch(weights, prompts)
    key = np.zeros(2, np.uint32)
    sampling = Sampling()
    state, _ = engine.insert_group(
        prefix, state, [Placement(slot, slot % rows, key + slot, sampling, task.new_tokens) for slot in range(settings.slots)]
    )
    state = engine.resize(state, task.prompt_len + 1 + chunks * settings.chunk)
    jax.block_until_ready(state)
    start = time.perf_counter()
    for _ in range(chunks):
        state, chunk = engine.decode_chunk(weights, state)
    jax.block_until_ready(chunk)
    seconds = (time.perf_counter() - start) / (chunks * settings.chunk)
    assert np.asarray(chunk.valid_BC).all(), "no slot was done"
    context = task.prompt_len + 1 + (1 + chunks * settings.chunk) / 2
    replicas = engine.mesh.shape["replica"]
    needed = replicas * weight_bytes(bench.model, task.dtype)
    needed += settings.slots * context * cache_bytes_per_token(bench.model, settings.cache_dtype)
    flops = FlopCounter.of(bench.model)
    work = settings.slots * (flops.per_token + flops.per_pair * context)
    return {
        "decode_tokens_per_s": settings.slots / seconds,
        "step_ms": 1e3 * seconds,
        "mean_context": context,
        "bytes_per_s": needed / seconds,
        "bytes_share_of_peak": needed / seconds / peaks["bytes_per_s"],
        "flops_per_s": work / seconds,
        "flops_share_of_peak": work / seconds / peaks["flops_per_s"],
    }
