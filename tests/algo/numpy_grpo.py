"""GRPO written again, token by token in float64 NumPy from the formulas of the published code, as the tests' reference.

Advantages: (r - mean) / (std + eps) with the n - 1 deviation; a group of one has mean 0 and deviation 1. Loss of a token:
max(-A r, -A clip(r, 1 - low, 1 + high)), for A < 0 at most -A c; plus kl_coef times a KL estimate. As in verl's
core_algos.py the log of a ratio is clamped to [-20, 20] before exp, with gradient 0 beyond, and k3 is clipped to 10.
Truncated importance sampling: the policy term times min(exp(old - behaviour), cap), which is a constant to the gradient.
"""

import numpy as np


def advantages(rewards, std_normalise=True, eps=1e-6):
    out = np.zeros(np.shape(rewards))
    for p, group in enumerate(np.asarray(rewards, np.float64)):
        mean, deviation = (0.0, 1.0) if len(group) == 1 else (group.mean(), group.std(ddof=1))
        for g, reward in enumerate(group):
            out[p, g] = (reward - mean) / (deviation + eps) if std_normalise else reward - mean
    return out


def weights(mask, aggregation, segments=None):
    """Weight of every token; sequences are rows, or the runs of one number in `segments`."""
    mask = np.asarray(mask, np.float64)
    if aggregation == "token-mean":
        return mask / max(mask.sum(), 1.0)
    segments = np.ones(mask.shape, int) if segments is None else segments
    sequences = []
    for row in range(len(mask)):
        for number in np.unique(segments[row]):
            members = [(row, t) for t in range(mask.shape[1]) if segments[row, t] == number and mask[row, t]]
            sequences += [members] if members else []
    out = np.zeros(mask.shape)
    for members in sequences:
        for place in members:
            out[place] = 1.0 / len(members) / len(sequences)
    return out


def token_loss(lp, old, a, low, high, dual):
    """(loss, its derivative in lp, clipped branch larger, dual clip active)."""
    ratio, inside = clamped_exp(lp - old)
    plain, clipped = -a * ratio, -a * min(max(ratio, 1 - low), 1 + high)
    if a < 0 and max(plain, clipped) > -a * dual:
        return -a * dual, 0.0, clipped > plain, True
    return (clipped, 0.0, True, False) if clipped > plain else (plain, plain * inside, False, False)


def token_kl(lp, ref, kind):
    """(estimate, its derivative in lp)."""
    d = ref - lp
    if kind != "k3":
        return {"k1": (-d, 1.0), "k2": (d * d / 2, -d)}[kind]
    ratio, inside = clamped_exp(d)
    value = ratio - min(max(d, -20), 20) - 1
    return (value, (1 - ratio) * inside) if value < 10 else (10.0, 0.0)


def clamped_exp(log_ratio):
    """(exp of the log ratio clamped to [-20, 20], whether nothing was clamped)."""
    return np.exp(min(max(log_ratio, -20.0), 20.0)), -20 <= log_ratio <= 20


def policy_loss(
    logp,
    old,
    adv,
    mask,
    *,
    ref=None,
    behaviour=None,
    tis_cap=0.0,
    clips=(0.2, 0.2, 3.0),
    kl_coef=0.0,
    kl="k3",
    aggregation="token-mean",
    segments=None,
):
    """(loss, gradient in logp, metrics)."""
    weight = weights(mask, aggregation, segments)
    loss, gradient = 0.0, np.zeros(np.shape(logp))
    names = ["policy_loss", "kl", "clip_fraction", "dual_clip_fraction", "ratio"]
    names += ["tis_weight", "tis_clip_fraction"] if tis_cap else []
    metrics = dict.fromkeys(names, 0.0)
    for place in np.argwhere(weight > 0):
        i = tuple(place)
        lp, w = float(logp[i]), weight[i]
        value, slope, is_clipped, is_dual = token_loss(lp, float(old[i]), float(adv[i]), *clips)
        terms = (clamped_exp(lp - float(old[i]))[0],)
        if tis_cap:
            whole = clamped_exp(float(old[i]) - float(behaviour[i]))[0]
            importance = min(whole, tis_cap)
            value, slope, terms = value * importance, slope * importance, (*terms, importance, whole > tis_cap)
        divergence, kl_slope = (0.0, 0.0) if ref is None else token_kl(lp, float(ref[i]), kl)
        loss += w * (value + kl_coef * divergence)
        gradient[i] = w * (slope + kl_coef * kl_slope)
        for name, term in zip(metrics, (value, divergence, is_clipped, is_dual, *terms), strict=True):
            metrics[name] += w * term
    return loss, gradient, metrics


def random_batch(seed, rows, length, spread=1.0):
    """Log-probabilities, advantages and mask (float32), no ratio within 1e-3 of a kink; with `spread` 1 all branches occur."""
    rng = np.random.default_rng(seed)
    shape = (rows, length)
    logp = rng.uniform(-6, -0.01, shape)
    log_ratio = spread * rng.normal(0, 0.8, shape) * rng.integers(0, 2, shape)  # half of the tokens on policy
    for kink in (0.8, 1.2, 0.7, 1.4, 2.0, 3.0):
        log_ratio[np.abs(np.exp(log_ratio) - kink) < 1e-3] += 0.01
    adv = rng.normal(0, 1.5, shape) * rng.choice([0.0, 1.0], shape, p=[0.2, 0.8])
    batch = {
        "logp": logp,
        "old": logp - log_ratio,
        "adv": adv,
        "mask": rng.integers(0, 2, shape),
        "ref": logp + rng.normal(0, 0.7, shape),
    }
    mismatch = rng.normal(0, 0.5, shape)  # old - behaviour
    mismatch[np.abs(np.exp(mismatch) - 2.0) < 1e-3] += 0.01  # the cap
    batch["behaviour"] = batch["old"] - mismatch
    return {name: value.astype(np.float32) for name, value in batch.items()}
