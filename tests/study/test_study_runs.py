"""Whole studies as real processes: stopped and resumed, with a run that fails, and of all three kinds."""

import json
import re
import signal
import time

import pytest

import scaling
from jaxgrpo.data.arithmetic import build_tokenizer
from tests.run.commands import environment
from tests.study.miniature import processes_naming, start, write_problems, write_study


@pytest.fixture(scope="module")
def env(tmp_path_factory) -> dict:
    return environment(tmp_path_factory.mktemp("xla"), devices=1)


def finish(*arguments: str, env: dict) -> tuple[int, str]:
    study = start(*arguments, env=env)
    output = study.communicate(timeout=400)[0]
    return study.returncode, output


@pytest.fixture(scope="module")
def ladder(env, tmp_path_factory):
    """A ladder of four sizes that was killed after its first finished run, and then run again; both outputs."""
    folder = tmp_path_factory.mktemp("ladder")
    runs = {f"w{width}": {"model": f"random:miniature-{width}"} for width in (16, 24, 32, 48)}
    path = write_study(folder, "ladder", runs, keys={"train.steps": 8}, fit={"x": ["data"]})
    first, lines = start(str(path), env=env), []
    for line in first.stdout:
        lines.append(line)
        if line.startswith("finished"):
            break
    first.send_signal(signal.SIGKILL)
    first.wait()
    deadline = time.monotonic() + 20
    while processes_naming(str(folder / "out")) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = processes_naming(str(folder / "out"))
    done = [line.split()[1] for line in lines if line.startswith("finished")]
    before = (folder / "out" / "runs" / done[0] / "metrics.jsonl").stat().st_mtime_ns
    code, output = finish(str(path), env=env)
    return folder / "out", done, left, before, code, output


def test_a_killed_study_leaves_no_run_behind_and_goes_on_with_those_that_are_not_done(ladder):
    out, done, left, before, code, output = ladder
    assert left == []
    assert code == 0, output
    before_kill = int(re.search(r"done before: (\d) of 4 runs", output)[1])
    assert 1 <= before_kill <= 2  # the run beside the first one may have ended in the same moment
    trained = re.findall(r"^finished  (\S+)", output, re.M)
    assert len(set(trained)) == len(trained) == 4 - before_kill
    assert done[0] not in trained
    assert (out / "runs" / done[0] / "metrics.jsonl").stat().st_mtime_ns == before


def test_the_report_of_a_ladder_gives_the_figures_that_the_law_gives(ladder):
    out = ladder[0]
    report = (out / "report.md").read_text()
    law = scaling.fit(scaling.load(sorted((out / "runs").iterdir())), "data", "log", 200, 0)
    stored = json.loads((out / "law-data.json").read_text())
    assert stored["k_max"] == pytest.approx(law.k_max, rel=1e-9)
    assert re.search(r"rank correlation of each size's own slope k and N\. Came: -?[01]\.\d\d, 95 % interval", report)
    assert re.search(r"\*\*(Met|MISSED)\.\*\*", report)
    pictures = set(re.findall(r"\]\((\S+\.png)\)", report))
    assert pictures == {f"{name}-data.png" for name in ("prediction", "curves", "saturation", "residuals")}
    for picture in pictures:
        assert (out / picture).stat().st_size > 10_000
        assert (out / picture).with_suffix(".pdf").exists()
    assert report.count("w48-seed0") == 1


def test_a_finished_study_trains_nothing_and_another_config_in_its_place_is_refused(ladder, env):
    out = ladder[0]
    path = str(out.parent / "ladder.yaml")
    code, output = finish(path, env=env)
    assert code == 0 and "started" not in output and "done before: 4 of 4" in output
    code, output = finish(path, "rollout.samples=4", env=env)
    assert code == 2 and "holds a run of another config" in output and "rollout.samples" in output
    (out / "configs").rename(out / "configs-lost")
    code, output = finish(path, "rollout.samples=4", env=env)
    assert code == 2 and "rollout.samples" in output, "the runs' checkpoints say how they were configured"
    (out / "configs-lost").rename(out / "configs")


@pytest.mark.slow
def test_a_run_that_fails_is_told_after_the_others_and_is_all_that_is_trained_when_mended(tmp_path, env):
    runs = {"g2": {"rollout.samples": 2}, "g4": {"rollout.samples": 4, "data.tokenizer": str(tmp_path / "none")}}
    path = write_study(tmp_path, "group", runs, keys={"train.steps": 6}, fit={"x": ["data", "compute"]})
    code, output = finish(str(path), env=env)
    assert code == 1
    assert "finished  g2-seed0" in output
    assert re.search(r"1 of 2 runs failed: g4-seed0 \(exit code \d+: .*none", output.replace("\n", " "))
    assert str(tmp_path / "out" / "logs") in output
    path = write_study(
        tmp_path, "group", {"g2": runs["g2"], "g4": {"rollout.samples": 4}}, keys={"train.steps": 6}, fit={"x": ["data"]}
    )
    code, output = finish(str(path), env=env)
    assert code == 0, output
    assert re.findall(r"^started   (\S+)", output, re.M) == ["g4-seed0"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "G = 2" in report and "G = 4" in report and "](group-data.png)" in report


@pytest.mark.slow
def test_data_reuse_in_miniature(tmp_path, env):
    write_problems(tmp_path / "all.parquet", 16 * 20)
    write_problems(tmp_path / "half.parquet", 16 * 10)
    rows = [json.dumps({"prompt": "1+1", "response": "2"}), json.dumps({"prompt": "2*3-1", "response": "65"})]
    (tmp_path / "demonstrations.jsonl").write_text("\n".join(rows) + "\n")
    runs = {
        "tau1": {"data.train": str(tmp_path / "all.parquet"), "data.epochs": 1},
        "tau2": {"data.train": str(tmp_path / "half.parquet"), "data.epochs": 2},
    }
    build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    keys = {
        "warmup.demonstrations": str(tmp_path / "demonstrations.jsonl"),
        "data.tokenizer": str(tmp_path / "tokenizer"),
        "train.steps": 0,
        "eval.samples": 2,
    }
    path = write_study(tmp_path, "reuse", runs, keys=keys)
    code, output = finish(str(path), env=env)
    assert code == 0, output
    measured = scaling.load(sorted((tmp_path / "out" / "runs").iterdir()))
    assert {curve.reuse_factor: curve.step[-1] for curve in measured} == {1: 20, 2: 20}
    last = {curve.reuse_factor: curve.loss[-10:].mean() for curve in measured}
    report = (tmp_path / "out" / "report.md").read_text()
    assert "](reuse-" in report
    for tau in (1, 2):
        assert re.search(rf"^tau {tau}\b.*{last[tau]:.4f}", report, re.M), report
