import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxgrpo.data import DataError, Problem, encode_prompts, load_demonstrations, load_problems
from tests.data.tiny_hf import DEFAULT_SYSTEM, write_tiny_tokenizer

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the data folder {SHARED} is not here")
GOOD = {
    "data_source": "math",
    "prompt": [{"role": "user", "content": "1 + 1?"}],
    "ability": "math",
    "reward_model": {"ground_truth": "2", "style": "rule"},
    "extra_info": {"index": 7, "split": "train"},
}


def without(column):
    return {key: value for key, value in GOOD.items() if key != column}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_parquet_and_jsonl_give_the_same_problems(tmp_path):
    rows = [GOOD, {**GOOD, "reward_model": {"ground_truth": "3", "style": "rule"}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    problems = load_problems(str(tmp_path / "a.parquet"))
    assert problems == load_problems(write_jsonl(tmp_path / "a.jsonl", rows))
    expected = Problem(1, ({"role": "user", "content": "1 + 1?"},), "math", "3", {"index": 7, "split": "train"})
    assert problems[1] == expected


def test_extra_info_may_be_absent_and_a_string_is_one_user_message(tmp_path):
    (problem,) = load_problems(write_jsonl(tmp_path / "a.jsonl", [{**without("extra_info"), "prompt": "1 + 1?"}]))
    assert problem.extra_info == {} and problem.messages == ({"role": "user", "content": "1 + 1?"},)


@pytest.mark.parametrize(
    ("bad_row", "words"),
    [
        (without("reward_model"), ["no column reward_model", "add what is missing"]),
        (without("prompt"), ["no column prompt"]),
        ({**GOOD, "prompt": []}, ["prompt is []"]),
        ({**GOOD, "prompt": " "}, ["the prompt is empty"]),
        ({**GOOD, "prompt": [{"role": "user", "content": ""}]}, ["the prompt is empty", "remove the row"]),
        ({**GOOD, "prompt": [{"role": "user"}]}, ["{'role': 'user'}", "mend the row"]),
        ({**GOOD, "prompt": [3]}, ["the message 3"]),
        ({**GOOD, "data_source": ""}, ["data_source is ''"]),
        ({**GOOD, "reward_model": {"style": "rule"}}, ["{'style': 'rule'}", "needs a ground_truth"]),
        ({**GOOD, "reward_model": None}, ["reward_model is None"]),
        ({**GOOD, "extra_info": [1]}, ["extra_info is [1]"]),
    ],
)
def test_a_bad_row_is_named_with_its_value_and_the_remedy(tmp_path, bad_row, words):
    path = write_jsonl(tmp_path / "bad.jsonl", [GOOD, bad_row])
    with pytest.raises(DataError) as error:
        load_problems(path)
    assert all(word in str(error.value) for word in [f"{path}, row 1", *words])


def test_a_parquet_file_without_a_needed_column_is_named_with_the_columns_it_has(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([without("data_source")]), path)
    with pytest.raises(DataError, match="no column data_source; it has prompt, ability, reward_model, extra_info"):
        load_problems(str(path))


def broken_files(folder):
    pq.write_table(pa.Table.from_pylist([GOOD] * 50), folder / "whole.parquet")
    (folder / "cut.parquet").write_bytes((folder / "whole.parquet").read_bytes()[:-40])
    (folder / "text.parquet").write_text("not parquet")
    (folder / "empty.parquet").write_bytes(b"")
    pq.write_table(pa.Table.from_pylist([GOOD]).slice(0, 0), folder / "no_rows.parquet")
    (folder / "empty.jsonl").write_text("\n\n")
    (folder / "cut.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:40])
    (folder / "list.jsonl").write_text("[1, 2]\n")
    (folder / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    (folder / "a.csv").write_text("prompt,answer\n")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cut.parquet", ["not readable as parquet", "again"]),
        ("text.parquet", ["not readable as parquet"]),
        ("empty.parquet", ["not readable as parquet"]),
        ("no_rows.parquet", ["has no rows", "at least one"]),
        ("empty.jsonl", ["has no rows"]),
        ("cut.jsonl", ["line 2 is not JSON", "one JSON object per line"]),
        ("list.jsonl", ["line 1 is [1, 2]"]),
        ("latin.jsonl", ["not readable as UTF-8"]),
        ("a.csv", ["'.csv' is not supported", ".parquet or .jsonl"]),
        ("absent.parquet", ["there is no file", "hub id"]),
        ("", ["is a directory"]),
    ],
)
def test_an_unusable_file_is_named_with_the_reason(tmp_path, name, words):
    broken_files(tmp_path)
    with pytest.raises(DataError) as error:
        load_problems(str(tmp_path / name))
    assert all(word in str(error.value) for word in [str(tmp_path / name), *words])


def test_a_missing_relative_file_is_not_taken_for_a_hub_id():
    with pytest.raises(DataError, match="no file data/train.parquet; `jaxgrpo data prepare SOURCE OUT_DIR` makes it"):
        load_problems("data/train.parquet")


def test_an_unreachable_hub_is_reported_with_the_way_out():
    code = "from jaxgrpo.data import load_problems; load_problems('no-such-org/no-such-set:train.parquet')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("jaxgrpo.data.problem.DataError: no-such-org/no-such-set")
    assert "check the network and the name" in last and "local path" in last


def test_loading_and_tokenising_import_neither_jax_nor_flax(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD])
    code = f"""
import sys
import jaxgrpo.data as data
data.load_problems({path!r})
assert "transformers" not in sys.modules and "pyarrow" not in sys.modules
data.encode_prompts(data.heldout_problems(), data.build_tokenizer(), max_tokens=6, overlong="error")
print(sorted({{"jax", "flax"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_demonstrations_are_messages_and_a_response(tmp_path):
    rows = [{"prompt": "2+2?", "response": "4"}, {"prompt": GOOD["prompt"], "response": "2"}]
    pairs = load_demonstrations(write_jsonl(tmp_path / "a.jsonl", rows))
    assert pairs == [(({"role": "user", "content": "2+2?"},), "4"), (tuple(GOOD["prompt"]), "2")]
    pq.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "a.parquet")
    assert load_demonstrations(str(tmp_path / "a.parquet")) == pairs[:1]


@pytest.mark.parametrize(
    ("row", "words"),
    [({"prompt": "x"}, ["no column response"]), ({"prompt": "x", "response": ""}, ["row 0: response is ''"])],
)
def test_a_demonstration_without_a_response_is_refused(tmp_path, row, words):
    with pytest.raises(DataError) as error:
        load_demonstrations(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert all(word in str(error.value) for word in words)


def problem_of(index, text):
    return Problem(index, ({"role": "user", "content": text},), "math", "1", {})


def test_prompts_carry_the_template_the_default_system_message_and_the_generation_prompt(tokenizer):
    (prompt,), dropped = encode_prompts([problem_of(0, "π = ?")], tokenizer, max_tokens=400, overlong="error")
    chatml = f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n<|im_start|>user\nπ = ?<|im_end|>\n<|im_start|>assistant\n"
    assert dropped == 0 and prompt.tokens.dtype == np.int32 and prompt.tokens.ndim == 1
    assert prompt.tokens.tolist() == tokenizer.backend_tokenizer.encode(chatml).ids
    assert tokenizer.decode(prompt.tokens) == chatml


def test_prompts_at_the_limit_pass_and_longer_ones_are_an_error_or_dropped(tokenizer):
    problems = [problem_of(index, "7" * length) for index, length in enumerate((5, 6, 50, 5))]
    (first,), _ = encode_prompts(problems[:1], tokenizer, max_tokens=1000, overlong="error")
    limit = len(first.tokens) + 1
    encoded, dropped = encode_prompts(problems, tokenizer, max_tokens=limit, overlong="drop")
    assert [p.problem.index for p in encoded] == [0, 1, 3] and dropped == 1
    with pytest.raises(DataError) as error:
        encode_prompts(problems, tokenizer, max_tokens=limit, overlong="error")
    words = ["problem 2", f"{limit + 44} tokens", f"is {limit};", "raise data.max_prompt_tokens", "data.overlong=drop"]
    assert all(word in str(error.value) for word in words)


def test_nothing_left_is_an_error(tokenizer):
    with pytest.raises(DataError, match="all 1 prompts are longer than 3 tokens"):
        encode_prompts([problem_of(0, "x")], tokenizer, max_tokens=3, overlong="drop")
    with pytest.raises(DataError, match="no problems"):
        encode_prompts([], tokenizer, max_tokens=3, overlong="drop")


def test_a_conversation_that_the_template_refuses_is_named(tmp_path):
    strict = write_tiny_tokenizer(tmp_path)
    strict.chat_template = "{{ raise_exception('no users here') if messages[0].content == 'bad' else 'ok' }}"
    with pytest.raises(DataError, match="refuses problem 1 .*no users here"):
        encode_prompts([problem_of(0, "x"), problem_of(1, "bad")], strict, max_tokens=9, overlong="error")


@needs_shared
def test_the_training_and_heldout_files_load_in_curriculum_order_without_doubled_backslashes(caplog):
    caplog.set_level(logging.INFO, "jaxgrpo.data.files")
    name = "math__full_difficulty_ordered_test_500.parquet"
    for file, count in ((name, 500), ("math__sampled_1_100_512.parquet", 512)):
        problems = load_problems(str(SHARED / "guru_math" / file))
        raw = pq.read_table(SHARED / "guru_math" / file).to_pylist()
        assert [p.index for p in problems] == list(range(count))
        assert [p.extra_info for p in problems] == [row["extra_info"] for row in raw]
        rates = [p.extra_info["qwen2.5_7b_pass_rate"] for p in problems]
        assert rates == sorted(rates, reverse=True)
        for problem, row in zip(problems, raw, strict=True):
            before = row["reward_model"]["ground_truth"]
            assert "\\\\" not in problem.ground_truth
            assert problem.ground_truth == (before.replace("\\\\", "\\"))
    assert "62 ground truths" in caplog.text and "54 ground truths" in caplog.text


@needs_shared
def test_in_the_large_training_file_only_the_row_breaks_of_matrices_stay_doubled():
    problems = load_problems(str(SHARED / "guru_math" / "math__sampled_1_4_12800.parquet"))
    assert len(problems) == 12_800
    doubled = [p.ground_truth for p in problems if "\\\\" in p.ground_truth]
    assert len(doubled) == 3 and all(t.startswith(r"\begin{pmatrix}") and r" \\ " in t for t in doubled)


@needs_shared
def test_humaneval_prompts_are_the_problem_and_not_the_text_of_a_list():
    problems = load_problems(str(SHARED / "benchmarks" / "codegen__humaneval_164.parquet"))
    raw = pq.read_table(SHARED / "benchmarks" / "codegen__humaneval_164.parquet").to_pylist()
    assert len(problems) == 164
    for problem, row in zip(problems, raw, strict=True):
        (message,) = problem.messages
        assert message["role"] == "user" and message["content"].startswith("Write a complete, self-contained")
        code = re.search(r"```python\n(.*?)\n```", message["content"], re.S).group(1)
        compile(code, "prompt", "exec")
        assert problem.ground_truth == row["reward_model"]["ground_truth"]


@needs_shared
@pytest.mark.parametrize("name", ["aime2024", "amc2023", "gsm8k", "math__math_500", "stem__supergpqa_200"])
def test_the_other_benchmarks_come_through_unchanged(name):
    problems = load_problems(str(SHARED / "benchmarks" / f"{name}.parquet"))
    raw = pq.read_table(SHARED / "benchmarks" / f"{name}.parquet").to_pylist()
    assert [p.ground_truth for p in problems] == [row["reward_model"]["ground_truth"] for row in raw]
    assert [list(p.messages) for p in problems] == [row["prompt"] for row in raw]


@needs_shared
def test_structured_ground_truths_stay_structured():
    problems = load_problems(str(SHARED / "benchmarks" / "logic__zebra_puzzle_dataset_200.parquet"))
    assert len(problems) == 200
    assert all(set(p.ground_truth) == {"header", "rows"} for p in problems)
