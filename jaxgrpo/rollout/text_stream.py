"""Text of a growing sequence of tokens, piece by piece."""

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns tokens into text as they come. A byte-level token may hold a part of a character only, so that text is held back
    until its last character is whole; and it is decoded together with the tokens before it, on which a leading blank hangs."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self._tokens: list[int] = []
        self._context, self._told = 0, 0  # from where the newest text is decoded, and up to which token it was handed out

    def push(self, tokens: list[int]) -> str:
        """The text that these tokens complete; special tokens have none."""
        self._tokens += tokens
        text = self._new_text()
        if text.endswith(UNFINISHED):
            return ""
        self._context, self._told = self._told, len(self._tokens)
        return text

    def rest(self) -> str:
        """What is left at the end, however incomplete."""
        return self._new_text()

    def _new_text(self) -> str:
        return self._decode(self._tokens[self._context :])[len(self._decode(self._tokens[self._context : self._told])) :]

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
