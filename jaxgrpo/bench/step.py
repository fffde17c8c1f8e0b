"""`jaxgrpo bench step`: whole GRPO steps with a trivial reward: rollout, rewards, advantages, scoring, one update."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.algo import group_advantages
from jaxgrpo.bench.machine import Stopwatch, spread
from jaxgrpo.bench.task import Bench
from jaxgrpo.rollout.scheduler import generate
from jaxgrpo.train.accounting import FlopCounter
from jaxgrpo.train.rows import Sequence, pack
from jaxgrpo.train.state import cast_params, init_state, make_optimizer
from jaxgrpo.train.step import make_score, make_update, rows_sharding

WARM_UP = 2  # the first step compiles, the second once more for a state that comes out of an update


def bench_step(bench: Bench, peaks: dict) -> dict:
    """The figures of `task.repeats` steps after the warm-up: the policy is handed over, samples, is scored together with
    the frozen reference, and is updated once with gradients accumulated over all sequences."""
    task, config, model = bench.task, bench.config, bench.model
    optimizer = make_optimizer(config.optim)
    reference = cast_params(bench.params, jnp.dtype(config.train.dtype))
    state = init_state(bench.params, model, optimizer, bench.mesh)
    score = make_score(model, config.train, config.rollout.temperature, bench.mesh)
    update = make_update(
        model, config.train, config.algo, config.rollout.temperature, config.optim.clip_norm, optimizer, bench.mesh
    )
    bench.engine.compile(bench.engine.load_params(state.params))
    steps, rollouts, updates = [], [], []
    for _ in range(WARM_UP + task.repeats):
        whole, watch = Stopwatch(), Stopwatch()
        responses = generate(bench.engine, bench.engine.load_params(state.params), bench.requests)
        rollouts.append(watch.seconds())
        watch = Stopwatch()
        rows, used = pack(
            _sequences(bench, responses),
            row_tokens=config.train.row_tokens,
            micro_rows=config.train.micro_rows,
            pad_id=0,
            capacity=task.sequences,
        )
        rows, used = jax.device_put(rows, rows_sharding(bench.mesh)), np.int32(used)
        old, ref = score(state.params, rows, used), score(reference, rows, used)
        state, metrics = update(state, rows, old, ref, used)
        jax.block_until_ready(state)
        updates.append(watch.seconds())
        steps.append(whole.seconds())
    assert np.isfinite(metrics["grad_norm"]) and not metrics["skipped_updates"], "the update was a real one"
    lengths = bench.lengths_PG + task.prompt_len
    counter = FlopCounter.of(model)
    generation = counter.generate(np.full(task.prompts, task.prompt_len), bench.lengths_PG)
    needed = generation + 4 * counter.forward(lengths.reshape(-1))  # reference, and forward and backward of the update
    wall = {name: spread([w for w, _ in pairs[WARM_UP:]]) for name, pairs in _named(steps, rollouts, updates)}
    cpu = {name: spread([c for _, c in pairs[WARM_UP:]]) for name, pairs in _named(steps, rollouts, updates)}
    return {
        "step_s": wall["step"]["median"],
        "step_tokens_per_s": lengths.sum() / wall["step"]["median"],
        "rollout_tokens_per_s": bench.lengths_PG.sum() / wall["rollout"]["median"],
        "update_tokens_per_s": lengths.sum() / wall["update"]["median"],
        "first_step_s": steps[0][0],
        "flops_per_s": needed / wall["step"]["median"],
        "flops_share_of_peak": needed / wall["step"]["median"] / peaks["flops_per_s"],
        "wall_s": wall,
        "cpu_s": cpu,
    }


def _named(steps, rollouts, updates):
    return ("step", steps), ("rollout", rollouts), ("update", updates)


def _sequences(bench: Bench, responses) -> list[Sequence]:
    """With the share of even tokens as the reward."""
    rewards_PG = np.array([[np.mean(np.array(r.tokens) % 2 == 0) for r in group] for group in responses], np.float32)
    advantages_PG = np.asarray(group_advantages(rewards_PG))
    return [
        Sequence(request.prompt, np.array(r.tokens, np.int32), np.array(r.logps, np.float32), float(advantage))
        for request, group, advantages in zip(bench.requests, responses, advantages_PG, strict=True)
        for r, advantage in zip(group, advantages, strict=True)
    ]
