"""`jaxgrpo check` on a real run: a line for every part, exit code 1 for whatever is damaged, and runs of before."""

import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.cli import main
from jaxgrpo.train.check import findings
from jaxgrpo.train.checkpoint import save_params


@pytest.fixture
def run(whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    return tmp_path / "run"


def rewritten(file, change) -> None:
    file.write_bytes(change(file.read_bytes()))


def in_the_middle(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


def largest(folder):
    return max((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)


def without_line(number: int):
    return lambda data: b"".join(line for n, line in enumerate(data.splitlines(keepends=True), 1) if n != number)


def test_a_whole_run_is_sound_and_every_part_has_its_line(run, capsys):
    assert main(["check", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    parts = [line.removeprefix("sound     ").partition(": ")[0] for line in lines[:-1]]
    assert all(line.startswith("sound     ") for line in lines[:-1])
    steps = [f"checkpoints/{step}/{item}" for step in (4, 6) for item in ("params", "opt_state", "meta", "metrics")]
    evaluations = [f"eval/heldout-{step}.jsonl" for step in (0, 2, 4, 6)]
    assert parts[: len(steps) + 7] == ["config.yaml", *steps, "warm_start", "metrics.jsonl", *evaluations]
    assert {"model/config.json", "model/tokenizer.json", "model/chat_template.jinja"} <= set(parts)
    assert lines[-1] == f"all {len(parts)} parts of {run} are sound"
    assert re.search(r"checkpoints/6/params: 14 arrays, 0\.4 MiB, with their checksums", "\n".join(lines))
    assert main(["check", str(run / "checkpoints"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sound"] and [finding["what"] for finding in told["findings"]] == [
        s.removeprefix("checkpoints/") for s in steps
    ]
    assert main(["check", str(run / "checkpoints" / "6")]) == 0


@pytest.mark.parametrize(
    ("part", "damage", "said"),
    [
        ("config.yaml", lambda run: (run / "config.yaml").unlink(), "is missing"),
        ("config.yaml", lambda run: rewritten(run / "config.yaml", lambda data: data.replace(b"lr:", b"1r:")), "1r"),
        ("checkpoints/4/params", lambda run: rewritten(largest(run / "checkpoints/4/params"), in_the_middle), "1 of 14 arrays"),
        ("checkpoints/4/opt_state", lambda run: rewritten(largest(run / "checkpoints/4/opt_state"), in_the_middle), "1 of 30"),
        ("checkpoints/4/opt_state", lambda run: shutil.rmtree(run / "checkpoints/4/opt_state"), "is missing"),
        ("warm_start", lambda run: rewritten(largest(run / "warm_start"), in_the_middle), "1 of 14 arrays cannot be read"),
        ("checkpoints/6/meta", lambda run: rewritten(run / "checkpoints/6/meta/metadata", in_the_middle), ""),
        ("checkpoints/6/metrics", lambda run: rewritten(run / "checkpoints/6/metrics/metrics", in_the_middle), ""),
        ("checkpoints/5/meta", lambda run: shutil.move(run / "checkpoints/6", run / "checkpoints/5"), "is of step 6, its"),
        ("metrics.jsonl", lambda run: rewritten(run / "metrics.jsonl", without_line(3)), "no line of step 2"),
        ("metrics.jsonl", lambda run: rewritten(run / "metrics.jsonl", without_line(7)), "no line of step 6"),
        ("metrics.jsonl", lambda run: (run / "metrics.jsonl").write_bytes(b""), "no line of step 0 to 6"),
        ("metrics.jsonl", lambda run: (run / "metrics.jsonl").unlink(), "is missing"),
        ("eval/heldout-4.jsonl", lambda run: rewritten(run / "eval/heldout-4.jsonl", without_line(9)), "holds 63 questions"),
        ("eval/heldout-4.jsonl", lambda run: (run / "eval/heldout-4.jsonl").unlink(), "is missing"),
        ("model/tokenizer.json", lambda run: rewritten(run / "model/tokenizer.json", in_the_middle), ""),
        ("model/config.json", lambda run: (run / "model/config.json").unlink(), "is missing"),
    ],
)  # fmt: skip
def test_whatever_is_damaged_is_named_with_what_to_do(part, damage, said, run, capsys):
    damage(run)
    assert main(["check", str(run), "--json"]) == 1
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert not told["sound"] and re.fullmatch(r"jaxgrpo: [12] of \d+ parts of .* damaged\.\n", printed.err)
    damaged = {finding["what"]: finding for finding in told["findings"] if not finding["sound"]}
    assert part in damaged and said in damaged[part]["said"] and damaged[part]["remedy"]
    assert set(damaged) <= {part, "metrics.jsonl"}


def test_a_place_without_a_run_is_bad_usage(tmp_path, capsys):
    for place in (tmp_path, tmp_path / "nothing"):
        assert main(["check", str(place)]) == 2
        assert "holds no run and no checkpoint" in capsys.readouterr().err


def test_arrays_of_many_chunks_and_scalars_are_read_through(tmp_path):
    """An array that many devices wrote, a scalar, and bfloat16; where one chunk is damaged its array is named."""
    params = {"big": jnp.asarray(np.random.default_rng(0).normal(size=(64, 700)), jnp.bfloat16), "one": jnp.float32(3)}
    step = tmp_path / "checkpoints" / "3"
    save_params(step / "params", params)
    (found,) = findings(step)
    assert found.sound and found.said.startswith("2 arrays, 0.1 MiB, with their checksums")
    rewritten(largest(step / "params"), in_the_middle)
    (found,) = findings(step)
    assert not found.sound and found.said.startswith("1 of 2 arrays cannot be read: big (")
