"""Jobs of several processes: the same as one process, stopped, killed, and started wrongly. Real processes over gloo."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxgrpo.data import training_problems
from jaxgrpo.train.checkpoint import read_checkpoint
from tests.pods.pods import TENSOR, Pod
from tests.run.commands import CONFIG, ROOT, SHORT, eval_files, untimed, untimed_metrics
from tests.storage.fake_gcs import serving

CASES = [(victim, phase) for victim in (1, 0) for phase in ("rollout", "update", "save", "eval")]


def parameters(run_dir) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in read_checkpoint(run_dir)[0].items()}


def assert_same_run(run_dir, reference) -> None:
    assert untimed_metrics(run_dir) == untimed_metrics(reference)
    assert eval_files(run_dir) == eval_files(reference)
    mine, theirs = parameters(run_dir), parameters(reference)
    for name in theirs:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


def test_four_processes_train_as_one_does(one_process, env, tmp_path):
    """4 x 2 devices with tensor 2: every sample the same, every figure within float32's tolerance."""
    pod = Pod(4, tmp_path, env)
    assert pod.run() == 0, pod.output()
    assert eval_files(pod.run_dir) == eval_files(one_process)
    for ours, theirs in zip(untimed_metrics(pod.run_dir), untimed_metrics(one_process), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if key.startswith("logprob_diff"):  # rounding itself
                assert ours[key] == pytest.approx(value, abs=2e-6)
            elif isinstance(value, float):
                assert ours[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
            else:
                assert ours[key] == value, key
    mine, theirs = parameters(pod.run_dir), parameters(one_process)
    for name in theirs:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_seconds_of_the_first_and_the_last_host_are_in_the_metrics(whole_pod):
    import json

    lines = [json.loads(line) for line in (whole_pod / "metrics.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        assert 0 < line["rollout_first_host_s"] <= line["rollout_last_host_s"] == line["rollout_s"]


def check_killed(victim: int, phase: str, whole_pod, env, tmp_path) -> None:
    pod = Pod(2, tmp_path, env)
    pod.fail_once(victim, phase, step=4)
    pod.start()
    started = time.monotonic()
    assert pod.wait() == 0, pod.output()
    assert (tmp_path / "killed").exists()
    assert re.search(rf"process {victim} of 2 is lost \(killed by SIGKILL\); its last line: \S", pod.said), pod.said
    assert "did not end within" not in pod.said  # the others ended by themselves, within local_pod.sh's 60 s
    assert "starting again (1 of 3)" in pod.said
    assert "going on after step 2" in pod.said or "going on after step 3" in pod.said or "going on after step 4" in pod.said
    assert time.monotonic() - started < 400
    assert_same_run(pod.run_dir, whole_pod)


@pytest.mark.timeout(500)
def test_a_job_whose_worker_is_killed_starts_again_and_ends_as_if_nothing_had_happened(whole_pod, env, tmp_path):
    check_killed(1, "update", whole_pod, env, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize("victim, phase", [case for case in CASES if case != (1, "update")])
def test_any_process_may_be_killed_in_any_phase(victim, phase, whole_pod, env, tmp_path):
    check_killed(victim, phase, whole_pod, env, tmp_path)


def test_a_job_that_is_asked_to_stop_saves_and_goes_on(whole_pod, env, tmp_path):
    pod = Pod(2, tmp_path, env)
    pod.start()
    pod.wait_for("step 2/6")
    pod.terminate()
    assert pod.wait() == 75, pod.said + pod.output()
    saved = re.search(r"asked to stop \(SIGTERM\): step (\d) of 6 is saved", pod.output())
    assert saved, pod.output()
    assert [line["step"] for line in untimed_metrics(pod.run_dir)] == list(range(int(saved[1]) + 1))
    assert (pod.run_dir / "checkpoints" / saved[1]).is_dir()
    assert pod.run() == 0, pod.output()
    assert f"going on after step {saved[1]}" in pod.said
    assert_same_run(pod.run_dir, whole_pod)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_host_that_is_asked_to_end_before_training_begins_ends_the_job_after_its_first_step(whole_pod, env, tmp_path):
    """JAX's preemption service tells the others, the launcher starts the job again."""
    pod = Pod(2, tmp_path, env)
    pod.fail_once(1, "preempt", step=0)
    assert pod.run() == 0, pod.output()
    assert "starting again (1 of 3)" in pod.said and "going on after step 1" in pod.said, pod.said
    assert "asked to stop (SIGTERM): step 1 of 6 is saved" in pod.said
    assert_same_run(pod.run_dir, whole_pod)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_host_that_is_asked_to_end_in_the_warm_up_ends_the_job_at_its_next_evaluation(whole_pod, env, tmp_path):
    pod = Pod(2, tmp_path, env, ("warmup.check_every=5",))
    pod.fail_once(1, "warmup", step=0)
    assert pod.run() == 0, pod.output()
    first, _, again = pod.said.partition("starting again (1 of 3)")
    assert "asked to stop (SIGTERM) before step 1: " in first and "held-out Pass@1" not in first, first
    assert again.count("held-out Pass@1") == 4
    assert_same_run(pod.run_dir, whole_pod)


def test_a_full_disk_ends_all_hosts_with_one_message(whole_pod, env, tmp_path, small_disk):
    """6 steps are there; the checkpoint of step 8 finds no room. Started again by hand it would meet the same."""
    shutil.copytree(whole_pod, small_disk / "run")
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 500_000))
    pod = Pod(2, tmp_path, env, (f"run_dir={small_disk}/run", "train.steps=8"))
    assert pod.run() == 1, pod.said
    assert re.search(r"checkpoint of step 8 in .* needs 1\.\d MiB, the disk has 0\.\d MiB left: make room", pod.output())
    assert "is lost (exit code 1)" in pod.said and "starting again" not in pod.said
    assert sorted(path.name for path in (small_disk / "run" / "checkpoints").iterdir()) == ["4", "6"]


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_job_on_gs_whose_worker_is_killed_goes_on_and_ends_as_one_on_a_local_disk(whole_pod, env, tmp_path):
    with serving("bucket") as (store, variables):
        pod = Pod(2, tmp_path, env | variables, ("run_dir=gs://bucket/run",))
        pod.fail_once(1, "update", step=4)
        assert pod.run() == 0, pod.said + pod.output()
        assert "starting again (1 of 3)" in pod.said and "going on after step 2" in pod.said, pod.said
        objects = {name.removeprefix("run/"): data for name, (data, _) in store.buckets["bucket"].items()}
    lines = [json.loads(line) for line in objects["metrics.jsonl"].splitlines()]
    assert [untimed(line) for line in lines] == untimed_metrics(whole_pod)
    for name, text in eval_files(whole_pod).items():
        assert objects[f"eval/{name}"].decode() == text
    for name, data in objects.items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    mine, theirs = parameters(tmp_path / "copy"), parameters(whole_pod)
    for name in theirs:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


def processes(folder, env, per_process: list[list[str]], places=(ROOT, ROOT), timeout: float = 75) -> list[tuple[int, str]]:
    """Start `jaxgrpo train` once for each list of overrides, in its place with the code that lies there if any does; (exit
    code, output) of each, all within `timeout` seconds."""
    command = [sys.executable, "-u", "-m", "jaxgrpo.cli", "train", CONFIG, *SHORT, TENSOR]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [*command, f"run_dir={folder}/run", *overrides],
            env=env | flags, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for overrides, place in zip(per_process, places, strict=False)
    ]  # fmt: skip
    deadline = time.monotonic() + timeout
    try:
        ended = [process.communicate(timeout=max(1, deadline - time.monotonic()))[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, output) for process, output in zip(started, ended, strict=True)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def hosts(count: int, index: int, port: int, *more: str) -> list[str]:
    return [f"hosts.count={count}", f"hosts.index={index}", f"hosts.coordinator=127.0.0.1:{port}", "hosts.start_s=15", *more]


def test_a_missing_host_is_told_within_a_minute(env, tmp_path):
    ((code, output),) = processes(tmp_path, env, [hosts(2, 0, free_port())])
    assert code == 1
    assert re.search(r"jaxgrpo: process 0 of 2 has waited 15 s for the others at 127\.0\.0\.1", output), output


def test_a_wrong_coordinator_is_told_within_a_minute(env, tmp_path):
    ((code, output),) = processes(tmp_path, env, [hosts(2, 1, free_port())])
    assert code == 1
    assert "see that hosts.coordinator is the address of process 0" in output, output


def test_hosts_of_different_configs_end_with_what_differs(env, tmp_path):
    port = free_port()
    ended = processes(tmp_path, env, [hosts(2, 0, port), hosts(2, 1, port, "optim.lr=1e-3")])
    for code, output in ended:
        assert code == 1
        assert "host 1 differs from host 0 (optim.lr: 0.001 there, 0.0004 on host 0)" in output, output


def test_hosts_of_different_code_end_with_what_differs(env, tmp_path):
    other, port = tmp_path / "other", free_port()
    for package in ("jaxgrpo", "eval", "scaling"):
        shutil.copytree(ROOT / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    with open(other / "jaxgrpo" / "errors.py", "a") as changed:
        changed.write("# a line more\n")
    for code, output in processes(tmp_path, env, [hosts(2, 0, port), hosts(2, 1, port)], (ROOT, other)):
        assert code == 1
        assert re.search(r"host 1 differs from host 0 \(the code of jaxgrpo: \w+ there, \w+ on host 0\)", output), output


def test_a_run_directory_that_is_not_shared_is_told(env, tmp_path):
    """The same relative path, in another folder of each host."""
    port, places = free_port(), (tmp_path / "a", tmp_path / "b")
    for place in places:
        place.mkdir()
    for code, output in processes(tmp_path, env, [hosts(2, i, port, "run_dir=run") for i in range(2)], places):
        assert code == 1
        assert "jaxgrpo: run_dir=run of host 0 is not seen by host 1" in output, output


@pytest.mark.slow
def test_a_host_that_fails_ends_the_others_with_its_reason(whole_pod, env, tmp_path):
    pod = Pod(2, tmp_path, env)
    pod.fail_once(1, "error", step=2)
    pod.start()
    pod.wait_for("step 0/6")
    started = time.monotonic()
    assert pod.wait() == 1
    assert time.monotonic() - started < 60
    assert "process 1 of 2 is lost (exit code 1)" in pod.said or "process 0 of 2 is lost (exit code 1)" in pod.said
    assert "jaxgrpo: ended with host 1: RuntimeError: the accelerator is gone" in (pod.logs / "host-0.log").read_text()
    assert "Traceback" in (pod.logs / "host-1.log").read_text()
    assert "starting again" not in pod.said  # it would meet the same error


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["hosts.count=2"], "hosts.count=2 needs hosts.coordinator=HOST:PORT"),
        (["hosts.count=2", "hosts.index=2", "hosts.coordinator=127.0.0.1:1"], "hosts.index=2 is none of 0 to 1"),
        (["hosts.count=0"], "no cluster was found here"),
    ],
)
def test_hosts_that_cannot_be_meant_are_refused(overrides, message, env, tmp_path):
    ((code, output),) = processes(tmp_path, env, [overrides])
    assert code == 2
    assert message in output


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_hosts_stop_at_the_share_of_failed_graders_and_nobody_starts_them_again(env, tmp_path):
    """Only problems of one host cannot be graded: no answer keeps their limit on time; the others need no process."""
    data = tmp_path / "problems.jsonl"
    rows = [
        {
            "data_source": "arithmetic" if problem.index % 2 else "math__arithmetic",
            "prompt": list(problem.messages),
            "reward_model": {"ground_truth": problem.ground_truth},
        }
        for problem in training_problems(0, 0, 16)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = ("warmup.steps=0", "rollout.samples=2", "eval.limit=2", "checkpoint.every=100", "train.steps=2", "data.epochs=2")
    where = (f"data.train={data}", f"data.test={data}", "data.tokenizer=arithmetic", "reward.wall_seconds=1e-6")
    pod = Pod(2, tmp_path, env, (*keys, *where, "reward.max_failed=0.4"))
    assert pod.run() == 1, pod.output()
    assert "starting again" not in pod.said
    logs = {log.name: log.read_text() for log in sorted(pod.logs.glob("*.log"))}
    assert len(logs) == 2
    for name, log in logs.items():
        assert "the grader failed on 50% of the answers, past reward.max_failed=0.4: step 1 of 2 is saved" in log, name
        assert "Traceback" not in log, name
    warned = [name for name, log in logs.items() if "WARNING   step 1: the grader failed on 16 of 32 answers" in log]
    assert warned == ["host-0.log"]
    resumed = Pod(2, tmp_path, env, (*keys, *where, "reward.max_failed=1"))
    assert resumed.run() == 0, resumed.output()
    assert [line.get("grader_failed_fraction") for line in untimed_metrics(pod.run_dir)] == [None, 0.5, 0.5]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_damage_in_what_one_of_two_hosts_wrote_is_seen_by_all_and_by_one_process(whole_pod, env, tmp_path):
    pod = Pod(2, tmp_path, env)
    shutil.copytree(whole_pod, pod.run_dir)
    written = pod.run_dir / "checkpoints" / "6" / "params" / "ocdbt.process_1"
    largest = max(written.rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    shutil.copytree(pod.run_dir, tmp_path / "alone")
    assert pod.run() == 0, pod.output()
    said = (pod.logs / "host-0.log").read_text()
    assert "checkpoints/6 cannot be read, it may be damaged" in said and "going on after step 4" in said
    assert_same_run(pod.run_dir, whole_pod)
    command = [sys.executable, "-m", "jaxgrpo.cli", "train", CONFIG, *SHORT, TENSOR, f"run_dir={tmp_path / 'alone'}"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "checkpoints/6 cannot be read" in done.stdout and "going on after step 4" in done.stdout
