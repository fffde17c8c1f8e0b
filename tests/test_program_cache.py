"""Compiled programs are code: folders that another user may write to are not used."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from jaxgrpo.program_cache import unsafe

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed")


@contextmanager
def acting_as(user: int):
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def umask(mask: int):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder that every user may look into and nobody else may write to."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/") and folder.stat().st_uid == os.geteuid() and folder.stat().st_mode & 0o011 != 0o011:
            folder.chmod(folder.stat().st_mode | 0o011)
    return tmp_path


def test_the_folder_is_made_for_its_user_alone(tmp_path):
    folder = tmp_path / "new" / "xla"
    with umask(0o022):
        assert unsafe(folder) is None
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode, safe", [(0o755, True), (0o770, False), (0o707, False), (0o1777, False)])
def test_a_folder_that_others_may_write_to_is_not_safe(mode, safe, tmp_path):
    (tmp_path / "xla").mkdir()
    (tmp_path / "xla").chmod(mode)
    why = unsafe(tmp_path / "xla")
    assert why is None if safe else f"others may write to {tmp_path}/xla (mode {mode:04o}; chmod go-w it" in why


@pytest.mark.parametrize("mode, safe", [(0o755, True), (0o777, False), (0o1777, True)])
def test_nor_is_one_that_others_may_replace(mode, safe, tmp_path):
    (tmp_path / "shared" / "xla").mkdir(parents=True, mode=0o700)
    (tmp_path / "shared").chmod(mode)
    why = unsafe(tmp_path / "shared" / "xla")
    assert why is None if safe else f"others may write to {tmp_path}/shared " in why


@as_root
def test_a_folder_of_another_user_is_not_safe_whoever_asks(place):
    for owner, asks in ((NOBODY, 0), (0, NOBODY), (NOBODY - 1, NOBODY)):
        folder = place / f"of-{owner}-for-{asks}"
        folder.mkdir(mode=0o755)
        os.chown(folder, owner, owner)
        with acting_as(asks):
            assert unsafe(folder) == f"{folder} is of another user (uid {owner})"
        with acting_as(owner):
            assert unsafe(folder) is None


@as_root
def test_a_link_that_another_user_may_turn_is_not_safe(place):
    (place / "xla").mkdir(mode=0o700)
    (place / "link").symlink_to(place / "xla")
    assert unsafe(place / "link") is None
    os.chown(place / "link", NOBODY, NOBODY, follow_symlinks=False)
    assert unsafe(place / "link") == f"{place}/link is of another user (uid {NOBODY})"


@pytest.mark.parametrize("mode", [0o700, 0o777])
def test_a_process_neither_reads_nor_writes_programs_where_others_may_write(mode, tmp_path):
    folder = tmp_path / "xla"
    folder.mkdir()
    folder.chmod(mode)
    code = (
        "from jaxgrpo.program_cache import keep_compiled_programs; keep_compiled_programs()\n"
        "import jax; jax.jit(lambda x: x * 2)(1.0); print(jax.config.jax_enable_compilation_cache)"
    )
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env |= {"JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    said = [line for line in done.stderr.splitlines() if "compiled programs are code" in line]
    if mode == 0o700:
        assert done.stdout.strip() == "True" and said == [] and list(folder.iterdir())
    else:
        assert done.stdout.strip() == "False" and len(said) == 1 and list(folder.iterdir()) == []
        assert f"{folder} is not used, programs are compiled anew; JAX_COMPILATION_CACHE_DIR moves the folder" in said[0]
