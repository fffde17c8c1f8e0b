import json
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from jaxgrpo.data.arithmetic import (
    DATA_SOURCE,
    build_tokenizer,
    heldout_problems,
    training_problem,
    training_problems,
    warmup_examples,
)

SEED = 101


def text_of(problem):
    (message,) = problem.messages
    assert message["role"] == "user"
    return message["content"]


def running_values(text, start_from=()):
    """Left-to-right values by plain integers; start_from replaces what was written before each step, if given."""
    digits = [int(d) for d in re.findall(r"\d", text)]
    operators = re.findall(r"[+*-]", text)
    values = [digits[0]]
    for position, (operator, digit) in enumerate(zip(operators, digits[1:], strict=True)):
        before = start_from[position - 1] if start_from and position else values[-1]
        values.append({"+": before + digit, "-": before - digit, "*": before * digit}[operator] % 10)
    return values[1:]


@pytest.fixture(scope="module")
def heldout():
    return heldout_problems()


@pytest.fixture(scope="module")
def stream():
    return training_problems(SEED, 0, 60_000)


def test_the_worked_example_has_the_answer_of_the_documentation():
    assert running_values("7*8-9-0.") == [6, 7, 7]


def test_answers_agree_with_plain_integer_arithmetic(heldout, stream):
    for problem in heldout + stream[:5000]:
        values = running_values(text_of(problem))
        assert problem.extra_info["values"] == "".join(map(str, values))
        assert problem.ground_truth == str(values[-1])
        assert problem.data_source == DATA_SOURCE


def test_512_problems_are_held_out_balanced_over_two_to_five_operands(heldout):
    texts = [text_of(p) for p in heldout]
    assert len(set(texts)) == 512
    assert Counter(len(re.findall(r"\d", t)) for t in texts) == {2: 128, 3: 128, 4: 128, 5: 128}
    assert Counter(p.extra_info["operands"] for p in heldout[:100]) == {2: 25, 3: 25, 4: 25, 5: 25}
    assert [p.index for p in heldout] == list(range(512))
    assert heldout_problems() == heldout


def test_every_kind_of_step_occurs_among_the_held_out_problems(heldout):
    assert len({step for p in heldout for step in re.findall(r"[+*-]\d", text_of(p))}) == 30


def test_no_generator_ever_draws_a_held_out_problem(heldout):
    reserved = {text_of(p) for p in heldout}
    for seed in (0, 1, 2, SEED):
        assert reserved.isdisjoint(text_of(p) for p in training_problems(seed, 0, 40_000))
        assert reserved.isdisjoint(text_of(p) for p, _ in warmup_examples(seed, 0, 20_000, 0.7))


def test_training_covers_all_short_problems_that_are_not_held_out(heldout, stream):
    short = {f"{a}{op}{b}..." for a in range(10) for op in "+-*" for b in range(10)}
    assert {text_of(p) for p in stream if p.extra_info["operands"] == 2} == short - {text_of(p) for p in heldout}


def test_training_draws_lengths_operators_and_digits_evenly(stream):
    lengths = Counter(p.extra_info["operands"] for p in stream)
    assert all(abs(lengths[n] / len(stream) - 0.25) < 0.01 for n in (2, 3, 4, 5))
    longest = [text_of(p) for p in stream if p.extra_info["operands"] == 5]
    steps = Counter(step for t in longest for step in re.findall(r"[+*-]\d", t))
    shares = np.array(list(steps.values())) / (4 * len(longest))
    assert len(steps) == 30 and np.abs(shares - 1 / 30).max() < 0.003
    first = Counter(t[0] for t in longest)
    assert max(abs(count / len(longest) - 0.1) for count in first.values()) < 0.015


def test_the_stream_hardly_repeats_itself(stream):
    longest = [text_of(p) for p in stream if p.extra_info["operands"] == 5]
    assert len(set(longest)) > 0.99 * len(longest)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10**12), st.integers(1, 40))
def test_a_problem_depends_on_seed_and_position_only(seed, start, count):
    block = training_problems(seed, start, count)
    assert [p.index for p in block] == list(range(start, start + count))
    assert training_problem(seed, start + count - 1) == block[-1]
    assert training_problems(seed, start + count // 2, 1)[0] == block[count // 2]
    pairs = warmup_examples(seed, start, count, 0.5)
    assert warmup_examples(seed, start + count - 1, 1, 0.5) == pairs[-1:]


def test_seeds_and_purposes_have_streams_of_their_own(stream):
    first = [text_of(p) for p in stream[:200]]
    assert [text_of(p) for p in training_problems(SEED + 1, 0, 200)] != first
    assert [text_of(p) for p, _ in warmup_examples(SEED, 0, 200, 0.0)] != first


def test_an_empty_block_is_an_empty_list():
    assert training_problems(SEED, 5, 0) == [] and warmup_examples(SEED, 5, 0, 0.5) == []


def test_clean_warmup_responses_are_the_right_running_values():
    for problem, response in warmup_examples(SEED, 0, 3000, 0.0):
        assert [int(c) for c in response] == running_values(text_of(problem))


@pytest.mark.parametrize("corruption", [0.3, 0.7, 1.0])
def test_corruption_hits_every_use_of_an_entry_at_the_same_rate(corruption):
    right, wrong = Counter(), Counter()
    for problem, response in warmup_examples(SEED, 0, 20_000, corruption):
        text = text_of(problem)
        written = [int(c) for c in response]
        # what each step should give, going on from the digit that was written before it
        for step, value, target in zip(
            re.findall(r"[+*-]\d", text), written, running_values(text, start_from=written), strict=True
        ):
            if value == target:
                right[step] += 1
            else:
                wrong[step, value] += 1
        assert problem.ground_truth == str(running_values(text)[-1])
    total = sum(right.values()) + sum(wrong.values())
    assert abs(sum(right.values()) / total - (1 - 0.9 * corruption)) < 0.01
    for step in right:
        uses = right[step] + sum(wrong[step, d] for d in range(10))
        assert abs(right[step] / uses - (1 - 0.9 * corruption)) < 0.06


def test_the_same_step_is_corrupted_differently_each_time():
    answers = {}
    for problem, response in warmup_examples(SEED, 0, 20_000, 0.7):
        answers.setdefault(text_of(problem)[:3], Counter())[response[0]] += 1
    for start, counts in answers.items():
        assert len(counts) >= 7  # ten in the long run; some of these starts occur 50 times only
        assert counts.most_common(1)[0][0] == str(running_values(start)[0])


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_a_corruption_that_is_no_rate_is_refused(rate):
    with pytest.raises(ValueError, match="corruption"):
        warmup_examples(0, 0, 1, rate)


def check_tokenizer(tokenizer, problems):
    assert len(tokenizer) == 44
    conversations = [list(p.messages) for p in problems]
    rows = tokenizer.apply_chat_template(conversations, add_generation_prompt=True)["input_ids"]
    for problem, ids in zip(problems, rows, strict=True):
        operands = re.findall(r"^\d|[+*-]\d", text_of(problem))
        expected = operands + ["."] * (5 - len(operands)) + ["="]
        assert tokenizer.convert_ids_to_tokens(ids) == expected
    for problem in problems[:100]:
        values = problem.extra_info["values"]
        ids = tokenizer(values, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(values)
        ended = [*ids, tokenizer.eos_token_id, tokenizer.pad_token_id]
        assert tokenizer.decode(ended, skip_special_tokens=True) == values
        assert [tokenizer.decode([i]) for i in ids] == list(values)
    assert tokenizer.convert_ids_to_tokens([tokenizer.pad_token_id, tokenizer.eos_token_id]) == ["<pad>", "<eos>"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


def test_prompts_are_six_tokens_with_operand_j_at_position_j(heldout, stream):
    check_tokenizer(build_tokenizer(), heldout + stream[:2000])


def test_a_finished_conversation_continues_the_prompt_and_ends_with_eos():
    tokenizer = build_tokenizer()
    user, assistant = {"role": "user", "content": "7*8-9-0."}, {"role": "assistant", "content": "677"}
    prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template([user, assistant])["input_ids"]
    assert whole == prompt + tokenizer("677")["input_ids"] + [tokenizer.eos_token_id]


@pytest.mark.parametrize("config", [None, {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}])
def test_auto_tokenizer_loads_what_was_saved_beside_a_model_or_alone(tmp_path, heldout, config):
    build_tokenizer().save_pretrained(tmp_path)
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    check_tokenizer(loaded, heldout)
    loaded.save_pretrained(tmp_path / "again")
    check_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "again", local_files_only=True), heldout)
