"""Data files that break a reader: every one ends in one line with the file, the row and the remedy, whatever reads it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.suite import load_suite
from jaxgrpo.cli import main
from jaxgrpo.data import DataError, load_demonstrations, load_problems
from jaxgrpo.data.files import write_parquet
from jaxgrpo.data.prompts import BOXED, INTRODUCTION
from jaxgrpo.reward.router import known_data_sources

GOOD = {
    "data_source": "math__x",
    "prompt": "What is 1 + 1?",
    "reward_model": {"ground_truth": "2"},
    "qwen2.5_7b_pass_rate": 0.5,
}
RATE = "qwen2.5_7b_pass_rate"


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def truth(value):
    return GOOD | {"reward_model": {"ground_truth": value}}


# (second row, what the message says, whether a reader that writes no parquet file refuses it too)
ODD = {
    "an integer past 2^63": (truth(2**63), ["row 1", "reward_model.ground_truth is 9223372036854775808", "as text"], True),
    "below -2^63": (GOOD | {"extra_info": {"hash": -(2**63) - 1}}, ["row 1", "extra_info.hash", "past 2^63"], True),
    "deep inside": (GOOD | {"extra_info": {"a": [{"b": 2**80}]}}, ["row 1", "extra_info.a.b", "as text"], True),
    "half of a surrogate pair": (GOOD | {"prompt": "a\ud83d?"}, ["row 1", r"prompt holds '\ud83d'", "surrogate"], True),
    "the other half, in a truth": (truth("\udfff"), ["row 1", r"'\udfff'"], True),
    "in a message": (GOOD | {"prompt": [{"role": "user", "content": "\udc00"}]}, ["row 1", "prompt.content"], True),
    "in a field's name": (GOOD | {"extra_info": {"\ud800": 1}}, ["row 1", "a name in extra_info"], True),
    "a rate as text": (GOOD | {RATE: "0.5"}, ["row 1", "pass rate is 0.5, str and no number"], False),
    "a rate in a list": (GOOD | {RATE: [0.5]}, ["row 1", "pass rate is [0.5]"], False),
    "a rate that is true": (GOOD | {RATE: True}, ["row 1", "pass rate is True"], False),
    "a rate in percent": (GOOD | {RATE: 50}, ["row 1", "50, outside [0, 1]", "0.25 for 4 of 16"], False),
    "a rate just above 1": (GOOD | {RATE: 1.0001}, ["row 1", "outside [0, 1]"], False),
    "a negative rate": (GOOD | {RATE: -0.1}, ["row 1", "-0.1, outside"], False),
    "an infinite rate": (GOOD | {"qwen2.5_7b_pass_rate": 1e999}, ["line 2", "Infinity", "write null"], True),
    "a rate of extra_info": ({**GOOD, RATE: None, "extra_info": {RATE: 7}}, ["row 1", "7, outside"], False),
    "NaN": (GOOD | {RATE: float("nan")}, ["line 2", "NaN, which is not JSON", "write null"], True),
    "a number among texts": (
        truth(2),
        ["row 1", "reward_model.ground_truth is an integer (2), but in row 0 it is text"],
        False,
    ),
    "an object among texts": (truth({"a": 1}), ["row 1", "is an object", "files of one kind"], False),
    "an ability that is a number": (GOOD | {"ability": 3}, ["row 1", "ability is an integer"], False),
    "a truth that is a list": (truth(["2"]), ["row 1", "is a list"], False),
    "reward_model as text": (GOOD | {"reward_model": '{"ground_truth": "2"}'}, ["row 1", "reward_model"], True),
    "extra_info as a list": (GOOD | {"extra_info": []}, ["row 1", "extra_info"], True),
    "a role that no template knows": (GOOD | {"prompt": [{"role": "human", "content": "?"}]}, ["row 1", "human"], True),
    "endless nesting": ("[" * 100_000, ["line 2", "nested too deeply"], True),
    "endless digits": ('{"a": ' + "9" * 5000 + "}", ["line 2", "thousands of digits"], True),
    "a number": ("3", ["line 2 is 3", "one JSON object per line"], True),
    "null": ("null", ["line 2 is None"], True),
    "half an object": ('{"prompt": "x', ["line 2 is not JSON"], True),
}


@pytest.mark.parametrize("name", ODD)
def test_prepare_names_file_row_and_remedy_and_writes_nothing(name, tmp_path, capsys):
    row, words, _ = ODD[name]
    path = write(tmp_path / "odd.jsonl", GOOD | {"ability": "math"}, row)
    assert main(["data", "prepare", path, str(tmp_path / "out"), "--heldout", "0"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("jaxgrpo: ") and said.count("\n") == 1
    assert all(word in said for word in [path, *words]), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name, (_, _, everywhere) in ODD.items() if everywhere])
def test_training_files_demonstrations_and_suites_refuse_it_alike(name, tmp_path):
    row, words, _ = ODD[name]
    path = write(tmp_path / "odd.jsonl", GOOD, row)
    with pytest.raises(DataError) as error:
        load_problems(path)
    assert all(word in str(error.value) for word in [path, *words])
    (tmp_path / "s.yaml").write_text("files: [odd.jsonl]")
    with pytest.raises(DataError) as error:
        load_suite(str(tmp_path / "s.yaml")).problems(str(tmp_path))
    assert all(word in str(error.value) for word in words)
    if not isinstance(row, dict) or "prompt" in words[1]:
        shown = row | {"response": "2"} if isinstance(row, dict) else row
        with pytest.raises(DataError) as error:
            load_demonstrations(write(tmp_path / "odd.jsonl", GOOD | {"response": "2"}, shown))
        assert all(word in str(error.value) for word in [path, *words])


def test_reuse_refuses_a_rate_that_is_none_and_a_column_that_cannot_be_one(tmp_path, capsys):
    path = write(tmp_path / "odd.jsonl", GOOD, GOOD | {RATE: 1.5})
    assert main(["data", "reuse", path, str(tmp_path / "out"), "--tau", "1"]) == 1
    assert f"{path}, row 1: the pass rate is 1.5, outside [0, 1]" in capsys.readouterr().err
    path = write(tmp_path / "odd.jsonl", GOOD | {"id": "a"}, GOOD | {"id": 3})
    assert main(["data", "reuse", path, str(tmp_path / "out"), "--tau", "1"]) == 1
    assert f"{path}, row 1: id is an integer (3), but in row 0 it is text" in capsys.readouterr().err


def test_integers_beside_fractions_are_one_column_unless_they_are_too_large_for_it(tmp_path):
    from jaxgrpo.data.values import check_columns

    check_columns([{"a": 1}, {"a": 0.5}, {"a": 2**53}], "f")
    with pytest.raises(DataError, match=r"f, row 1: a is an integer past 2\^53 beside fractions"):
        check_columns([{"a": 0.5}, {"a": 2**53 + 1}], "f")
    with pytest.raises(DataError, match=r"f, row 0: e\.m is an empty object"):
        check_columns([{"e": {"m": {}}}] * 2, "f")
    write_parquet(tmp_path / "a.parquet", [{"a": 1}, {"a": 0.5}, {"a": 2**53}])
    assert pq.read_table(tmp_path / "a.parquet").to_pydict() == {"a": [1.0, 0.5, 2.0**53]}


def test_what_is_harmless_is_read(tmp_path, caplog):
    """A byte order mark, empty lines (which are told), whole integers up to 2^63 - 1, and text outside ASCII."""
    rows = [truth("π"), truth("😀") | {"extra_info": {"hash": 2**63 - 1}}]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\n\n  \n".join(json.dumps(row) for row in rows).encode())
    assert [p.ground_truth for p in load_problems(str(path))] == ["π", "😀"]
    assert f"{path}: 2 empty lines are left out" in caplog.text
    assert main(["data", "prepare", str(path), str(tmp_path / "out"), "--heldout", "0"]) == 0
    (_, second) = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert second["extra_info"]["hash"] == 2**63 - 1


def test_parquet_that_was_cut_anywhere_or_holds_no_text_is_named(tmp_path, capsys):
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD] * 200), whole)
    data = whole.read_bytes()
    for size in (0, 3, 4, len(data) // 2, len(data) - 9, len(data) - 1):
        (tmp_path / "cut.parquet").write_bytes(data[:size])
        assert main(["data", "prepare", str(tmp_path / "cut.parquet"), str(tmp_path / "out")]) == 1
        said = capsys.readouterr().err
        assert "cut.parquet is not readable as parquet" in said and "fetch or write it again" in said
    latin = pa.StringArray.from_buffers(1, pa.array([0, 4], pa.int32()).buffers()[1], pa.py_buffer(b"caf\xe9"))
    table = pa.table({"data_source": ["math__x"], "prompt": latin, "reward_model": [{"ground_truth": "2"}]})
    pq.write_table(table, tmp_path / "latin.parquet")
    with pytest.raises(DataError, match=r"latin\.parquet is not readable as parquet"):
        load_problems(str(tmp_path / "latin.parquet"))


def test_a_missing_rate_of_a_table_counts_as_none(tmp_path, capsys):
    """NaN is how tables write a missing number."""
    rows = [GOOD | {RATE: rate} for rate in (0.25, float("nan"), 0.75)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert main(["data", "prepare", str(tmp_path / "a.parquet"), str(tmp_path / "out"), "--heldout", "0"]) == 0
    assert "1 problems without a pass rate count as hard and come last" in capsys.readouterr().out
    made = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert [row["extra_info"][RATE] for row in made][:2] == [0.75, 0.25]


def test_the_maths_prompt_goes_around_the_users_last_message_of_maths_problems_alone(tmp_path):
    def row(source, *messages):
        prompt = [{"role": role, "content": content} for role, content in messages]
        return GOOD | {"data_source": source, "prompt": prompt}

    dialogue = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi."), ("user", "1 + 1?"), ("assistant", "So")]
    sources = {source: not source.startswith(("stem", "logic", "codegen", "arithmetic")) for source in known_data_sources()}
    rows = [row(source, *dialogue) for source in sources]
    out = tmp_path / "out"
    assert main(["data", "prepare", write(tmp_path / "a.jsonl", *rows), str(out), "--heldout", "0"]) == 0
    for made, (source, is_maths) in zip(pq.read_table(out / "train.parquet").to_pylist(), sources.items(), strict=True):
        contents = [message["content"] for message in made["prompt"]]
        asked = INTRODUCTION + "1 + 1?" + BOXED if is_maths else "1 + 1?"
        assert contents == ["Be brief.", "Hello", "Hi.", asked, "So"], source
        assert (made["ability"] == "math") == is_maths


def test_a_maths_problem_in_which_the_user_says_nothing_is_refused(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", GOOD, GOOD | {"prompt": [{"role": "system", "content": "1 + 1?"}]})
    assert main(["data", "prepare", path, str(tmp_path / "out"), "--heldout", "0"]) == 1
    assert f"{path}, row 1: no message has the role user" in capsys.readouterr().err
