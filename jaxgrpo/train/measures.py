"""What a step is measured by: the cumulative counters, and the figures of its rollouts and of its updates."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from eval.sampling import Graded
from jaxgrpo.config import Config
from jaxgrpo.train.accounting import update_bytes
from jaxgrpo.train.job import Job
from jaxgrpo.train.sizes import shares_prompts


@dataclass(frozen=True)
class Work:
    """Token counts of a step: prompts [P] and responses [P, G]."""

    prompt_P: np.ndarray
    response_PG: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Prompt plus response of every sequence [P * G]."""
        return (self.prompt_P[:, None] + self.response_PG).reshape(-1)


@dataclass
class Totals:
    """Cumulative counters of a run: prompts consumed (the data cursor), tokens, operations."""

    samples: int = 0
    tokens: int = 0
    compute_flops: float = 0.0  # 6 N tokens, as the paper counts
    compute_flops_total: float = 0.0  # generation, scoring, update and recomputation; not warm-up and evaluation
    skipped_updates: int = 0
    grader_errors: int = 0

    def count(self, job: Job, work: Work) -> None:
        """Advance the counters by one step."""
        config, flops = job.config, job.flops
        forward, body = _forward_flops(job, work), _forward_flops(job, work, output=False)
        updates = config.data.prompts_per_step // config.train.minibatch_prompts
        scored = (config.algo.kl_coef > 0) + (config.algo.old_logprobs == "recompute") * (updates - 1) / updates
        self.samples += len(work.prompt_P)
        self.tokens += int(work.lengths.sum())
        self.compute_flops += 6.0 * job.identity["n_nominal"] * int(work.lengths.sum())
        self.compute_flops_total += flops.generate(work.prompt_P, work.response_PG)
        self.compute_flops_total += (scored + 3) * forward + (config.train.remat == "layer") * body


def _forward_flops(job: Job, work: Work, **what) -> float:
    """Operations of one forward pass of the update over the step's sequences."""
    return job.flops.packed(work.prompt_P, work.response_PG, shares_prompts(job.platform), **what)


def rollout_metrics(job: Job, graded: Graded, rewards_PG: np.ndarray, work: Work, seconds: dict, micro_batches: int) -> dict:
    """What the rollouts of a step were like, and how fast its phases went. seconds: by phase; micro_batches: of its updates."""
    update_s, peak = seconds["update_s"], job.peak_flops
    shared = shares_prompts(job.platform)
    square = job.flops.full_attention().packed(work.prompt_P, work.response_PG, shared)
    moved = update_bytes(job.config, job.identity["n_params"], micro_batches)
    return {
        "reward_mean": float(rewards_PG.mean()),
        "response_length_mean": float(work.response_PG.mean()),
        "truncated_fraction": float(np.mean([r.finish == "length" for group in graded.responses for r in group])),
        "equal_reward_groups": float(np.mean(rewards_PG.min(axis=1) == rewards_PG.max(axis=1))),
        **_host_seconds(graded),
        "graded_per_s": rewards_PG.size / (seconds["rollout_s"] + seconds["grade_s"]),
        "rollout_tokens_per_s": float(work.response_PG.sum() / seconds["rollout_s"]),
        "update_tokens_per_s": float(work.lengths.sum() / (seconds["score_s"] + update_s)),
        "update_bytes_per_s": moved / update_s,
        "mfu": 3 * _forward_flops(job, work) / update_s / peak,
        "mfu_full_attention": 3 * square / update_s / peak,
    }


def update_metrics(config: Config, measured: list[dict], differences: list[tuple]) -> dict:
    """Means over the minibatches, each weighted by its response tokens. differences: of `logprob_difference`, for all but the
    first of them."""
    tokens = np.array([m["tokens"] for m in measured], np.float64)

    def mean(key):
        return float(np.average([m[key] for m in measured], weights=tokens))

    first = measured[0]
    compared = [(first["logprob_diff_sum"], first["logprob_diff_max"], first["tokens"])]
    if config.algo.old_logprobs == "recompute":
        compared += jax.device_get(differences)
    sums, largest, counts = zip(*compared, strict=True)
    importance = {key: mean(key) for key in ("tis_weight", "tis_clip_fraction") if config.algo.tis_cap}
    return importance | {
        "policy_loss": mean("policy_loss"),
        "kl": mean("kl") if config.algo.kl_coef > 0 else None,
        "ratio": mean("ratio"),
        "clip_fraction": mean("clip_fraction"),
        "dual_clip_fraction": mean("dual_clip_fraction"),
        "entropy": float(sum(m["entropy_sum"] for m in measured) / tokens.sum()),
        "grad_norm": float(np.mean([m["grad_norm"] for m in measured])),
        "logprob_diff_mean": float(sum(sums) / sum(counts)),
        "logprob_diff_max": float(max(largest)),
    }


def _host_seconds(graded: Graded) -> dict:
    """With several hosts, the seconds of the first and of the last one that was done with its rollouts."""
    if len(graded.by_host_s) < 2:
        return {}
    return {"rollout_first_host_s": min(graded.by_host_s), "rollout_last_host_s": max(graded.by_host_s)}


@jax.jit
def logprob_difference(rows, old_logp):
    """(sum, max, count) over response tokens of |sampler's log-probability - trainer's|."""
    difference = jnp.abs(rows.behaviour_logp - old_logp) * rows.mask
    return difference.sum(), difference.max(), rows.mask.sum()
