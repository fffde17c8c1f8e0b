"""Commands started in a folder where the user keeps files of their own, some of which are called like modules of ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jaxgrpo.data import build_tokenizer
from tests.model.tiny_hf_model import write_tiny_model
from tests.run.commands import CONFIG, environment

COMMAND = str(Path(sys.executable).parent / "jaxgrpo")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("eval", "scaling", "jaxgrpo", "random", "jetstream", "tests", "launch"):
        (folder / f"{name}.py").write_text(f"raise ImportError('the user\\'s own {name}.py')\n")
    return folder


def run(folder, *arguments, command=(COMMAND,), cache=None):
    env = {key: value for key, value in environment(cache or folder, devices=1).items() if key != "PYTHONPATH"}
    return subprocess.run([*command, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def write_study(folder, **keys):
    study = {"study": "ladder", "out": "out", "config": CONFIG, "set": keys, "runs": {"w16": {"model": "random:miniature-16"}}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))


MODULE = pytest.param((sys.executable, "-m", "jaxgrpo.cli"), marks=pytest.mark.slow, id="module")


@pytest.mark.parametrize("command", [pytest.param((COMMAND,), id="script"), MODULE])
def test_a_study_and_a_server_import_our_modules(command, folder):
    """Their children get as far as the tokenizer and the model that are not there."""
    if command[0] == sys.executable:
        (folder / "jaxgrpo.py").unlink()  # python itself would run that one
    write_study(folder, **{"data.tokenizer": "./absent"})
    done = run(folder, "study", "study.yaml", command=command)
    assert done.returncode == 1 and "there is no directory ./absent" in done.stderr, done.stdout + done.stderr
    served = run(folder, "serve", "/nowhere/absent", "--port", "0", command=command)
    assert served.returncode in (1, 2) and "absent" in served.stderr.splitlines()[-1], served.stderr
    assert "the user's own" not in done.stdout + done.stderr + served.stderr
    assert "Traceback" not in done.stderr + served.stderr


@pytest.mark.slow
def test_a_study_trains_there_with_its_graders_and_jetstreams_driver(folder, tmp_path):
    write_tiny_model(tmp_path / "digits", vocab=64, layers=2, heads=4, head_dim=16)
    build_tokenizer().save_pretrained(tmp_path / "digits")
    keys = {"rollout.driver": "jetstream", "train.steps": 2, "warmup.steps": 0, "warmup.corrupt_steps": 0, "eval.limit": 16}
    keys |= {"data.prompts_per_step": 8, "train.minibatch_prompts": 8, "eval.every": 1, "checkpoint.every": 1}
    write_study(folder, **keys)
    done = run(folder, "study", "study.yaml", "fit.bootstrap=0", cache=tmp_path)
    assert "finished  w16-seed0" in done.stdout, done.stdout + done.stderr
    lines = (folder / "out" / "runs" / "w16-seed0" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
    assert json.loads(lines[-1])["grader_errors"] == 0
