r"""The paper's prompts: an introduction, the question, and the request for a \boxed answer, in one user message."""

INTRODUCTION = "You are a knowledgeable math assistant. Answer the following questions and think step by step. "
BOXED = r" Please output the final answer within \boxed{}."


def maths_prompt(question: str) -> str:
    r"""The paper's training prompt for a question; one that has its introduction or asks for a \boxed already keeps its own."""
    question = question if r"\boxed{" in question else question + BOXED
    return question if question.startswith(INTRODUCTION) else INTRODUCTION + question


def question_of(prompt: str) -> str:
    """The question in a prompt: what `maths_prompt` was given, as far as that can be told from the text."""
    return prompt.removeprefix(INTRODUCTION).removesuffix(BOXED).strip()
