"""Which prompts a training step sees: the built-in task's endless stream, or a file in curriculum or shuffled order."""

from collections.abc import Sequence
from pathlib import Path

from eval.run import Questions
from eval.suite import load_suite
from jaxgrpo.config import Config, ConfigError
from jaxgrpo.data import (
    DATA_SOURCE,
    DataError,
    EncodedPrompt,
    Problem,
    PromptOrder,
    encode_prompts,
    heldout_problems,
    load_problems,
    training_problems,
)
from jaxgrpo.errors import UserError
from jaxgrpo.reward import sandbox
from jaxgrpo.reward.router import grader_of
from jaxgrpo.train.fingerprints import digest, problems_digest


class TrainingPrompts:
    """Prompts by step. The cursor is the step: nothing is remembered between calls."""

    def __init__(self, config: Config, tokenizer):
        self.config, self.tokenizer, self.dropped = config, tokenizer, 0
        self.of_file: list[EncodedPrompt] = []  # empty for the built-in task's stream
        self.digest = digest(DATA_SOURCE)  # of the problems
        self._order = None
        if config.data.train != DATA_SOURCE:
            problems = load_problems(config.data.train)
            self.digest = problems_digest(problems)
            check_gradable(problems, config.reward.sandbox)
            self.of_file, self.dropped = _encode(problems, config, tokenizer)
            self._order = PromptOrder(len(self.of_file), config.data.prompts_per_step, config.data.order, config.seed)

    def also_in(self, heldout: list[EncodedPrompt]) -> int:
        """How many held-out prompts the training file holds too. The built-in task's streams cannot hold any."""
        if self._order is None:
            return 0
        trained = {prompt.tokens.tobytes() for prompt in self.of_file}
        return sum(prompt.tokens.tobytes() in trained for prompt in heldout)

    def steps(self) -> int:
        """Steps of the run: train.steps, or all epochs of the file. ConfigError where neither bounds it."""
        if self.config.train.steps:
            return self.config.train.steps
        if self._order is None:
            raise ConfigError("train.steps is 0, and the built-in task never ends: set train.steps.")
        return self._order.steps_per_epoch * self.config.data.epochs

    def at(self, step: int) -> list[EncodedPrompt]:
        """The prompts of a step, counted from 0."""
        count = self.config.data.prompts_per_step
        if self._order is None:
            return _encode(training_problems(self.config.seed, step * count, count), self.config, self.tokenizer)[0]
        return [self.of_file[position] for position in self._order.batch_positions(step)]


def check_local_files(config: Config) -> None:
    """DataError when a data file is not there: known before gigabytes of weights are fetched."""
    files = {
        "data.train": config.data.train,
        "data.test": config.data.test,
        "warmup.demonstrations": config.warmup.demonstrations,
    }
    for key, path in files.items():
        if path.endswith((".parquet", ".jsonl")) and ":" not in path and not Path(path).exists():
            subset = Path(path).name.startswith("sampled_1_")
            command = f"data reuse data/train.parquet {Path(path).parent}" if subset else "data prepare LLM360/guru-RL-92k data"
            raise DataError(
                f"{key}={path}: there is no such file; `jaxgrpo {command}` makes those of the paper, or set {key} to the one "
                "you have."
            )


def heldout_prompts(config: Config, tokenizer) -> Questions:
    """The held-out problems (the first eval.limit of them)."""
    builtin = config.data.test == DATA_SOURCE
    problems = heldout_problems() if builtin else load_problems(config.data.test)
    check_gradable(problems, config.reward.sandbox)
    prompts, dropped = _encode(problems[: config.eval.limit or None], config, tokenizer)
    return Questions(
        "heldout", "held-out problems", prompts, dropped, digest(DATA_SOURCE) if builtin else problems_digest(problems)
    )


def suite_questions(names: Sequence[str], config: Config, tokenizer) -> list[Questions]:
    """The questions of suites (the first eval.limit of each); over-long ones are left out and counted."""
    asked = []
    for suite in dict.fromkeys(map(load_suite, names)):
        whole = suite.problems(config.eval.data)
        problems = whole[: config.eval.limit or None]
        check_gradable(problems, config.reward.sandbox)
        prompts, overlong = encode_prompts(problems, tokenizer, max_tokens=config.data.max_prompt_tokens, overlong="drop")
        asked.append(Questions(suite.name, suite.title, prompts, overlong, problems_digest(whole)))
    return asked


def _encode(problems: list[Problem], config: Config, tokenizer) -> tuple[list[EncodedPrompt], int]:
    return encode_prompts(problems, tokenizer, max_tokens=config.data.max_prompt_tokens, overlong=config.data.overlong)


def check_gradable(problems: list[Problem], level: sandbox.Level) -> None:
    """Refuse what cannot be graded before the first token is sampled, not after.

    UserError for a data_source without a grader, a ground truth that its grader cannot use, and code that the sandbox of this
    machine cannot run at `level`.
    """
    for problem in problems:
        try:
            # without an answer only the ground truth is looked at
            grader_of(problem.data_source).grade("", problem.ground_truth, problem.extra_info)
        except UserError:
            raise
        except ValueError as error:
            raise DataError(f"problem {problem.index} ({problem.data_source}): {error}; mend or remove the row") from None
    if any(grader_of(source).runs_code for source in {problem.data_source for problem in problems}):
        sandbox.require(level)


def asks_for_code(prompts: Sequence[EncodedPrompt]) -> bool:
    """Whether a response to one of the prompts is code that will be run."""
    return any(grader_of(source).runs_code for source in {prompt.problem.data_source for prompt in prompts})
