"""`jaxgrpo eval` in real processes: all suites on a tiny model, twice the same, killed half-way, on a run, and on bad input."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.report import scores_by_question
from eval.run import EvaluationError, EvaluationFolder
from eval.sampling import read_records
from jaxgrpo.data import build_tokenizer, load_problems
from tests.data.published import DATA, path
from tests.data.tiny_hf import write_tiny_tokenizer
from tests.model.tiny_hf_model import write_tiny_model
from tests.run.commands import CONFIG, ROOT, SHORT, environment, jaxgrpo

EIGHT = ["heldout", "math_500", "aime2024", "amc2023", "gsm8k", "humaneval", "zebra", "supergpqa"]
FEW = ["eval.samples=2", "eval.limit=6", "rollout.max_new_tokens=24", "rollout.dtype=float32"]


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    return environment(tmp_path_factory.mktemp("xla"), devices=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A random Qwen2.5 model of 100 thousand parameters that knows 4,096 positions."""
    directory = tmp_path_factory.mktemp("tiny-qwen2.5")
    names = ("guru_math/math__sampled_1_100_512", "benchmarks/codegen__humaneval_164")
    texts = [p.messages[-1]["content"] for name in names for p in load_problems(str(path(f"{name}.parquet")))]
    tokenizer = write_tiny_tokenizer(directory, texts, vocab_size=2048)
    sizes = {"vocab": -(-len(tokenizer) // 64) * 64, "layers": 2, "heads": 4, "head_dim": 16, "max_positions": 4096}
    return write_tiny_model(directory, stop_ids=(tokenizer.eos_token_id,), **sizes)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A random model with the built-in task's tokenizer: a token or two of its answers are digits, sometimes the right ones."""
    directory = tmp_path_factory.mktemp("digits")
    tokenizer = build_tokenizer()
    write_tiny_model(directory, vocab=64, layers=2, heads=4, head_dim=16, stop_ids=(tokenizer.eos_token_id,))
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def evaluated(model, env, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("eval") / "out"
    done = jaxgrpo("eval", "--checkpoint", str(model), f"eval.data={DATA}", *FEW, "--out", str(out), env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    (out / "printed.txt").write_text(done.stdout)
    return out


def test_a_tiny_model_goes_through_all_eight_suites(evaluated):
    summary = json.loads((evaluated / "summary.json").read_text())
    assert [suite["name"] for suite in summary["suites"]] == EIGHT
    printed = (evaluated / "printed.txt").read_text()
    assert "sandbox   strong: HumanEval" in printed
    for suite in summary["suites"]:
        assert suite["questions"] + suite["overlong"] == 6 and suite["samples"] == 2
        records = read_records(evaluated / f"{suite['name']}.jsonl")
        assert len(records) == 2 * suite["questions"]
        assert all({"question", "sample", "response", "score", "tokens", "truncated"} <= record.keys() for record in records)
        assert suite["avg"]["value"] == pytest.approx(scores_by_question(records)[1].mean())
        assert suite["avg"]["low"] <= suite["avg"]["value"] <= suite["avg"]["high"]
    assert "cell_accuracy" in read_records(evaluated / "zebra.jsonl")[0]
    overlong = {suite["name"]: suite["overlong"] for suite in summary["suites"]}
    assert overlong["zebra"] > 0  # the prompts of these puzzles have up to 14,000 characters
    report = (evaluated / "report.md").read_text()
    assert f"{overlong['zebra']} of 6 prompts are longer than" in report and "| MATH-500 |" in report
    assert (evaluated / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_a_second_call_asks_nothing_and_a_second_run_says_the_same(evaluated, model, env, tmp_path):
    command = ["eval", "--checkpoint", str(model), f"eval.data={DATA}", *FEW]
    before = {file.name: file.read_bytes() for file in evaluated.iterdir()}
    again = jaxgrpo(*command, "--out", str(evaluated), env=env)
    assert again.returncode == 0 and re.search(r"answers   all [\d,]+ are there from before: nothing is asked", again.stdout)
    assert {file.name: file.read_bytes() for file in evaluated.iterdir()} == before
    other = tmp_path / "other"
    assert jaxgrpo(*command, "--out", str(other), "--suite", "heldout", "aime2024", env=env).returncode == 0
    for name in ("heldout.jsonl", "aime2024.jsonl"):
        assert (other / name).read_bytes() == before[name]
    digests = {EvaluationFolder(folder).settings["weights_digest"] for folder in (evaluated, other)}
    assert len(digests) == 1 and len(digests.pop()) == 32


def test_outcomes_of_other_weights_or_of_nobody_knows_what_are_not_gone_on_with(tmp_path):
    asked = {"model": "model", "samples": 1}
    EvaluationFolder(tmp_path / "a").open(asked | {"weights_digest": "of the old ones"})
    EvaluationFolder(tmp_path / "a").open(asked)  # nothing is missing, and no weights were loaded
    with pytest.raises(EvaluationError, match="weights_digest: of the old ones there, of the new ones here"):
        EvaluationFolder(tmp_path / "a").open(asked | {"weights_digest": "of the new ones"})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "heldout.jsonl").write_text("{}\n")
    with pytest.raises(EvaluationError, match="holds heldout.jsonl, but no settings.json"):
        EvaluationFolder(tmp_path / "b").open(asked)
    assert (tmp_path / "b" / "heldout.jsonl").read_text() == "{}\n"


def test_an_evaluation_killed_half_way_asks_nothing_twice(digits, env, tmp_path):
    command = ["eval", "--checkpoint", str(digits), "--suite", "arithmetic", "eval.samples=24", "eval.temperature=1"]
    command += ["rollout.max_new_tokens=2", "rollout.slots=32", "--out"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert jaxgrpo(*command, str(whole), env=env).returncode == 0
    process = subprocess.Popen([sys.executable, "-m", "jaxgrpo.cli", *command, str(killed)], env=env, cwd=ROOT)
    partial = killed / "arithmetic.partial.jsonl"
    total = 512 * 24
    while len(read_records(partial)) < total // 10:
        assert process.poll() is None, "the evaluation ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = read_records(partial)
    assert total // 10 <= len(kept) < total
    with open(partial, "a") as file:
        file.write('{"question": 3, "sam')  # a line that the kill tore
    going_on = jaxgrpo(*command, str(killed), env=env)
    assert going_on.returncode == 0, going_on.stderr
    assert (killed / "arithmetic.jsonl").read_bytes() == (whole / "arithmetic.jsonl").read_bytes()
    assert not partial.exists()
    records = read_records(killed / "arithmetic.jsonl")
    assert len({(record["question"], record["sample"]) for record in records}) == len(records) == total
    by_place = {(record["question"], record["sample"]): record for record in records}
    assert all(by_place[record["question"], record["sample"]] == record for record in kept)
    assert 0.001 < sum(record["score"] for record in records) / total < 0.5  # right and wrong answers, not all of one kind


def test_another_evaluation_does_not_mix_with_this_one(digits, env, tmp_path):
    command = ["eval", "--checkpoint", str(digits), "--suite", "arithmetic", "eval.limit=8", "--out", str(tmp_path)]
    short = ["rollout.max_new_tokens=8"]
    assert jaxgrpo(*command, *short, env=env).returncode == 0
    mixed = jaxgrpo(*command, *short, "seed=1", "eval.temperature=0", env=env)
    assert mixed.returncode == 2 and "seed: 0 there, 1 here; temperature: 0.7 there, 0" in mixed.stderr
    assert "choose another --out" in mixed.stderr


def test_two_models_are_compared_on_the_same_questions(digits, env, tmp_path):
    command = ["eval", "--checkpoint", str(digits), "--suite", "arithmetic", "rollout.max_new_tokens=2", "eval.samples=8"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert jaxgrpo(*command, "--out", str(first), env=env).returncode == 0
    done = jaxgrpo(*command, "--out", str(second), "seed=1", "--compare", str(first), env=env)
    assert done.returncode == 0, done.stderr
    (suite,) = json.loads((second / "summary.json").read_text())["suites"]
    means = [scores_by_question(EvaluationFolder(folder).outcomes("arithmetic"))[1].mean() for folder in (first, second)]
    comparison = suite["comparison"]
    assert comparison["difference"]["value"] == pytest.approx(means[1] - means[0])
    assert comparison["difference"]["low"] < 0 < comparison["difference"]["high"]  # one model, two seeds
    assert comparison["p_value"] > 0.001
    assert "Differences are to" in (second / "report.md").read_text()


def test_a_run_is_evaluated_at_its_newest_step_as_its_own_evaluation_was(env, tmp_path):
    run = tmp_path / "run"
    suites = ["eval.suites=[arithmetic]", "eval.suites_every=3"]
    done = jaxgrpo("train", CONFIG, *SHORT, *suites, "eval.limit=32", "train.steps=4", f"run_dir={run}", env=env)
    assert done.returncode == 0, done.stderr
    assert "suites    arithmetic 32 questions, every 3 steps" in done.stdout
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics if "suite_arithmetic" in m] == [0, 3, 4]
    for step in (0, 3, 4):
        records = read_records(run / "eval" / f"arithmetic-{step}.jsonl")
        assert len(records) == 32
        score = sum(record["score"] for record in records) / 32
        assert metrics[step]["suite_arithmetic"] == pytest.approx(score)
    evaluated = jaxgrpo("eval", f"{run}/config.yaml", env=env)
    assert evaluated.returncode == 0, evaluated.stderr
    assert (run / "evaluations" / "4" / "arithmetic.jsonl").exists()
    assert f"{run}/checkpoints/4" in evaluated.stdout
    theirs, ours = (read_records(run / f) for f in ("eval/arithmetic-4.jsonl", "evaluations/4/arithmetic.jsonl"))
    assert [r["question"] for r in ours] == sorted(r["question"] for r in theirs)
    same = sum(a == b for a, b in zip(ours, sorted(theirs, key=lambda r: r["question"]), strict=True))
    assert same >= 30  # the same keys and weights; a token may flip where another number of slots rounds otherwise


def suite_file(tmp_path: Path, row: dict) -> str:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" if row else "")
    (tmp_path / "own.yaml").write_text("files: [rows.jsonl]\ntitle: own\n")
    return str(tmp_path / "own.yaml")


GOOD = {"data_source": "math__x", "prompt": "What is 1 + 1?", "reward_model": {"ground_truth": "2"}}
CODE = GOOD | {"data_source": "codegen__humaneval", "reward_model": {"ground_truth": {"functional": "\ncheck(f)"}}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "has no rows"),
        ({"prompt": "What?"}, "no column data_source, reward_model"),
        (GOOD | {"data_source": "poetry__x"}, "no grader for data_source 'poetry__x'; known: arithmetic"),
        (GOOD | {"reward_model": {"ground_truth": "$$"}}, r"problem 0 \(math__x\): the ground truth is empty"),
        (GOOD | {"data_source": "stem__supergpqa"}, "must be one letter A-J, got '2'"),
        (GOOD | {"data_source": "logic__zebra_puzzle"}, "problem 0"),
        (GOOD | {"data_source": "codegen__humaneval"}, r"tests that end with check\(NAME\)"),
        (GOOD | {"prompt": "1 + 1 " * 4000}, "longer than .* tokens"),
    ],
)
def test_questions_that_cannot_be_asked_or_graded_are_refused_before_any_work(row, message, model, tmp_path):
    import re

    from jaxgrpo.errors import UserError
    from jaxgrpo.train.evaluation import evaluate, find_model

    served = find_model(None, str(model), [f"eval.data={tmp_path}"])
    with pytest.raises(UserError) as caught:
        evaluate(served, [suite_file(tmp_path, row)], str(tmp_path / "out"), None)
    assert re.search(message, str(caught.value)), caught.value
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "either a CONFIG or a --checkpoint"),
        (["--checkpoint", "/nowhere/model"], 1, "/nowhere/model"),
        (["--checkpoint", "MODEL", "--suite", "mmlu"], 1, "there is no suite 'mmlu'"),
        (["--checkpoint", "MODEL", "optim.lr=1"], 2, "optim.lr means nothing to an evaluation"),
        (["--checkpoint", "MODEL", "--suite", "arithmetic", "--compare", "/nowhere"], 2, "/nowhere holds no evaluation"),
        (["--checkpoint", "MODEL", "eval.data=/nowhere", "--suite", "heldout"], 1, "set eval.data to its folder"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused_with_the_remedy(arguments, code, message, digits, env, tmp_path):
    done = jaxgrpo("eval", *(str(digits) if a == "MODEL" else a for a in arguments), env=env)
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_where_no_sandbox_can_start_code_is_refused_unless_the_weak_one_is_asked_for(model, env, tmp_path):
    """In a user namespace that may not have further ones, which is how a locked-down machine looks."""
    suite, out = suite_file(tmp_path, CODE), tmp_path / "out"
    command = [sys.executable, "-m", "jaxgrpo.cli", "eval", "--checkpoint", str(model), "--suite", suite]
    command += [f"eval.data={tmp_path}", "--out", str(out), *FEW]
    forbidden = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    locked = ["unshare", "-Ur", "sh", "-c", forbidden, "sh", *command]
    refused = subprocess.run(locked, env=env, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 1 and not out.exists()
    assert "code cannot be run in the strong sandbox here" in refused.stderr and "reward.sandbox=weak" in refused.stderr
    weak = subprocess.run([*locked, "reward.sandbox=weak"], env=env, cwd=ROOT, capture_output=True, text=True)
    assert weak.returncode == 0, weak.stderr
    assert "sandbox   weak: own" in weak.stdout


@pytest.mark.slow
def test_graders_that_fail_are_told_with_an_example(model, env, tmp_path):
    """The limit on time is one that no answer can keep."""
    few = ["eval.limit=3", "rollout.max_new_tokens=8", "rollout.dtype=float32", "reward.wall_seconds=1e-6"]
    asked = ("eval", "--checkpoint", str(model), "--suite", "gsm8k", f"eval.data={DATA}", *few)
    for attempt in range(2):  # the second finds the suite complete
        done = jaxgrpo(*asked, "--out", str(tmp_path / "out"), env=env, timeout=600)
        assert done.returncode == 0, done.stderr
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("WARNING"))
        assert "GSM8K: the grader failed on 3 of 3 answers (100%), which earn 0; one of them: problem " in line, attempt
        assert "wall limit of 1e-06 s exceeded, answer '" in line
