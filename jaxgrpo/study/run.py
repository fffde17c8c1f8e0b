"""`jaxgrpo study`: plan, train, report."""

import time
from pathlib import Path

from rich.console import Console

from jaxgrpo.errors import UserError
from jaxgrpo.study.design import PlannedRun, StudyConfig, jobs_at_once, load_study
from jaxgrpo.study.runner import StudyError, config_file, is_done, missing_files, progress, train_all, write_configs
from scaling import tables
from scaling.runs import DataError


def print_plan(path: str, overrides: list[str]) -> None:
    """Say what a study would train and what is done of it."""
    study, runs = load_study(path, overrides)
    console = _console()
    console.print(_header(study, runs), markup=False)
    console.print(_plan(runs), markup=False)
    written = all(config_file(run).exists() for run in runs)
    by_itself = "each run by itself" if written else f"each run by itself, once `jaxgrpo study {path}` has written these files"
    console.print(f"{by_itself}:", markup=False)
    for run in runs:
        console.print(f"  jaxgrpo train {config_file(run)}", markup=False)
    if missing := missing_files(runs):
        console.print(f"WARNING   {missing}", markup=False)


def study(path: str, overrides: list[str]) -> Path:
    """Train the runs of a study file that are not done yet and write its report; returns the report's path.

    ConfigError for a file that cannot be meant, StudyError when runs failed, UserError when their curves bear no fit.
    """
    config, runs = load_study(path, overrides)
    console = _console()

    def say(text: str) -> None:
        console.print(text, markup=False)

    say(_header(config, runs))
    if missing := missing_files(runs):
        raise StudyError(f"{missing}, or make them as the head of {path} or docs/data.md says.")
    started = time.monotonic()
    write_configs(runs)
    train_all(runs, jobs_at_once(config, len(runs)), say)
    say(f"trained   {len(runs)} runs; this took {(time.monotonic() - started) / 60:.1f} min\n")
    from jaxgrpo.study.report import write_report

    try:
        report = write_report(config, runs, path, say)
    except DataError as error:
        raise UserError(f"the runs are trained, but bear no fit: {error}") from None
    say(f"report    {report}")
    return report


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _header(study: StudyConfig, runs: list[PlannedRun]) -> str:
    jobs = jobs_at_once(study, len(runs))
    return f"study     {study.study} of {len(study.runs)} runs x {len(study.seeds)} seeds in {study.out}, {jobs} at a time"


def _plan(runs: list[PlannedRun]) -> str:
    rows = []
    for run in runs:
        done, steps, _ = progress(run)
        c = run.config
        state = "done" if is_done(run) else f"step {done}" if done else "to do"
        batch = f"{c.data.prompts_per_step} x {c.rollout.samples}"
        rows.append([run.directory.name, c.model, c.data.train, c.data.epochs, batch, f"{c.optim.lr:g}", steps or "all", state])
    return tables.table(["run", "model", "data", "epochs", "prompts x samples", "lr", "steps", "state"], rows)
