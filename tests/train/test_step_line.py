"""What the lines of a run call their figures."""

from types import SimpleNamespace

from jaxgrpo.config import Config, replace
from jaxgrpo.train.progress import Progress, compute_row

TRAINED = {"reward_mean": 0.5, "response_length_mean": 4.0, "rollout_tokens_per_s": 9.0, "step_s": 1.0}


def test_pass1_on_a_step_line_names_the_step_of_an_evaluation_that_is_not_its_own(capsys):
    job = SimpleNamespace(config=replace(Config(), {"train.steps": 20}))
    progress = Progress(job, None)
    progress.first = 9
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
