import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.run.commands import ROOT


def python_3_12() -> str | None:
    """An interpreter of Python 3.12: on the path, or among pyenv's."""
    found = shutil.which("python3.12")
    if found and subprocess.run([found, "-c", "import venv"], capture_output=True).returncode == 0:
        return found
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    return next((str(path) for path in sorted(versions.glob("3.12.*/bin/python3.12"))), None)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_suite_passes_on_python_3_12_with_the_newest_jax(tmp_path):
    python = python_3_12()
    if python is None:
        pytest.skip("there is no Python 3.12 here")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    if (ROOT.parent / "shared").exists():
        (tmp_path / "shared").symlink_to(ROOT.parent / "shared")
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "VIRTUAL_ENV")} | {"PYTHON": python}
    done = subprocess.run(["bash", "launch/test.sh", "-q"], cwd=clone, env=env, capture_output=True, text=True)
    print(done.stdout[-3000:], done.stderr[-2000:])
    assert done.returncode == 0
    show = "import jax, sys; print(sys.version_info[:2], jax.__version__)"
    versions = subprocess.run([clone / ".venv/bin/python", "-c", show], capture_output=True, text=True).stdout
    assert versions.startswith("(3, 12)")
    assert tuple(map(int, versions.split()[2].split(".")[:2])) >= (0, 12)
