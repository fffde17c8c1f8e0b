"""One tokenizer per run: everything that reads or writes one gives the ids of tokenizer.json, as `tokenizers` reads it."""

import json
import shutil
import subprocess
import sys

import jax.numpy as jnp
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from jaxgrpo.data import build_tokenizer, load_tokenizer
from jaxgrpo.model.hf import load_hf, save_hf
from jaxgrpo.model.source import resolve_model
from jaxgrpo.train.conversion import convert, export, write_companions
from jaxgrpo.train.inference import find, tokenizer_of
from tests.data.foreign_tokenizers import KINDS, TEXTS, write_foreign_tokenizer
from tests.data.tiny_hf import write_tiny_tokenizer
from tests.model.tiny_hf_model import write_tiny_model

SMALL = {"vocab": 512, "layers": 1, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp": 96}


def ids_of(tokenizer) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


def expected(core: Tokenizer) -> list[list[int]]:
    return [core.encode(text, add_special_tokens=False).ids for text in TEXTS]


def write_model(directory, kind, tokenizer_class=None):
    """A tiny model with a tokenizer of that kind ("qwen": one of Qwen's own); returns the Tokenizer of its tokenizer.json."""
    if kind != "qwen":
        core = write_foreign_tokenizer(directory, kind, tokenizer_class)
    else:
        write_tiny_tokenizer(directory)
        settings = json.loads((directory / "tokenizer_config.json").read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        core = Tokenizer.from_file(str(directory / "tokenizer.json"))
    write_tiny_model(directory, **SMALL)
    return core


@pytest.mark.parametrize("kind", [*KINDS, "qwen"])
def test_every_directory_on_the_way_gives_the_ids_of_tokenizer_json(tmp_path, kind):
    core = write_model(tmp_path / "model", kind)
    directories = {name: tmp_path / name for name in ("model", "saved", "converted", "exported", "run")}
    save_hf(load_hf(directories["model"], dtype=jnp.float32), directories["saved"], copy_from=directories["model"])
    convert(str(directories["model"]), str(directories["converted"]))
    export(str(directories["converted"]), str(directories["exported"]))
    write_companions(directories["run"], resolve_model(str(directories["model"])), load_tokenizer(str(directories["model"])))
    for name, directory in directories.items():
        ours = load_tokenizer(str(directory))
        assert ids_of(ours) == expected(core), name
        assert len(ours) == core.get_vocab_size(), name
        assert ours.eos_token_id == core.token_to_id(ours.eos_token), name
        assert [ours.decode(ids) for ids in expected(core)] == [core.decode(ids, False) for ids in expected(core)]
        if name != "model":  # that one is not ours: transformers 5 rebuilds it
            theirs = AutoTokenizer.from_pretrained(directory)
            assert ids_of(theirs) == expected(core), name
            assert [theirs(text)["input_ids"] for text in TEXTS] == [core.encode(text).ids for text in TEXTS], name
            assert len(theirs) == core.get_vocab_size() and theirs.eos_token_id == ours.eos_token_id
            messages = [{"role": "user", "content": "2 + 2"}]
            assert theirs.apply_chat_template(messages)["input_ids"] == ours.apply_chat_template(messages)["input_ids"]
            named = json.loads((directory / "tokenizer_config.json").read_text())["tokenizer_class"]
            assert named == ("Qwen2Tokenizer" if kind == "qwen" else "PreTrainedTokenizerFast")
    assert ids_of(tokenizer_of(find(str(directories["exported"]), []))) == expected(core)  # eval and serve


@pytest.mark.parametrize("tokenizer_class", ["Qwen2Tokenizer", "LlamaTokenizer", "GPT2TokenizerFast", "TokenizersBackend"])
def test_the_class_that_the_files_name_changes_no_id(tmp_path, tokenizer_class):
    core = write_model(tmp_path / "model", "llama3", tokenizer_class)
    save_hf(load_hf(tmp_path / "model", dtype=jnp.float32), tmp_path / "saved", copy_from=tmp_path / "model")
    assert ids_of(load_tokenizer(str(tmp_path / "model"))) == expected(core)
    assert ids_of(AutoTokenizer.from_pretrained(tmp_path / "saved")) == expected(core)
    assert ids_of(AutoTokenizer.from_pretrained(tmp_path / "saved", trust_remote_code=True)) == expected(core)


def test_a_run_with_a_tokenizer_of_its_own_choice_keeps_nothing_of_the_models(tmp_path):
    write_model(tmp_path / "model", "qwen")
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        (tmp_path / "model" / name).write_text("{}")
    core = write_foreign_tokenizer(tmp_path / "other", "gpt2")
    write_companions(tmp_path / "run", resolve_model(str(tmp_path / "model")), load_tokenizer(str(tmp_path / "other")))
    written = {file.name for file in (tmp_path / "run").iterdir()}
    assert written == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "exact_tokenizer.py",
        "chat_template.jinja",
        "checksums.json",
    }
    for tokenizer in (load_tokenizer(str(tmp_path / "run")), AutoTokenizer.from_pretrained(tmp_path / "run")):
        assert ids_of(tokenizer) == expected(core)


def test_a_special_token_that_tokenizer_json_lacks_is_left_out_and_told(tmp_path, caplog):
    core = write_model(tmp_path / "model", "gpt2")
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<nowhere>"}))
    ours = load_tokenizer(str(tmp_path / "model"))
    assert (ours.pad_token, len(ours)) == (None, core.get_vocab_size())
    assert "pad_token '<nowhere>' is not in tokenizer.json" in caplog.text
    save_hf(load_hf(tmp_path / "model", dtype=jnp.float32), tmp_path / "saved", copy_from=tmp_path / "model")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "saved")) == core.get_vocab_size()


CHECK_IN_4_57 = """
import json, sys
import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer
assert transformers.__version__.startswith("4.57."), transformers.__version__
texts, directories = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for directory in directories:
    core = Tokenizer.from_file(directory + "/tokenizer.json")
    for trust in (None, True, False):
        theirs = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust)
        for text in texts:
            assert theirs(text)["input_ids"] == core.encode(text).ids, (directory, trust, text)
            ids = core.encode(text, add_special_tokens=False).ids
            assert theirs(text, add_special_tokens=False)["input_ids"] == ids, (directory, trust, text)
        assert len(theirs) == core.get_vocab_size(), directory
        theirs.apply_chat_template([{"role": "user", "content": "2 + 2"}])
print("checked", len(directories))
"""


@pytest.mark.slow
def test_exports_load_in_transformers_4_57_with_the_same_ids(tmp_path):
    directories = []
    for kind in [*KINDS, "qwen"]:
        write_model(tmp_path / kind, kind)
        directories.append(tmp_path / f"{kind}-saved")
        save_hf(load_hf(tmp_path / kind, dtype=jnp.float32), directories[-1], copy_from=tmp_path / kind)
    directories.append(tmp_path / "built-in")
    source = resolve_model("random:miniature")
    write_companions(directories[-1], source, build_tokenizer())
    python = tmp_path / "old" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "old"], check=True)
    packages = ["transformers==4.57.*", "jinja2"]
    installed = subprocess.run([python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"transformers 4.57 cannot be installed here: {installed.stderr[-200:]}")
    names = json.dumps([str(directory) for directory in directories])
    done = subprocess.run([python, "-c", CHECK_IN_4_57, json.dumps(TEXTS), names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"checked {len(directories)}" in done.stdout
    shutil.rmtree(tmp_path / "old")
