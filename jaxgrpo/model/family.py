"""Which line of models weights belong to: what curves are grouped by, so that a fit never averages two of them unawares.

Told by, in this order: config.json and generation_config.json, the tokenizer's names and chat template, the model card, the
model's name. What the files say is never overruled by a name. Qwen2.5, its Coder and many a fine-tune have the same files, so
that a published model needs a name too (its own or its card's), and nothing may contradict it. Everything else gets a family of
its own, which no other weights share, until the key `family` names one.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from jaxgrpo.model.source import ModelSource
from jaxgrpo.tokenizer_files import json_object

FAMILY_FILE = "family.json"  # of a converted directory: the family of what was converted
MINIATURE = "qwen2.5-miniature"
R1_DISTILL = "r1-distill"

_QWEN_VOCABULARY = range(151_643, 152_065)
_SMALLEST_VOCABULARY = 30_000  # of a published model; a test's or a toy's says nothing about whose it is
_TURN_END = 151_645  # <|im_end|>, which ends a response of Qwen's chat models; base models end with 151643
_SIZE = r"\d+(?:\.\d+)?[bm]"
_QWEN_NAME = re.compile(rf"qwen(?P<version>\d(?:\.\d)?)-(?:(?P<line>math|coder)-)?{_SIZE}(?P<tuned>-instruct|-chat)?")
_R1_NAME = re.compile(rf"deepseek-r1-distill-(?P<of>qwen|llama)-{_SIZE}")
_LLAMA_NAME = re.compile(rf"(?:meta-)?llama-(?P<version>\d(?:\.\d)?)-{_SIZE}(?P<tuned>-instruct)?")
_SMOLLM_NAME = re.compile(rf"smollm(?P<version>\d?)-{_SIZE}(?P<tuned>-instruct)?")
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")  # a folder of the Hugging Face cache
_HEADING = re.compile(r"^# +(.+?) *$", re.MULTILINE)
_CARD_NAME = re.compile(r"^(?:model_name|name): *['\"]?([^'\"\n]+)", re.MULTILINE)
_DEEPSEEK = ("<\uff5cUser\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>")  # special tokens, as such or as JSON has them
_TELLING = ("generation_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja")
_SAMPLED_BLOCKS, _BLOCK = 64, 4096


@dataclass(frozen=True)
class Family:
    """The name that runs are recorded under. `reason`: why it is one of its own; "" where the model is a known one."""

    name: str
    reason: str = ""

    @property
    def note(self) -> str:
        """One line for whoever starts a run of a family of its own; "" for others."""
        return self.reason and f"{self.name}: {self.reason}; set the key `family` to record it under another name"


@dataclass(frozen=True)
class _Files:
    """What the files beside the weights say; None where they do not."""

    qwen: bool | None  # the vocabulary is Qwen's
    chat: bool | None  # a response ends with Qwen's turn end
    math: bool | None  # rotary base of Qwen's Math models
    r1: bool  # DeepSeek's special tokens

    @property
    def words(self) -> str:
        tuned = "" if self.r1 or not self.chat else "instruct"
        parts = ("qwen" if self.qwen else "model", self.math and "math", self.r1 and R1_DISTILL, tuned)
        return "-".join(filter(None, parts))


def model_family(source: ModelSource) -> Family:
    """The family of a model. Reads small files and, where a model is not known, samples of its weights."""
    if source.random:
        return Family(MINIATURE)
    if source.path is not None and (source.path / FAMILY_FILE).exists():
        return Family(**json_object(source.path / FAMILY_FILE))
    files, names = _read_files(source), _names(source)
    known = {family for family in map(_published, names) if family}
    if len(known) == 1:
        (family,) = known
        complaint = _contradiction(family, files)
        if not complaint:
            return Family(family)
        return Family(_own(source, files), f"its name says {family}, but {complaint}")
    if known:
        return Family(_own(source, files), f"its card and its name disagree ({', '.join(sorted(known))})")
    if hub := _hub_id(source.name):
        return Family(re.sub(rf"[-_]{_SIZE}(?![a-z0-9])", "", hub.lower()))
    return Family(_own(source, files), "its files and its name do not say which model it is")


def write_family(directory: Path, family: Family) -> None:
    """Keep the family of what was converted beside the converted weights."""
    (directory / FAMILY_FILE).write_text(json.dumps({"name": family.name, "reason": family.reason}) + "\n")


def _published(name: str) -> str | None:
    """The family of a published model's name, such as Qwen2.5-Coder-7B; None for any other name, a fine-tune's for one."""
    name = name.strip().lower()
    if match := _QWEN_NAME.fullmatch(name):
        words = [f"qwen{match['version']}", match["line"], "instruct" if match["tuned"] else None if match["line"] else "base"]
        return "-".join(filter(None, words))
    if match := _R1_NAME.fullmatch(name):
        return f"{'qwen2.5' if match['of'] == 'qwen' else 'llama'}-{R1_DISTILL}"
    for line, pattern in (("llama", _LLAMA_NAME), ("smollm", _SMOLLM_NAME)):
        if match := pattern.fullmatch(name):
            return f"{line}{match['version']}-{'instruct' if match['tuned'] else 'base'}"
    return None


def _contradiction(family: str, files: _Files) -> str:
    """What in the files cannot be of a model of this family; "" if nothing."""
    of_qwen = family.startswith("qwen")
    if files.qwen is not None and files.qwen != of_qwen:
        return f"its vocabulary is {'not ' if of_qwen else ''}Qwen's"
    if files.r1 != (R1_DISTILL in family) and (files.r1 or files.qwen):
        return f"its tokenizer is {'' if files.r1 else 'not '}DeepSeek's"
    if files.r1 or not of_qwen:
        return ""
    if files.math is not None and files.math != ("-math" in family):
        return f"its rope_theta is {'' if files.math else 'not '}that of Qwen's Math models"
    if files.chat is not None and files.chat != family.endswith("-instruct"):
        return f"its responses end as those of {'chat' if files.chat else 'base'} models"
    return ""


def _read_files(source: ModelSource) -> _Files:
    text, vocab = "", source.config.vocab
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        if source.path and (source.path / file).exists():
            text += (source.path / file).read_text(encoding="utf-8", errors="replace")
    qwen = vocab in _QWEN_VOCABULARY
    return _Files(
        qwen=None if vocab < _SMALLEST_VOCABULARY else qwen,
        chat=_TURN_END in source.stop_ids if qwen and source.stop_ids else None,
        math=source.config.rope_theta == 1e4 if qwen else None,
        r1=any(token in text for spelt in _DEEPSEEK for token in (spelt, json.dumps(spelt)[1:-1])),
    )


def _names(source: ModelSource) -> list[str]:
    """What the model is called: on its card, and by the last part of its hub id or path."""
    names = []
    card = source.path / "README.md" if source.path else None
    if card and card.exists():
        text = card.read_text(encoding="utf-8", errors="replace")
        front = text.split("\n---", 1)[0] if text.startswith("---") else ""
        names += _CARD_NAME.findall(front) + _HEADING.findall(text)[:1]
    return [*names, (_hub_id(source.name) or Path(source.name).name).rpartition("/")[2]]


def _hub_id(name: str) -> str | None:
    """ORG/NAME of a model that comes from the hub, by its id or by its folder in the cache."""
    cached = _CACHED.search(name)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    name = name.partition("@")[0]
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).expanduser().is_dir() else None


def _own(source: ModelSource, files: _Files) -> str:
    """A name that only these weights have: a digest of the small files and of blocks spread over the large ones."""
    known = hashlib.sha256(json.dumps(source.hf_config, sort_keys=True).encode())
    if source.steps:  # a checkpoint, whose weights are not read yet
        known.update(source.name.encode())
    below = sorted(file for file in source.path.rglob("*") if file.is_file()) if source.path else []
    small = [file for file in below if file.name in _TELLING]
    for file in (*small, *(source.files or [file for file in below if file.parent != source.path])):
        size = file.stat().st_size
        known.update(size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            for block in range(_SAMPLED_BLOCKS):
                stream.seek(size * block // _SAMPLED_BLOCKS)
                known.update(stream.read(_BLOCK))
    return f"{files.words}-{known.hexdigest()[:8]}"
