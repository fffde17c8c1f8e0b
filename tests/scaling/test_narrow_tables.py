"""Tables of a fit on a narrow terminal: every figure is there, whole, and no line is longer than the terminal is wide."""

import os
import re
import subprocess
import sys

import pytest

from scaling import tables

HEADER = ["size", "points", "k(N)", "95 %", "k alone", "E(N)", "95 %", "R2", "rho"]
ROWS = [
    [f"{n}B", 100 + n, f"0.{n}111", f"[0.{n}222, 0.{n}333]", f"0.{n}444", f"1.{n}555", "-", f"0.{n}66", "0.1"]
    for n in (1, 7, 72)
]


@pytest.mark.parametrize("width", [30, 60, 80])
def test_columns_that_do_not_fit_come_below(width):
    wide = tables.table(HEADER, ROWS)
    with tables.narrowed(width):
        narrow = tables.table(HEADER, ROWS)
    assert max(map(len, narrow.splitlines())) <= width
    blocks = narrow.split("\n\n")
    assert all(block.startswith("size") for block in blocks) and (len(blocks) > 1) == (width < 80)
    assert sorted(set(narrow.split())) == sorted(set(wide.split()) | {cell for cell in narrow.split() if set(cell) == {"-"}})
    assert tables.table(HEADER, ROWS) == wide, "outside it is as wide as it is"


def fit(columns: int | None) -> str:
    env = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | ({"COLUMNS": str(columns)} if columns else {})
    command = [sys.executable, "-m", "scaling", "--family", "qwen2.5-base", "--bootstrap", "20", "--predict", "N=72e9"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(text: str) -> set[str]:
    """The first column comes again in every part."""
    return set(re.findall(r"\d+\.\d+(?:e[+-]\d+)?", text))


def test_fit_keeps_its_figures_in_60_and_80_columns_and_in_a_pipe():
    whole = fit(None)
    assert max(map(len, whole.splitlines())) > 100
    for columns in (80, 60):
        narrow = fit(columns)
        assert max(map(len, narrow.splitlines())) <= columns
        assert figures(narrow) == figures(whole)
