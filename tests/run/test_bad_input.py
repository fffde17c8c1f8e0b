import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgrpo.cli import main
from tests.data.tiny_hf import write_tiny_tokenizer
from tests.model.tiny_hf_model import write_tiny_model
from tests.run.commands import CONFIG, ROOT, SHORT, jaxgrpo, untimed_metrics


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tokenizer = write_tiny_tokenizer(directory)
    sizes = {"vocab": -(-len(tokenizer) // 64) * 64, "layers": 2, "heads": 4, "head_dim": 16, "max_positions": 2048}
    write_tiny_model(directory, stop_ids=(tokenizer.eos_token_id,), **sizes)
    return directory


def problem_file(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(text: str = "What is 1 + 1?") -> dict:
    return {
        "data_source": "math__test",
        "prompt": [{"role": "user", "content": text}],
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {},
    }


def refused(capsys, run_dir: Path, *overrides: str) -> tuple[int, str]:
    """Exit code and the one line that a refused command prints."""
    code = main(["train", CONFIG, *SHORT, f"run_dir={run_dir}", *overrides])
    message = capsys.readouterr().err.strip()
    assert message.startswith("jaxgrpo: ")
    assert len(message.splitlines()) == 1, message
    return code, message


def test_an_unknown_key_names_the_nearest_one(capsys, tmp_path):
    code, message = refused(capsys, tmp_path / "run", "optim.learning_rte=1e-3")
    assert code == 2
    assert "optim.learning_rte" in message
    code, message = refused(capsys, tmp_path / "run", "rollout.temprature=0.5")
    assert code == 2
    assert "did you mean rollout.temperature?" in message


def test_a_batch_that_does_not_divide_says_which_would(capsys, tmp_path):
    code, message = refused(capsys, tmp_path / "run", "train.minibatch_prompts=5")
    assert code == 2
    assert "data.prompts_per_step=16" in message
    assert "train.minibatch_prompts=4" in message


def test_a_mesh_that_does_not_fit_the_devices_says_how_many_there_are(capsys, tmp_path):
    code, message = refused(capsys, tmp_path / "run", "mesh.fsdp=3")
    assert code == 2
    assert "needs 3 devices, there are 8" in message


def test_a_missing_model_names_the_ways_to_give_one(capsys, tmp_path):
    code, message = refused(capsys, tmp_path / "run", f"model={tmp_path / 'nowhere'}")
    assert code == 1
    assert "nowhere" in message
    assert list(tmp_path.iterdir()) == [], "the folder that held the lock is gone again"


def test_a_run_is_not_converted_but_named_as_a_model(capsys, whole_run, tmp_path):
    assert main(["convert", str(whole_run), str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert f"{whole_run} is a run, which `jaxgrpo train` takes as it is (model={whole_run}): export it" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["missing", "truncated", "shape"])
def test_damaged_weights_are_named_with_the_remedy(damage, capsys, model_dir, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(model_dir, copy)
    weights = copy / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": config["intermediate_size"] * 2}))
    data = problem_file(tmp_path / "train.jsonl", [row()] * 16)
    code, message = refused(
        capsys,
        tmp_path / "run",
        f"model={copy}",
        f"data.train={data}",
        f"data.test={data}",
        "warmup.steps=0",
        "data.max_prompt_tokens=256",
    )
    assert code == 1
    assert str(copy) in message


def test_an_empty_file_a_row_without_columns_and_an_unknown_source_are_named(capsys, model_dir, tmp_path):
    def attempt(rows):
        data = problem_file(tmp_path / "train.jsonl", rows)
        return refused(
            capsys,
            tmp_path / "run",
            f"model={model_dir}",
            f"data.train={data}",
            f"data.test={data}",
            "warmup.steps=0",
            "data.max_prompt_tokens=256",
        )

    code, message = attempt([])
    assert code == 1
    assert "train.jsonl" in message
    code, message = attempt([row(), {"prompt": [{"role": "user", "content": "x"}]}])
    assert code == 1
    assert "data_source" in message
    code, message = attempt([row() | {"data_source": "poetry"}] * 16)
    assert code == 1
    assert "poetry" in message


def test_a_prompt_over_the_limit_names_row_length_and_limit_or_is_dropped_and_counted(capsys, model_dir, tmp_path, env):
    data = problem_file(tmp_path / "train.jsonl", [row()] * 16 + [row("why " * 400)])
    overrides = (
        f"model={model_dir}",
        f"data.train={data}",
        f"data.test={data}",
        "warmup.steps=0",
        "data.max_prompt_tokens=128",
        "train.steps=1",
    )
    code, message = refused(capsys, tmp_path / "run", *overrides)
    assert code == 1
    assert "128" in message
    assert "data.overlong" in message
    done = jaxgrpo("train", CONFIG, *SHORT, f"run_dir={tmp_path / 'run'}", *overrides, "data.overlong=drop", env=env)
    assert done.returncode == 0, done.stderr
    assert "1 training prompts longer than data.max_prompt_tokens=128" in done.stdout


def test_a_run_directory_of_another_config_is_refused_and_left_alone(capsys, whole_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(whole_run, run_dir)
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    code, message = refused(capsys, run_dir, "optim.beta2=0.5")
    assert code == 2
    assert "optim.beta2: 0.999 -> 0.5" in message
    assert before == {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}


def test_two_processes_do_not_train_in_one_directory(capsys, tmp_path):
    import fcntl

    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with open(run_dir / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, message = refused(capsys, run_dir)
    assert code == 2
    assert "another process" in message


def test_a_cache_budget_below_one_sequence_is_refused(capsys, tmp_path):
    code, message = refused(capsys, tmp_path / "run", "rollout.cache_gib=1e-9")
    assert code == 2
    assert "rollout.cache_gib" in message


def test_a_failing_write_at_save_is_one_message_and_the_run_resumes(env, whole_run, tmp_path):
    """The file-size limit of the process makes the write of a checkpoint file fail in the middle."""
    run_dir = tmp_path / "run"
    arguments = ["train", CONFIG, *SHORT, f"run_dir={run_dir}"]
    assert jaxgrpo(*arguments, "train.steps=2", env=env).returncode == 0
    limit = 100_000
    failed = subprocess.run(
        ["prlimit", f"--fsize={limit}:{limit}", sys.executable, "-m", "jaxgrpo.cli", *arguments],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert failed.returncode == 1, failed.stderr
    (message,) = (line for line in failed.stderr.splitlines() if line.startswith("jaxgrpo: "))  # among TensorStore's own
    assert "could not be saved (File too large)" in message
    assert "run the same command again" in message
    resumed = jaxgrpo(*arguments, env=env)
    assert resumed.returncode == 0, resumed.stderr
    assert untimed_metrics(run_dir) == untimed_metrics(whole_run)


@pytest.mark.slow  # tests/pods has the same on two hosts
def test_a_full_disk_at_save_is_one_message_and_the_run_resumes(env, whole_run, small_disk):
    run_dir = small_disk / "run"
    arguments = ["train", CONFIG, *SHORT, f"run_dir={run_dir}"]
    assert jaxgrpo(*arguments, "train.steps=2", env=env).returncode == 0
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 500_000))
    failed = jaxgrpo(*arguments, env=env)
    assert failed.returncode == 1, failed.stderr
    assert failed.stderr.startswith("jaxgrpo: checkpoint of step 4")
    assert re.search(r"needs 1\.\d MiB, the disk has 0\.\d MiB left: make room", failed.stderr)
    assert len(failed.stderr.strip().splitlines()) == 1
    ballast.unlink()
    resumed = jaxgrpo(*arguments, env=env)
    assert resumed.returncode == 0, resumed.stderr
    assert untimed_metrics(run_dir) == untimed_metrics(whole_run)
