"""Ctrl-C, SIGTERM and a closed terminal: nothing is lost that is done, nothing is left running, one line says what comes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.run.commands import CONFIG, ROOT, SHORT, untimed_metrics

ASKED_RUN = str(Path(__file__).with_name("asked_run.py"))
NO_WARM_UP = ["warmup.steps=0", "warmup.corrupt_steps=0"]


def listen() -> None:
    """A command of a shell in the foreground hears Ctrl-C, also where these tests run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(command: list[str], env: dict, **options) -> subprocess.Popen:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": listen, "start_new_session": True} | options
    return subprocess.Popen(command, env=env | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, text=True, **options)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jaxgrpo.cli", *arguments]


def asked(signals: str, step: int, run_dir: Path, env: dict, *overrides: str, **options) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a run that gets `signals` in a step."""
    line = [
        sys.executable,
        ASKED_RUN,
        signals,
        str(step),
        "train",
        CONFIG,
        *SHORT,
        *NO_WARM_UP,
        *overrides,
        f"run_dir={run_dir}",
    ]
    process = start(line, env, **options)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def processes_with(text: str) -> list[str]:
    """Command lines of processes that hold `text`, zombies aside."""
    return [line for line in subprocess.check_output(["ps", "-eo", "args"], text=True).splitlines() if text in line]


@pytest.mark.parametrize("after", [0.3, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.8, 1.5)), 3.0])
def test_ctrl_c_at_any_time_of_the_start_ends_the_command_with_one_line(after, env, tmp_path):
    process = start(
        command("train", CONFIG, *SHORT, "warmup.steps=5000", "warmup.stop_pass1=0", f"run_dir={tmp_path / 'run'}"), env
    )
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - sent < 5
    assert process.returncode == 130, errors
    assert errors.startswith("jaxgrpo: ended by Ctrl-C; no") and errors.count("\n") == 1, errors


def test_ctrl_c_is_heard_in_a_callback_of_the_garbage_collector_and_inside_a_library():
    """Both lose a KeyboardInterrupt: the first swallows it, the second returns when it is done."""
    for busy in (
        "gc.callbacks.append(lambda *_: time.sleep(60)); gc.collect()",
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
    ):
        code = "import gc, hashlib, time\nfrom jaxgrpo import interruption\n"
        code += f"with interruption.heard('all is lost'):\n  print(1, flush=True); {busy}"
        process = start([sys.executable, "-c", code], dict(os.environ))
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        assert (process.returncode, errors) == (130, "jaxgrpo: ended by Ctrl-C; all is lost.\n")


def test_a_request_that_comes_while_a_leftover_is_undone_ends_nothing_half_way(tmp_path):
    folder = tmp_path / "left"
    code = (
        "import os, shutil, signal, sys, time\nfrom jaxgrpo import interruption\n"
        "def remove():\n"
        "  if not asked: asked.append(os.kill(os.getpid(), signal.SIGTERM)); time.sleep(60)\n"
        "  shutil.rmtree(sys.argv[1])\n"
        "asked = []; os.mkdir(sys.argv[1])\n"
        "with interruption.heard(), interruption.undone(remove): pass"
    )
    process = start([sys.executable, "-c", code, str(folder)], dict(os.environ))
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (-signal.SIGTERM, "jaxgrpo: ended by SIGTERM.\n")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SIGINT", "Ctrl-C"),
        pytest.param("SIGHUP", "SIGHUP", marks=pytest.mark.slow),
        pytest.param("SIGTERM", "SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_a_request_in_a_step_saves_after_it_and_the_run_goes_on(name, said, env, tmp_path):
    run_dir = tmp_path / "run"
    code, output, errors = asked(name, 3, run_dir, env, "checkpoint.every=5")
    assert code == 75, errors
    assert f"{said}: the run ends when step 3 is done and saved; another one ends it at once" in output
    assert (
        errors == f"jaxgrpo: asked to stop ({said}): step 3 of 6 is saved in {run_dir}; the same command goes on from there.\n"
    )
    assert [line["step"] for line in untimed_metrics(run_dir)] == [0, 1, 2, 3]
    if name == "SIGTERM":
        code, output, errors = asked("SIGTERM,SIGHUP,SIGTERM", 5, run_dir, env, "checkpoint.every=5")
        assert "going on after step 3" in output
        assert (code, errors) == (-signal.SIGTERM, "jaxgrpo: ended by SIGTERM; the same command goes on after step 3.\n")


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_says_from_where_the_command_goes_on(env, tmp_path):
    code, _, errors = asked("SIGINT,SIGINT", 4, tmp_path / "run", env)
    assert (code, errors) == (130, "jaxgrpo: ended by Ctrl-C; the same command goes on after step 2.\n")


@pytest.mark.slow
def test_before_the_first_step_there_is_nothing_to_save(env, tmp_path):
    code, _, errors = asked("SIGINT", 0, tmp_path / "run", env)
    assert code == 130
    assert (
        errors == "jaxgrpo: ended by Ctrl-C; no step is saved yet, there is nothing to save: the same command begins again.\n"
    )
    code, _, errors = asked("SIGTERM", 0, tmp_path / "run", env)
    assert code == 75
    assert "asked to stop (SIGTERM) before step 1: no step is saved yet, there is nothing to save" in errors


@pytest.mark.slow
def test_a_run_under_nohup_goes_on_when_its_terminal_is_closed(env, tmp_path):
    ignore = lambda: (listen(), signal.signal(signal.SIGHUP, signal.SIG_IGN))  # noqa: E731
    code, output, errors = asked("SIGHUP", 1, tmp_path / "run", env, "train.steps=2", preexec_fn=ignore)
    assert code == 0 and "ends" not in output, errors


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_saves_its_step(env, tmp_path):
    """The terminal is really gone: whatever is written to it fails."""
    run_dir = tmp_path / "run"
    ours, theirs = os.openpty()
    line = command("train", CONFIG, *SHORT, *NO_WARM_UP, "train.steps=5000", "eval.every=0", f"run_dir={run_dir}")
    process = start(["setsid", "--ctty", "--wait", *line], env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while b"step    2/5000" not in shown:
        shown += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(timeout=120) in (75, -signal.SIGHUP)  # of setsid, which may go with its terminal
    deadline = time.monotonic() + 60
    while processes_with(str(run_dir)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes_with(str(run_dir))
    last = untimed_metrics(run_dir)[-1]["step"]
    assert (run_dir / "checkpoints" / str(last)).is_dir() and last < 5000


@pytest.mark.slow
def test_ctrl_c_of_a_study_saves_its_runs_and_leaves_none_behind(env, tmp_path):
    (tmp_path / "study.yaml").write_text(
        f"study: ladder\nconfig: {CONFIG}\nout: {tmp_path}/out\nruns: {{w16: {{model: random:miniature-16}}}}\n"
        "set: {train.steps: 5000, eval.every: 0, warmup.steps: 0, warmup.corrupt_steps: 0, data.prompts_per_step: 16,"
        " train.minibatch_prompts: 8, checkpoint.every: 5000}\n"
    )
    process = start(command("study", str(tmp_path / "study.yaml"), "jobs=1"), env)
    run_dir = tmp_path / "out" / "runs" / "w16-seed0"
    deadline = time.monotonic() + 120
    while not (run_dir / "metrics.jsonl").exists() or len((run_dir / "metrics.jsonl").read_bytes().splitlines()) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "Ctrl-C: the runs save the step they are at and end" in output and "stopped   w16-seed0 step" in output
    assert errors.startswith("jaxgrpo: asked to stop (Ctrl-C): 0 of 1 runs are finished") and "Traceback" not in errors
    assert (run_dir / "checkpoints" / str(untimed_metrics(run_dir)[-1]["step"])).is_dir()
    assert not processes_with(str(tmp_path))


@pytest.mark.parametrize(
    "what", ["export", "serve", *(pytest.param(c, marks=pytest.mark.slow) for c in ("bench", "plan", "prepare"))]
)
def test_ctrl_c_ends_the_other_commands_too(what, env, whole_run, tmp_path):
    arguments = {
        "bench": ["bench", "step", "--layers", "8"],
        "plan": ["plan", str(ROOT / "configs" / "qwen2.5-7b.yaml"), "--topology", "v5p:4x4x4"],
        "export": ["export", str(whole_run), str(tmp_path / "hf")],
        "prepare": ["data", "prepare", str(tmp_path / "big.jsonl"), str(tmp_path / "out")],
        "serve": ["serve", str(whole_run), "--port", "0"],
    }[what]
    if what == "prepare":
        (tmp_path / "big.jsonl").write_text('{"prompt": "1 + 1", "answer": "2"}\n' * 300_000)
    process = start(command(*arguments), env)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    said = [line for line in errors.splitlines() if not line.startswith("bench     ")]
    assert "Traceback" not in errors and len(said) <= 1, errors
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".jsonl"] == []
    assert not processes_with(str(whole_run))
