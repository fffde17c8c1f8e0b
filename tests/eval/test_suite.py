import json

import pytest

from eval.suite import known_suites, load_suite
from jaxgrpo.data import DataError
from jaxgrpo.data.prompts import INTRODUCTION
from jaxgrpo.reward.router import grader_of
from tests.data.published import DATA, path, published

SIZES = {
    "heldout": 500, "math_500": 500, "aime2024": 30, "amc2023": 40, "gsm8k": 1319, "humaneval": 164, "zebra": 200,
    "supergpqa": 200, "arithmetic": 512,
}  # fmt: skip


def test_the_papers_eight_suites_and_the_built_in_one_are_there():
    assert set(known_suites()) == set(SIZES)
    for name in known_suites():
        suite = load_suite(name)
        assert suite.name == name and suite.title and (suite.hub or name in ("heldout", "arithmetic"))


@pytest.mark.parametrize("name", SIZES)
def test_a_suite_finds_its_problems_which_have_a_grader(name):
    path("benchmarks/gsm8k.parquet")
    problems = load_suite(name).problems(str(DATA))
    assert len(problems) == SIZES[name]
    for problem in problems:
        assert grader_of(problem.data_source).grade("", problem.ground_truth, problem.extra_info) == 0.0
        assert not problem.messages[0]["content"].startswith("[{")


@pytest.mark.parametrize(
    ("name", "file", "ending"),
    [
        ("gsm8k", "gsm8k", r" Please solve step by step and put your final answer within \boxed{}."),
        ("aime2024", "aime2024", r" Please solve step by step and put your final answer within \boxed{}."),
        ("amc2023", "amc2023", r" Please output the final answer within \boxed{}."),
    ],
)
def test_bare_questions_are_asked_as_in_the_published_files(name, file, ending, tmp_path):
    rows = published(f"benchmarks/{file}.parquet")
    suite = load_suite(name)
    with open(tmp_path / "raw.jsonl", "w") as out:
        for row in rows:
            question = row["prompt"][0]["content"].removeprefix(INTRODUCTION).removesuffix(ending)
            answer = ("Reasoning. #### " if suite.answer_after else "") + row["reward_model"]["ground_truth"]
            out.write(json.dumps({suite.question: question, suite.answer: answer}) + "\n")
    raw = tmp_path / f"{name}.yaml"
    raw.write_text((load_suite_file(name)).replace(f"{file}.parquet", "raw.jsonl"))
    for problem, row in zip(load_suite(str(raw)).problems(str(tmp_path)), rows, strict=True):
        assert problem.messages[0]["content"] == row["prompt"][0]["content"]
        assert (problem.ground_truth, problem.data_source) == (row["reward_model"]["ground_truth"], row["data_source"])


def load_suite_file(name: str) -> str:
    from eval import suite

    return (suite._FOLDER / f"{name}.yaml").read_text()


def test_a_new_suite_is_a_file(tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"q": "What is 1 + 1?", "a": 2}) + "\n")
    file = tmp_path / "mine.yaml"
    file.write_text(
        "files: [mine.jsonl]\nquestion: q\nanswer: a\nprompt: 'Hm. {question} {\\boxed{}}'\ndata_source: math__mine\n"
    )
    suite = load_suite(str(file))
    (problem,) = suite.problems(str(tmp_path))
    assert (suite.name, suite.title) == ("mine", "mine")
    assert problem.messages[0]["content"] == r"Hm. What is 1 + 1? {\boxed{}}"
    assert problem.ground_truth == "2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x", "neither files nor a hub id"),
        ("files: [a]\nfile: b", "unexpected keyword argument 'file'"),
        ("files: [a]\nquestion: q", "belong together"),
        ("files: [a]\nquestion: q\nanswer: a\nprompt: p\ndata_source: d", "no {question}"),
        ("files: [a", "suite file"),
        ("- a", "suite file"),
    ],
)
def test_a_malformed_suite_file_is_refused(text, message, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        load_suite(str(file))


def test_an_unknown_suite_names_the_nearest_or_all():
    with pytest.raises(DataError, match="did you mean math_500"):
        load_suite("math500")
    with pytest.raises(DataError, match="the suites are aime2024, amc2023"):
        load_suite("mmlu")
    with pytest.raises(DataError, match=r"there is no heldout\.parquet or .* in /nowhere; .*eval\.data"):
        load_suite("heldout").problems("/nowhere")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "has no rows"),
        ('{"prompt": "What?", "data_source": "math__x"}', "row 0 has no column reward_model"),
        ('{"question": "What?"}', "row 0 has no column data_source, prompt, reward_model"),
    ],
)
def test_an_empty_suite_and_missing_columns_are_refused(rows, message, tmp_path):
    (tmp_path / "r.jsonl").write_text(rows)
    (tmp_path / "s.yaml").write_text("files: [r.jsonl]")
    with pytest.raises(DataError, match=message):
        load_suite(str(tmp_path / "s.yaml")).problems(str(tmp_path))
