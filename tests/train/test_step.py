"""The update step: equal to a plain loss over unpacked sequences, on any mesh and with any micro-batch size."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_step import (
    ALGO,
    LONGEST_RESPONSE,
    MODEL,
    TEMPERATURE,
    TRAIN,
    mesh_of,
    nearby,
    packed,
    placed,
    plain_logprobs,
    plain_loss_and_gradient,
    random_params,
    random_sequences,
)

from jaxgrpo.config import OptimConfig
from jaxgrpo.train.optimizer import make_optimizer
from jaxgrpo.train.rows import Rows, Sequence
from jaxgrpo.train.state import init_state
from jaxgrpo.train.step import ON_POLICY, make_score, make_update

# (devices, tokens of a row, whether groups share a prompt there): from one micro-batch for all to one for nearly each sequence.
LAYOUTS = [(1, 256, True), (1, 40, True), (1, 21, False), (1, 256, False), (8, 24, True), (8, 64, False)]
ONE, FOUR = LAYOUTS[0], LAYOUTS[4]
SGD = OptimConfig(optimizer="sgd", lr=1e-2)
ADAMW = OptimConfig(lr=1e-3, weight_decay=0.1)
UNCLIPPED = 1e9


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Half the compilation time; what is compared here does not hang on XLA's costlier passes."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@cache
def batch():
    """(params, sequences, old log-probs, reference log-probs): the policy has moved since sampling, so that clipping acts."""
    params, sequences = random_params(), random_sequences()
    old = [logp for logp, _ in plain_logprobs(nearby(params, 1), sequences)]
    reference = [logp for logp, _ in plain_logprobs(nearby(params, 2), sequences)]
    return params, sequences, old, reference


@cache
def plain_gradient(algo=ALGO):
    params, sequences, old, reference = batch()
    value, gradient = plain_loss_and_gradient(params, sequences, old, reference, algo)
    return float(value), jax.device_get(gradient)


def inputs(layout):
    """(rows, old, reference, used) on the mesh."""
    _, sequences, old, reference = batch()
    devices, *how = layout
    mesh = mesh_of(devices)
    rows, used = packed(sequences, *how, mesh, old)
    return rows, rows.behaviour_logp, packed(sequences, *how, mesh, reference)[0].behaviour_logp, used


def optimizer_of(optim):
    """The configured optimiser behind a recorder: a trace without decay keeps the gradient that it was given."""
    return optax.chain(optax.trace(decay=0.0), make_optimizer(optim))


@cache
def update_program(devices, optim=SGD, clip_norm=UNCLIPPED, algo=ALGO, train=TRAIN):
    return make_update(MODEL, train, algo, TEMPERATURE, clip_norm, optimizer_of(optim), mesh_of(devices))


def fresh_state(devices, optim=SGD):
    mesh = mesh_of(devices)
    return init_state(placed(batch()[0], mesh), MODEL, optimizer_of(optim), mesh)


def recorded_gradient(state):
    return state.opt_state[0].trace


@cache
def updated(layout, clip_norm=UNCLIPPED, algo=ALGO, train=TRAIN):
    """(parameters after one SGD update, gradient that the optimiser was given, metrics)."""
    update = update_program(layout[0], SGD, clip_norm, algo, train)
    state, metrics = update(fresh_state(layout[0]), *inputs(layout))
    return jax.device_get((state.params, recorded_gradient(state), metrics))


def norm(tree):
    return np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in jax.tree.leaves(tree)))


def assert_gradients_equal(got, expected, tolerance=1e-5):
    assert got.keys() == expected.keys()
    largest = max(np.linalg.norm(value) for value in expected.values())
    for name in expected:
        assert np.linalg.norm(got[name] - expected[name]) <= tolerance * largest, name
        assert np.linalg.norm(got[name] - expected[name]) <= 10 * tolerance * np.linalg.norm(expected[name]), name


def test_the_batch_exercises_clipping_dual_clipping_and_the_divergence():
    _, _, metrics = updated(ONE)
    assert 0.1 < metrics["clip_fraction"] < 0.9
    assert metrics["dual_clip_fraction"] > 0
    assert metrics["kl"] > 0.01
    assert norm(plain_gradient()[1]) > 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_equal_those_of_a_plain_loss_over_unpacked_sequences(layout):
    _, gradient, metrics = updated(layout)
    value, expected = plain_gradient()
    np.testing.assert_allclose(metrics["policy_loss"] + ALGO.kl_coef * metrics["kl"], value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm(expected), rtol=1e-5)
    assert_gradients_equal(gradient, expected)


def test_the_layouts_make_from_one_to_many_micro_batches():
    assert [int(inputs(layout)[3]) for layout in LAYOUTS[:4]] == [1, 3, 7, 1]
    assert int(inputs(FOUR)[3]) == 2


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_parameter_changes_of_sgd_are_the_same_in_every_layout(layout):
    before, (one, _, _), (other, _, _) = batch()[0], updated(ONE), updated(layout)
    for name in before:
        change, other_change = one[name] - before[name], other[name] - before[name]
        wanted = -SGD.lr * plain_gradient()[1][name]
        assert np.linalg.norm(wanted) > 0, name
        assert np.linalg.norm(change - wanted) <= 1e-3 * np.linalg.norm(wanted), name
        assert np.linalg.norm(other_change - change) <= 1e-3 * np.linalg.norm(change), name


def test_gradients_of_the_mean_over_sequences_equal_those_of_the_plain_loss():
    algo = dataclasses.replace(ALGO, aggregation="seq-mean-token-mean")
    _, gradient, metrics = updated(FOUR, UNCLIPPED, algo)
    value, expected = plain_gradient(algo)
    np.testing.assert_allclose(metrics["policy_loss"] + algo.kl_coef * metrics["kl"], value, rtol=1e-5, atol=1e-5)
    assert_gradients_equal(gradient, expected)
    assert norm({name: gradient[name] - plain_gradient()[1][name] for name in gradient}) > 0.01 * norm(gradient)


@pytest.mark.parametrize("remat, unroll, chunk", [("none", 2, 1024), ("matmuls", 1, 7)])
def test_neither_rematerialisation_nor_unrolling_nor_chunks_change_the_gradient(remat, unroll, chunk):
    train = dataclasses.replace(TRAIN, remat=remat, unroll=unroll, logit_chunk=chunk)
    _, gradient, _ = updated(ONE, train=train)
    assert_gradients_equal(gradient, plain_gradient()[1])


def test_clipping_scales_the_gradient_to_exactly_the_given_global_norm():
    _, whole, _ = updated(ONE)
    _, clipped, metrics = updated(ONE, 0.125)
    np.testing.assert_allclose(metrics["grad_norm"], norm(whole), rtol=1e-5, err_msg="logged before clipping")
    np.testing.assert_allclose(norm(clipped), 0.125, rtol=1e-6)
    for name in whole:
        np.testing.assert_allclose(clipped[name], whole[name] * (0.125 / norm(whole)), rtol=1e-5, atol=1e-9)


def test_a_gradient_within_the_norm_is_not_touched():
    _, expected = plain_gradient()
    assert norm(expected) < UNCLIPPED
    np.testing.assert_allclose(norm(updated(ONE)[1]), norm(expected), rtol=1e-5)


def test_metrics_are_token_means_of_the_plain_quantities():
    params, sequences, old, reference = batch()
    plain = plain_logprobs(params, sequences)
    logp, entropy = (np.concatenate(values).astype(np.float64) for values in zip(*plain, strict=True))
    advantage = np.concatenate([np.full(len(s.response), s.advantage) for s in sequences])
    d = np.concatenate(reference) - logp
    ratio = np.exp(logp - np.concatenate(old))
    clipped = -advantage * np.clip(ratio, 0.8, 1.2) > -advantage * ratio
    expected = {
        "kl": np.mean(np.minimum(np.exp(d) - d - 1, 10)),
        "ratio": ratio.mean(),
        "clip_fraction": clipped.mean(),
        "dual_clip_fraction": np.mean((advantage < 0) & (ratio > 3)),
        "tokens": len(logp),
        "entropy_sum": entropy.sum(),
    }
    for layout in (LAYOUTS[1], FOUR):
        for name, value in expected.items():
            np.testing.assert_allclose(updated(layout)[2][name], value, rtol=1e-4, err_msg=f"{name} {layout}")


@pytest.mark.parametrize("layout", [LAYOUTS[1], FOUR])
def test_truncated_importance_sampling_weighs_every_token_of_packed_rows(layout):
    """A weight on the clipped term is a weight on the advantage: it is positive, so that no branch changes."""
    params, sequences, old, reference = batch()
    behaviour = [logp for logp, _ in plain_logprobs(nearby(params, 3), sequences)]
    whole = [np.exp(o - b) for o, b in zip(old, behaviour, strict=True)]
    weighed = [
        dataclasses.replace(s, advantage=s.advantage * np.minimum(w, 1.2)) for s, w in zip(sequences, whole, strict=True)
    ]
    value, expected = plain_loss_and_gradient(params, weighed, old, reference)
    assert abs(value - plain_gradient()[0]) > 1e-3
    devices, *how = layout
    _, old_logp, ref_logp, used = inputs(layout)
    rows = packed(sequences, *how, mesh_of(devices), behaviour)[0]
    update = update_program(devices, algo=dataclasses.replace(ALGO, tis_cap=1.2))
    state, metrics = update(fresh_state(devices), rows, old_logp, ref_logp, used)
    np.testing.assert_allclose(metrics["policy_loss"] + ALGO.kl_coef * metrics["kl"], value, rtol=1e-5, atol=1e-5)
    assert_gradients_equal(jax.device_get(recorded_gradient(state)), jax.device_get(expected))
    whole = np.concatenate(whole)
    np.testing.assert_allclose(metrics["tis_weight"], np.minimum(whole, 1.2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["tis_clip_fraction"], (whole > 1.2).mean(), rtol=1e-5)
    assert 0.1 < metrics["tis_clip_fraction"] < 0.9


@cache
def score_program(devices):
    return make_score(MODEL, TRAIN, TEMPERATURE, mesh_of(devices))


@pytest.mark.parametrize("layout", [LAYOUTS[2], FOUR])
def test_scores_equal_plain_log_probabilities(layout):
    params, sequences, _, _ = batch()
    devices, *how = layout
    mesh = mesh_of(devices)
    rows, used = packed(sequences, *how, mesh, [np.arange(len(s.response)) + 100 * i for i, s in enumerate(sequences)])
    logp = np.asarray(score_program(devices)(placed(params, mesh), rows, used))
    inside = np.asarray(rows.mask) > 0
    tags = np.asarray(rows.behaviour_logp)[inside].astype(int)
    plain = [values for values, _ in plain_logprobs(params, sequences)]
    expected = [plain[tag // 100][tag % 100] for tag in tags]
    np.testing.assert_allclose(logp[inside], expected, atol=1e-5)


@pytest.mark.parametrize("layout", [ONE, LAYOUTS[3]])
def test_sequences_in_one_row_do_not_see_each_other(layout):
    """With all responses but the first changed, its log-probabilities are the same to the last bit."""
    params, sequences, _, _ = batch()
    mesh = mesh_of(1)
    changed = [
        s if i == 0 else dataclasses.replace(s, response=(s.response + 7) % MODEL.vocab) for i, s in enumerate(sequences)
    ]
    marks = [np.full(len(s.response), float(i == 0)) for i, s in enumerate(sequences)]
    scores = []
    for some in (sequences, changed):
        rows, used = packed(some, *layout[1:], mesh, marks)
        assert used == 1, "all in one row"
        scores.append(np.asarray(score_program(1)(placed(params, mesh), rows, used)))
    first = np.asarray(rows.behaviour_logp) > 0
    assert first.sum() == len(sequences[0].response)
    assert np.array_equal(scores[0][first], scores[1][first])
    assert not np.array_equal(scores[0], scores[1])


def test_a_minibatch_of_the_policy_that_learns_needs_no_old_log_probabilities():
    """ON_POLICY stands for the state's own: the same gradient, no clipping, and a ratio of one."""
    params, sequences, _, reference = batch()
    rows, _, ref_logp, used = inputs(FOUR)
    mesh = mesh_of(8)
    own = score_program(8)(placed(params, mesh), rows, used)
    update, results = update_program(8), []
    for old in (own, jnp.full_like(own, ON_POLICY)):
        state, metrics = update(fresh_state(8), rows, old, ref_logp, used)
        results.append(jax.device_get((recorded_gradient(state), metrics)))
    assert_gradients_equal(results[1][0], results[0][0])
    assert results[1][1]["clip_fraction"] == 0 and results[1][1]["ratio"] == pytest.approx(1, abs=1e-6)
    plain = np.concatenate([logp for logp, _ in plain_logprobs(params, sequences)])
    behaviour = np.concatenate(batch()[2])
    assert results[1][1]["logprob_diff_sum"] == pytest.approx(np.abs(plain - behaviour).sum(), rel=1e-4)
    assert results[1][1]["logprob_diff_max"] == pytest.approx(np.abs(plain - behaviour).max(), rel=1e-4)


CASES = {"sgd": (LAYOUTS[1], SGD), "adamw": (FOUR, ADAMW)}


def second_update(case, change=lambda rows: rows, used=None):
    """(state before, state after, metrics) of a second update, with moments that are no longer zero, on changed rows."""
    layout, optim = CASES[case]
    update = update_program(layout[0], optim)
    rows, old, reference, all_used = inputs(layout)
    state, _ = update(fresh_state(layout[0], optim), rows, old, reference, all_used)
    before = jax.device_get(state)
    after, metrics = update(state, change(rows), old, reference, all_used if used is None else np.int32(used))
    return before, jax.device_get(after), jax.device_get(metrics)


def with_field(rows: Rows, name, value):
    """Rows with one array replaced, laid out as before."""
    return dataclasses.replace(rows, **{name: jax.device_put(value, getattr(rows, name).sharding)})


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("case", CASES)
def test_a_gradient_that_is_not_finite_leaves_the_state_bit_for_bit(case, value):
    def poisoned(rows: Rows):
        advantages = np.array(rows.advantages)
        advantages[tuple(np.argwhere(np.asarray(rows.mask) > 0)[5])] = value
        return with_field(rows, "advantages", advantages)

    before, after, metrics = second_update(case, poisoned)
    assert metrics["skipped_updates"] == 1
    assert not np.isfinite(metrics["grad_norm"])
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("case", CASES)
def test_a_finite_gradient_changes_every_parameter_and_counts_no_skip(case):
    before, after, metrics = second_update(case)
    assert metrics["skipped_updates"] == 0
    assert all((before.params[name] != after.params[name]).any() for name in before.params)


@pytest.mark.parametrize("used", [None, 0])
@pytest.mark.parametrize("case", CASES)
def test_a_minibatch_without_response_tokens_gives_no_nan(case, used):
    _, after, metrics = second_update(case, lambda rows: with_field(rows, "mask", 0 * np.asarray(rows.mask)), used)
    assert metrics["grad_norm"] == 0 and metrics["tokens"] == 0 and metrics["skipped_updates"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after, metrics)))


def test_without_reference_there_is_no_divergence_and_zero_advantages_change_nothing():
    algo = dataclasses.replace(ALGO, kl_coef=0.0)
    update = update_program(1, SGD, UNCLIPPED, algo)
    rows, old, _, used = inputs(ONE)
    state, metrics = update(fresh_state(1), rows, old, None, used)
    assert metrics["kl"] == 0
    assert_gradients_equal(jax.device_get(recorded_gradient(state)), plain_gradient(algo)[1])
    params = jax.device_get(state.params)
    state, metrics = update(state, with_field(rows, "advantages", 0 * np.asarray(rows.advantages)), old, None, used)
    assert metrics["grad_norm"] == 0 and metrics["policy_loss"] == 0 and metrics["skipped_updates"] == 0
    assert all(np.array_equal(params[name], state.params[name]) for name in params)


def test_the_state_is_donated_and_a_second_update_runs_the_same_program():
    update, state = update_program(8, ADAMW), fresh_state(8, ADAMW)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    programs = update._cache_size()
    after, _ = update(state, *inputs(FOUR))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert jax.tree.map(lambda leaf: leaf.sharding, after) == shardings
    fewer = np.int32(1)
    update(after, *inputs(FOUR)[:3], fewer)
    assert update._cache_size() == max(programs, 1)


def minibatch(lengths, advantage):
    """12 sequences with responses of these lengths, packed for 8 devices."""
    prompts = [np.full(1 + i // 3, 5, np.int32) for i in range(12)]
    sequences = [
        Sequence(p, np.arange(n, dtype=np.int32), np.full(n, -3.0, np.float32), advantage(i))
        for i, (p, n) in enumerate(zip(prompts, lengths, strict=True))
    ]
    return packed(sequences, *FOUR[1:], mesh_of(8))


@pytest.mark.parametrize(
    "lengths, advantage",
    [
        ([LONGEST_RESPONSE] * 12, lambda i: 1.0 - 2.0 * (i % 2)),  # all truncated
        ([3, 9, 14, 1] * 3, lambda i: 0.0),
        ([LONGEST_RESPONSE] + [1] * 11, lambda i: 1.0 - 2.0 * (i % 2)),  # one of the longest among the shortest
        ([1] * 12, lambda i: -1.0),
    ],
)
def test_extreme_minibatches_run_the_same_program_and_stay_finite(lengths, advantage):
    update, state = update_program(8, ADAMW), fresh_state(8, ADAMW)
    state, _ = update(state, *inputs(FOUR))
    programs = update._cache_size()
    rows, used = minibatch(lengths, advantage)
    old = jax.device_put(np.full(rows.mask.shape, ON_POLICY, np.float32), rows.mask.sharding)
    state, metrics = update(state, rows, old, rows.behaviour_logp, used)
    assert update._cache_size() == programs == 1
    assert metrics["tokens"] == sum(lengths) and metrics["skipped_updates"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get((state, metrics))))


def adamw_in_numpy(params, gradients, optim):
    """The updates of PyTorch's AdamW with its learning rate warmed up linearly, in float64."""
    p, m, v = np.array(params, np.float64), 0.0, 0.0
    for n, g in enumerate(np.asarray(gradients, np.float64), start=1):
        lr = optim.lr * min(1.0, n / max(optim.warmup_updates, 1))
        m, v = optim.beta1 * m + (1 - optim.beta1) * g, optim.beta2 * v + (1 - optim.beta2) * g * g
        m_hat, v_hat = m / (1 - optim.beta1**n), v / (1 - optim.beta2**n)
        p = p - lr * optim.weight_decay * p - lr * m_hat / (np.sqrt(v_hat) + optim.eps)
    return p


@pytest.mark.parametrize("warmup_updates", [0, 1, 4])
def test_the_optimizer_is_adamw_with_a_linear_warmup(warmup_updates):
    optim = OptimConfig(lr=1e-2, warmup_updates=warmup_updates)
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=50), rng.normal(size=(7, 50))
    optimizer = make_optimizer(optim)
    params = {"w": jnp.asarray(start, np.float32)}
    opt_state = optimizer.init(params)
    for gradient in gradients:
        updates, opt_state = optimizer.update({"w": jnp.asarray(gradient, np.float32)}, opt_state, params)
        params = {"w": params["w"] + updates["w"]}
    np.testing.assert_allclose(params["w"], adamw_in_numpy(start, gradients, optim), rtol=1e-5, atol=1e-5)


def test_the_optimizer_equals_that_of_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    start, gradients = rng.normal(size=50), rng.normal(size=(5, 50))
    weight = torch.nn.Parameter(torch.tensor(start))
    optim = OptimConfig(lr=3e-3)
    adamw = torch.optim.AdamW([weight], lr=optim.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        adamw.step()
    np.testing.assert_allclose(adamw_in_numpy(start, gradients, optim), weight.detach().numpy(), rtol=1e-9)
