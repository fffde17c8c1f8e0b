"""The text that is graded: without the stop token that ended it, and with every other special token in its place."""

from eval.sampling import response_text
from jaxgrpo.data import build_tokenizer
from jaxgrpo.reward import score
from jaxgrpo.rollout.scheduler import Response
from tests.data.tiny_hf import write_tiny_tokenizer


def response(tokens: list[int], finish: str) -> Response:
    return Response(0, 0, tokens=tokens, logps=[0.0] * len(tokens), finish=finish)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_only_the_trailing_stop_token_is_removed(tmp_path):
    tokenizer = write_tiny_tokenizer(tmp_path)
    end, pad, plain = tokenizer.eos_token_id, tokenizer.pad_token_id, r"so \boxed{4}"
    ids, padded = ids_of(tokenizer, plain), ids_of(tokenizer, r"so \boxed{4<|endoftext|>}")
    assert pad in padded
    assert response_text(response([*ids, end], "stop"), tokenizer) == plain
    assert response_text(response(ids, "length"), tokenizer) == plain
    assert response_text(response([*padded, end], "stop"), tokenizer) == r"so \boxed{4<|endoftext|>}"
    assert response_text(response([*ids, pad, end], "stop"), tokenizer) == plain + "<|endoftext|>"
    assert response_text(response([*ids, pad], "length"), tokenizer) == plain + "<|endoftext|>"
    assert response_text(response([end], "stop"), tokenizer) == ""


def test_an_answer_with_a_special_token_inside_is_not_paid(tmp_path):
    tokenizer = write_tiny_tokenizer(tmp_path)
    end = tokenizer.eos_token_id
    for special in (tokenizer.pad_token, "<|im_start|>", tokenizer.eos_token):
        for text in (rf"\boxed{{4{special}}}", rf"\boxed{{{special}4}}", rf"\boxed{{1{special}4}}"):
            said = response_text(response([*ids_of(tokenizer, text), end], "stop"), tokenizer)
            assert said == text
            assert [score("math__math", said, truth) for truth in ("4", "14")] == [0.0, 0.0]
    said = response_text(response([*ids_of(tokenizer, r"\boxed{4}"), end], "stop"), tokenizer)
    assert score("math__math", said, "4") == 1.0


def test_the_built_in_tasks_padding_inside_an_answer_makes_it_wrong():
    tokenizer = build_tokenizer()
    digits, end = ids_of(tokenizer, "677"), tokenizer.eos_token_id
    assert response_text(response([*digits, end], "stop"), tokenizer) == "677"
    assert response_text(response([*digits[:2], tokenizer.pad_token_id, digits[2], end], "stop"), tokenizer) == "67<pad>7"
