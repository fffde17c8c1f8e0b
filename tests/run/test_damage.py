import shutil

import numpy as np
import pytest

from jaxgrpo.cli import main
from jaxgrpo.train.checkpoint import read_checkpoint
from tests.run.commands import CONFIG, SHORT, jaxgrpo, untimed_metrics


def damage(folder) -> None:
    """Cut the largest file of a checkpoint folder in half."""
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def test_a_run_goes_on_from_the_newest_checkpoint_that_can_be_read(env, whole_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(whole_run, run_dir)
    damage(run_dir / "checkpoints" / "6" / "params")
    done = jaxgrpo("train", CONFIG, *SHORT, f"run_dir={run_dir}", env=env)
    assert done.returncode == 0, done.stderr
    assert "checkpoints/6 cannot be read, it may be damaged" in done.stdout
    assert "going on after step 4" in done.stdout
    assert untimed_metrics(run_dir) == untimed_metrics(whole_run)
    mended, whole = (read_checkpoint(folder / "checkpoints" / "6")[0] for folder in (run_dir, whole_run))
    for name in whole:
        np.testing.assert_array_equal(np.asarray(mended[name]), np.asarray(whole[name]), err_msg=name)


@pytest.mark.parametrize(
    ("parts", "remedy"),
    [
        (["checkpoints/4/params", "checkpoints/6/params"], "bring one back, or delete the folder"),
        (["warm_start"], "to warm up again"),
    ],
)
def test_what_cannot_be_read_at_all_is_named_with_the_remedy(parts, remedy, env, whole_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(whole_run, run_dir)
    for part in parts:
        damage(run_dir / part)
    failed = jaxgrpo("train", CONFIG, *SHORT, f"run_dir={run_dir}", "train.steps=8", env=env)
    assert failed.returncode == 1, failed.stderr
    message = next((line for line in failed.stderr.splitlines() if line.startswith("jaxgrpo: ")), failed.stderr)
    assert "cannot be read" in message
    assert remedy in message


def test_a_run_with_a_damaged_newest_checkpoint_is_evaluated_at_the_one_before(env, whole_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(whole_run, run_dir)
    damage(run_dir / "checkpoints" / "6" / "params")
    arguments = ["--suite", "arithmetic", "eval.limit=8"]
    done = jaxgrpo("eval", "--checkpoint", str(run_dir), *arguments, env=env)
    assert done.returncode == 0, done.stderr
    assert "checkpoints/6/params cannot be read, it may be damaged" in done.stdout
    assert "checkpoint 4 is used instead" in done.stdout and not done.stderr.strip()
    assert [folder.name for folder in (run_dir / "evaluations").iterdir()] == ["4"]
    failed = jaxgrpo("eval", "--checkpoint", str(run_dir / "checkpoints" / "6"), *arguments, env=env)
    assert failed.returncode == 1 and "cannot be read" in failed.stderr and "give another step" in failed.stderr
    assert not (run_dir / "evaluations" / "6").exists()


def test_a_run_that_never_began_does_not_bind_its_directory(capsys, tmp_path):
    wrong = ["train", CONFIG, *SHORT, f"run_dir={tmp_path}", "rollout.cache_gib=1e-9"]
    assert main(wrong) == 2
    assert main([*wrong, "optim.lr=1e-5", "data.max_prompt_tokens=7"]) == 2
    assert "another config" not in capsys.readouterr().err
