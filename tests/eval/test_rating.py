"""`jaxgrpo data rate` on a random model that knows the digits: its rates, its answers, and what goes on after a kill."""

import json

import pyarrow.parquet as pq
import pytest

from jaxgrpo.cli import main
from jaxgrpo.data import build_tokenizer, training_problems
from jaxgrpo.reward import score
from tests.model.tiny_hf_model import write_tiny_model

COUNT, SAMPLES = 24, 8
KEYS = ["eval.temperature=1", "rollout.max_new_tokens=1", "rollout.dtype=float32", "reward.workers=1", "rollout.slots=64"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and problems whose answers are single digits."""
    folder = tmp_path_factory.mktemp("rating")
    tokenizer = build_tokenizer()
    write_tiny_model(folder / "model", vocab=64, layers=1, heads=2, head_dim=16, stop_ids=(tokenizer.eos_token_id,))
    tokenizer.save_pretrained(folder / "model")
    rows = [
        {
            "data_source": p.data_source,
            "prompt": list(p.messages),
            "reward_model": {"ground_truth": p.ground_truth},
            "id": p.index,
        }
        for p in training_problems(0, 0, COUNT)
    ]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rate(folder, out):
    command = ["data", "rate", str(folder / "mine.jsonl"), "--model", str(folder / "model"), "--samples", str(SAMPLES)]
    return main([*command, "--out", str(out), *KEYS])


def test_rates_are_the_shares_of_right_answers_and_a_killed_rating_asks_nothing_twice(folder, tmp_path, capsys):
    out, answers = tmp_path / "rated.parquet", tmp_path / "rated.answers"
    assert rate(folder, out) == 0
    said = capsys.readouterr().out
    assert f"{COUNT} problems, {SAMPLES} answers each" in said and f"jaxgrpo data prepare {out} OUT_DIR" in said
    rows = pq.read_table(out).to_pylist()
    given = [json.loads(line) for line in (answers / "problems.jsonl").read_text().splitlines()]
    assert len(given) == COUNT * SAMPLES
    for number, row in enumerate(rows):
        truth = row["reward_model"]["ground_truth"]
        right = [score("arithmetic", g["response"], truth) for g in given if g["question"] == number]
        assert row["id"] == number and row["pass_rate"] == sum(right) / SAMPLES
        assert (row["pass_rate_model"], row["pass_rate_samples"]) == (str(folder / "model"), SAMPLES)
    whole = (answers / "problems.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (answers / "problems.jsonl").unlink()
    (answers / "problems.partial.jsonl").write_bytes(b"".join(lines[:100]) + lines[100][:9])
    written = out.read_bytes()
    out.unlink()
    assert rate(folder, out) == 0
    assert f"100 of {COUNT * SAMPLES}" in capsys.readouterr().out.replace(",", "")
    assert (answers / "problems.jsonl").read_bytes() == whole and out.read_bytes() == written
    assert main(["data", "prepare", str(out), str(tmp_path / "data"), "--heldout", "4"]) == 0
    made = [row["extra_info"] for row in pq.read_table(tmp_path / "data" / "train.parquet").to_pylist()]
    rates = [info["pass_rate"] for info in made]
    assert rates == sorted(rates, reverse=True) and {info["pass_rate_model"] for info in made} == {str(folder / "model")}
    assert (
        main(["data", "rate", str(folder / "mine.jsonl"), "--model", str(folder / "model"), "--out", str(out), "seed=1"]) == 2
    )
    assert "choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "0"], "--samples 0 is below 1"),
        (["--out", "rated.csv"], "does not end in .parquet"),
        (["--template", "x"], "--template x"),
        (["eval.limit=3"], "eval.limit means nothing"),
        (["optim.lr=1"], "optim.lr means nothing"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(arguments, message, folder, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command = ["data", "rate", str(folder / "mine.jsonl"), "--model", str(folder / "model")]
    assert main([*command, *arguments]) in (1, 2)
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_problem_without_a_grader_is_refused_before_a_token_is_sampled(folder, tmp_path, capsys):
    row = {"data_source": "poetry__x", "prompt": "Rhyme.", "reward_model": {"ground_truth": "thyme"}}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["data", "rate", str(tmp_path / "mine.jsonl"), "--model", str(folder / "model")]) == 1
    assert "no grader for data_source 'poetry__x'" in capsys.readouterr().err
