"""The policy loss and its gradient against float64 NumPy (token by token) and torch autograd, to 1e-5."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import numpy_grpo
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgrpo.algo import AGGREGATIONS, KL_ESTIMATORS, policy_loss
from jaxgrpo.algo.ratio import clamp_log_ratio

SHAPES = [(1, 1), (4, 9)]
CLIPS = [(0.2, 0.2, 3.0), (0.3, 0.4, 2.0)]
CAP = 2.0
CASES = [
    {"kl": kl, "kl_coef": coef, "aggregation": aggregation, "clips": clips, "tis_cap": cap}
    for (kl, coef), aggregation, clips, cap in product(
        [("k1", 0.1), ("k2", 0.5), ("k3", 0.001), ("k3", 1.0)], AGGREGATIONS, CLIPS, [0.0, CAP]
    )
]


@partial(jax.jit, static_argnames=("kl", "aggregation", "tis_cap"))
def value_and_gradient(
    batch, segments=None, denominator=None, *, clips=CLIPS[0], kl_coef=0.1, kl="k3", aggregation="token-mean", tis_cap=0.0
):
    """((loss, metrics), gradient in logp) of the library."""
    low, high, dual = clips

    def loss(logp):
        return policy_loss(
            logp,
            batch["old"],
            batch["adv"],
            batch["mask"],
            ref_logp_BT=batch.get("ref"),
            clip_low=low,
            clip_high=high,
            dual_clip=dual,
            kl_coef=kl_coef,
            kl=kl,
            aggregation=aggregation,
            segment_ids_BT=segments,
            denominator=denominator,
            behaviour_logp_BT=batch.get("behaviour"),
            tis_cap=tis_cap,
        )

    return jax.value_and_grad(loss, has_aux=True)(batch["logp"])


def reference(batch, segments=None, **case):
    places = (batch["logp"], batch["old"], batch["adv"], batch["mask"])
    others = {"ref": batch.get("ref"), "behaviour": batch.get("behaviour"), "segments": segments, "kl_coef": 0.1}
    return numpy_grpo.policy_loss(*places, **others | case)


def assert_equal(got, expected):
    (loss, metrics), gradient = got
    expected_loss, expected_gradient, expected_metrics = expected
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5)
    assert set(metrics) == set(expected_metrics)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES), case=st.sampled_from(CASES), spread=st.floats(0, 2))
def test_loss_gradient_and_metrics_equal_the_formulas(seed, shape, case, spread):
    batch = numpy_grpo.random_batch(seed, *shape, spread)
    assert_equal(value_and_gradient(batch, **case), reference(batch, **case))


def test_the_random_batches_reach_every_branch():
    _, _, metrics = reference(numpy_grpo.random_batch(0, 40, 40), tis_cap=CAP)
    assert 0.1 < metrics["clip_fraction"] < 0.5
    assert metrics["dual_clip_fraction"] > 0.01
    assert metrics["kl"] > 0.1
    assert 0.05 < metrics["tis_clip_fraction"] < 0.5


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("kl", KL_ESTIMATORS)
def test_loss_and_gradient_equal_those_of_torch_autograd(kl, aggregation):
    torch = pytest.importorskip("torch")
    batch = numpy_grpo.random_batch(3, 6, 17)
    batch["mask"][:, 0] = 1  # no empty sequence, so that plain means do
    logp, old, adv, mask, ref = (torch.tensor(batch[k], dtype=torch.float64) for k in ("logp", "old", "adv", "mask", "ref"))
    logp.requires_grad_()
    ratio = torch.exp(logp - old)
    pessimistic = torch.maximum(-adv * ratio, -adv * torch.clamp(ratio, 0.8, 1.2))
    policy = torch.where(adv < 0, torch.min(-adv * 3.0, pessimistic), pessimistic)
    d = ref - logp
    estimate = {"k1": -d, "k2": d.square() / 2, "k3": torch.exp(d) - d - 1}[kl]
    token_loss = policy + 0.1 * (torch.clamp(estimate, -10, 10) if kl == "k3" else estimate)
    if aggregation == "token-mean":
        loss = (token_loss * mask).sum() / mask.sum()
    else:
        loss = ((token_loss * mask).sum(1) / mask.sum(1)).mean()
    loss.backward()
    (got, _), gradient = value_and_gradient(batch, kl=kl, aggregation=aggregation)
    np.testing.assert_allclose(got, loss.item(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, logp.grad.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "advantage, ratio, loss, slope",
    [
        (1.0, 1.5, -1.2, 0.0),  # gains beyond 1 + high are not paid for
        (1.0, 0.5, -0.5, -0.5),
        (-1.0, 0.5, 0.8, 0.0),
        (-1.0, 1.5, 1.5, 1.5),  # losses are, up to ...
        (-1.0, 4.0, 3.0, 0.0),  # ... the dual clip
        (-2.0, 4.0, 6.0, 0.0),
        (1.0, 1.0, -1.0, -1.0),
        (0.0, 4.0, 0.0, 0.0),
    ],
)
def test_one_token_has_the_loss_worked_out_by_hand(advantage, ratio, loss, slope):
    one = np.ones((1, 1), np.float32)
    batch = {"logp": -one, "old": -one - np.log(np.float32(ratio)), "adv": advantage * one, "mask": one}
    (got, metrics), gradient = value_and_gradient(batch)
    np.testing.assert_allclose([got, gradient[0, 0]], [loss, slope], rtol=1e-5, atol=1e-6)
    assert metrics["kl"] == 0, "no reference, no divergence"


@pytest.mark.parametrize(
    "advantage, ratio, mismatch, loss, slope, weight",
    [
        (1.0, 1.0, 1.5, -1.5, -1.5, 1.5),  # the sampler found the token less probable than the trainer does
        (1.0, 1.0, 0.5, -0.5, -0.5, 0.5),
        (1.0, 1.0, 8.0, -2.0, -2.0, 2.0),  # at most the cap
        (1.0, 1.5, 0.5, -0.6, 0.0, 0.5),  # the clipped term is weighed as a whole
        (-1.0, 4.0, 0.5, 1.5, 0.0, 0.5),
    ],
)
def test_truncated_importance_sampling_weighs_one_token_as_worked_out_by_hand(advantage, ratio, mismatch, loss, slope, weight):
    one = np.ones((1, 1), np.float32)
    old = -one - np.log(np.float32(ratio))
    batch = {"logp": -one, "old": old, "adv": advantage * one, "mask": one, "behaviour": old - np.log(np.float32(mismatch))}
    (got, metrics), gradient = value_and_gradient(batch, tis_cap=CAP)
    np.testing.assert_allclose([got, gradient[0, 0]], [loss, slope], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["tis_weight"], weight, rtol=1e-5)
    assert metrics["tis_clip_fraction"] == (mismatch > CAP)


def test_a_sampler_that_agrees_with_the_trainer_leaves_loss_and_gradient_as_they_are():
    batch = numpy_grpo.random_batch(4, 4, 9)
    batch["behaviour"] = batch["old"]
    (loss, metrics), gradient = value_and_gradient(batch)
    (same_loss, same_metrics), same_gradient = value_and_gradient(batch, tis_cap=CAP)
    assert loss == same_loss and np.array_equal(gradient, same_gradient)
    assert same_metrics["tis_weight"] == pytest.approx(1.0) and same_metrics["tis_clip_fraction"] == 0
    assert metrics.items() <= same_metrics.items()


def test_the_importance_weight_is_a_constant_to_the_gradient():
    batch = numpy_grpo.random_batch(6, 4, 9)

    def loss(behaviour):
        places = (batch["logp"], batch["old"], batch["adv"], batch["mask"])
        return policy_loss(*places, behaviour_logp_BT=behaviour, tis_cap=CAP)[0]

    assert (np.asarray(jax.grad(loss)(batch["behaviour"])) == 0).all()


def test_a_cap_without_the_samplers_log_probabilities_is_refused():
    batch = numpy_grpo.random_batch(1, 1, 9)
    del batch["behaviour"]
    with pytest.raises(ValueError, match="behaviour_logp_BT is missing"):
        value_and_gradient(batch, tis_cap=CAP)


def test_only_k3_is_clipped_to_ten():
    one = np.ones((1, 1), np.float32)
    batch = {"logp": -18 * one, "old": -18 * one, "adv": 0 * one, "mask": one, "ref": -one}
    for kl, (expected, slope) in {"k1": (-17.0, 1.0), "k2": (144.5, -17.0), "k3": (10.0, 0.0)}.items():
        (_, metrics), gradient = value_and_gradient(batch, kl=kl, kl_coef=1.0)
        np.testing.assert_allclose(metrics["kl"], expected, rtol=1e-5)
        assert float(gradient[0, 0]) == slope


FAR = (20.5, 60.0, 88.0, 89.0, 100.0, 700.0, 1e4, 1e30, np.inf)


@pytest.mark.parametrize("adv", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("difference", [*FAR, *(-d for d in FAR)])
def test_a_far_token_costs_no_more_than_itself(difference, adv):
    """Beside 9 ordinary tokens: loss, metrics and gradient are those of the formulas, and finite."""
    batch = numpy_grpo.random_batch(11, 1, 10)
    batch["mask"][:] = 1
    batch["adv"][0, 4] = adv
    for name in ("old", "ref"):  # behaviour then differs from old by as much, the other way round
        batch[name][0, 4] = batch["logp"][0, 4] - np.float32(difference)
    for kl in KL_ESTIMATORS:
        if kl != "k3" and abs(difference) > 1e4:
            continue  # k2 of these is infinite in float32
        case = {"kl": kl, "kl_coef": 0.001, "tis_cap": CAP}
        got, expected = value_and_gradient(batch, **case), reference(batch, **case)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
        np.testing.assert_allclose(got[0][0], expected[0], rtol=1e-5)
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-5, atol=1e-5)
        for name, value in expected[2].items():
            np.testing.assert_allclose(got[0][1][name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_log_ratios_up_to_twenty_are_not_touched():
    """Value and gradient to the bit; beyond, the bound's value and gradient 0."""
    bounds = np.float32([20, -20])
    d = np.concatenate([np.linspace(-20, 20, 4001, dtype=np.float32), bounds, np.nextafter(bounds, np.float32(0))])
    value, slope = jax.vmap(jax.value_and_grad(lambda d: jnp.exp(clamp_log_ratio(d))))(d)
    plain, plain_slope = jax.vmap(jax.value_and_grad(jnp.exp))(d)
    assert np.array_equal(value, plain) and np.array_equal(slope, plain_slope)
    beyond = np.float32([20.1, 89, 1e30, np.inf])
    for sign in (1, -1):
        value, slope = jax.vmap(jax.value_and_grad(lambda d: jnp.exp(clamp_log_ratio(d))))(sign * beyond)
        np.testing.assert_allclose(value, np.exp(sign * 20.0), rtol=1e-6)
        assert (np.asarray(slope) == 0).all()


def packed(batch, lengths):
    """One row per two sequences of `lengths` (cut from the rows of `batch`), with segment ids."""
    pairs = list(zip(range(0, len(lengths), 2), range(1, len(lengths), 2), strict=True))
    width = max(lengths[i] + lengths[j] for i, j in pairs) + 2
    out = {name: np.zeros((len(pairs), width), np.float32) for name in batch}
    segments = np.zeros((len(pairs), width), np.int32)
    for row, (i, j) in enumerate(pairs):
        for name, value in batch.items():
            joined = np.concatenate([value[i, : lengths[i]], value[j, : lengths[j]]])
            out[name][row, : len(joined)] = joined
        segments[row, : lengths[i]], segments[row, lengths[i] : lengths[i] + lengths[j]] = 1, 2
    return out, segments


@pytest.mark.parametrize("tis_cap", [0.0, CAP])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_packed_rows_equal_separate_sequences(aggregation, tis_cap):
    case = {"aggregation": aggregation, "tis_cap": tis_cap}
    lengths = [9, 4, 1, 9, 6, 6]
    batch = numpy_grpo.random_batch(5, 6, 9)
    for row, length in enumerate(lengths):
        batch["mask"][row, length:] = 0
    batch["mask"][4] = 0  # a sequence without a single completion token counts for nothing
    rows, segments = packed(batch, lengths)
    expected_loss, expected_gradient, expected_metrics = reference(batch, **case)
    got = value_and_gradient(rows, segments, **case)
    by_row, _ = packed(batch | {"logp": expected_gradient}, lengths)
    assert_equal(got, (expected_loss, by_row["logp"], expected_metrics))
    assert_equal(got, reference(rows, segments, **case))


@pytest.mark.parametrize("tis_cap", [0.0, CAP])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("micro_rows", [1, 2, 3])
def test_micro_batches_with_the_global_count_add_up(aggregation, micro_rows, tis_cap):
    case = {"aggregation": aggregation, "tis_cap": tis_cap}
    batch = numpy_grpo.random_batch(7, 6, 11)
    batch["mask"][2] = 0
    count = batch["mask"].sum() if aggregation == "token-mean" else (batch["mask"].sum(1) > 0).sum()
    parts = [
        value_and_gradient({k: v[i : i + micro_rows] for k, v in batch.items()}, None, float(count), **case)
        for i in range(0, 6, micro_rows)
    ]
    gradient = np.concatenate([part[1] for part in parts])
    total = jax.tree.map(lambda *values: sum(values), *[part[0] for part in parts])
    assert_equal((total, gradient), reference(batch, **case))


@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_tokens_outside_the_mask_may_hold_anything(aggregation, rubbish):
    batch = numpy_grpo.random_batch(11, 3, 5)
    clean = value_and_gradient(batch, aggregation=aggregation, tis_cap=CAP)
    for names in (["logp"], ["old"], ["adv"], ["ref"], ["behaviour"], ["logp", "old", "adv", "ref", "behaviour"]):
        dirty = batch | {name: np.where(batch["mask"] > 0, batch[name], np.float32(rubbish)) for name in names}
        got = value_and_gradient(dirty, aggregation=aggregation, tis_cap=CAP)
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(clean), strict=True):
            assert np.array_equal(ours, theirs), names
        assert (np.asarray(got[1])[batch["mask"] == 0] == 0).all()


@pytest.mark.parametrize("denominator", [None, 0.0])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_empty_mask_gives_zero_loss_and_zero_gradient(aggregation, denominator):
    batch = numpy_grpo.random_batch(2, 3, 5)
    batch["mask"][:] = 0
    result = value_and_gradient(batch, None, denominator, aggregation=aggregation)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(result))


def test_integer_and_boolean_masks_do_as_well_as_floats():
    batch = numpy_grpo.random_batch(1, 3, 5)
    expected = value_and_gradient(batch)
    for dtype in (bool, np.int32):
        got = value_and_gradient(batch | {"mask": batch["mask"].astype(dtype)})
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True))


def test_unknown_estimators_and_aggregations_are_refused_by_name():
    batch = numpy_grpo.random_batch(1, 1, 9)
    with pytest.raises(ValueError, match="'k4'; known: k1, k2, k3"):
        value_and_gradient(batch, kl="k4")
    with pytest.raises(ValueError, match="'sum'; known: token-mean, seq-mean-token-mean"):
        value_and_gradient(batch, aggregation="sum")
