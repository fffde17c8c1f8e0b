import json

import pytest

from jaxgrpo.data import load_problems
from jaxgrpo.reward import Grade, GraderPool, score
from jaxgrpo.reward.humaneval import solution
from tests.data.published import path
from tests.data.published import published as rows
from tests.reward.humaneval_solutions import SOLUTIONS, TESTS, response

SOURCE = "codegen__humaneval"
ADD = "def add(a, b):\n    return a + b"


@pytest.fixture(scope="module")
def problems():
    return load_problems(str(path("benchmarks/codegen__humaneval_164.parquet")))


def test_solutions_pass_and_their_mutants_fail(problems):
    assert len(SOLUTIONS) >= 10
    items, wanted = [], []
    for number, (program, mutations) in SOLUTIONS.items():
        problem = problems[number]
        programs = [program]
        for text, replacement in mutations:
            assert program.count(text) >= 1, (number, text)
            programs.append(program.replace(text, replacement))
        items += [(SOURCE, response(p), problem.ground_truth, problem.extra_info) for p in programs]
        wanted += [1.0] + [0.0] * len(mutations)
    with GraderPool() as pool:
        grades = pool.grade(items)
    wrong = [item[1] for item, grade, value in zip(items, grades, wanted, strict=True) if grade != Grade(value)]
    assert wrong == []


def test_every_published_test_program_names_its_function_which_the_prompt_defines(problems):
    for problem, row in zip(problems, rows("benchmarks/codegen__humaneval_164.parquet"), strict=True):
        assert score(SOURCE, "no code", row["reward_model"]["ground_truth"]) == 0.0
        name = json.loads(problem.ground_truth)["functional"].rsplit("check(", 1)[1].split(")")[0]
        assert f"def {name}(" in problem.messages[-1]["content"]


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (response(ADD), 1.0),
        (f"```\n{ADD}\n```", 1.0),
        (f"```Python\n{ADD}\n```", 1.0),
        (f"```py title=add.py\n{ADD}\n```", 1.0),
        (f"<think>```python\n{ADD}\n```</think> I do not know.", 0.0),
        (f"<think>hm</think>\n```python\n{ADD}\n```", 1.0),
        (ADD, 0.0),
        (f"```python\n{ADD}", 0.0),
        (f"```bash\n{ADD}\n```", 0.0),
        (response("def add(a, b):\n    return a - b") + response(ADD), 1.0),
        (response(ADD) + response("def add(a, b):\n    return a - b"), 0.0),
        (response(ADD) + response("print(add(1, 2) == 3)\nassert False"), 1.0),
        (response("add = lambda a, b: a + b"), 1.0),
        (response("def added(a, b):\n    return a + b"), 0.0),
        (response(f"{ADD}\n\nif __name__ == '__main__':\n    raise SystemExit(1)"), 1.0),
        (response(f"{ADD}\nraise SystemExit(0)"), 0.0),
        (response(f"import os\n{ADD}\nos._exit(0)"), 0.0),
        (response(f"from __future__ import annotations\n{ADD}"), 1.0),
        (response("def add(a, b):\n    while True: pass"), 0.0),
        (response(ADD + "\n" + "#" * 200_000), 0.0),
        ("", 0.0),
    ],
)
def test_the_last_block_that_defines_the_function_is_run(text, reward):
    assert score(SOURCE, text, TESTS) == reward


def test_indented_fences_and_several_functions():
    assert solution("1. So:\n   ```python\ndef f(): return 1\n   ```", "f") == "def f(): return 1\n"
    assert solution("```python\ndef f(): pass\n```\n```python\ndef g(): pass\n```", "f") == "def f(): pass\n"
    assert solution("```python\n# def f\n```", "f") is None


@pytest.mark.parametrize("gold", ["", "{}", "[1]", '{"functional": "assert True"}', '{"functional": 5}', None, {"inputs": []}])
def test_a_ground_truth_without_tests_is_an_error(gold):
    with pytest.raises(ValueError, match="humaneval: the ground truth"):
        score(SOURCE, response(ADD), gold)
