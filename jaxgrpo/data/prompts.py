r"""The paper's prompts: an introduction, the question, and the request for a \boxed answer, in one user message; and others.

A template is put around the last message of the user. The paper's goes around problems with a mathematical answer alone: code,
puzzles and choices come with prompts of their own, which say how to answer.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from jaxgrpo.data.problem import DataError

INTRODUCTION = "You are a knowledgeable math assistant. Answer the following questions and think step by step. "
BOXED = r" Please output the final answer within \boxed{}."
PLACE = "{question}"
MATHS_SOURCES = ("math__", "aime", "amc", "openai/gsm8k", "gsm8k")  # beginnings of data_source whose answers go into a box


def maths_prompt(question: str) -> str:
    r"""The paper's training prompt for a question; one that has its introduction or asks for a \boxed already keeps its own."""
    question = question if r"\boxed{" in question else question + BOXED
    return question if question.startswith(INTRODUCTION) else INTRODUCTION + question


def question_of(prompt: str) -> str:
    """The question in a prompt: what `maths_prompt` was given, as far as that can be told from the text."""
    return prompt.removeprefix(INTRODUCTION).removesuffix(BOXED).strip()


def is_maths(data_source: str) -> bool:
    """Whether answers to problems of that data source are graded as mathematics."""
    return data_source.startswith(MATHS_SOURCES)


@dataclass(frozen=True)
class Template:
    """What is put around questions. name: "maths" (the paper's), "none", or that of a file; text: with `{question}` in it."""

    name: str
    text: str

    def around(self, question: str, data_source: str) -> str:
        """The prompt for a question; one that is in this template already comes back as it is."""
        if self.name == "maths":
            return maths_prompt(question) if is_maths(data_source) else question
        before, after = self.text.split(PLACE)
        if question.startswith(before) and question.endswith(after):
            return question
        return before + question_of(question) + after

    def __str__(self) -> str:
        return self.name if self.name in TEMPLATES else f"{self.name}: {self.text!r}" if self.name else repr(self.text)


TEMPLATES = {"maths": Template("maths", INTRODUCTION + PLACE + BOXED), "none": Template("none", PLACE)}


def find_template(template: str) -> Template:
    """The template of that name, a text with `{question}` in it, or the text of such a file. DataError for anything else."""
    if template in TEMPLATES:
        return TEMPLATES[template]
    name, text = "", template
    if PLACE not in template and os.path.isfile(template):
        name = template
        try:
            with open(template, encoding="utf-8-sig") as file:
                text = file.read().removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--template {template} is not readable as UTF-8 text ({error}); write it again") from None
    if text.count(PLACE) != 1:
        found = (
            f"the file has {text.count(PLACE)} of it"
            if name
            else f"there is no such file, and the text has {text.count(PLACE)}"
        )
        raise DataError(
            f"--template {template}: where the question goes must be written {PLACE}, once ({found} of it); give "
            f"{' or '.join(TEMPLATES)}, a text such as 'Solve: {PLACE}', or a file of one"
        )
    return Template(name, text)


def users_last(messages: Sequence[dict]) -> int | None:
    """The position of the user's last message; None where the user says nothing."""
    return max((place for place, message in enumerate(messages) if message["role"] == "user"), default=None)


def asked(messages: Sequence[dict]) -> str:
    """The user's last message, or the last one of all where the user says nothing."""
    return messages[-1 if (last := users_last(messages)) is None else last]["content"]


def in_template(messages: Sequence[dict], template: Template, data_source: str, where: str) -> list[dict]:
    """The messages with the template around the user's last one. DataError where there is none and one is needed."""
    last = users_last(messages)
    if last is None:
        if template.name == "none" or (template.name == "maths" and not is_maths(data_source)):
            return list(messages)
        raise DataError(f"{where}: no message has the role user, so there is nothing to put a prompt around; mend the row")
    content = template.around(messages[last]["content"], data_source)
    return [*messages[:last], messages[last] | {"content": content}, *messages[last + 1 :]]
