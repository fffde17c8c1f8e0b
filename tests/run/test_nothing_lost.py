"""What a run has written is never cut or written over without a checkpoint that says so: it is moved aside, and told."""

import shutil

from jaxgrpo.train.run import RunDirectory
from tests.run.commands import CONFIG, SHORT, eval_files, jaxgrpo, untimed_metrics


def test_a_finished_run_without_its_checkpoints_keeps_what_it_measured(env, whole_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(whole_run, run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "evaluations" / "6").mkdir(parents=True)
    (run_dir / "evaluations" / "6" / "heldout.jsonl").write_text("{}\n")
    before = (run_dir / "metrics.jsonl").read_bytes()
    done = jaxgrpo("train", CONFIG, *SHORT, f"run_dir={run_dir}", "train.steps=2", env=env)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("moved ")]
    assert "eval, evaluations, metrics.jsonl, plots" in line and f"to {run_dir}/before-1" in line
    kept = run_dir / "before-1"
    assert (kept / "metrics.jsonl").read_bytes() == before
    assert eval_files(kept) == eval_files(whole_run)
    assert (kept / "plots" / "learning_curve.png").read_bytes() == (whole_run / "plots" / "learning_curve.png").read_bytes()
    assert (kept / "evaluations" / "6" / "heldout.jsonl").read_text() == "{}\n"
    assert untimed_metrics(run_dir) == untimed_metrics(whole_run)[:3]
    assert not (run_dir / "evaluations").exists(), "figures of weights that are gone would pass for those of the new ones"


def test_a_start_that_left_only_garbled_lines_keeps_them_too(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "rew')
    (tmp_path / "before-1").mkdir()
    (tmp_path / "eval").mkdir()
    assert RunDirectory(str(tmp_path)).set_aside() == tmp_path / "before-2"
    assert (tmp_path / "before-2" / "metrics.jsonl").read_text() == '{"step": 0, "rew'
    assert not (tmp_path / "before-2" / "eval").exists(), "an empty folder is nothing to keep"
    assert RunDirectory(str(tmp_path)).set_aside() is None
