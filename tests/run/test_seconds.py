"""The seconds of a run add up: those of a line to its step_s, those of all lines and the last save to the loop's wall time."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from jaxgrpo.train.metrics import PHASES
from jaxgrpo.train.progress import phase_table
from tests.run.commands import CONFIG, ROOT, SHORT

TIMED_RUN = str(Path(__file__).with_name("timed_run.py"))


def shares(text: str) -> dict[str, tuple[float, int]]:
    """(seconds, per cent) of every phase of a printed table."""
    rows = re.findall(r"^[│|] (\w+) +[│|] +([\d.]+) [│|] +(\d+)% ", text, re.MULTILINE)
    return {phase: (float(seconds), int(share)) for phase, seconds, share in rows}


def timed(run_dir: Path, env: dict, *overrides: str) -> tuple[dict, str]:
    """(wall seconds of the loop and of the saves, standard output) of one process."""
    figures = run_dir.parent / "figures.json"
    command = [sys.executable, TIMED_RUN, str(figures), "train", CONFIG, *SHORT, *overrides, f"run_dir={run_dir}"]
    done = subprocess.run(command, env=env | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(figures.read_text()), done.stdout


@pytest.fixture(scope="module")
def twice(env, tmp_path_factory):
    """A run of 3 steps, saved after every second and the last, that another process takes to step 5: the figures of both
    processes, their outputs, and the lines."""
    run_dir = tmp_path_factory.mktemp("timed") / "run"
    first = timed(run_dir, env, "train.steps=3")
    second = timed(run_dir, env, "train.steps=5")
    return first, second, [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_the_phases_of_every_line_sum_to_its_seconds(twice):
    *_, lines = twice
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    for line in lines:
        assert sum(line[phase] for phase in PHASES) + line["other_s"] == pytest.approx(line["step_s"])
        assert all(line[phase] >= 0 for phase in (*PHASES, "other_s"))


def test_the_save_of_a_line_is_the_one_that_ended_before_it(twice):
    """Saved are steps 2, 3 (the last of the first process), 4 and 5. A process that goes on begins with no save behind it."""
    (first, _), (second, _), lines = twice
    after_2, after_3, wait_3 = first["saves"]
    after_4, *_ = second["saves"]
    assert [line["step"] for line in lines if line["save_s"]] == [3, 5]
    assert lines[3]["save_s"] == pytest.approx(after_2, abs=0.2)
    assert lines[5]["save_s"] == pytest.approx(after_4, abs=0.2)


def test_all_lines_and_the_last_save_sum_to_the_wall_time_of_the_loop(twice):
    (first, _), (second, _), lines = twice
    for figures, part in ((first, lines[:4]), (second, lines[4:])):
        last_save = sum(figures["saves"][1:])  # of its last step, and the wait until it is on disk
        assert last_save > 1.0
        assert sum(line["step_s"] for line in part) + last_save == pytest.approx(figures["loop_s"], abs=0.4)


def test_the_closing_table_gives_every_phase_its_share_of_the_whole(twice):
    (first, text), _, lines = twice
    saves, found = sum(first["saves"]), shares(text)
    assert set(found) == {phase.removesuffix("_s") for phase in PHASES} | {"other"}
    assert found["save"][0] == pytest.approx(saves, abs=0.4)
    assert found["save"][1] == pytest.approx(100 * saves / first["loop_s"], abs=4)
    assert found["eval"][0] == pytest.approx(sum(line["eval_s"] for line in lines[:4]), abs=0.06)
    assert sum(seconds for seconds, _ in found.values()) == pytest.approx(first["loop_s"], abs=0.5)


def test_lines_of_before_whose_saves_added_up_count_every_save_once():
    """Ten steps of 1 s, saves of 0.1 s; a second process begins at step 6, of which one line is of today's kind."""
    old = [{"step": s, "update_s": 0.9, "other_s": 0.1, "step_s": 1.0, "save_s": 0.1 * (s - 1)} for s in range(1, 6)]
    old += [{"step": s, "update_s": 0.9, "other_s": 0.1, "step_s": 1.0, "save_s": 0.1 * (s - 6)} for s in range(6, 10)]
    new = {"step": 10, "update_s": 0.8, "other_s": 0.1, "save_s": 0.1, "step_s": 1.0}
    console = Console(width=80)
    with console.capture() as printed:
        console.print(phase_table([{"step": 0, "eval_s": 1.0}, *old, new], last_save_s=0.1))
    found = shares(printed.get())
    assert found["save"] == (0.9, 8)  # 4 + 3 + 1 and the last: 0.9 of 0.9 + 8.9 + 1.0 + 1.0
    assert found["update"] == (8.9, 75)
    assert "added all saves up" in " ".join(printed.get().split())
