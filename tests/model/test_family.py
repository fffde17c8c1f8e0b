"""Under which family a model is recorded. The files are as the published ones, as far as these tell models apart."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_hf_model import tiny_config, write_json, write_tiny_model

from jaxgrpo.model.family import model_family
from jaxgrpo.model.source import resolve_model
from jaxgrpo.train.conversion import convert

SIZES = {"vocab": 151_936, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 4, "mlp": 4, "dtype": np.float16}
BASE = {"eos_token_id": 151_643, "rope_theta": 1e6, "max_position_embeddings": 32_768}
CHAT = BASE | {"eos_token_id": 151_645}
MATH = BASE | {"rope_theta": 1e4, "max_position_embeddings": 4096}
QWEN = "{%- if not messages[0]['role'] == 'system' %}You are Qwen, created by Alibaba Cloud.{%- endif %}"
R1 = "{{bos_token}}<\uff5cUser\uff5c>{{ messages[0]['content'] }}<\uff5cAssistant\uff5c>"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("weights"), **SIZES)


@pytest.fixture
def model(weights, tmp_path):
    """Writes a model: `model(path, changes of config.json, template=..., card=...)` returns the Family recorded for it."""

    def write(path, changes, *, template=QWEN, card=None, generation=None):
        directory = tmp_path / path
        directory.mkdir(parents=True)
        shutil.copyfile(weights / "model.safetensors", directory / "model.safetensors")
        write_json(directory / "config.json", json.loads((weights / "config.json").read_text()) | changes)
        write_json(directory / "generation_config.json", {"eos_token_id": generation or changes["eos_token_id"]})
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
        if card:
            (directory / "README.md").write_text(card)
        return model_family(resolve_model(str(directory)))

    return write


@pytest.mark.parametrize(
    ("path", "config", "template", "family"),
    [
        ("Qwen2.5-7B", BASE, QWEN, "qwen2.5-base"),
        ("instruct-study/Qwen2.5-7B", BASE, QWEN, "qwen2.5-base"),
        ("Qwen2.5-0.5B-Instruct", CHAT, QWEN, "qwen2.5-instruct"),
        ("Qwen2.5-Math-1.5B", MATH, QWEN, "qwen2.5-math"),
        ("Qwen2.5-Math-7B-Instruct", MATH | {"eos_token_id": 151_645}, QWEN, "qwen2.5-math-instruct"),
        ("Qwen2.5-Coder-1.5B", BASE, QWEN, "qwen2.5-coder"),
        ("Qwen2.5-Coder-1.5B-Instruct", CHAT, QWEN, "qwen2.5-coder-instruct"),
        ("DeepSeek-R1-Distill-Qwen-1.5B", MATH, R1, "qwen2.5-r1-distill"),
        ("Qwen2-7B", BASE, QWEN, "qwen2-base"),
        ("models--Qwen--Qwen2.5-7B/snapshots/d149729", BASE, QWEN, "qwen2.5-base"),
    ],
)
def test_published_models_are_recorded_apart_wherever_they_lie(model, path, config, template, family):
    found = model(path, config, template=template)
    assert (found.name, found.note) == (family, "")


def test_the_model_card_tells_what_the_path_does_not(model):
    front = "---\nlicense: apache-2.0\nbase_model: Qwen/Qwen2.5-1.5B\ntags:\n- code\n---\n\n"
    assert model("weights/first", BASE, card=front + "# Qwen2.5-Coder-1.5B\n\n## Introduction\n").name == "qwen2.5-coder"
    assert model("weights/second", BASE, card="---\nmodel_name: Qwen2.5-1.5B\n---\n# A model\n").name == "qwen2.5-base"
    both = model("Qwen2.5-Coder-1.5B", BASE, card="# Qwen2.5-1.5B\n")
    assert "disagree (qwen2.5-base, qwen2.5-coder)" in both.note and both.name not in ("qwen2.5-base", "qwen2.5-coder")


@pytest.mark.parametrize(
    ("path", "config", "template", "why"),
    [
        ("Qwen2.5-7B", CHAT, QWEN, "responses end as those of chat models"),
        ("Qwen2.5-7B-Instruct", BASE, QWEN, "responses end as those of base models"),
        ("Qwen2.5-7B", MATH, QWEN, "rope_theta is that of Qwen's Math models"),
        ("Qwen2.5-Math-7B", BASE, QWEN, "rope_theta is not that of Qwen's Math models"),
        ("Qwen2.5-7B", BASE, R1, "tokenizer is DeepSeek's"),
        ("DeepSeek-R1-Distill-Qwen-7B", MATH, QWEN, "tokenizer is not DeepSeek's"),
        ("Llama-3.2-1B", BASE, QWEN, "vocabulary is Qwen's"),
    ],
)
def test_files_are_not_overruled_by_a_name(model, path, config, template, why):
    found = model(path, config, template=template)
    assert why in found.note and "set the key `family`" in found.note and "\n" not in found.note
    assert not found.name.startswith("qwen2.5")


@pytest.mark.parametrize("path", ["my-model", "checkpoint-700", "Qwen2.5-7B-tuned", "MyCoder-7B", "Qwen2.5-7B-Instruct-AWQ"])
def test_what_cannot_be_told_is_a_family_of_its_own(model, path):
    found = model(path, CHAT)
    assert "do not say which model it is; set the key `family`" in found.note
    assert found.name.startswith("qwen-instruct-") and found.name == model(f"elsewhere/{path}", CHAT).name
    others = [model("1/" + path, BASE), model("2/" + path, MATH), model("3/" + path, CHAT, template=R1)]
    others.append(model("4/" + path, CHAT, generation=[151_645, 151_643]))
    assert len({other.name for other in (found, *others)}) == 5


def test_models_that_differ_in_one_weight_have_different_families(tmp_path):
    names = set()
    for seed in range(2):
        small = {"layers": 1, "heads": 4, "kv_heads": 2, "head_dim": 16}
        names.add(model_family(resolve_model(str(write_tiny_model(tmp_path / str(seed), seed=seed, **small)))).name)
    assert len(names) == 2


def test_a_hub_model_that_is_not_known_has_its_ids_family_at_every_size(monkeypatch, weights):
    monkeypatch.setattr("jaxgrpo.model.source._download", lambda *_: Path(weights))
    names = [
        model_family(resolve_model(name)).name for name in ("lab/Clever-1.5B-Preview", "lab/Clever-7B-Preview", "lab/Other-7B")
    ]
    assert names == ["lab/clever-preview", "lab/clever-preview", "lab/other"]


def test_random_weights_are_the_miniatures():
    assert model_family(resolve_model("random:miniature")).name == "qwen2.5-miniature"


def test_a_converted_model_has_the_family_of_what_was_converted(tmp_path):
    small = {"layers": 1, "heads": 4, "kv_heads": 2, "head_dim": 16}
    for name in ("Qwen2.5-Coder-7B", "unheard-of"):
        directory = write_tiny_model(tmp_path / name, **small)
        family = model_family(resolve_model(str(directory)))
        converted = convert(str(directory), str(tmp_path / f"{name}-converted"))
        assert model_family(resolve_model(str(converted), need_weights=False)) == family


def test_a_toys_vocabulary_contradicts_no_name(tmp_path):
    config = tiny_config(layers=1, heads=4, kv_heads=2, head_dim=16)
    assert config["vocab_size"] < 1000
    directory = write_tiny_model(tmp_path / "Qwen2.5-Math-1.5B", layers=1, heads=4, kv_heads=2, head_dim=16)
    assert model_family(resolve_model(str(directory))).name == "qwen2.5-math"
