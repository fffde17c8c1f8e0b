"""Small tokenizers of other kinds than Qwen's, written by the `tokenizers` package alone."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = (
    "Hello world, it's 12345 and 2,023!\n\n  x = 12,345.67  \\boxed{42}",
    "don't  na\u0131ve cafe\u0301 \u4f60\u597d <|im_end|>foo 100000   \n",
    " leading blank and the 'S 's trailing ",
    "I'LL  say\tit\r\n\r\n1234567",
)
KINDS = ("llama3", "gpt2", "gpt2_prefixed", "no_normalizer", "lower", "unigram", "words", "bos")


def write_foreign_tokenizer(directory: Path, kind: str, tokenizer_class: str | None = None) -> Tokenizer:
    """tokenizer.json and tokenizer_config.json of a kind of KINDS; returns the Tokenizer that the file holds."""
    directory.mkdir(parents=True, exist_ok=True)
    core, eos = _WRITERS[kind]()
    core.save(str(directory / "tokenizer.json"))
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    settings = {"eos_token": eos, "pad_token": eos, "chat_template": template, "tokenizer_class": tokenizer_class}
    (directory / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if v}))
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def _byte_level(split: str | None, *, normalizer=None, prefix=False, **model) -> tuple[Tokenizer, str]:
    core = Tokenizer(models.BPE(**model))
    if normalizer is not None:
        core.normalizer = normalizer
    plain = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=split is None)
    core.pre_tokenizer = plain
    if split:
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), plain])
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator([*TEXTS] * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    core.add_special_tokens([AddedToken(name, normalized=False) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    return core, "<|im_end|>"


def _with_bos() -> tuple[Tokenizer, str]:
    core, eos = _byte_level(QWEN_SPLIT, normalizer=normalizers.NFC())
    first = core.token_to_id("<|im_start|>")
    core.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", first)])
    return core, eos


def _unigram() -> tuple[Tokenizer, str]:
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    specials = ["<unk>", "<eos>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=specials, unk_token="<unk>", show_progress=False)
    core.train_from_iterator([*TEXTS] * 3, trainer)
    return core, "<eos>"


def _words() -> tuple[Tokenizer, str]:
    words = sorted({word for text in TEXTS for word in text.split()})
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", "<eos>", *words])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(["<eos>"])
    return core, "<eos>"


QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WRITERS = {
    "llama3": lambda: _byte_level(QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|"), ignore_merges=True),
    "gpt2": lambda: _byte_level(None),
    "gpt2_prefixed": lambda: _byte_level(None, prefix=True),
    "no_normalizer": lambda: _byte_level(QWEN_SPLIT),  # as the R1 distillations of Qwen have it
    "lower": lambda: _byte_level(QWEN_SPLIT, normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])),
    "unigram": _unigram,
    "words": _words,
    "bos": _with_bos,
}
