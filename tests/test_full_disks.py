"""A full disk names the file, wherever it is met; what was there stays whole, and a killed writer leaves nothing."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from eval.sampling import write_records
from jaxgrpo import picture
from jaxgrpo.data import DataError
from jaxgrpo.data.files import write_parquet
from jaxgrpo.model.config import ModelError
from jaxgrpo.model.source import resolve_model
from jaxgrpo.model.weight_file import PendingTensor, write_weight_file
from jaxgrpo.storage import copy_tree, naming
from jaxgrpo.train.checkpoint import CheckpointError, Checkpoints, save_params
from jaxgrpo.train.metrics import MetricsLog
from jaxgrpo.train.state import TrainState
from jaxgrpo.whole_file import whole_folder, write_whole
from scaling import figures
from tests.run.commands import ROOT


@contextmanager
def no_room():
    """Files cannot grow here: what the kernel says then, EFBIG, comes as ENOSPC does, without a name."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def draw():
    figure, axis = picture.plt.subplots(figsize=(1, 1))
    axis.plot([1, 2])
    return figure


def copy(path: Path) -> None:
    source = path.parent / "source"
    source.mkdir()
    (source / path.name).symlink_to(__file__)
    copy_tree(source, path.parent)


def tensors():
    return [PendingTensor("a", (2,), np.dtype("float32"), lambda: np.zeros(2))]


def tokenizer_of_rust(path: Path) -> None:
    with naming(path):
        raise Exception("No space left on device (os error 28)")


WRITERS = {
    "a line of metrics": lambda path: MetricsLog(path).append({"step": 1}),
    "the outcomes of an evaluation": lambda path: write_records(path, [{"question": 1}]),
    "a config": lambda path: write_whole(path, "seed: 0\n"),
    "a picture": lambda path: picture.save(draw(), path),
    "a figure of the law": lambda path: figures.save(draw(), path.parent, path.stem),
    "weights": lambda path: write_weight_file(path, tensors()),
    "training data": lambda path: write_parquet(path, [{"a": 1}]),
    "a copy of a folder": copy,
    "a warm start": lambda path: save_params(path, {"a": jnp.ones(3)}),
    "a tokenizer": tokenizer_of_rust,
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_write_without_room_names_the_file_and_leaves_no_part_of_it(what, tmp_path):
    path = tmp_path / "written.png"
    with pytest.raises((OSError, DataError, CheckpointError)) as caught, no_room():
        WRITERS[what](path)
    said = str(caught.value)
    assert "written" in said and str(tmp_path) in said
    assert "File too large" in said or "No space left" in said or "errno 27" in said, said
    left = [child.name for child in tmp_path.iterdir() if child.name.startswith("written") and child.stat().st_size]
    assert left in ([], ["written.png.orbax-checkpoint-tmp"]), left


def test_the_lines_that_are_there_survive_one_that_finds_no_room(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 0})
    with pytest.raises(OSError, match="metrics.jsonl"), no_room():
        log.append({"step": 1})
    assert [line["step"] for line in log.read()] == [0]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize(
    "command", [["plan", str(ROOT / "configs" / "quickstart.yaml"), "--topology", "v5e:1x1", "--no-compile"]]
)
def test_output_to_a_full_disk_is_one_line(command):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "jaxgrpo.cli", *command], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode != 0
    assert "the output of this command" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_compilation_cache_without_room_is_named_once(tmp_path):
    code = (
        "import resource, jaxgrpo.program_cache as c; c.keep_compiled_programs()\n"
        "import jax; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "for n in (1, 2): jax.jit(lambda x: x * n)(1.0)"
    )
    always = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    always |= {"JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | always, stderr=subprocess.PIPE, text=True)
    said = [line for line in done.stderr.splitlines() if "compil" in line]
    assert len(said) == 1 and f"cannot be kept in or read from {tmp_path}/xla (OSError: [Errno 27]" in said[0], done.stderr


@pytest.mark.parametrize("jump", [-36000, 36000])
@pytest.mark.parametrize("look", [2, 5, 9])
def test_a_clock_that_jumps_is_no_failure_of_a_save(jump, look, tmp_path, monkeypatch):
    """By ten hours, before one of the times that it is looked at."""
    from jaxgrpo.config import CheckpointConfig

    checkpoints, real, looks = Checkpoints(tmp_path / "checkpoints", CheckpointConfig()), time.time, []
    monkeypatch.setattr(time, "time", lambda: looks.append(1) or real() + jump * (len(looks) >= look))
    checkpoints.save(1, TrainState({"a": jnp.ones(8)}, {"b": jnp.zeros(8)}), {"step": 1}, {})
    checkpoints.wait()
    checkpoints.close()
    assert (tmp_path / "checkpoints" / "1" / "params").is_dir() and len(looks) > look


def test_only_a_disk_without_room_is_asked_for_room(tmp_path):
    from jaxgrpo.train.checkpoint import _explained

    for error, room in ((OSError(28, "No space left on device"), True), (RuntimeError("timed out after 7200 seconds"), False)):
        with pytest.raises(CheckpointError) as caught, _explained("checkpoint"):
            raise error
        assert ("make room" in str(caught.value)) == room


def test_a_folder_is_whole_or_absent_and_what_a_sigkill_left_is_removed_by_the_next_call(tmp_path):
    out = tmp_path / "hf"
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom jaxgrpo import interruption\n"
        "from jaxgrpo.whole_file import whole_folder\n"
        "with interruption.heard(), whole_folder(Path(sys.argv[1])) as folder:\n"
        "  (folder / 'config.json').write_text('{}'); print(1, flush=True); os.kill(os.getpid(), int(sys.argv[2])); input()"
    )
    for number, left in ((signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, 1)):
        listening = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        line = [sys.executable, "-c", code, str(out), str(int(number))]
        killed = subprocess.run(line, stdin=subprocess.PIPE, capture_output=True, timeout=30, cwd=ROOT, **listening)
        assert killed.returncode == (130 if number == signal.SIGINT else -number), killed.stderr
        assert len(list(tmp_path.iterdir())) == left and not out.exists()
    with pytest.raises(ValueError), whole_folder(out):
        assert len(list(tmp_path.iterdir())) == 1, "the new one alone"
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    with whole_folder(out) as folder:
        (folder / "config.json").write_text(json.dumps({}))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_an_export_without_room_says_where_and_leaves_nothing(tmp_path):
    from jaxgrpo.model import hf

    source = resolve_model("random:miniature-16")
    params = hf.load_params(source, dtype=jnp.float32)
    with pytest.raises(ModelError, match=f"writing {tmp_path}/hf failed .*File too large"), no_room():
        hf.save_params(
            params, source.config, str(tmp_path / "hf"), hf_config=source.hf_config, copy_from=None, dtype=jnp.float32
        )
    assert list(tmp_path.iterdir()) == []
