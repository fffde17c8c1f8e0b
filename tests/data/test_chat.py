import json

import pytest

from jaxgrpo.data import DataError, load_tokenizer
from tests.data.tiny_hf import SPECIALS, write_tiny_tokenizer

MESSAGE = [{"role": "user", "content": "2 + 2 = ?"}]


def test_the_name_arithmetic_is_the_built_in_tokenizer():
    assert load_tokenizer("arithmetic").tokenize("7*8-9-0.=") == ["7", "*8", "-9", "-0", ".", "="]


@pytest.mark.parametrize("beside_a_model", [False, True])
def test_a_local_directory_loads_as_it_was_saved(tmp_path, beside_a_model):
    saved = write_tiny_tokenizer(tmp_path)
    if beside_a_model:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    loaded = load_tokenizer(str(tmp_path))
    text = "naïve πr² 你好 🙂 \\frac{12}{345}\n\n  it's <|im_end|>"
    assert loaded(text)["input_ids"] == saved.backend_tokenizer.encode(text).ids
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.convert_tokens_to_ids(list(SPECIALS)) == [len(saved) - 3, len(saved) - 2, len(saved) - 1]
    assert len(loaded) == len(saved)
    rendered = loaded.apply_chat_template(MESSAGE, add_generation_prompt=True, tokenize=False)
    assert rendered == saved.apply_chat_template(MESSAGE, add_generation_prompt=True, tokenize=False)


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path):
    write_tiny_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match=f"{tmp_path} has no chat template; add chat_template.jinja"):
        load_tokenizer(str(tmp_path))


def test_a_directory_without_vocabulary_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(DataError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path))


def test_a_truncated_tokenizer_file_is_refused(tmp_path):
    write_tiny_tokenizer(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be loaded .* fetch its files again"):
        load_tokenizer(str(tmp_path))


def test_a_missing_directory_is_not_sought_on_the_hub():
    with pytest.raises(DataError, match="there is no directory ./models/mine"):
        load_tokenizer("./models/mine")
