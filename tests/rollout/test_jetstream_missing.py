"""What is said where google-jetstream, which pip cannot install without TensorFlow by itself, is not there."""

import subprocess
import sys
import tomllib

import pytest

from jaxgrpo.cli import main
from jaxgrpo.rollout import jetstream_package
from jaxgrpo.rollout.jetstream_package import NEEDED, VERSION, JetStreamMissing, require_jetstream
from tests.run.commands import CONFIG, ROOT

COMMAND = f"{sys.executable} -m pip install --no-deps google-jetstream==0.2.2"


@pytest.fixture
def installed(monkeypatch):
    """The versions of what is installed; a test takes away what it wants."""
    versions = dict.fromkeys(NEEDED, "1") | {"google-jetstream": VERSION}
    monkeypatch.setattr(jetstream_package, "_version", versions.get)
    return versions


def test_all_that_is_needed_is_enough(installed):
    require_jetstream("x")


def test_the_command_is_exact(installed):
    del installed["google-jetstream"]
    with pytest.raises(JetStreamMissing, match="google-jetstream is not installed") as error:
        require_jetstream("x")
    assert str(error.value).endswith(f": run {COMMAND}")
    del installed["grpcio"], installed["shortuuid"]
    with pytest.raises(JetStreamMissing) as error:
        require_jetstream("x")
    assert str(error.value).endswith(f": run {sys.executable} -m pip install grpcio shortuuid && {COMMAND}")
    installed.update(dict.fromkeys(NEEDED, "1") | {"google-jetstream": "0.2.1"})
    with pytest.raises(JetStreamMissing, match="google-jetstream 0.2.1 is not 0.2.2") as error:
        require_jetstream("x")
    assert str(error.value).endswith(f": run {COMMAND}")


def test_serve_and_a_run_with_its_driver_say_so_before_they_load_anything(installed, capsys, tmp_path):
    del installed["google-jetstream"]
    assert main(["serve", "/nowhere"]) == 1
    assert (
        f"jaxgrpo serve needs google-jetstream 0.2.2; google-jetstream is not installed: run {COMMAND}"
        in capsys.readouterr().err
    )
    assert main(["train", CONFIG, "rollout.driver=jetstream", f"run_dir={tmp_path / 'run'}"]) == 1
    said = capsys.readouterr().err
    assert "rollout.driver=jetstream needs" in said and COMMAND in said


def test_the_extra_is_what_is_checked_and_asks_for_no_tensorflow():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert tuple(extras["jetstream"]) == NEEDED
    setup = (ROOT / "launch" / "setup.sh").read_text()
    assert "--no-deps" in setup and "google-jetstream" in setup
    for version in ("3.11", "3.12"):
        assert f"google-jetstream=={VERSION}\n" in (ROOT / "launch" / f"constraints-{version}.txt").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_plain_pip_installs_the_extra_without_tensorflow_and_the_service_imports(tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    python = str(venv / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", ".[jetstream]"], cwd=clone, check=True)
    told = subprocess.run([str(venv / "bin" / "jaxgrpo"), "serve", "/nowhere"], cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 1 and f"{python} -m pip install --no-deps google-jetstream=={VERSION}" in told.stderr
    subprocess.run(told.stderr.strip().partition(": run ")[2], shell=True, cwd=tmp_path, check=True)
    code = "import sys, jaxgrpo.rollout.server; print({'tensorflow', 'seqio', 'tiktoken'} & set(sys.modules))"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout.lower()
    assert "tensorflow" not in listed and "seqio" not in listed
