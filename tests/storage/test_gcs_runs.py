"""Whole runs on gs:// against a server on this machine: saved, resumed, killed, damaged, exported; and a store that fails."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jaxgrpo.train.metrics import is_timing_key
from tests.run.commands import CONFIG, ROOT, SHORT, environment, jaxgrpo
from tests.storage.fake_gcs import Handler, serving

RUN = "gs://bucket/runs/a b"  # a name that needs quoting


@pytest.fixture(scope="module")
def env(tmp_path_factory) -> dict:
    return environment(tmp_path_factory.mktemp("xla"), devices=2)


@pytest.fixture
def gcs():
    """(store, environment of its clients)"""
    with serving("bucket") as (store, variables):
        yield store, variables


def objects(store, run: str = RUN) -> dict[str, bytes]:
    prefix = run.removeprefix("gs://bucket/") + "/"
    with store.lock:
        return {n.removeprefix(prefix): data for n, (data, _) in store.buckets["bucket"].items() if n.startswith(prefix)}


def metrics(text: str | bytes) -> list[dict]:
    lines = (json.loads(line) for line in text.splitlines())
    return [{k: v for k, v in line.items() if not is_timing_key(k)} for line in lines]


def steps(store, run: str = RUN) -> set[str]:
    """The steps whose checkpoint is committed."""
    return {name.split("/")[1] for name in objects(store, run) if name.endswith("/commit_success.txt") and name.count("/") == 2}


@pytest.fixture(scope="module")
def local(env, tmp_path_factory) -> Path:
    """The same run on a local disk."""
    run = tmp_path_factory.mktemp("local") / "run"
    done = jaxgrpo("train", CONFIG, *SHORT, f"run_dir={run}", env=env)
    assert done.returncode == 0, done.stderr
    return run


def same(store, local) -> None:
    found = objects(store)
    assert metrics(found["metrics.jsonl"]) == metrics((local / "metrics.jsonl").read_text())
    for file in (local / "eval").iterdir():
        assert found[f"eval/{file.name}"] == file.read_bytes()


def test_a_run_on_gs_is_that_of_a_local_disk_and_goes_on_evaluates_and_exports(gcs, local, env, tmp_path):
    store, variables = gcs
    done = jaxgrpo("train", CONFIG, *SHORT, f"run_dir={RUN}", "train.steps=4", env=env | variables)
    assert done.returncode == 0, done.stderr
    assert steps(store) == {"2", "4"}
    assert done.stderr.count("\n") < 5, done.stderr  # no warning at every request
    changes = ["mesh.tensor=2", "mesh.fsdp=1", "checkpoint.keep=1", "checkpoint.best=1"]
    done = jaxgrpo("train", CONFIG, *SHORT, f"run_dir={RUN}", *changes, env=env | variables)
    assert done.returncode == 0, done.stderr
    assert "going on after step 4" in done.stdout
    ours, theirs = (metrics(text) for text in (objects(store)["metrics.jsonl"], (local / "metrics.jsonl").read_text()))
    best = min((2, 4, 6), key=lambda step: (ours[step]["test_loss"], -step))
    assert steps(store) == {str(best), "6"} and f"checkpoints/{best}, test_loss" in done.stdout
    assert ours[:5] == theirs[:5]
    assert [line["step"] for line in ours] == list(range(7))
    for line, other in zip(ours, theirs, strict=True):  # from step 5 on another mesh
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3) if line["step"] else True
    assert {"config.yaml", "plots/learning_curve.png", "model/config.json"} <= set(objects(store))
    exported = jaxgrpo("export", RUN, "gs://bucket/hf", env=env | variables)
    assert exported.returncode == 0, exported.stderr
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(objects(store, "gs://bucket/hf"))
    out = tmp_path / "evaluation"
    command = ["eval", "--checkpoint", RUN, "--suite", "arithmetic", "eval.limit=32", "--out", str(out)]
    evaluated = jaxgrpo(*command, env=env | variables)
    assert evaluated.returncode == 0, evaluated.stderr
    assert (out / "summary.json").exists()


@pytest.mark.slow
def test_a_run_that_is_killed_in_the_middle_of_a_save_goes_on_from_the_checkpoint_before(gcs, local, env):
    store, variables = gcs
    command = [sys.executable, "-u", "-m", "jaxgrpo.cli", "train", CONFIG, *SHORT, f"run_dir={RUN}"]
    process = subprocess.Popen(command, env=env | variables, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (any(name.startswith("checkpoints/4/params/") for name in objects(store)) and "4" not in steps(store)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert steps(store) == {"2"}
    assert any(name.startswith("checkpoints/4/") for name in objects(store))
    done = jaxgrpo("train", CONFIG, *SHORT, f"run_dir={RUN}", env=env | variables)
    assert done.returncode == 0, done.stderr
    assert "going on after step 2" in done.stdout
    same(store, local)


@pytest.mark.slow
def test_a_truncated_object_is_noticed_and_the_checkpoint_before_is_used(gcs, local, env):
    store, variables = gcs
    assert jaxgrpo("train", CONFIG, *SHORT, f"run_dir={RUN}", env=env | variables).returncode == 0
    largest = max((n for n in objects(store) if n.startswith("checkpoints/6/params/")), key=lambda n: len(objects(store)[n]))
    name = RUN.removeprefix("gs://bucket/") + "/" + largest
    data, generation = store.buckets["bucket"][name]
    store.buckets["bucket"][name] = (data[: len(data) // 2], generation)
    done = jaxgrpo("train", CONFIG, *SHORT, f"run_dir={RUN}", env=env | variables)
    assert done.returncode == 0, done.stderr
    assert "checkpoints/6 cannot be read" in done.stdout and "going on after step 4" in done.stdout
    same(store, local)


@pytest.mark.slow
def test_a_flipped_bit_in_an_object_is_found_by_check_and_nothing_is_downloaded_twice(gcs, env, monkeypatch):
    store, variables = gcs
    assert jaxgrpo("train", CONFIG, *SHORT, f"run_dir={RUN}", env=env | variables).returncode == 0
    sound = jaxgrpo("check", RUN, env=env | variables)
    assert sound.returncode == 0, sound.stdout + sound.stderr
    assert "checkpoints/6/params: 14 arrays" in sound.stdout and "eval/heldout-6.jsonl" in sound.stdout
    stored = {name: len(data) for name, data in objects(store).items() if name.startswith("checkpoints/6/params/")}
    sent, asked, answer = Counter(), Counter(), Handler.media  # bytes by generation, requests by generation and range

    def counted(self, data: bytes, generation: int, headers):
        answered = answer(self, data, generation, headers)
        sent[generation] += len(answered[1])
        asked[generation, headers.get("Range")] += 1
        return answered

    monkeypatch.setattr(Handler, "media", counted)
    assert jaxgrpo("export", f"{RUN}/checkpoints/6", "gs://bucket/hf", env=env | variables).returncode == 0
    prefix = RUN.removeprefix("gs://bucket/") + "/"
    arrays = max(stored, key=stored.get)
    data, generation = store.buckets["bucket"][prefix + arrays]
    assert {count for (of, _), count in asked.items() if of == generation} == {1}
    assert stored[arrays] / 2 < sent[generation] < 1.9 * stored[arrays]  # reads at one time are merged, with what lies between
    middle = len(data) // 2
    damaged = data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]
    store.buckets["bucket"][prefix + arrays] = (damaged, generation)
    found = jaxgrpo("check", RUN, "--json", env=env | variables)
    assert found.returncode == 1, found.stderr
    parts = {part["what"]: part for part in json.loads(found.stdout)["findings"]}
    assert [what for what, part in parts.items() if not part["sound"]] == ["checkpoints/6/params"]
    exported = jaxgrpo("export", RUN, "gs://bucket/hf4", env=env | variables)
    assert exported.returncode == 0 and "checkpoint 4 is used instead" in exported.stdout


@pytest.mark.slow
def test_a_store_that_stalls_and_answers_503_delays_a_run_and_changes_nothing(gcs, local, env):
    store, variables = gcs
    command = [sys.executable, "-u", "-m", "jaxgrpo.cli", "train", CONFIG, *SHORT, f"run_dir={RUN}"]
    process = subprocess.Popen(
        command, env=env | variables, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    output = []
    for line in process.stdout:
        output.append(line)
        if line.startswith("step 2/6"):
            store.unavailable, store.stall_s = 5, 30.0
    assert process.wait() == 0, "".join(output)
    assert store.unavailable == 0 and store.stall_s == 0
    assert steps(store) == {"4", "6"}
    same(store, local)


def test_what_keeps_a_run_off_a_bucket_is_said_in_one_line(gcs, env):
    store, variables = gcs
    store.forbidden = True
    started = time.monotonic()
    failed = jaxgrpo("train", CONFIG, *SHORT, f"run_dir={RUN}", env=env | variables)
    assert time.monotonic() - started < 60
    assert failed.returncode == 1
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("jaxgrpo: ")]
    assert RUN in line and "see that the bucket exists and that this machine may read and write it" in line
    store.forbidden = False
    failed = jaxgrpo("train", CONFIG, *SHORT, "run_dir=gs://other/run", env=env | variables)
    assert failed.returncode == 1 and "gs://other/run" in failed.stderr


@pytest.mark.slow
def test_numpy_reads_what_was_exported(gcs, env, tmp_path):
    """The weights behind gs:// are those of the checkpoint, bit for bit."""
    from safetensors.numpy import load

    store, variables = gcs
    assert jaxgrpo("train", CONFIG, *SHORT, f"run_dir={RUN}", "train.steps=2", env=env | variables).returncode == 0
    for out in ("gs://bucket/hf", str(tmp_path / "hf")):
        assert jaxgrpo("export", RUN, out, env=env | variables).returncode == 0
    ours = load(objects(store, "gs://bucket/hf")["model.safetensors"])
    theirs = load((tmp_path / "hf" / "model.safetensors").read_bytes())
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_what_is_moved_aside_on_a_bucket_is_whole_and_told_of_once(gcs):
    store, variables = gcs
    names = ("metrics.jsonl", "eval/heldout-0.jsonl", "checkpoints/6/params/d/x", "lock")
    for name in names:
        store.put("bucket", f"run/{name}", name.encode())
    move = """
from jaxgrpo import storage
from jaxgrpo.aside import move_aside
run, names = storage.location("gs://bucket/run"), ["metrics.jsonl", "eval", "plots", "checkpoints/6"]
print([str(move_aside(run, names)) for _ in "12"])
"""
    done = subprocess.run([sys.executable, "-c", move], env=os.environ | variables, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "['gs://bucket/run/before-1', 'None']\n", done.stderr
    assert objects(store, "gs://bucket/run") == {("" if n == "lock" else "before-1/") + n: n.encode() for n in names}
