import json
import time

import pytest

from jaxgrpo.data import load_problems
from jaxgrpo.reward import Grade, GraderPool, score
from jaxgrpo.reward.humaneval import solution
from tests.data.published import path
from tests.data.published import published as rows
from tests.reward.humaneval_solutions import HELPED, SOLUTIONS, TESTS, response

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


FENCED = {
    "indented": f"1. So:\n\n    ```python\n{ADD}\n    ```",
    "indented with its code": "1.  So:\n    ```python\n    def add(a, b):\n        return a + b\n    ```\n",
    "in a list item": "- ```python\n  def add(a, b):\n      return a + b\n  ```\n",
    "four backticks": f"````python\n{ADD}\n````",
    "four around three": f"````markdown\n```python\n{ADD}\n```\n````",
    "longer at its end": f"```python\n{ADD}\n`````",
    "tildes": f"~~~python\n{ADD}\n~~~",
    "tildes around backticks": f"~~~~py\n{ADD}  # not ```\n~~~~",
    "carriage returns": f"So:\r\n```python\r\n{ADD}\r\n```\r\n".replace("add(a, b):\n", "add(a, b):\r\n"),
    "old line ends": f"So:\r```python\r{ADD}\r```\r".replace("\n", "\r"),
    "opened behind text": f"The code is: ```python\n{ADD}\n```",
    "closed behind code": f"```python\n{ADD}```\nDone.",
    "closed before text": f"```python\n{ADD}\n``` This is linear.",
    "code behind the tag": f"```python {ADD}\n```",
    "code behind the fence": f"So ```{ADD}\n```",
    "in one line": "Use ```python def add(a, b): return a + b``` here.",
    "in one line without a tag": "Use ```def add(a, b): return a + b``` here.",
    "tag code": f"```code\n{ADD}\n```",
    "tag py": f"```py\n{ADD}\n```",
    "tag python3": f"```python3\n{ADD}\n```",
    "tag Python 3.11": f"```Python3.11\n{ADD}\n```",
    "tag in braces": f"```{{.python .numberLines}}\n{ADD}\n```",
    "tag with a blank": f"```  python  \n{ADD}\n```",
    "no tag": f"```\n{ADD}\n```",
    "a fence in a sentence": f"I put it in ``` marks.\n```python\n{ADD}\n```",
    "a fence in a string": '```python\ndef add(a, b):\n    """\n    ```\n    add(1)\n    ```\n    """\n    return a + b\n```',
    "the fence before not closed": f"```python\nimport os\n```python\n{ADD}\n```",
    "helpers before": "```python\nimport operator\n\ndef plus(a, b):\n    return operator.add(a, b)\n```\nThen\n"
    "```python\ndef add(a, b):\n    return plus(a, b)\n```",
    "helpers before among what fails": "```python\nimport nothing\nPLUS = 1\nassert PLUS == 2\n"
    "def plus(a, b):\n    return a + b\n```\n```python\ndef add(a, b):\n    return plus(a, b) * PLUS\n```",
    "a block before that is no Python": f"```\npip install x\n```\n```python\n{ADD}\n```",
    "a future import": f"```python\nfrom __future__ import annotations\n{ADD}\n```",
}


@pytest.mark.parametrize("text", FENCED.values(), ids=FENCED)
def test_code_is_found_however_it_is_fenced(text):
    assert score(SOURCE, text, TESTS, {"prefix": "import math\n\n\n"}) == 1.0
    wrong = text.replace("a + b", "a - b").replace("operator.add", "operator.sub")
    assert wrong != text and score(SOURCE, wrong, TESTS, {"prefix": "import math\n\n\n"}) == 0.0


@pytest.mark.parametrize(
    "body",
    [
        "    return a + b",
        "return a + b",
        "\treturn a + b",
        "    total = a\n    total += b\n    return total",
        "total = a\n    total += b\n    return total",
        "for x in (b,):\n        a += x\n    return a",
        "for x in (b,):\n    a += x\nreturn a",
        "if a:\n    return a + b\nreturn b",
    ],
)
def test_a_body_alone_stands_under_the_signature_of_the_prompt(body):
    head = 'def add(a, b):\n    """Their sum."""\n'
    assert score(SOURCE, response(body), TESTS, {"prefix": "import math\n", "signature": head}) == 1.0
    assert score(SOURCE, response(body.replace("b", "c")), TESTS, {"prefix": "import math\n", "signature": head}) == 0.0


def test_a_prefix_may_end_with_the_signature_and_a_body_needs_one():
    prefix, body = 'import math\n\n\ndef add(a, b):\n    """Their sum."""\n', response("    return int(math.fsum((a, b)))")
    assert score(SOURCE, body, TESTS, {"prefix": prefix}) == 1.0
    assert score(SOURCE, body, TESTS, {"prefix": "import math\n"}) == score(SOURCE, body, TESTS) == 0.0
    assert score(SOURCE, response(ADD), TESTS, {"prefix": "def add(a, b):\n"}) == 1.0


def test_what_precedes_the_function_in_the_prompt_comes_with_the_row(problems):
    filled = [problem for problem in problems if problem.extra_info["prefix"]]
    assert len(filled) == 26
    for problem in problems:
        prefix, signature = problem.extra_info["prefix"], problem.extra_info["signature"]
        name = json.loads(problem.ground_truth)["functional"].rsplit("check(", 1)[1].split(")")[0]
        assert f"def {name}(" in signature.splitlines()[0] and f"def {name}(" not in prefix
        assert f"{prefix}{signature}" in problem.messages[-1]["content"]
        compile(f"{prefix}{signature}    pass\n", "prompt", "exec")
    assert [problems[i].extra_info["prefix"].count("def ") for i in (32, 38, 50)] == [1, 1, 1]


@pytest.mark.parametrize("number", HELPED)
def test_tests_that_call_a_helper_of_the_prompt_find_it(problems, number):
    body, wrong, cheat = HELPED[number]
    problem = problems[number]
    signature, before = problem.extra_info["signature"], problem.extra_info["prefix"]
    answers = [signature + body, body, before + signature + body, f"{signature}{wrong}", wrong, f"{cheat}\n{signature}{wrong}"]
    grades = [score(SOURCE, response(answer), problem.ground_truth, problem.extra_info) for answer in answers]
    assert grades == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "text",
    [
        "```x\n" * 250_000,
        "``` " * 250_000,
        "``` ~~~ " * 120_000,
        "".join(f"{'`' * (3 + i % 1400)} x\n" for i in range(1400)),
        "```" + " " * 500_000 + "python" + " " * 500_000 + "!",
        "```python\n" + '"""```\n' * 140_000,
    ],
    ids=range(6),
)
def test_the_search_for_fences_is_linear(text):
    """An operation each for the characters of a megabyte takes a second at most; their square would take hours."""
    started = time.process_time()
    assert solution(text, "f", "def f():") is None or "return" in text
    assert time.process_time() - started < 5.0


def test_indented_fences_and_several_functions():
    assert solution("1. So:\n   ```python\ndef f(): return 1\n   ```", "f") == "def f(): return 1\n"
    assert solution("```python\ndef f(): pass\n```\n```python\ndef g(): pass\n```", "f") == "def f(): pass\n"
    assert solution("```python\n# def f\n```", "f") is None


@pytest.mark.parametrize("gold", ["", "{}", "[1]", '{"functional": "assert True"}', '{"functional": 5}', None, {"inputs": []}])
def test_a_ground_truth_without_tests_is_an_error(gold):
    with pytest.raises(ValueError, match="humaneval: the ground truth"):
        score(SOURCE, response(ADD), gold)
