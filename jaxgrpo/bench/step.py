"""`jaxgrpo bench update` and `bench step`: one GRPO update with its reference pass, alone or after a rollout, with a trivial
reward."""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.algo import group_advantages
from jaxgrpo.bench.machine import Stopwatch, spread
from jaxgrpo.bench.task import Bench
from jaxgrpo.rollout.scheduler import generate
from jaxgrpo.train.accounting import FlopCounter
from jaxgrpo.train.optimizer import make_optimizer
from jaxgrpo.train.rows import Sequence, pack_tightest
from jaxgrpo.train.sizes import row_shapes, shares_prompts
from jaxgrpo.train.state import cast_params, init_state
from jaxgrpo.train.step import ON_POLICY, make_score, make_update, rows_sharding

WARM_UP = 2  # the first step compiles, the second shows that nothing does any more


class Stepper:
    """A policy, its frozen reference and the programs of one on-policy step with one update over all sequences."""

    def __init__(self, bench: Bench):
        self.bench, config, model, mesh = bench, bench.config, bench.model, bench.mesh
        optimizer = make_optimizer(config.optim)
        temperature = config.rollout.temperature
        offload, dtype = config.train.offload, jnp.dtype(config.train.dtype)
        self.reference = cast_params(bench.params, dtype, offload == "all") if config.algo.kl_coef else None
        self.state = init_state(bench.params, model, optimizer, mesh, offload != "none")
        bench.params = None  # the first update donates them
        self.score = make_score(model, config.train, temperature, mesh)
        self.update = make_update(model, config.train, config.algo, temperature, config.optim.clip_norm, optimizer, mesh)
        self.shapes = row_shapes(config, bench.task.sequences, mesh.devices.flat[0].platform)
        self.times: dict[str, list[tuple[float, float]]] = {}

    def rollout(self) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """(tokens, log-probabilities) of every response [P][G], sampled from the policy."""
        bench = self.bench
        with self.timed("rollout"):
            with self.timed("sync"):
                weights = jax.block_until_ready(bench.engine.load_params(self.state.params))
            groups = generate(bench.engine, weights, bench.requests)
        return [[(np.array(r.tokens, np.int32), np.array(r.logps, np.float32)) for r in group] for group in groups]

    def learn(self, responses) -> dict:
        """Rewards, advantages, packing, the reference's pass, and the update; returns its metrics."""
        with self.timed("learn"):
            rows, used = pack_tightest(self.sequences(responses), self.shapes, pad_id=0)
            self.computed_tokens = used * rows.tokens[0].size
            rows, used = jax.device_put(rows, rows_sharding(self.bench.mesh)), np.int32(used)
            old = jnp.full_like(rows.behaviour_logp, ON_POLICY)
            with self.timed("score"):
                ref = None if self.reference is None else jax.block_until_ready(self.score(self.reference, rows, used))
            with self.timed("update"):
                self.state, metrics = self.update(self.state, rows, old, ref, used)
                jax.block_until_ready(self.state)
        assert np.isfinite(metrics["grad_norm"]) and not metrics["skipped_updates"], "the update was a real one"
        return metrics

    def sequences(self, responses) -> list[Sequence]:
        """With the share of even tokens as the reward."""
        rewards_PG = np.array([[np.mean(tokens % 2 == 0) for tokens, _ in group] for group in responses], np.float32)
        advantages_PG = np.asarray(group_advantages(rewards_PG))
        return [
            Sequence(request.prompt, tokens, logps, float(advantage))
            for request, group, advantages in zip(self.bench.requests, responses, advantages_PG, strict=True)
            for (tokens, logps), advantage in zip(group, advantages, strict=True)
        ]

    @contextmanager
    def timed(self, name: str):
        watch = Stopwatch()
        yield
        self.times.setdefault(name, []).append(watch.seconds())


def random_responses(bench: Bench) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Random tokens of the task's lengths, with the log-probabilities of a uniform policy."""
    rng = np.random.default_rng(bench.task.seed)
    uniform = -np.log(bench.model.vocab)
    draw = lambda n: (rng.integers(0, bench.model.vocab, n).astype(np.int32), np.full(n, uniform, np.float32))  # noqa: E731
    return [[draw(n) for n in lengths] for lengths in bench.lengths_PG]


def bench_update(bench: Bench, peaks: dict) -> dict:
    """The figures of `task.repeats` updates on random responses after the warm-up."""
    stepper, responses = Stepper(bench), random_responses(bench)
    for _ in range(WARM_UP + bench.task.repeats):
        stepper.learn(responses)
    return _figures(stepper, peaks)


def bench_step(bench: Bench, peaks: dict) -> dict:
    """The figures of `task.repeats` steps after the warm-up: the policy is handed over, samples, is scored by the frozen
    reference, and is updated once with gradients accumulated over all sequences."""
    stepper = Stepper(bench)
    bench.engine.compile(bench.engine.load_params(stepper.state.params))
    for _ in range(WARM_UP + bench.task.repeats):
        with stepper.timed("step"):
            stepper.learn(stepper.rollout())
    return _figures(stepper, peaks)


def _figures(stepper: Stepper, peaks: dict) -> dict:
    """Tokens per second of whole sequences, and operations that the mathematics needs as a share of the measured peak."""
    bench, task, model = stepper.bench, stepper.bench.task, stepper.bench.model
    wall = {name: spread([w for w, _ in pairs[WARM_UP:]]) for name, pairs in stepper.times.items()}
    cpu = {name: spread([c for _, c in pairs[WARM_UP:]]) for name, pairs in stepper.times.items()}
    seconds = {name: values["median"] for name, values in wall.items()}
    prompts = np.full(task.prompts, task.prompt_len)
    tokens = int((bench.lengths_PG + task.prompt_len).sum())
    counter = FlopCounter.of(model)
    shared = shares_prompts(bench.mesh.devices.flat[0].platform)
    forward = counter.packed(prompts, bench.lengths_PG, shared)
    result = {
        "useful_tokens": tokens,
        "computed_tokens": stepper.computed_tokens,
        "update_tokens_per_s": tokens / seconds["learn"],
        "update_flops_per_s": 3 * forward / seconds["update"],
        "update_share_of_peak": 3 * forward / seconds["update"] / peaks["flops_per_s"],
        "learn_share_of_peak": (3 + (stepper.reference is not None)) * forward / seconds["learn"] / peaks["flops_per_s"],
    }
    if "step" in seconds:
        needed = counter.generate(prompts, bench.lengths_PG) + (3 + (stepper.reference is not None)) * forward
        result |= {
            "step_s": seconds["step"],
            "first_step_s": stepper.times["step"][0][0],
            "step_tokens_per_s": tokens / seconds["step"],
            "rollout_tokens_per_s": bench.lengths_PG.sum() / seconds["rollout"],
            "flops_per_s": needed / seconds["step"],
            "flops_share_of_peak": needed / seconds["step"] / peaks["flops_per_s"],
        }
    return result | {"wall_s": wall, "cpu_s": cpu}
