"""Parameter and operation counts against sums written out by hand, for the seven published architectures."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxgrpo.config import Config, replace
from jaxgrpo.model.parameters import count_parameters
from jaxgrpo.model.source import resolve_model
from jaxgrpo.train.accounting import FlopCounter, peak_flops, update_bytes

# hidden, layers, heads, kv heads, ffn, vocabulary, tied; totals as the published safetensors hold them.
PUBLISHED = {
    "0.5b": (896, 24, 14, 2, 4864, 151_936, True, 494_032_768),
    "1.5b": (1536, 28, 12, 2, 8960, 151_936, True, 1_543_714_304),
    "3b": (2048, 36, 16, 2, 11_008, 151_936, True, 3_085_938_688),
    "7b": (3584, 28, 28, 4, 18_944, 152_064, False, 7_615_616_512),
    "14b": (5120, 48, 40, 8, 13_824, 152_064, False, 14_770_033_664),
    "32b": (5120, 64, 40, 8, 27_648, 152_064, False, 32_763_876_352),
    "72b": (8192, 80, 64, 8, 29_568, 152_064, False, 72_706_203_648),
}


def architecture(size):
    return resolve_model(f"random:qwen2.5-{size}").config


def layer_parameters(hidden, heads, kv_heads, ffn):
    head = hidden // heads
    attention = hidden * heads * head + 2 * hidden * kv_heads * head + heads * head * hidden
    biases = heads * head + 2 * kv_heads * head
    return attention + biases + 3 * hidden * ffn + 2 * hidden


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameter_counts_equal_the_published_totals(size):
    hidden, layers, heads, kv_heads, ffn, vocab, tied, total = PUBLISHED[size]
    non_embedding = layers * layer_parameters(hidden, heads, kv_heads, ffn) + hidden
    assert non_embedding + vocab * hidden * (1 if tied else 2) == total
    assert count_parameters(architecture(size)) == {"total": total, "non_embedding": non_embedding}


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_token_costs_two_operations_per_multiplying_parameter_and_attention_its_visible_pairs(size):
    hidden, layers, heads, _, _, vocab, tied, total = PUBLISHED[size]
    flops = FlopCounter.of(architecture(size))
    multiplying = total if tied else total - vocab * hidden
    scores_and_values = 2 * (2 * hidden)  # of one pair in one layer: heads x head size = hidden
    assert flops.forward([1]) == 2 * multiplying + layers * scores_and_values
    assert flops.forward([3, 2]) == 5 * 2 * multiplying + (1 + 2 + 3 + 1 + 2) * layers * scores_and_values


def test_generation_counts_every_prompt_once_and_every_response_token_but_the_last():
    flops = FlopCounter(per_token=1000.0, per_pair=1.0)
    prompts, responses = [3, 5], [[1, 4], [2, 3]]
    tokens = pairs = 0
    for prompt, group in zip(prompts, responses, strict=True):
        tokens += prompt
        pairs += sum(range(1, prompt + 1))
        for response in group:
            for fed in range(1, response):  # the last sampled token is never fed back
                tokens += 1
                pairs += prompt + fed
    assert flops.generate(prompts, responses) == 1000 * tokens + pairs


def test_generating_one_response_costs_a_forward_pass_over_all_but_its_last_token_with_logits_where_they_are_used():
    flops = FlopCounter.of(architecture("0.5b"))
    assert flops.generate([100], [[41]]) == flops.forward([140]) - 99 * 2 * 151_936 * 896


@pytest.mark.parametrize("shared", [True, False])
def test_an_update_counts_shared_prompts_once_no_last_token_and_outputs_where_they_are_used(shared):
    flops = FlopCounter(per_token=1000.0, per_pair=1.0, per_output=10.0)
    prompts, responses = [3, 5], [[1, 4], [2, 3]]
    states = outputs = pairs = 0
    for prompt, group in zip(prompts, responses, strict=True):
        copies = 1 if shared else len(group)
        states += copies * prompt
        pairs += copies * sum(range(1, prompt + 1))
        for response in group:
            states += response - 1
            outputs += response
            pairs += sum(prompt + i for i in range(1, response))
    assert flops.packed(prompts, responses, shared) == 990 * states + 10 * outputs + pairs
    assert flops.packed(prompts, responses, shared, output=False) == 990 * states + pairs
    assert flops.full_attention().packed(prompts, responses, shared) == 990 * states + 10 * outputs + 2 * pairs


def test_bytes_of_an_update_are_those_of_state_gradients_and_weights():
    config = replace(Config(), {"train.dtype": "bfloat16", "train.remat": "layer"})
    assert update_bytes(config, 10, 3) == 10 * (2 * 4 + 4 * 4 + 2 * 4 + 3 * (3 * 2 + 3 * 4))
    lean = replace(config, {"optim.moments_dtype": "bfloat16", "train.remat": "none"})
    assert update_bytes(lean, 10, 3) == 10 * (2 * 4 + 4 * 2 + 2 * 4 + 3 * (2 * 2 + 3 * 4))


def test_counts_of_a_whole_step_stay_exact_beyond_32_bits():
    flops = FlopCounter(per_token=2.0, per_pair=2.0)
    lengths = np.full(4096, 6144, np.int32)
    assert flops.forward(lengths) == 4096 * (2 * 6144 + 6144 * 6145)


def test_flops_grow_like_six_n_tokens_where_attention_is_short():
    flops, (*_, total) = FlopCounter.of(architecture("7b")), PUBLISHED["7b"]
    assert 3 * flops.forward([512]) / (6 * total * 512) == pytest.approx(1.0, rel=0.08)


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
    ],
)
def test_peaks_are_those_of_the_data_sheets(kind, peak):
    device = SimpleNamespace(device_kind=kind, platform="tpu" if "TPU" in kind else "gpu")
    assert peak_flops([device] * 4) == 4 * peak


def test_an_unknown_accelerator_has_no_peak():
    assert np.isnan(peak_flops([SimpleNamespace(device_kind="TPU v99", platform="tpu")]))


def test_the_peak_of_a_cpu_is_measured_and_plausible():
    one, all_of_them = peak_flops(jax.devices()[:1]), peak_flops(jax.devices())
    assert 1e8 < one < 1e13
    assert all_of_them > one
