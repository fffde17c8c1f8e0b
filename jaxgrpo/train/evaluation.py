"""`jaxgrpo eval`: suites on a model or on a checkpoint of a run, in a folder that can be gone on with."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from eval.failures import failure_line
from eval.report import SuiteResult, write_report
from eval.run import EvaluationFolder, Questions, run_suite
from jaxgrpo.config import EVALUATION_KEYS, ConfigError, load_config
from jaxgrpo.data import DATA_SOURCE
from jaxgrpo.reward import GraderPool
from jaxgrpo.rollout.sampling import Sampling
from jaxgrpo.storage import location
from jaxgrpo.train.activity import Activity
from jaxgrpo.train.checkpoint import has_checkpoints
from jaxgrpo.train.dataset import asks_for_code, suite_questions
from jaxgrpo.train.fingerprints import weights_digest
from jaxgrpo.train.inference import Served, batch_engine, find, load_newest, tokenizer_of

SUITES = ("heldout", "math_500", "aime2024", "amc2023", "gsm8k", "humaneval", "zebra", "supergpqa")
_TITLE = 12  # columns that a suite's title is folded into on a narrow terminal
_LINES = 10  # progress lines of a suite where there is no terminal


def find_model(config: str | None, checkpoint: str | None, overrides: list[str]) -> Served:
    """What is to be evaluated: `checkpoint`, or for a config the newest checkpoint of its run, or its model before any step."""
    if (config is None) == (checkpoint is None):
        raise ConfigError("name either a CONFIG or a --checkpoint: the first evaluates that config's run or model.")
    if checkpoint is not None:
        return find(checkpoint, overrides, keys=EVALUATION_KEYS)
    configured = load_config(config, overrides)
    others = [override for override in overrides if not override.startswith(("run_dir=", "model="))]
    if has_checkpoints(location(configured.run_dir)):
        return find(configured.run_dir, others, keys=EVALUATION_KEYS)
    return find(configured.model, others, keys=EVALUATION_KEYS, config=config)


def evaluate(served: Served, suites: list[str], out: str | None, compare: str | None) -> list[SuiteResult]:
    """Run the suites (empty: those that fit the model's data) on `served`, write the report, print it; returns the figures."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 1000  # of a table in a log: as wide as it is
    c = served.config
    names = suites or ([DATA_SOURCE] if c.data.test == DATA_SOURCE and served.step else list(SUITES))
    other = EvaluationFolder(compare) if compare else None
    if other:
        other.settings  # noqa: B018 (an error now, not after the work)
    tokenizer = tokenizer_of(served)
    asked = suite_questions(names, c, tokenizer)
    served, folder = answer(served, asked, lambda found: out or _default_folder(found), tokenizer, console)
    results = write_report(folder, [questions.name for questions in asked], other)
    table = result_table(results, served.name, console.width if console.is_terminal else None)
    console.print(table, soft_wrap=False)
    for result in results:
        warn_of_failures(folder.outcomes(result.name), result.title, console)
    console.print(f"report    {folder.path / 'report.md'}, {folder.path / 'report.png'}", markup=False)
    return results


def answer(
    served: Served, asked: list[Questions], folder_of: Callable[[Served], str], tokenizer, console: Console, **settings
) -> tuple[Served, EvaluationFolder]:
    """Ask `served` all questions that have no answers yet; returns what answered and the folder of all outcomes.

    folder_of: where the outcomes of what could be read shall lie. settings: further ones, in which an evaluation that goes on
    must not differ.
    """
    c = served.config
    for questions in asked:
        if asks_for_code(questions.prompts):
            console.print(f"sandbox   {c.reward.sandbox}: {questions.title} runs code that the model wrote")
        if questions.overlong:
            total, limit = len(questions.prompts) + questions.overlong, c.data.max_prompt_tokens
            console.print(f"left out  {questions.overlong} of {total} prompts of {questions.title}, over {limit} tokens")
    folder = EvaluationFolder(folder_of(served))
    loaded = None
    if folder.missing(asked):
        console.print(f"model     {served.name}", markup=False)
        most = max(len(questions.prompts) for questions in asked) * c.eval.samples
        engine = batch_engine(served, tokenizer, most)
        # Before the folder is written to: it is named after the checkpoint that can be read.
        with Activity(console) as activity, activity.doing("loading the weights and compiling"):
            served, weights = load_newest(served, engine, activity.say)
        loaded, folder = (engine, weights), EvaluationFolder(folder_of(served))
        settings["weights_digest"] = weights_digest(weights)
    folder.open(_settings(served, asked) | settings)
    if loaded is None:
        every = sum(len(questions.prompts) for questions in asked) * c.eval.samples
        console.print(f"answers   all {every:,} are there from before: nothing is asked, the weights are not read")
    if todo := folder.missing(asked):
        for lost in filter(None, (folder.lost(questions.name) for questions in todo)):
            console.print(f"WARNING   {lost}: the others are asked again", markup=False)
        _run(served, *loaded, todo, folder, tokenizer, console)
    return served, folder


def _run(served: Served, engine, weights, todo: list[Questions], folder: EvaluationFolder, tokenizer, console: Console) -> None:
    c = served.config
    with GraderPool(c.reward.workers, c.reward.cpu_seconds, c.reward.wall_seconds, sandbox=c.reward.sandbox) as pool:
        for questions in todo:
            with _Progress(console, questions.title) as progress:
                run_suite(
                    engine,
                    weights,
                    questions,
                    folder,
                    tokenizer=tokenizer,
                    pool=pool,
                    seed=c.seed,
                    step=served.step_number,
                    samples=c.eval.samples,
                    sampling=Sampling(c.eval.temperature),
                    max_new=c.rollout.max_new_tokens,
                    report=progress.update,
                )


def warn_of_failures(records: list[dict], title: str, console: Console) -> None:
    """Say how many of the answers the grader could not judge, with one of them, where there are any."""
    failed = [record for record in records if "grader_error" in record]
    if failed:
        example = (failed[0][key] for key in ("question", "grader_error", "response"))
        console.print(f"WARNING   {title}: {failure_line(len(failed), len(records), *example)}", markup=False)


def result_table(results: list[SuiteResult], model: str, width: int | None = None) -> Table:
    """The closing table of an evaluation; in fewer columns than it takes, the least important figures are left out whole."""
    samples, compared = results[0].samples, any(result.comparison for result in results)
    failed = any(r.grader_errors for r in results)
    columns = [  # rank, of which the highest goes first; heading; cells
        (0, "suite", [r.title for r in results]),
        (4, "questions", [f"{r.questions:,}" for r in results]),
        (0, f"avg@{samples}", [f"{r.avg.value:.3f}" for r in results]),
        (0, "95 % interval", [f"{r.avg.low:.3f} to {r.avg.high:.3f}" for r in results]),
    ]
    if samples > 1:
        columns.append((1, f"pass@{max(results[0].pass_at)}", [f"{r.pass_at[max(r.pass_at)].value:.3f}" for r in results]))
    columns += [
        (5, "tokens", [f"{r.tokens:,.0f}" for r in results]),
        (3, "cut off", [f"{r.truncated:.0%}" for r in results]),
        (6, "over-long", [str(r.overlong) for r in results]),
        (1 if failed else 7, "errors", [str(r.grader_errors) for r in results]),
    ]
    if compared:
        pairs = [r.comparison for r in results]
        columns.append((0, "difference", ["" if c is None else f"{c.difference.value:+.3f}" for c in pairs]))
        columns.append((2, "p", ["" if c is None else f"{c.p_value:.3g}" for c in pairs]))

    def taken(head: str, cells: list[str]) -> int:
        longest = max(map(len, (head, *cells)))
        return 3 + (min(longest, _TITLE) if head == "suite" else longest)

    left_out = []
    while width is not None and 1 + sum(taken(head, cells) for _, head, cells in columns) > width:
        least = max(columns, key=lambda column: column[0])
        if least[0] == 0:
            break
        columns.remove(least)
        left_out.append(least[1])
    table = Table(title=model, title_justify="left")
    for _, head, _ in columns:
        table.add_column(head, justify="left" if head == "suite" else "right", overflow="fold", no_wrap=head != "suite")
    for row in zip(*(cells for *_, cells in columns), strict=True):
        table.add_row(*row)
    if left_out:
        table.caption = f"too narrow for {', '.join(left_out)}: report.md has all"
    return table


class _Progress:
    """A bar on a terminal; elsewhere a line for every tenth of a suite, and whenever 30 s went by without one."""

    def __init__(self, console: Console, title: str):
        self.console, self.title, self.shown, self.started = console, title, 0, time.monotonic()
        self.bar = None
        self.activity = Activity(console)
        self.within = contextlib.ExitStack()
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=console)
            self.task = self.bar.add_task(title)

    def __enter__(self) -> "_Progress":
        if self.bar:
            self.within.enter_context(self.bar)
        else:
            self.within.enter_context(self.activity)
            self.within.enter_context(self.activity.doing(self.title))
        return self

    def __exit__(self, *exception: object) -> None:
        self.within.close()

    def update(self, done: int, total: int, score: float) -> None:
        if self.bar:
            self.bar.update(self.task, completed=done, total=total, description=f"{self.title}  {score:.3f}")
            return
        self.activity.count(done, total, "answers")
        if done == total or done * _LINES // total > self.shown:
            self.shown = done * _LINES // total
            seconds = time.monotonic() - self.started
            self.activity.say(f"{self.title:<20} {done:,} of {total:,} answers, score {score:.3f}, {seconds:.0f} s")


def _settings(served: Served, asked: list[Questions]) -> dict:
    c = served.config
    return {
        "model": served.name,
        "seed": c.seed,
        "temperature": c.eval.temperature,
        "samples": c.eval.samples,
        "limit": c.eval.limit,
        "max_prompt_tokens": c.data.max_prompt_tokens,
        "max_new_tokens": c.rollout.max_new_tokens,
        "dtype": c.rollout.dtype,
        "weights": c.rollout.weights or c.rollout.dtype,
        "cache": c.rollout.cache_dtype or c.rollout.dtype,
    } | {
        f"suite {q.name}": {
            "title": q.title,
            "questions": len(q.prompts),
            "overlong": q.overlong,
            "digest": _digest(q.prompts),
        }
        for q in asked
    }


def _digest(prompts) -> str:
    """Of the questions and their reference answers, without the tokens, so that models of other tokenizers can be compared."""
    known = hashlib.sha256()
    for prompt in prompts:
        problem = prompt.problem
        known.update(json.dumps([problem.index, problem.messages, problem.ground_truth], default=str, sort_keys=True).encode())
    return known.hexdigest()[:16]


def _default_folder(served: Served) -> str:
    if served.step is not None:
        return str(served.step.parent.parent / "evaluations" / served.step.name)
    return str(Path("evaluations") / str(served.name).strip("/").replace("/", "--"))
