"""The files beside the weights, copied so that every reader gets the ids of tokenizer.json.

transformers 5 rebuilds the tokenizer of a directory whose model_type is qwen2 by Qwen's own rules from the vocabulary, whatever
tokenizer.json says and whatever class tokenizer_config.json names; transformers 4.57 does not know `TokenizersBackend`, the
class that 5 writes, and changes other tokenizers by the rules of their class. A tokenizer that Qwen's rules are made for is
copied as it is. Any other one gets a tokenizer_config.json with which 4.57 and 5 both take tokenizer.json as it is: the class
PreTrainedTokenizerFast, and for 5 an `auto_map` to a class of that kind in the directory itself, which makes it leave its own
rules aside, with and without trust_remote_code.
"""

import json
import shutil
from pathlib import Path

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
TOKENIZER_PATTERNS = (
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")

_EXACT_MODULE = "exact_tokenizer"
_EXACT_CLASS = '''"""The tokenizer of tokenizer.json as it is; see auto_map in tokenizer_config.json."""

from transformers import PreTrainedTokenizerFast


class ExactTokenizer(PreTrainedTokenizerFast):
    pass
'''
_REBUILDING = (  # settings by which transformers changes what tokenizer.json says
    "added_tokens_decoder",
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "additional_special_tokens",
    "backend",
    "extra_special_tokens",
    "from_slow",
    "is_local",
    "legacy",
    "local_files_only",
    "split_special_tokens",
    "tokenizer_file",
    "use_fast",
)
_QWEN_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def copy_companions(source: Path, target: Path, *, tokenizer: bool = True) -> None:
    """Copy generation_config.json of a model directory and, unless told not to, its tokenizer, so that all read its ids."""
    _copy(source, target, ("generation_config.json",))
    if not tokenizer:
        return
    core = json_object(source / "tokenizer.json")
    settings = json_object(source / "tokenizer_config.json")
    if "model" not in core or _is_qwen(core, settings):
        _copy(source, target, TOKENIZER_PATTERNS)
        return
    _copy(source, target, ("tokenizer.json", "chat_template.jinja"))
    write_settings(target, core, {**json_object(source / "special_tokens_map.json"), **settings})


def write_settings(directory: Path, core: dict, settings: dict) -> None:
    """The tokenizer_config.json with which every transformers reads the tokenizer.json `core` beside it as it is."""
    kept = {key: value for key, value in settings.items() if key not in _REBUILDING}
    known = core["model"].get("vocab") or {}  # of a Unigram model a list of [token, score]
    names = {name if isinstance(name, str) else name[0] for name in known} | {content for _, content in _added(core)}
    for key in NAMED_TOKENS:
        if key in kept and token_text(kept[key]) not in names:
            del kept[key]  # transformers would add it, with an id of its own
    splitter = core.get("pre_tokenizer") or {}
    if "add_prefix_space" in splitter:
        kept["add_prefix_space"] = splitter["add_prefix_space"]  # 4.57 sets the splitter to what stands here
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    kept["auto_map"] = {"AutoTokenizer": [None, f"{_EXACT_MODULE}.ExactTokenizer"]}
    (directory / "tokenizer_config.json").write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (directory / f"{_EXACT_MODULE}.py").write_text(_EXACT_CLASS, encoding="utf-8")


def token_text(token) -> str | None:
    """The text of a special token as tokenizer_config.json holds it: a string, an object with `content`, or null."""
    return token.get("content") if isinstance(token, dict) else token


def _is_qwen(core: dict, settings: dict) -> bool:
    """Whether Qwen2's tokenizer class of transformers 5 gives this tokenizer.json's ids, and 4.57 knows the class."""
    splitter, model = core.get("pre_tokenizer") or {}, core["model"]
    parts = splitter.get("pretokenizers") or [{}]
    ending = core.get("post_processor") or {"type": "ByteLevel"}
    added = _added(core)
    listed = [(int(number), token["content"]) for number, token in settings.get("added_tokens_decoder", {}).items()]
    named = [token_text(settings.get(key)) for key in NAMED_TOKENS]
    contents = {content for _, content in added}
    return (
        settings.get("tokenizer_class") in (None, "Qwen2Tokenizer", "Qwen2TokenizerFast")
        and "auto_map" not in settings
        and not any(settings.get(key) for key in ("add_bos_token", "add_eos_token", "add_prefix_space", "split_special_tokens"))
        and (core.get("normalizer") or {}).get("type") == "NFC"
        and [part.get("type") for part in parts] == ["Split", "ByteLevel"]
        and (parts[0]["pattern"], parts[0]["behavior"], parts[0]["invert"]) == ({"Regex": _QWEN_SPLIT}, "Isolated", False)
        and not parts[1]["add_prefix_space"]
        and not parts[1]["use_regex"]
        and ending["type"] in ("ByteLevel", "TemplateProcessing")
        and not ending.get("special_tokens")
        and (core.get("decoder") or {}).get("type") == "ByteLevel"
        and model.get("type") == "BPE"
        and not any(value for key, value in model.items() if key not in ("type", "vocab", "merges"))
        and "<|endoftext|>" in contents  # the class adds it where it is missing
        and contents.issuperset(token for token in named if token)
        and (not listed or sorted(listed) == sorted(added))
        and [number for number, _ in added] == list(range(len(model["vocab"]), len(model["vocab"]) + len(added)))
    )


def _added(core: dict) -> list[tuple[int, str]]:
    return [(token["id"], token["content"]) for token in core.get("added_tokens") or []]


def _copy(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            shutil.copyfile(file, target / file.name)


def json_object(file: Path) -> dict:
    """The object of a JSON file; an empty one where there is none, which whoever needs the file then tells."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
