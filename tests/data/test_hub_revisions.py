"""Data sets and tokenizers of the hub at a pinned revision, fetched from a hub on this machine by the real clients."""

import json
import os
import subprocess
import sys

import pytest

from tests.data.tiny_hf import write_tiny_tokenizer
from tests.run.commands import ROOT

FETCH = """
import os, sys
from tests.tiny_hub import serve
hub = serve(datasets_Set=sys.argv[1], models_Words=sys.argv[2])
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_port}"
from jaxgrpo.data import load_problems, load_tokenizer
for name in ("Tiny/Set@v1.0:train.jsonl", "Tiny/Set:train.jsonl", "Tiny/Set@v9:train.jsonl"):
    try:
        print([problem.ground_truth for problem in load_problems(name)])
    except ValueError as error:
        print(error)
for name in ("Tiny/Words@v1.0", "Tiny/Words@v9"):
    try:
        print(load_tokenizer(name).encode("one two"))
    except ValueError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> tuple[list[str], str, list[int]]:
    folder = tmp_path_factory.mktemp("hub")
    (folder / "set").mkdir()
    row = {"data_source": "math__x", "prompt": "1 + 1?", "reward_model": {"ground_truth": "2"}}
    (folder / "set" / "train.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "words").mkdir()
    tokenizer = write_tiny_tokenizer(folder / "words")
    env = os.environ | {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", FETCH, str(folder / "set"), str(folder / "words")]
    done = subprocess.run(command, env=env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr, tokenizer.encode("one two")


def test_a_data_set_is_fetched_at_the_revision_that_is_named(printed):
    pinned, newest, unknown = printed[0][:3]
    assert pinned == newest == "['2']"
    assert unknown.startswith("Tiny/Set@v9:train.jsonl: there is no such local file, and the hub")


def test_a_tokenizer_is_fetched_at_the_revision_that_is_named(printed):
    pinned, unknown = printed[0][3:]
    assert pinned == str(printed[2])
    assert "the tokenizer Tiny/Words@v9 cannot be loaded" in unknown and "check the name and the network" in unknown


def test_the_clients_do_not_tell_of_every_try(printed):
    assert "Retrying" not in printed[1] and "thrown while requesting" not in printed[1]
