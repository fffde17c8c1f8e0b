import re
import subprocess
import sys

import pytest

from jaxgrpo import __version__
from jaxgrpo.cli import main
from tests.run.commands import ROOT

COMMANDS = ["train", "convert", "export", "serve", "fit"]
SIZES = ["0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b"]


def exit_code(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as stopped:
        return stopped.code


def test_the_version_is_that_of_the_package(capsys):
    assert exit_code(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"jaxgrpo {__version__}"
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    assert exit_code([command, "--help"]) == 0
    assert "usage:" in capsys.readouterr().out


def test_the_help_of_train_lists_every_key_with_its_default(capsys):
    assert exit_code(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "optim.lr=1e-06" in text
    assert "rollout.max_new_tokens=4096" in text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "configs/quickstart.yaml", "--fast"],
        ["serve"],
        ["serve", "x", "--port", "p"],
        ["serve", "x", "--port", "70000"],
    ],
)
def test_bad_usage_exits_with_2(arguments):
    assert exit_code(arguments) == 2


def test_what_is_missing_is_named_and_nothing_else(capsys):
    assert exit_code(["train"]) == 2
    assert "the following arguments are required: CONFIG (`jaxgrpo train --help` explains them)" in capsys.readouterr().err


def test_a_key_with_dashes_is_told_how_to_be_given(capsys):
    assert exit_code(["train", "configs/quickstart.yaml", "--train.steps=4"]) == 2
    assert "unrecognised arguments: --train.steps=4; keys are given without dashes: train.steps=4" in capsys.readouterr().err


def test_a_study_whose_files_are_missing_trains_nothing_and_names_them(capsys, tmp_path):
    config = str(ROOT / "configs" / "study-reuse.yaml")
    assert main(["study", config, f"out={tmp_path / 'study'}", "runs.tau1.data.train=none.jsonl"]) == 1
    message = capsys.readouterr().err
    assert message.startswith(
        "jaxgrpo: no such files: none.jsonl, data/heldout.parquet, data/reuse/sampled_1_2_25600.parquet and 6 "
    )
    assert "; there is none there. runs.tau1.data.train=FILE names another, or make them as the head of " in message
    assert message.count("\n") == 1 and len(message) < 400
    assert not (tmp_path / "study").exists()


def test_overrides_may_stand_before_and_after_an_option(capsys, tmp_path):
    config = str(ROOT / "configs" / "quickstart.yaml")
    assert main(["train", config, f"run_dir={tmp_path}", "--dry-run", "rollout.samples=3", "mesh.fsdp=2"]) == 0
    assert "samples: 3" in capsys.readouterr().out


def test_the_help_needs_no_jax():
    script = (
        "import sys, jaxgrpo.cli\ntry:\n    jaxgrpo.cli.main(['--help'])\nexcept SystemExit:\n    print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip().endswith("False")


@pytest.mark.slow
def test_serve_without_a_checkpoint_fails_with_the_childs_exit_code(tmp_path):
    command = [sys.executable, "-m", "jaxgrpo.cli", "serve", str(tmp_path), "--port", "0", "--slots", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 1 and "holds no checkpoint" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("size", SIZES)
def test_a_dry_run_of_every_size_needs_no_weights_and_adds_up(size, capsys, tmp_path):
    config = str(ROOT / "configs" / f"qwen2.5-{size}.yaml")
    assert main(["train", config, "--dry-run", f"run_dir={tmp_path}"]) == 0
    text = capsys.readouterr().out
    parameters = int(re.search(r": ([\d,]+) parameters", text)[1].replace(",", ""))
    assert parameters == pytest.approx(float(size[:-1]) * 1e9, rel=0.09)
    fsdp, tensor = (int(re.search(rf"  {axis}: (\d+)\n", text[text.index("mesh:") :])[1]) for axis in ("fsdp", "tensor"))
    gib = float(re.search(r"│ parameters\s+│\s+([\d.]+)", text)[1])
    assert gib == pytest.approx(4 * parameters / (fsdp * tensor) / 2**30, rel=0.05)
    assert text.count("GiB") == 1
    for kind in ("optimiser", "reference", "KV cache", "rollout weights", "gradients"):
        assert kind in text


def test_instruct_models_take_the_same_config(capsys, tmp_path):
    config = str(ROOT / "configs" / "qwen2.5-7b.yaml")
    assert main(["train", config, "--dry-run", f"run_dir={tmp_path}", "model=Qwen/Qwen2.5-7B-Instruct", "mesh.fsdp=8"]) == 0
    assert "Qwen/Qwen2.5-7B-Instruct: 7,615,616,512 parameters" in capsys.readouterr().out
