"""What the lines of a run call their figures, and that they fit where they are shown."""

import io
import re
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from eval.report import SuiteResult
from eval.statistics import Estimate
from jaxgrpo.config import Config, replace
from jaxgrpo.train.activity import Activity
from jaxgrpo.train.evaluation import result_table
from jaxgrpo.train.progress import Progress, compute_row

TRAINED = {"reward_mean": 0.5, "response_length_mean": 4.0, "rollout_tokens_per_s": 9.0, "step_s": 1.0, "compilations": 3}


def test_pass1_on_a_step_line_names_the_step_of_an_evaluation_that_is_not_its_own(capsys):
    job = SimpleNamespace(config=replace(Config(), {"train.steps": 20}))
    progress = Progress(None)
    progress.job = job
    progress.step(10, TRAINED | {"test_loss": 0.44})
    progress.step(11, TRAINED)
    progress.step(12, TRAINED | {"test_loss": 0.4})
    lines = capsys.readouterr().out.splitlines()
    assert "Pass@1 0.560  " in lines[0] and "(step" not in lines[0]
    assert "Pass@1 0.560 (step 10)" in lines[1]
    assert "Pass@1 0.600  " in lines[2] and "(step" not in lines[2]


def test_the_operations_that_were_counted_are_not_called_the_whole_of_6_n_tokens():
    """A shared prompt is computed once for all its samples: the count may lie below 6 N tokens."""
    name, figures = compute_row({"compute_flops": 9e12, "compute_flops_total": 4e12})
    assert "in all" not in name + figures
    assert "9e+12" in figures and "6 N tokens" in figures
    assert "4e+12" in figures and "counted" in figures


RECORD = TRAINED | {"step_s": 12.34, "rollout_tokens_per_s": 123456.7, "response_length_mean": 1234.5}


def shown(columns: int | None, steps: list[dict], first: int = 1, total: int = 2000) -> list[str]:
    """The live line after every step on a terminal of so many columns, or None: what a log file gets."""
    out = io.StringIO()
    progress = Progress(None)
    progress.console = Console(file=out, width=columns or 80, force_terminal=columns is not None, soft_wrap=True)
    progress.activity = Activity(progress.console)
    progress.job = SimpleNamespace(config=replace(Config(), {"train.steps": total}))
    lines = []
    for step, record in enumerate(steps, first):
        progress.step(step, record)
        lines.append(progress.activity.headline)
    return lines if columns else out.getvalue().splitlines()


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_step_line_of_a_terminal_fits_it_and_leaves_out_whole_figures(columns):
    steps = [RECORD | {"test_loss": 0.44}, RECORD, RECORD]
    full = shown(None, steps)[-1]
    assert full == (
        "step    3/2000  reward 0.500  Pass@1 0.560 (step 1)  length 1234.5  rollout 123,457 tokens/s  12.34 s/step  "
        "6 h 50 min left"
    )
    line = shown(columns, steps)[-1]
    assert len(line) <= columns
    assert line.startswith("step    3/2000  reward 0.500  Pass@1 0.560 (step 1)")
    assert set(line.split("  ")) <= set(full.split("  ")), "a figure is whole or absent"
    assert ("6 h 50 min left" in line) == (columns >= 80) and (line == full) == (columns == 200)


def test_the_time_left_is_that_of_steps_without_compilation():
    """100 s for the first step, which compiles, 200 for the second, which does too, then 10 each."""
    seconds, compiled = [100.0, 200.0, 10.0, 10.0], [5, 7, 7, 7]
    steps = [RECORD | {"step_s": s, "compilations": c} for s, c in zip(seconds, compiled, strict=True)]
    lines = shown(None, steps, total=10)
    assert ["left" in line for line in lines] == [False, False, True, True]
    assert lines[2].endswith("  1 min 10 s left") and lines[3].endswith("  1 min 00 s left")


def test_a_log_file_says_what_is_under_way_when_nothing_else_was_said():
    out = io.StringIO()
    with Activity(Console(file=out, width=80), every_s=0.2) as activity:
        with activity.doing("step 4/9"), activity.doing("rollouts and grading"):
            activity.count(340, 512, "responses")
            time.sleep(0.7)
            activity.say("step 4/9 is done")
        time.sleep(0.5)
    lines = out.getvalue().splitlines()
    assert re.fullmatch("running   step 4/9: rollouts and grading, 340 of 512 responses, [01] s", lines[0])
    assert lines[-1] == "step 4/9 is done" and len(lines) <= 4


def test_a_terminal_shows_the_last_line_and_what_is_under_way(tmp_path):
    out = io.StringIO()
    with Activity(Console(file=out, width=80, force_terminal=True)) as activity:
        activity.headline = "step 3/9  reward 0.500"
        with activity.doing("step 4/9"), activity.doing("update"):
            activity.count(1, 4, "minibatches")
            time.sleep(0.6)
    assert "step 3/9  reward 0.500" in out.getvalue()
    assert "step 4/9: update, 1 of 4 minibatches, 0 s" in out.getvalue()
    assert out.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in out.getvalue(), "the cursor is back"


def result(title: str) -> SuiteResult:
    figure = Estimate(0.123, 0.101, 0.145)
    return SuiteResult(
        name="a", title=title, questions=1234, samples=8, avg=figure, pass_at={8: Estimate(0.456, 0.4, 0.5)}, tokens=2345.6,
        truncated=0.07, overlong=3, grader_errors=0, figures={}
    )  # fmt: skip


@pytest.mark.parametrize("columns", [60, 80, None])
def test_the_table_of_an_evaluation_cuts_no_figure(columns):
    console = Console(width=columns or 1000)
    with console.capture() as printed:
        console.print(result_table([result("MATH-500"), result("a benchmark of one's own")], "runs/a", columns))
    text = printed.get()
    assert "…" not in text and max(map(len, text.splitlines())) <= (columns or 1000)
    for figure in ("0.123", "0.101 to 0.145", "0.456"):
        assert text.count(figure) == 2
    if columns is None:
        assert all(text.count(figure) == 2 for figure in ("1,234", "2,346", "7%"))
    else:
        assert "too narrow for" in text
