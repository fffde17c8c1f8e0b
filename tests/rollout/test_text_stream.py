from jaxgrpo.rollout.text_stream import TextStream
from tests.data.tiny_hf import write_tiny_tokenizer

TEXT = "naïve café, πr², 你好，世界 — “quotes” and 🙂🙃 \\boxed{45}."


def test_the_pieces_make_the_text_and_no_piece_has_half_a_character(tmp_path):
    tokenizer = write_tiny_tokenizer(tmp_path)
    tokens = tokenizer(TEXT)["input_ids"] + [tokenizer.eos_token_id]
    stream = TextStream(tokenizer)
    pieces = [stream.push([token]) for token in tokens] + [stream.rest()]
    assert "".join(pieces) == TEXT
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert sum(map(bool, pieces)) > 10, "it comes in many pieces"


def test_an_answer_that_ends_within_a_character_still_has_its_rest(tmp_path):
    tokenizer = write_tiny_tokenizer(tmp_path)
    tokens = tokenizer("a 🙃")["input_ids"][:-1]
    stream = TextStream(tokenizer)
    pieces = [stream.push([token]) for token in tokens] + [stream.rest()]
    assert "".join(pieces) == tokenizer.decode(tokens)
