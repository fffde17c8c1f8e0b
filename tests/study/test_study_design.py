from pathlib import Path

import pytest

from jaxgrpo.config import ConfigError
from jaxgrpo.study.design import load_study

CONFIGS = Path(__file__).parents[2] / "configs"
STUDIES = {"study": 14, "study-qwen2.5-base": 7, "study-qwen2.5-instruct": 7, "study-reuse": 8, "study-group": 4}


def test_every_shipped_study_is_planned():
    assert set(STUDIES) == {path.stem for path in CONFIGS.glob("study*.yaml")}
    for name, count in STUDIES.items():
        _, runs = load_study(str(CONFIGS / f"{name}.yaml"))
        assert len({run.directory for run in runs}) == len(runs) == count


def test_overrides_reach_the_study_one_run_or_all_runs():
    study, runs = load_study(
        str(CONFIGS / "study.yaml"), ["seeds=[7]", "train.steps=3", "runs.w16.eval.every=1", "fit.warmup=4", "out=elsewhere"]
    )
    assert [run.seed for run in runs] == [7] * 7
    assert {run.config.train.steps for run in runs} == {3}
    assert [run.config.eval.every for run in runs] == [1, 2, 2, 2, 2, 2, 2]
    assert study.fit.warmup == 4
    assert runs[0].config.run_dir == "elsewhere/runs/w16-seed7"


def test_the_learning_rate_follows_one_rule_of_width():
    _, runs = load_study(str(CONFIGS / "study.yaml"), ["seeds=[0]", "learning_rate.base=1e-4", "learning_rate.power=0.5"])
    assert [run.config.optim.lr for run in runs] == [2e-4, 1.633e-4, 1.414e-4, 1.155e-4, 1e-4, 8.165e-5, 7.071e-5]


@pytest.mark.parametrize(
    "override, message",
    [
        ("seed=3", "use seeds"),
        ("train.stpes=3", "did you mean train.steps"),
        ("seeds=[1, 1]", "each only once"),
        ("optim.lr=1e-3", "keep one of them"),
        ("runs.w16=3", "runs.w16.model"),
        ("study=lader", "study"),
        ("fit.x=[compute, time]", "fit.x=time is not known"),
        ("fit.x=[]", "fit.x is empty"),
        ("fit.objective=logg", "choose from log, linear, huber"),
        ("fit.resample=points", "choose from block"),
        ("fit.warmup=-1", "below 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_study(str(CONFIGS / "study.yaml"), [override])
