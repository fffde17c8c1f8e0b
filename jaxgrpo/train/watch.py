"""Rewards that teach nothing, because graders fail or because all samples of a group earn the same: told once, and past a
limit the reason for a run to stop. Every host sees the same rewards and so comes to the same end."""

from collections.abc import Callable

import numpy as np

from eval.failures import failure_line
from eval.sampling import Graded, Outcome, response_text
from jaxgrpo.config import RewardConfig
from jaxgrpo.data import EncodedPrompt
from jaxgrpo.errors import UserError

FAILED, EQUAL = "grader_failed_fraction", "equal_reward_groups"  # of a line of metrics: of its answers, of its groups


class LimitReached(UserError):
    """The run stopped by itself and saved what it had. Started again unchanged it would stop again, so launchers do not."""

    on_all_hosts = True


class RewardWatch:
    """say: prints a line. begin: once the run is there; step and evaluation: with what was graded."""

    def __init__(self, limits: RewardConfig, say: Callable[[str], None]):
        self.say = say
        self.limits = {"reward.max_failed": (FAILED, limits.max_failed), "reward.max_equal": (EQUAL, limits.max_equal)}
        self.told: set[str] = set()

    def begin(self, records: list[dict]) -> None:
        """Say how a run that stopped at a limit, as far as its last line of metrics shows, would go on in any case."""
        past = self.past(records[-1]) if records else []
        if past:
            self.say(f"limits    the step before was past {_listed(past)}; {_ignoring(past)}")

    def step(self, step: int, prompts: list[EncodedPrompt], graded: Graded, tokenizer, equal: float) -> dict:
        """The figure that a step's line of metrics gets; equal: the share of groups whose rewards are all equal."""
        answers = sum(map(len, graded.grades))
        failures = [
            (prompt.problem.index, grade.error, response)
            for prompt, responses, grades in zip(prompts, graded.responses, graded.grades, strict=True)
            for response, grade in zip(responses, grades, strict=True)
            if grade.error is not None
        ]
        if failures:
            question, error, response = failures[0]
            text = response_text(response, tokenizer)
            self.warn("training", f"step {step}: {failure_line(len(failures), answers, question, error, text)}")
        if equal == 1.0:
            mean = np.mean([grade.score for grades in graded.grades for grade in grades])
            groups = f"each of the {len(prompts):,} groups"
            self.warn(EQUAL, f"step {step}: all rewards of {groups} are equal (mean {mean:.3f}): nothing is learnt from them")
        return {FAILED: len(failures) / answers}

    def evaluation(self, suite: str, step: int, results: list[Outcome]) -> None:
        failed = [outcome for outcome in results if outcome.error is not None]
        if failed:
            first = failed[0]
            line = failure_line(len(failed), len(results), first.question, first.error, first.response)
            self.warn(suite, f"step {step}, {suite}: {line}")

    def warn(self, about: str, line: str) -> None:
        """Once in a process: the numbers of later steps are in their lines of metrics."""
        if about not in self.told:
            self.told.add(about)
            self.say(f"WARNING   {line}")

    def past(self, record: dict) -> list[tuple[str, str]]:
        """(key, what was measured) of the limits that a line of metrics is past; lines of evaluations alone are past none."""
        words = {FAILED: "the grader failed on {:.0%} of the answers", EQUAL: "all rewards are equal in {:.0%} of the groups"}
        return [
            (f"{key}={limit:g}", words[figure].format(record[figure]))
            for key, (figure, limit) in self.limits.items()
            if record.get(figure, 0.0) > limit
        ]

    def stop(self, record: dict, saved: str) -> None:
        """LimitReached when the step's line of metrics is past a limit. saved: where the step is, for the message."""
        past = self.past(record)
        if past:
            measured = " and ".join(f"{what}, past {key}" for key, what in past)
            raise LimitReached(
                f"{measured}: {saved}; mend the cause and the same command goes on from there. {_ignoring(past)}."
            )


def _listed(past: list[tuple[str, str]]) -> str:
    return " and ".join(f"{key} ({what})" for key, what in past)


def _ignoring(past: list[tuple[str, str]]) -> str:
    keys = " ".join(key.partition("=")[0] + "=1" for key, _ in past)
    return f"With {keys} a run goes on whatever the share"
